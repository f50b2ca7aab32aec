"""A minute of what `make soak` does for an hour: nothing that happens to a daemon keeps an honest knocker out."""

from pathlib import Path

from ..soak.story import soak

SECONDS = 75.0
SEED = 5


def test_t33_t34_t36_what_happens_to_a_daemon_keeps_nobody_out_and_no_door_open(tmp_path: Path) -> None:
    """T28, T33, T34, T36: noise, scans, reloads, sets flushed, tables deleted, rules applied, journald restarted."""
    told = soak(tmp_path, SECONDS, SEED, lambda _: None)
    assert told.failures == []
    for site in told.sites:
        assert site.counted["opened"] == site.counted["knocks"] == site.counted["shut"] > 20
        assert site.counted["lost"] == 0
        assert min(site.counted[what] for what in ("reloads", "set", "table", "answers")) > 0
