"""`python -m tests.fuzz [SECONDS]`: fuzz each parser so long, from real input on; exit 1 and what was found, if it was.

The log's parser from the corpus on, SPA packets and what stands inside them from those of the stock client.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.corpus_files import Block, files, read, write
from tests.fuzz import packets
from tests.test_records import TOKENS

SECONDS = 60
# An input that takes a second has found something as well.
SLOWEST = 1


class Target(NamedTuple):
    """What is fuzzed: the program that does it, real input, what input is made of, and the longest that counts."""

    argv: tuple[str, ...]
    seeds: Iterable[bytes]
    tokens: Iterable[bytes]
    longest: int


TARGETS = {
    # The longest record that counts is 8,192 bytes, but what the parser does with it, it does with far less.
    "lines": Target(
        ("tests.fuzz.target",), sorted({block.line for path in files() for block in read(path)}), TOKENS, 2048
    ),
    **{
        name: Target(("tests.fuzz.packets_target", name), seeds, packets.TOKENS, 1600)
        for name, (_, _, seeds) in packets.TARGETS.items()
    },
}


def main(seconds: int) -> int:
    """0: nothing was found."""
    return max(_fuzz(name, target, seconds) for name, target in TARGETS.items())


def _fuzz(name: str, target: Target, seconds: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "seeds").mkdir()
        for number, seed in enumerate(target.seeds):
            (place / "seeds" / str(number)).write_bytes(seed[: target.longest])
        words = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
        (place / "words").write_text("".join(f'"{word}"\n' for word in words))
        done = subprocess.run(
            [
                *(sys.executable, "-m", *target.argv, str(place / "seeds")),
                *(f"-dict={place / 'words'}", f"-artifact_prefix={place}/found-", f"-max_total_time={seconds}"),
                *(f"-max_len={target.longest}", f"-timeout={SLOWEST}", "-print_final_stats=1"),
            ],
            env=os.environ | {"TZ": "UTC"},
            check=False,
        )
        found = sorted(place.glob("found-*"))
        if found:
            sys.stdout.write(_told(name, found, place))
    return 1 if found or done.returncode else 0


def _told(name: str, found: list[Path], place: Path) -> str:
    """What was found, to go on with: lines as the corpus has them, packets as Python does."""
    if name == "lines":
        blocks = [Block(title=path.name, line=path.read_bytes(), packet="none") for path in found]
        write(place / "found.txt", "What was found, for the corpus:", blocks)
        return (place / "found.txt").read_text()
    return "".join(f"{name}: {path.read_bytes()!r}\n" for path in found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else SECONDS))
