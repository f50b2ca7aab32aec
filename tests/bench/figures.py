"""What a measurement gives: numbers beside a peer's and beside a target.

Rule: pure; nothing is rounded before it is shown.
"""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: samples of logknock and of knockd (or of what stands in its place), and what was aimed at.

    `of`, where it is not 0, is what a count is out of. `target` is the aim in words; `met` is None where there is none.
    """

    section: str
    name: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    target: str = ""
    met: bool | None = None
    of: int = 0

    @property
    def ratio(self) -> float | None:
        """How many times more the peer's median is, where both are quantities of the same unit."""
        if not self.theirs or self.unit in ("", "%") or not median(self.ours):
            return None
        return median(self.theirs) / median(self.ours)

    def shown(self, samples: tuple[float, ...]) -> str:
        """The median, with the least and the most where there are several; "n of m" for a count."""
        if not samples:
            return ""
        middle = median(samples)
        if self.of:
            return f"{middle:,.0f} of {self.of:,}"
        text = f"{_number(middle)} {self.unit}".rstrip()
        if len(samples) > 1:
            text += f" ({_number(min(samples))}-{_number(max(samples))})"
        return text

    @property
    def verdict(self) -> str:
        """In words."""
        return "" if self.met is None else "met" if self.met else "falls short"


def percentile(samples: list[float], share: float) -> float:
    """The sample that this share of all samples does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
