"""Fixtures for the whole program."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..netns import Host
from .pages import Page
from .world import SSH, World


@pytest.fixture
def world(hosts: tuple[Host, Host], tmp_path: Path) -> World:
    """Both hosts, and the ssh door configured; nothing is loaded or started yet."""
    made = World(*hosts, tmp_path / "logknock.toml")
    made.configure(SSH)
    return made


@pytest.fixture(scope="module", autouse=True)
def every_block_is_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a page that a module follows, after all of its tests: no command was left out."""
    failed = request.session.testsfailed
    yield
    config = request.config
    all_of_them = not (config.getoption("keyword") or any("::" in word for word in config.args))
    if all_of_them and request.session.testsfailed == failed:
        pages = [page for page in vars(request.module).values() if isinstance(page, Page) and page.followed]
        assert [place for page in pages for place in page.not_run()] == []
