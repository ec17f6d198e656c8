"""What a claim is: a statement, an experiment beside its control, and a rule that judges the figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Word = Literal["holds", "holds when", "refuted"]

#: an error below this is taken for the rounding of float64
ROUNDING = 1e-9
#: a number below this is shown as 0: the digits of a rounding error differ between machines
_SHOWN = 1e-6
#: every sampled experiment is repeated with these seeds
SEEDS = range(5)
#: Student's t for 95 % and ``len(SEEDS) - 1`` degrees of freedom
_T95 = 2.776


class Figure(NamedTuple):
    """A measured number, with a 95 % interval of its mean over seeds where there was sampling."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


Figures = Mapping[str, Figure]
Judgement = tuple[Word, str]


@dataclass(frozen=True)
class Verdict:
    """What the figures say about a claim.

    Attributes:
        word: ``holds``, ``holds when`` (a condition that ``reason`` names), or ``refuted``.
        reason: one or two sentences with the numbers that decide.
        figures: name -> Figure.
    """

    word: Word
    reason: str
    figures: Figures


@dataclass(frozen=True)
class Claim:
    """A statement of the field and how it is tried.

    Attributes:
        id: short name, for the command line.
        statement: what is claimed, in the words of its source (translated).
        source: who says so, and where.
        experiment: what is measured.
        control: what stands beside it, so that the figure means something.
        measure: runs the experiment; deterministic.
        judge: the verdict that figures lead to; a pure function, so that other figures lead to another.
    """

    id: str
    statement: str
    source: str
    experiment: str
    control: str
    measure: Callable[[], dict[str, Figure]]
    judge: Callable[[Figures], Judgement]

    def verdict(self) -> Verdict:
        """Run the experiment and judge it."""
        figures = self.measure()
        word, reason = self.judge(figures)
        return Verdict(word, reason, figures)

    def to_dict(self, verdict: Verdict) -> dict[str, Any]:
        """The claim and its verdict, JSON-able."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "experiment": self.experiment,
            "control": self.control,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "figures": {
                name: {"value": f.value}
                if f.low is None
                else {"value": f.value, "low": f.low, "high": f.high}
                for name, f in verdict.figures.items()
            },
        }


def number(value: float) -> str:
    """Three significant digits, and 0 for what is below a millionth.

    Example:
        >>> number(0.123456), number(1234.6), number(3e-17), number(1.5e-5)
        ('0.123', '1230', '0', '1.50e-05')
    """
    if abs(value) < _SHOWN:
        return "0"
    short = f"{value:.2e}"
    exponent = int(short.partition("e")[2])
    if not -3 <= exponent < 6:
        return short
    return f"{float(short):.{max(2 - exponent, 0)}f}"


def over_seeds(values: Sequence[float]) -> Figure:
    """The mean over ``SEEDS`` and the 95 % interval of that mean, by Student's t."""
    n = len(values)
    if n != len(SEEDS):
        raise ValueError(f"{n} values, expected one for each of the {len(SEEDS)} seeds")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _T95 * deviation / math.sqrt(n)
    return Figure(mean, mean - half, mean + half)
