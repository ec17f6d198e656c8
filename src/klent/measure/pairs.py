"""Held-out pairs under a reward model: one evaluation, as a row of ``eval.jsonl``. Nothing is sampled."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from klent.errors import DataError
from klent.kit.statistics import mean, wilson
from klent.measure.calibration import calibration
from klent.measure.evaluate import NO_PROBLEMS
from klent.rollout.engine import Engine
from klent.streams.batch import Batch, make_batch
from klent.streams.prompt import Prompt
from klent.training.pairs import rows_of_pairs

Scores = Callable[[Batch], Tensor]
"""The score of every completion of a batch, ``[B]``."""


def measure_pairs(
    engine: Engine, scores: Scores, prompts: Sequence[Prompt], *, step: int
) -> dict[str, object]:
    """Score both answers of every held-out pair.

    ``accuracy`` is the share of pairs whose better answer scores higher, ties half, with Wilson's interval over
    pairs; ``preference/margin``, ``chosen`` and ``rejected`` are the mean difference and the mean scores. See
    :mod:`klent.measure.calibration` for the rest.

    Args:
        engine: replays the two answers to each prompt.
        scores: of the reward model.
        prompts: the held-out ones.
        step: the training step that was evaluated, 0 before training.

    Raises:
        DataError: there is no pair, or a score is not finite.
    """
    if not prompts:
        raise DataError(NO_PROBLEMS)
    started = time.perf_counter()
    batch = make_batch(engine.generate(prompts, group_size=2, seed=0), None, group_size=2, whole_groups=True)
    found = scores(batch).double()
    if not found.isfinite().all():
        row = int((~found.isfinite()).nonzero()[0])
        raise DataError(
            f"{batch.episodes[row].prompt.id}: the score of an answer is {float(found[row])}. The model has "
            "diverged: lower optimizer.lr, or start from another checkpoint"
        )
    better, worse = (found[rows] for rows in rows_of_pairs(batch.streams))
    differences: list[float] = (better - worse).tolist()
    right = [0.5 if not difference else float(difference > 0) for difference in differences]
    accuracy = mean(right)
    low, high = wilson(accuracy, len(right))
    return {
        "step": step,
        "split": "heldout",
        "problems": len(prompts),
        "samples": 1,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "preference/margin": mean(differences),
        "preference/chosen": mean(better.tolist()),
        "preference/rejected": mean(worse.tolist()),
        **calibration(differences),
        "seconds": time.perf_counter() - started,
        "correct": [[outcome] for outcome in right],
    }
