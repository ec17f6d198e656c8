"""A reward that is a model: it is handed the samples as they are, with tokens and templates."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from klent.config.rewards import Reward
from klent.errors import first_line
from klent.tasks.arguments import Sample
from klent.tasks.calls import LARGEST, Problems, Result
from klent.tasks.first_call import Tried
from klent.tasks.process import Worker


class Judge(Protocol):
    """What scores samples."""

    def score(self, samples: Sequence[Sample]) -> list[tuple[float, str]]:
        """The score of each, and why there is none where it is NaN."""
        ...

    def begin(self) -> Tried:
        """Make ready, and say how it reads what is sampled."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


OpenJudge = Callable[[Reward], Judge]
"""Makes the judge of a reward that names a reward model's folder."""


class JudgeCaller:
    """A judge where a :class:`klent.tasks.calls.Caller` stands."""

    workers: tuple[Worker, ...] = ()  # a judge has its own ways to run

    def __init__(self, reward: Reward, judge: Judge) -> None:
        self.reward = reward
        self.judge = judge

    def score(self, samples: Sequence[Sample], problems: Problems) -> Result:
        """Its scores; ``problems`` receives what went wrong."""
        try:
            verdicts = self.judge.score(samples)
        except Exception as error:  # out of memory, say: it costs these scores, never the run
            verdicts = [(math.nan, f"raised {type(error).__name__}: {first_line(error)}")] * len(samples)
        values = []
        for value, why in verdicts:
            scored = abs(value) <= LARGEST  # also False for NaN
            if not scored:
                text = why or f"gave {value}, which is no score"
                problems.note(text, text)
            values.append(value if scored else math.nan)
        return Result(values, set(), {})

    def close(self) -> None:
        """Let go of the model."""
        self.judge.close()
