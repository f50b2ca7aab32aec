"""A copy of the repository as a fresh clone has it, to build packages in: what the build leaves there is nobody's."""

import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def copy_checkout(place: Path) -> Path:
    """Put what belongs to the repository, committed or not, at the place."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if listed.returncode:  # an unpacked sdist
        shutil.copytree(PROJECT, place, ignore=shutil.ignore_patterns(".venv", ".git", "dist", "build", "__pycache__"))
        return place
    for name in set(listed.stdout.splitlines()):
        if (PROJECT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, place / name)
    return place
