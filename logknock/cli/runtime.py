"""Where the daemon is asked. A file of its own: what only knocks (cli/client.py) loads no configuration."""

import tomllib
from contextlib import suppress
from pathlib import Path

from ..config import ConfigError, load
from . import DEFAULT_CONFIG

_DEFAULT_RUNTIME = Path("/run/logknock")


def runtime_of(config_path: Path) -> Path:
    """Where the daemon's socket is, even where the configuration is wrong now, or may not be read: it still runs.

    Raises ConfigError where that cannot be known.
    """
    try:
        return load(config_path).runtime
    except ConfigError:
        found = _DEFAULT_RUNTIME if config_path == DEFAULT_CONFIG else None
        files = [config_path]
        with suppress(OSError):  # a directory that this user may not look into
            files += sorted((config_path.parent / "conf.d").glob("*.toml"))
        for file in files:
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = Path(tomllib.loads(file.read_text("utf-8"))["paths"]["runtime"])
        if found is None:
            raise
        return found
