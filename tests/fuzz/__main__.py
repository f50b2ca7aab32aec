"""`python -m tests.fuzz [SECONDS]`: fuzz the parser, from the corpus on; exit 1 and the line, if one is found."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.corpus_files import Block, files, read, write
from tests.test_records import TOKENS

SECONDS = 60
# The longest record that counts is 8,192 bytes, but what the parser does with it, it does with far less.
LONGEST = 2048
# An input that takes a second has found something as well.
SLOWEST = 1


def main(seconds: int) -> int:
    """0: nothing was found."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "seeds").mkdir()
        for number, line in enumerate({block.line for path in files() for block in read(path)}):
            (place / "seeds" / str(number)).write_bytes(line[:LONGEST])
        words = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS)
        (place / "words").write_text("".join(f'"{word}"\n' for word in words))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.target", str(place / "seeds")),
                *(f"-dict={place / 'words'}", f"-artifact_prefix={place}/found-", f"-max_total_time={seconds}"),
                *(f"-max_len={LONGEST}", f"-timeout={SLOWEST}", "-print_final_stats=1"),
            ],
            env=os.environ | {"TZ": "UTC"},
            check=False,
        )
        found = sorted(place.glob("found-*"))
        write(place / "found.txt", "What was found, for the corpus:", [_block(path) for path in found])
        if found:
            sys.stdout.write((place / "found.txt").read_text())
    return 1 if found or done.returncode else 0


def _block(path: Path) -> Block:
    return Block(title=path.name, line=path.read_bytes(), packet="none")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else SECONDS))
