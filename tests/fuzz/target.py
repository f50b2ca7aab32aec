"""What the fuzzer (atheris, over libFuzzer) calls with its bytes; `python -m tests.fuzz` starts it.

Any bytes are a Packet or None. A packet's fields are what they can be, and what stands in its line in their places.
"""

import ipaddress
import math
import random
import sys

import atheris

with atheris.instrument_imports(include=["logknock"]):
    from logknock.packet import TCP, UDP, Packet, address_text
    from logknock.records import Grammar, Wanted
    from logknock.stamps import Dates

from tests.corpus_files import END, files, in_their_places, read
from tests.test_records import TOKENS

EVERYTHING = Grammar(Wanted(("logknock", ""), frozenset({"in", "out", "forward"})))
ONE = Grammar(Wanted())

# A regular expression is one step to the fuzzer, whatever it matches: it would keep one of these and forget the others.
LINES = sorted({block.line for path in files() for block in read(path)})


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """A line after an accident: libFuzzer's own, or bytes lost, doubled, put in, moved in from another line."""
    chance = random.Random(seed)  # noqa: S311
    if chance.random() < 0.3:
        changed: bytes = atheris.Mutate(data, longest)
        return changed
    line = chance.choice(LINES) if chance.random() < 0.5 else data
    for _ in range(chance.randint(1, 3)):
        begin, end = sorted((chance.randint(0, len(line)), chance.randint(0, len(line))))
        other, token = chance.choice(LINES), chance.choice(TOKENS)
        at = chance.randint(0, len(other))
        line = chance.choice(
            (
                line[:begin] + line[end:],
                line[:end] + line[begin:],
                line[:begin] + token + line[begin:],
                line[:begin] + chance.randbytes(1) + line[begin + 1 :],
                line[:begin] + other[at : at + 40] + line[end:],
                line[:begin] + other[at:],
            )
        )
    return line[:longest]


def check(line: bytes, packet: Packet | None) -> None:
    """AssertionError where a packet is not one, or is not what its line says."""
    if packet is None:
        return
    assert type(packet) is Packet
    assert 0 <= packet.time < math.inf
    assert len(packet.src) == len(packet.dst) in (4, 16)
    assert packet.proto in (TCP, UDP)
    assert 0 <= packet.sport <= 65535 >= packet.dport >= 0
    assert 0 <= packet.flags <= (255 if packet.proto == TCP else 0)
    if line.startswith(b"{"):
        return
    places = in_their_places(line)
    assert places is not None
    for told, text in ((packet.src, places[0]), (packet.dst, places[1])):
        address = ipaddress.ip_address(text)
        assert address_text(told) == str(getattr(address, "ipv4_mapped", None) or address)
    assert (str(packet.sport), str(packet.dport)) == places[2:]


def one(data: bytes) -> None:
    """One input: as a line that is being written, as one of an old log, as a kernel's message."""
    for grammar in (EVERYTHING, ONE):
        check(data, grammar.from_line(data, Dates(END, live=True)))
        check(data, grammar.from_line(data, Dates(END, live=False)))
        check(data, grammar.from_kernel(data, END))


if __name__ == "__main__":
    atheris.enabled_hooks.add("RegEx")
    atheris.Setup(sys.argv, one, custom_mutator=mutate)
    atheris.Fuzz()
