"""What a claim is: a statement, an experiment with its control, and a rule that judges the figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from klent.kit.statistics import ratio_of_means
from klent.kit.student import t_bound
from klent.kit.threads import one_thread

Word = Literal["holds", "holds when", "refuted"]
Subject = Literal["kl", "preference", "qsft", "entropy", "forgetting", "unlabeled", "mixture"]

#: an error below this is the rounding of float64
ROUNDING = 1e-9
#: a number below this is shown as 0: the digits of a rounding error differ between machines
_SHOWN = 1e-6
#: every sampled experiment is repeated with these seeds
SEEDS = range(5)


class Figure(NamedTuple):
    """A measured number, with a 95 % interval over seeds or worlds where these were drawn."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None or self.low == self.high:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"

    def to_dict(self) -> dict[str, float]:
        """The value, and the ends of the interval where there is one."""
        if self.low is None or self.high is None:
            return {"value": self.value}
        return {"value": self.value, "low": self.low, "high": self.high}


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


class RealRuns(NamedTuple):
    """What runs with language models showed about a claim, and where; the page there names the claim too."""

    page: str  # of docs/, with the section: entropy.md#does-the-law-predict
    agree: Literal["agree", "agree in part", "disagree", "cannot tell"]  # with the verdict
    found: str

    def __str__(self) -> str:
        return f"runs with language models {self.agree}: {self.found} (docs/{self.page})"


@dataclass(frozen=True)
class Claim:
    """A statement of the field and how it is tested.

    Attributes:
        id: short name, for the command line.
        subject: the subpackage that it belongs to; the page and the command group claims by it.
        statement: what is claimed, in the terms of its source (translated).
        source: the paper or the document of docs/sources.md that makes the claim, and where in it.
        experiment: what is measured.
        control: what it is compared with, so that the figures mean something.
        measure: runs the experiment; deterministic.
        judge: the verdict that follows from the figures; a pure function, so other figures can give another.
        real_runs: what runs with language models showed, where docs/ tells of some.
    """

    id: str
    subject: Subject
    statement: str
    source: str
    experiment: str
    control: str
    measure: Callable[[], dict[str, Figure]]
    judge: Callable[[Figures], Judgement]
    real_runs: RealRuns | None = None

    def verdict(self) -> Verdict:
        """Run the experiment, on one thread, and judge its figures."""
        with one_thread():
            figures = self.measure()
        word, reason = self.judge(figures)
        return Verdict(word, reason, figures)

    def to_dict(self, verdict: Verdict) -> dict[str, object]:
        """The claim and its verdict, JSON-able."""
        return {
            "id": self.id,
            "subject": self.subject,
            "statement": self.statement,
            "source": self.source,
            "experiment": self.experiment,
            "control": self.control,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "real_runs": self.real_runs._asdict() if self.real_runs else None,
            "figures": {name: figure.to_dict() for name, figure in verdict.figures.items()},
        }


def number(value: float) -> str:
    """Three significant digits, and 0 for anything below a millionth.

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


def over_seeds(values: Sequence[float], seeds: Sequence[int] = SEEDS) -> Figure:
    """The mean over ``seeds`` and the 95 % interval of that mean, by Student's t."""
    count = _paired(values, seeds)
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_bound(0.05, count - 1) * deviation / math.sqrt(count)
    return Figure(mean, mean - half, mean + half)


def ratio(above: Sequence[float], below: Sequence[float], seeds: Sequence[int] = SEEDS) -> Figure:
    """The mean of one over the mean of the other, paired by seed, with the 95 % interval of that ratio."""
    _paired(above, seeds)
    _paired(below, seeds)
    return Figure(*ratio_of_means(above, below))


def _paired(values: Sequence[float], seeds: Sequence[int]) -> int:
    if len(values) != len(seeds):
        raise ValueError(f"{len(values)} values, expected one for each of the {len(seeds)} seeds")
    return len(seeds)
