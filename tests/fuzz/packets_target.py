"""What the fuzzer calls with its bytes for SPA packets; `python -m tests.fuzz` starts it, `wire` or `plaintext`."""

import random
import sys

import atheris

with atheris.instrument_imports(include=["logknock"]):
    from tests.fuzz.packets import TARGETS

CHECK, ALTER, _ = TARGETS[sys.argv.pop(1)]


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """What is after an accident, or libFuzzer's own."""
    if random.Random(seed).random() < 0.3:  # noqa: S311
        changed: bytes = atheris.Mutate(data, longest)
        return changed
    return ALTER(data, seed, longest)[:longest]


def one(data: bytes) -> None:
    """One input."""
    CHECK(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one, custom_mutator=mutate)
    atheris.Fuzz()
