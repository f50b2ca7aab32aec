r"""The corpus of log lines: files of blocks, each of them a title, a line, and the packet that the line tells of.

    # a remark
    title: a TCP SYN, from Linux 6.18 by way of rsyslog
    line: Nov 21 10:00:00 host kernel: [ 2247.519434] logknock: IN=eth0 OUT= MAC=…
    packet: 198.51.100.7 > 10.99.0.1 7000/tcp from 57628 flags S at 1795255200

One block follows another behind an empty line. `line` is taken as it stands, blanks at its end included; `bytes` stands
in for it where a line holds what a text file does not, with Python's escapes (`\x00`, `\t`, `\\`). `packet` is `none`
where the line must not become one. The flags are F S R P A U E C, in the order of their bits, or `-` for none of them.

What else a block may say, each in a line of its own before `packet`: `prefix` (instead of logknock; several times for
several; empty: none) and `direction` (instead of in; several times too) as the configuration has them, `zone` (the
host's time zone, instead of UTC), `reference` (seconds since the epoch: the end of the log, instead of END) and `now`
(seconds: the log is read while it is written, and that is the time).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from logknock.packet import PROTOCOL_NAMES, TCP, Packet, address_text
from logknock.records import Grammar, Wanted
from logknock.stamps import Dates

FOLDER = Path(__file__).parent / "corpus"

# 2026-11-21 12:00:00 UTC: where the logs of the corpus end.
END = 1_795_262_400.0

FLAG_LETTERS = "FSRPAUEC"


class Block(NamedTuple):
    """One line and what it says; `now` is None for a log that is read afterwards, `reference` where it ends."""

    title: str
    line: bytes
    packet: str
    prefixes: tuple[str, ...] = ("logknock",)
    directions: frozenset[str] = frozenset({"in"})
    zone: str = "UTC"
    reference: float = END
    now: float | None = None

    def parse(self) -> str:
        """What the parser makes of the line, in the words of the corpus; the process's zone must be the block's."""
        dates = Dates(self.reference if self.now is None else self.now, live=self.now is not None)
        return packet_words(Grammar(Wanted(self.prefixes, self.directions)).from_line(self.line, dates))


def packet_words(packet: Packet | None) -> str:
    """A packet as the corpus writes it."""
    if packet is None:
        return "none"
    flags = "".join(letter for bit, letter in enumerate(FLAG_LETTERS) if packet.flags & 1 << bit) or "-"
    return (
        f"{address_text(packet.src)} > {address_text(packet.dst)} {packet.dport}/{PROTOCOL_NAMES[packet.proto]}"
        f" from {packet.sport}{f' flags {flags}' if packet.proto == TCP else ''} at {packet.time!r}".removesuffix(".0")
    )


# What may stand before a record with nothing in between: the kernel's time, the tag, the prefix.
_BEFORE = re.compile(rb"\A(?:\[?\d+\.\d+\])?(?:kernel:)?(?:logknock)?:*")


def in_their_places(line: bytes) -> tuple[str, str, str, str] | None:
    """The fields of the kernel's or ulogd2's line, word by word: what the parser has read if it has read anything."""
    words = line.replace(b"\t", b" ").split(b" ")
    bare = [_BEFORE.sub(b"", word, count=1) for word in words]
    start = next((at for at, word in enumerate(bare) if word.startswith(b"IN=")), None)
    if start is None:
        return None
    fields = iter(words[start + 1 :])
    found: dict[bytes, str] = {}
    for key in (b"OUT", b"SRC", b"DST", b"PROTO", b"SPT", b"DPT"):
        for word in fields:
            if word.startswith(key + b"="):
                found[key] = word[len(key) + 1 :].decode("latin-1")
                break
            if word.startswith((b"SRC=", b"DST=", b"PROTO=", b"SPT=", b"DPT=")) or b"[SRC=" in word:
                return None
    if len(found) < 6:
        return None
    return found[b"SRC"], found[b"DST"], found[b"SPT"], found[b"DPT"]


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"))


def read(path: Path) -> list[Block]:
    """The blocks of a file; AssertionError says which line of it is wrong."""
    found: list[Block] = []
    fields: list[tuple[str, bytes]] = []
    for number, line in enumerate([*path.read_bytes().split(b"\n"), b""], 1):
        if line and not line.startswith(b"#"):
            key, colon, value = line.partition(b": ")
            assert colon or line.endswith(b":"), f"{path.name}:{number}: neither a field nor a remark"
            fields.append((key.removesuffix(b":").decode(), value))
        elif fields and not line:
            found.append(_block(fields, f"{path.name}:{number}"))
            fields = []
    titles = [block.title for block in found]
    assert len(set(titles)) == len(titles), f"{path.name}: {max(titles, key=titles.count)!r} is there twice"
    return found


def write(path: Path, remark: str, blocks: Iterable[Block]) -> None:
    """A file of blocks that `read` reads back."""
    head = "".join(f"# {line}\n" for line in remark.splitlines())
    path.write_bytes(head.encode() + b"".join(b"\n" + _text(block) for block in blocks))


def _block(fields: list[tuple[str, bytes]], where: str) -> Block:
    last = dict(fields)
    unknown = last.keys() - {"title", "line", "bytes", "packet", "prefix", "direction", "zone", "reference", "now"}
    assert not unknown, f"{where}: unknown: {unknown}"
    assert ("line" in last) != ("bytes" in last), f"{where}: a block has a line or bytes"
    assert {"title", "packet"} <= last.keys(), f"{where}: a block has a title and a packet"
    prefixes = tuple(value.decode() for key, value in fields if key == "prefix")
    directions = frozenset(value.decode() for key, value in fields if key == "direction")
    return Block(
        title=last["title"].decode(),
        line=last["line"] if "line" in last else last["bytes"].decode("unicode_escape").encode("latin-1"),
        packet=last["packet"].decode(),
        prefixes=prefixes or ("logknock",),
        directions=directions or frozenset({"in"}),
        zone=last.get("zone", b"UTC").decode(),
        reference=float(last.get("reference", END)),
        now=float(last["now"]) if "now" in last else None,
    )


def _text(block: Block) -> bytes:
    plain = block.line.isascii() and block.line.decode("ascii").isprintable()
    lines = [
        b"title: " + block.title.encode(),
        b"line: " + block.line if plain else b"bytes: " + block.line.decode("latin-1").encode("unicode_escape"),
    ]
    if block.prefixes != ("logknock",):
        lines += [b"prefix: " + prefix.encode() for prefix in block.prefixes]
    if block.directions != frozenset({"in"}):
        lines += [b"direction: " + direction.encode() for direction in sorted(block.directions)]
    if block.zone != "UTC":
        lines.append(b"zone: " + block.zone.encode())
    if block.reference != END:
        lines.append(b"reference: %r" % block.reference)
    if block.now is not None:
        lines.append(b"now: %r" % block.now)
    return b"\n".join([*lines, b"packet: " + block.packet.encode()]) + b"\n"
