"""Held-out pairs: how often the better answer of a pair scores higher, and by how much."""

import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from klent.errors import DataError
from klent.kit.statistics import mean, standard_error, wilson
from klent.kit.student import t_bound
from klent.measure.evaluate import NO_PROBLEMS
from klent.rollout.engine import Engine
from klent.streams.batch import Batch, make_batch
from klent.streams.prompt import Prompt
from klent.training.pairs import is_right, rows_of_pairs

Scores = Callable[[Batch], Tensor]
"""What compares the answers: a number for each completion of a batch, ``[B]``, whatever gives it."""


def evaluate_pairs(
    engine: Engine,
    scores: Scores,
    prompts: Sequence[Prompt],
    *,
    step: int,
    more: Callable[[Sequence[float]], Mapping[str, object]] = lambda margins: {},
) -> dict[str, object]:
    """Score both answers of every held-out pair; one row of ``eval.jsonl``, or part of one.

    Nothing is sampled and no reward is needed. Intervals are over pairs: Wilson's of the accuracy, Student's of
    the margin.

    Args:
        engine: replays the two answers to each prompt.
        scores: of completions: a policy's log-probabilities, or a reward model's scores.
        prompts: the held-out ones.
        step: the training step that was evaluated, 0 before training.
        more: further keys, from score of the better answer less that of the other, pair by pair.

    Raises:
        DataError: there is no pair, or a score is not finite.
    """
    if not prompts:
        raise DataError(NO_PROBLEMS)
    started = time.perf_counter()
    episodes = engine.generate(prompts, group_size=2, seed=0)
    batch = make_batch(episodes, None, group_size=2, whole_groups=True)
    score = scores(batch).double().cpu()
    if not score.isfinite().all():
        row = int((~score.isfinite()).nonzero()[0])
        raise DataError(
            f"{batch.episodes[row].prompt.id}: the score of an answer is {float(score[row])}. The model has "
            "diverged: lower optimizer.lr, or start from another checkpoint"
        )
    better, worse = (score[rows] for rows in rows_of_pairs(batch.streams))
    right, margins = is_right(better, worse).tolist(), (better - worse).tolist()
    accuracy, margin, error = mean(right), mean(margins), standard_error(margins)
    low, high = wilson(accuracy, len(right))
    half = t_bound(0.05, len(margins) - 1) * error if error > 0 else None
    interval = (
        {}
        if half is None
        else {"preference/margin_low": margin - half, "preference/margin_high": margin + half}
    )
    return {
        "step": step,
        "split": "heldout",
        "problems": len(prompts),
        "preference/accuracy": accuracy,
        "preference/low": low,
        "preference/high": high,
        "preference/margin": margin,
        **interval,
        "preference/chosen": mean(better.tolist()),
        "preference/rejected": mean(worse.tolist()),
        **more(margins),
        "seconds": time.perf_counter() - started,
        "preference/right": [[value] for value in right],
    }
