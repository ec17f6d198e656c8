"""Held-out accuracy with its interval: one evaluation of a policy, as a row of ``eval.jsonl``."""

import math
import time
from collections.abc import Callable, Sequence

from klent.errors import DataError
from klent.kit.statistics import mean, pass_at_k, wilson
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scorer

NO_PROBLEMS = (
    "nothing is held out, so there is nothing to evaluate on: the data has one distinct prompt, and it is "
    "trained on. Give other problems as task.heldout_data, or set eval: null"
)

Correct = Sequence[Sequence[bool]]
"""For each problem, whether each of its samples is correct."""

More = Callable[[Sequence[Episode], Correct], dict[str, object]]
"""Adds to an evaluation, from its completions and their outcomes."""


def is_correct(reward: float) -> bool:
    """Whether a reward counts as a correct answer: at least 1, up to rounding. NaN (unscorable) does not.

    >>> is_correct(1.0), is_correct(0.9999999), is_correct(0.5), is_correct(math.nan)
    (True, True, False, False)
    """
    return reward >= 1.0 - 1e-6


def evaluate(
    engine: Engine,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    step: int,
    more: More = lambda rollouts, correct: {},
) -> dict[str, object]:
    """Sample every held-out problem and score it; one row of ``eval.jsonl``.

    ``accuracy`` is the share of completions that are correct, see :func:`is_correct`; ``reward`` is their
    mean reward. The interval is Wilson's at 95% with the number of *problems* as its sample size: samples of
    one problem are not independent, and counting them as such would make it too narrow. ``pass@k``, for every
    ``k`` up to ``samples``, is the chance that at least one of k completions of a problem is correct, by
    :func:`klent.kit.statistics.pass_at_k`; ``pass@1`` is the accuracy.

    Args:
        engine: the policy.
        scorer: the rewards.
        prompts: the held-out problems.
        samples: completions per problem.
        seed: of the sampling; the same before and after training.
        step: the training step that was evaluated, 0 before training.
        more: adds to the row, from the completions and whether each problem's are correct.

    Raises:
        DataError: there is no problem.
    """
    if not prompts:
        raise DataError(NO_PROBLEMS)
    started = time.perf_counter()
    rollouts = engine.generate(prompts, group_size=samples, seed=seed)
    rewards = score(scorer, rollouts)
    outcomes = [is_correct(reward) for reward in rewards]
    correct = [outcomes[i : i + samples] for i in range(0, len(outcomes), samples)]
    accuracy = sum(outcomes) / len(outcomes)
    low, high = wilson(accuracy, len(prompts))
    scorable = [reward for reward in rewards if not math.isnan(reward)]
    entropies = [value for r in rollouts for value in r.action_entropy.tolist()]
    return {
        "step": step,
        "split": "heldout",
        "problems": len(prompts),
        "samples": samples,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        **{f"pass@{k}": mean(pass_at_k(correct, k)) for k in range(1, samples + 1)},
        "reward": mean(scorable) if scorable else None,
        "entropy": mean(entropies),
        "length": len(entropies) / len(rollouts),
        "unscorable": 1.0 - len(scorable) / len(rollouts),
        **more(rollouts, correct),
        "seconds": time.perf_counter() - started,
        "correct": [[float(outcome) for outcome in problem] for problem in correct],
    }


def score(scorer: Scorer, rollouts: Sequence[Episode]) -> list[float]:
    """The reward of each completion, NaN where it is unscorable."""
    prompts, texts = [r.prompt for r in rollouts], [r.text for r in rollouts]
    return scorer.score(prompts, texts, [r.finish for r in rollouts]).reward
