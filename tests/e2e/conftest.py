"""Fixtures for the whole program."""

from pathlib import Path

import pytest

from ..netns import Host
from .world import SSH, World


@pytest.fixture
def world(hosts: tuple[Host, Host], tmp_path: Path) -> World:
    """Both hosts, and the ssh door configured; nothing is loaded or started yet."""
    made = World(*hosts, tmp_path / "logknock.toml")
    made.configure(SSH)
    return made
