"""Fixtures that several test files share."""

import os
from collections.abc import Iterator

import pytest

from .netns import Host, pair


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say at once what would otherwise be a failure per test."""
    if os.geteuid():
        pytest.exit("the tests make network namespaces: run them as root (make test uses sudo)", returncode=2)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """A gateway and a client of this test's own."""
    with pair() as both:
        yield both
