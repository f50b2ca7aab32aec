"""What is said of an address where no packet is: the rest is in e2e/test_explain.py, beside a running daemon."""

import time
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from logknock.config import load
from logknock.explain import Question, explain
from logknock.knock import Grant, Matcher
from logknock.trail import Memory

from .config_files import DOOR, write

SRC = ip_address("198.51.100.7").packed


def test_what_closes_at_this_moment_is_open_for_no_time(tmp_path: Path) -> None:
    """The kernel closes it some milliseconds after the daemon's own time for it, which nobody can wait for."""
    open_until = Grant("ssh", SRC, time.monotonic() - 0.2)
    sets = SimpleNamespace(unheard=lambda src: (False, False), refused=lambda src: "", granted=lambda src: [open_until])
    known = SimpleNamespace(
        config=load(write(tmp_path, DOOR)),
        matcher=Matcher(()),
        memory=Memory(),
        intake=SimpleNamespace(strangers=lambda src: (), tallies=()),
        sets=sets,
        bans=SimpleNamespace(find=lambda src, now: None),
        steps=SimpleNamespace(diagnose=lambda packets, wall: ()),
        trouble="",
        longest=15.0,
    )
    first, *_ = explain(Question(SRC, 0.0), cast(Any, known))
    assert first is not None
    assert first["standing"]["open"] == [{"door": "ssh", "left": 0.0}]
    assert str(first["standing"]["open"][0]["left"]) == "0.0", "and no -0"
