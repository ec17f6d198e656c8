"""Held-out problems, solved and scored: one evaluation of a policy, as a row of ``eval.jsonl``."""

import math
import time
from collections.abc import Callable, Sequence

from klent.errors import DataError
from klent.kit.statistics import mean
from klent.measure.score import Rewards, measure, outcomes
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.returns import Judge

NO_PROBLEMS = (
    "nothing is held out, so there is nothing to evaluate on: the data has one distinct prompt, and it is "
    "trained on. Give other problems as task.heldout_data, or set eval: null"
)

Correct = Sequence[Sequence[bool]]
"""For each problem, whether each of its samples is correct."""

More = Callable[[Sequence[Episode], Correct | None], dict[str, object]]
"""Adds to an evaluation, from its completions and their outcomes; None where rewards are graded."""


def evaluate(
    engine: Engine,
    scorer: Judge,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    step: int,
    more: More = lambda rollouts, correct: {},
) -> dict[str, object]:
    """Sample every held-out problem and score it; one row of ``eval.jsonl``.

    ``reward`` is the mean reward of the completions, with its interval; where every reward is 0 or 1,
    ``accuracy`` is the share that is correct and ``pass@k``, for every ``k`` up to ``samples``, the chance that
    at least one of k completions of a problem is. See :func:`klent.measure.score.measure`.

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
    scores = scorer.score_episodes(rollouts)
    rewards = by_problem(scores.reward, samples)
    correct = outcomes(rewards)
    entropies = [value for r in rollouts for value in r.action_entropy.tolist()]
    unscorable = sum(map(math.isnan, scores.reward))
    row: dict[str, object] = {
        "step": step,
        "split": "heldout",
        "problems": len(prompts),
        "samples": samples,
        **measure(rewards),
        "entropy": mean(entropies),
        "length": len(entropies) / len(rollouts),
        **_turns(rollouts),
        "unscorable": unscorable / len(rollouts),
        **({"unscorable_why": scores.problems} if unscorable else {}),
        **more(rollouts, correct),
        "seconds": time.perf_counter() - started,
        "rewards": [[None if math.isnan(reward) else reward for reward in problem] for problem in rewards],
    }
    if correct is not None:
        row["correct"] = [[float(outcome) for outcome in problem] for problem in correct]
    return row


def _turns(episodes: Sequence[Episode]) -> dict[str, object]:
    """Turns and tokens read, where episodes have rewards of their own turns."""
    if not any(episode.rewards for episode in episodes):
        return {}
    turns = sum(episode.turns for episode in episodes) / len(episodes)
    return {"turns": turns, "prefill": sum(episode.prefill for episode in episodes)}


def by_problem(rewards: Sequence[float], samples: int) -> Rewards:
    """The rewards of each problem's samples, which stand together."""
    return [rewards[start : start + samples] for start in range(0, len(rewards), samples)]
