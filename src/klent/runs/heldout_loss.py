"""Held-out completions of a run that replays a data set, and their loss."""

import time
from collections.abc import Callable, Sequence

from klent.errors import TooLong
from klent.kit.text import plural
from klent.measure.completion_loss import completion_loss
from klent.models.load import LoadedModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.update import Updater

Row = dict[str, object]


def heldout_completions(
    engine: Engine, prompts: Sequence[Prompt], *, drop: bool, note: Callable[[str], None]
) -> list[Episode]:
    """The held-out rows with their completions; none where completions are sampled and not replayed.

    Args:
        engine: of training.
        prompts: held out.
        drop: leave out what is too long, instead of refusing it.
        note: told how many were left out.

    Raises:
        DataError: a row that cannot be replayed.
    """
    if not isinstance(engine, DatasetEngine):
        return []
    episodes = []
    for prompt in prompts:
        try:
            episodes += engine.generate([prompt], group_size=1, seed=0)
        except TooLong:
            if not drop:
                raise
    if left_out := len(prompts) - len(episodes):
        note(
            f"task.too_long=drop: {plural(left_out, 'held-out completion')} left out, too long for the context or "
            "rollout.max_tokens; their loss is not measured"
        )
    return episodes


def loss_row(step: int, episodes: Sequence[Episode], updater: Updater, loaded: LoadedModel) -> Row:
    """The loss of held-out completions as a row of ``eval.jsonl``."""
    started = time.perf_counter()
    tokenizer = loaded.tokenizer
    measured = completion_loss(episodes, updater.measure, lambda ids: str(tokenizer.decode(ids)))
    return {
        "step": step,
        "split": "heldout",
        "problems": len(episodes),
        **measured,
        "seconds": time.perf_counter() - started,
    }
