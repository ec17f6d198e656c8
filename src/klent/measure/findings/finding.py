"""What a finding is, and helpers of the signatures: how a series began, and since when a condition holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from klent.kit.statistics import ends, median
from klent.kit.tables import Table

GRAVE = 0.7
"""Severity from which a run should be stopped and inspected."""


@dataclass(frozen=True)
class Finding:
    """A problem of a run.

    Attributes:
        name: of the signature, the same for every run.
        title: the problem in a few words.
        onset: the step at which it began.
        until: the last step that had it; None if it is still present.
        evidence: the numbers, in one sentence.
        remedy: what to do, in a sentence or two.
        severity: in (0, 1]; findings are ranked by it.
    """

    name: str
    title: str
    onset: int
    until: int | None
    evidence: str
    remedy: str
    severity: float

    @property
    def grave(self) -> bool:
        """Whether the run should be stopped and inspected."""
        return self.severity >= GRAVE

    def sentence(self) -> str:
        """One line for a console."""
        return f"{self.title} since step {self.onset}: {self.evidence} {self.remedy}"


def beginning(values: Sequence[float]) -> float:
    """Mean over the first tenth of a series, of 1 to 20 steps."""
    return ends(values).start


def latest(values: Sequence[float]) -> float:
    """Mean over the last tenth of a series, of 1 to 20 steps."""
    return ends(values).end


def settled(values: Sequence[float]) -> float:
    """Median of the second to sixth value: the normal level, before anything could go wrong."""
    return median(values[1:6] or values)


def trailing(values: Sequence[float], width: int = 3) -> list[float]:
    """Running median over ``width`` values, so that one noisy step neither starts nor ends a finding.

    >>> trailing([1.0, 9.0, 1.0, 1.0])
    [1.0, 5.0, 1.0, 1.0]
    """
    return [median(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def stretch(steps: Sequence[int], holds: Sequence[bool], *, least: int = 3) -> tuple[int, int | None] | None:
    """The steps during which a condition holds or held.

    Args:
        steps: of the series.
        holds: whether the condition holds at each of them.
        least: steps in a row that count; a shorter stretch is ignored.

    Returns:
        First step and None if a stretch reaches the end of the series; otherwise first and last step of the
        longest one; None if there is none.

    Example:
        >>> stretch([1, 2, 3, 4, 5], [True, False, True, True, True])
        (3, None)
        >>> stretch([1, 2, 3, 4, 5], [True, True, True, False, False]), stretch([1, 2], [True, False])
        ((1, 3), None)
    """
    runs: list[tuple[int, int]] = []
    for index, true in enumerate(holds):
        if not true:
            continue
        if runs and runs[-1][1] == index - 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    runs = [(first, last) for first, last in runs if last - first + 1 >= least]
    if not runs:
        return None
    first, last = runs[-1] if runs[-1][1] == len(holds) - 1 else max(runs, key=lambda run: run[1] - run[0])
    return steps[first], None if last == len(holds) - 1 else steps[last]


def replays(table: Table) -> bool:
    """Whether completions are a data set's: to become certain of them, and fast at reading them, is no fault.

    An update of what was sampled has a predicted change of entropy beside the measured one; one of a mixture has
    the mixture's numbers.
    """
    sampled = table.has("policy/entropy_delta_predicted") or any(
        n.startswith("mixture/") for n in table.names()
    )
    return table.has("policy/entropy_delta") and not sampled
