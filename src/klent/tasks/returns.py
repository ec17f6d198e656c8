"""Rewards of episodes that an environment pays turn by turn: their sums, discounted by turns."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

from klent.streams.episode import Episode
from klent.tasks.calls import LARGEST
from klent.tasks.scorer import Scorer, Scores

PAID = "environment"


class Judge(Protocol):
    """Gives each episode its reward."""

    def score_episodes(self, episodes: Sequence[Episode]) -> Scores:
        """The rewards, in the episodes' order; NaN = unscorable."""
        ...


class Returns:
    """What the environment paid, and what a recipe's own rewards say of an episode's last turn, added to it.

    The return of an episode is ``sum_k discount^k r_k`` over its turns ``k``. An episode whose environment
    failed is unscorable.

    Args:
        scorer: a recipe's ``reward``; None = the environment's alone.
        discount: what a reward is worth one turn earlier.
        credit: ``turn`` gives the sums from each turn on, too.
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        *,
        discount: float = 1.0,
        credit: Literal["episode", "turn"] = "episode",
    ) -> None:
        self.scorer = scorer
        self.discount = discount
        self.credit = credit

    def score_episodes(self, episodes: Sequence[Episode]) -> Scores:
        """The returns of these episodes."""
        scores = Scores([], {}, {}) if self.scorer is None else self.scorer.score_episodes(episodes)
        added = [0.0] * len(episodes) if self.scorer is None else scores.reward
        paid = [_finite(to_go(episode.rewards, self.discount)) for episode in episodes]
        sums = [
            _finite(to_go((*episode.rewards[:-1], episode.rewards[-1] + more), self.discount))
            for episode, more in zip(episodes, added, strict=True)
        ]
        parts = {PAID: [turns[0] for turns in paid], **scores.parts}
        return Scores(
            reward=[turns[0] for turns in sums],
            parts=parts,
            problems=dict(Counter(scores.problems) + Counter(e.problem for e in episodes if e.problem)),
            metrics=scores.metrics,
            notes=scores.notes,
            to_go=sums if self.credit == "turn" else None,
        )


def to_go(rewards: Sequence[float], discount: float) -> list[float]:
    """From each turn on, the rewards added up, those of later turns discounted.

    >>> to_go([1.0, 0.0, 4.0], 0.5)
    [2.0, 2.0, 4.0]
    """
    sums: list[float] = []
    for reward in reversed(rewards):
        sums.append(reward + discount * sums[-1] if sums else reward)
    return sums[::-1]


def _finite(values: list[float]) -> list[float]:
    """NaN for all of an episode where one is: it is left out as a whole."""
    return values if all(abs(value) <= LARGEST for value in values) else [math.nan] * len(values)
