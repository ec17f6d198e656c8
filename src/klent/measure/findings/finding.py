"""A finding, and what signatures have in common: how a series began, and since when a condition holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from klent.kit.text import mean

GRAVE = 0.7
"""Severity from which a run is better stopped and looked at than left alone."""


@dataclass(frozen=True)
class Finding:
    """Something that goes wrong in a run.

    Attributes:
        name: of the signature, the same for every run.
        title: what goes wrong, in a few words.
        onset: the step at which it began.
        until: the last step that had it; None where it goes on.
        evidence: the numbers, a sentence.
        remedy: what to do, a sentence.
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
        """Whether the run is better stopped and looked at than left alone."""
        return self.severity >= GRAVE

    def sentence(self) -> str:
        """One line for a console."""
        return f"{self.title} since step {self.onset}: {self.evidence} {self.remedy}"


def beginning(values: Sequence[float]) -> float:
    """Mean over the first tenth of a series, of 1 to 20 steps."""
    return mean(values[: max(1, min(20, len(values) // 10))])


def latest(values: Sequence[float]) -> float:
    """Mean over the last tenth of a series, of 1 to 20 steps."""
    return mean(values[-max(1, min(20, len(values) // 10)) :])


def settled(values: Sequence[float]) -> float:
    """Median of the values from the second to the sixth: what was usual before anything could go wrong."""
    return median(values[1:6] or values)


def trailing(values: Sequence[float], width: int = 3) -> list[float]:
    """Median of each value and those before it, so that one noisy step neither starts nor ends anything.

    >>> trailing([1.0, 9.0, 1.0, 1.0])
    [1.0, 5.0, 1.0, 1.0]
    """
    return [median(values[max(0, place - width + 1) : place + 1]) for place in range(len(values))]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def stretch(steps: Sequence[int], holds: Sequence[bool], *, least: int = 3) -> tuple[int, int | None] | None:
    """Since when a condition holds, or when it did.

    Args:
        steps: of the series.
        holds: whether the condition holds at each of them.
        least: steps in a row that make it worth a word.

    Returns:
        First step, and None, of the stretch that reaches the end; otherwise first and last step of the
        longest one; None where there is none.

    Example:
        >>> stretch([1, 2, 3, 4, 5], [True, False, True, True, True])
        (3, None)
        >>> stretch([1, 2, 3, 4, 5], [True, True, True, False, False]), stretch([1, 2], [True, False])
        ((1, 3), None)
    """
    runs: list[tuple[int, int]] = []
    for place, true in enumerate(holds):
        if not true:
            continue
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    runs = [(first, last) for first, last in runs if last - first + 1 >= least]
    if not runs:
        return None
    first, last = runs[-1] if runs[-1][1] == len(holds) - 1 else max(runs, key=lambda run: run[1] - run[0])
    return steps[first], None if last == len(holds) - 1 else steps[last]
