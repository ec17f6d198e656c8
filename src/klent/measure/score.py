"""The score of an evaluation: the accuracy where every reward is 0 or 1, else the mean reward; its interval."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from klent.kit.statistics import mean, pass_at_k, standard_error, wilson
from klent.kit.student import t_bound
from klent.kit.tables import Row, finite

Kind = Literal["accuracy", "reward", "preference"]
Rewards = Sequence[Sequence[float]]
"""For each problem, the reward of each of its samples; NaN is unscorable."""

_KEYS: dict[Kind, tuple[str, str, str]] = {
    "accuracy": ("accuracy", "low", "high"),
    "reward": ("reward", "reward_low", "reward_high"),
    "preference": ("preference/accuracy", "preference/low", "preference/high"),
}
LABELS: dict[Kind, str] = {
    "accuracy": "accuracy",
    "reward": "mean reward",
    "preference": "accuracy on pairs",
}
BY_PROBLEM: dict[Kind, str] = {"accuracy": "correct", "reward": "rewards", "preference": "preference/right"}
"""The key that holds what the score is the mean of, problem by problem."""
_CLOSE = 1e-6


def is_correct(reward: float) -> bool:
    """Whether a reward counts as a correct answer: at least 1, up to rounding. NaN (unscorable) does not.

    >>> is_correct(1.0), is_correct(0.9999999), is_correct(0.5), is_correct(math.nan)
    (True, True, False, False)
    """
    return reward >= 1.0 - _CLOSE


def outcomes(rewards: Rewards) -> list[list[bool]] | None:
    """For each problem, whether each sample is correct; None where rewards are graded, or none is known.

    >>> outcomes([[1.0, 0.0], [math.nan, 1.0]]), outcomes([[1.0, 0.5]]), outcomes([[math.nan]])
    ([[True, False], [False, True]], None, None)
    """
    scored = [reward for problem in rewards for reward in problem if not math.isnan(reward)]
    if not scored or not all(min(abs(reward), abs(reward - 1.0)) <= _CLOSE for reward in scored):
        return None
    return [[is_correct(reward) for reward in problem] for problem in rewards]


def measure(rewards: Rewards) -> dict[str, float | None]:
    """Mean reward and, where every reward is 0 or 1, accuracy and pass@k, as keys of ``eval.jsonl``.

    The units of each interval are *problems*: samples of one problem are not independent. The interval of
    0 and 1 is Wilson's, any other Student's; where no problem differs from another, graded rewards have none.
    An unscorable sample is wrong, and left out of the mean reward. Where nothing could be scored, ``reward``
    is None and there is no other key.
    """
    scored = [[reward for reward in problem if not math.isnan(reward)] for problem in rewards]
    flat = [reward for problem in scored for reward in problem]
    if not flat:
        return {"reward": None}
    means, value = [mean(problem) for problem in scored if problem], mean(flat)
    correct = outcomes(rewards)
    if correct is None:
        return {"reward": value, **_interval(value, means)}
    accuracy = mean([float(right) for problem in correct for right in problem])
    low, high = wilson(accuracy, len(correct))
    reward_low, reward_high = wilson(min(1.0, max(0.0, value)), len(means))
    ks = range(1, len(correct[0]) + 1)
    return {
        "reward": value,
        "reward_low": reward_low,
        "reward_high": reward_high,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        **{f"pass@{k}": mean(pass_at_k(correct, k)) for k in ks},
    }


def _interval(value: float, means: Sequence[float]) -> dict[str, float | None]:
    error = standard_error(means)
    if not error > 0:
        return {}
    margin = t_bound(0.05, len(means) - 1) * error
    return {"reward_low": value - margin, "reward_high": value + margin}


def loss_of(row: Row) -> "Score | None":
    """The loss of held-out completions, nats per token, with its interval; None where it was not measured."""
    value, low, high = (finite(row.get(key)) for key in ("loss", "loss_low", "loss_high"))
    return None if value is None else Score(value, low, high)


class Score(NamedTuple):
    """A score with its 95% interval over problems; its ends are None where there is none."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}{f' (95% interval {self.interval})' if self.interval else ''}"

    @property
    def interval(self) -> str:
        """``0.152 to 0.281``; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"


def kind_of(rows: Sequence[Row]) -> Kind:
    """What evaluations are read by: the accuracy if all of them have it, else the mean reward.

    A graded reward may be 0 on every sample of one evaluation; its rows are then all read by the mean. Where
    nothing was sampled and pairs were compared, it is the share of pairs in the right order.

    >>> kind_of([{"accuracy": 0.0, "reward": 0.0}, {"reward": 0.3}]), kind_of([{"accuracy": 0.5}])
    ('reward', 'accuracy')
    >>> kind_of([{"preference/accuracy": 0.5}])
    'preference'
    """
    if all(finite(row.get("accuracy")) is not None for row in rows):
        return "accuracy"
    compared = all(finite(row.get("preference/accuracy")) is not None for row in rows)
    return "preference" if compared and not any("reward" in row for row in rows) else "reward"


def score_of(row: Row, kind: Kind, at: str = "") -> Score | None:
    """The score of an evaluation; ``at`` another temperature, ``@0``. None where nothing could be scored."""
    value, low, high = (finite(row.get(f"{key}{at}")) for key in _KEYS[kind])
    return None if value is None else Score(value, low, high)


def is_judged(row: Row) -> bool:
    """Whether answers were scored or compared; an evaluation may measure the loss of held-out completions alone."""
    return any(key in row for key in ("reward", "accuracy", "preference/accuracy", "unscorable"))


def is_scored(row: Row) -> bool:
    """Whether a row of ``eval.jsonl`` has a score; where every completion was unscorable, it has none."""
    if finite(row.get("unscorable")) == 1:
        return False
    return any(score_of(row, kind) is not None for kind in _KEYS)


def temperatures_of(row: Row) -> dict[str, str]:
    """What of an evaluation was sampled how: suffix of its keys -> words; the recipe's own first.

    >>> temperatures_of({"temperature": 1.0, "accuracy": 0.1, "accuracy@0": 0.4, "reward@0": 0.4})
    {'': 'at temperature 1', '@0': 'greedily'}
    """
    own = finite(row.get("temperature"))
    words = {"": "as sampled in training" if own is None else _words(own)}
    for key in row:
        name, mark, number = key.partition("@")
        if mark and name in ("accuracy", "reward"):
            words[f"@{number}"] = _words(float(number))
    return words


def _words(temperature: float) -> str:
    return f"at temperature {temperature:g}" if temperature else "greedily"
