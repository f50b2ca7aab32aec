"""Configuration files as an administrator would leave them, and what load() says of those that are wrong."""

from pathlib import Path

import pytest

from logknock.config import ConfigError, load

STEPS = '["7000/tcp", "9000/udp", "8000/tcp"]'
DOOR = f'[doors.ssh]\nsequence = {STEPS}\nopens = ["22/tcp"]\n'

# Claim: (what is written, what is wrong with it, the hint).
Claims = dict[str, tuple[str, str, str]]


def write(folder: Path, text: str | bytes, name: str = "logknock.toml") -> Path:
    """A file as an administrator would leave it, in a folder that is made where it is not there."""
    path = folder / name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path


def errors(path: Path) -> tuple[list[str], list[str]]:
    """Each problem as `FILE:LINE: KEY: MESSAGE`, FILE from the folder on, and their hints."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = caught.value.problems
    return [str(problem).removeprefix(f"{path.parent}/") for problem in found], [problem.hint for problem in found]
