"""The positions that the released code of One-shot Entropy Minimization takes for the completion.

It reads the entropies at the prompt's length and after without shifting them, so that it drops the one that
the first token was drawn from; and it does not look where a completion ended, so that what the model expects
after the end, up to the longest of the batch and one further, is minimised with the rest. Kept to see what
that does: :class:`ReleasedPositions` stands where the updater stands.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from klent.streams.batch import Batch
from klent.training.update import Updater, UpdateResult


class ReleasedPositions(Updater):
    """An updater whose batches are widened before the update, and whose results are narrowed after it.

    Attributes:
        filler: the token id after the end, as ``generate`` of transformers fills up: the pad token.
    """

    filler: int = 0

    def run(
        self, batch: Batch, *, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> UpdateResult:
        """As of :class:`Updater`, on the released code's positions."""
        return narrow(super().run(widen(batch, self.filler), seed=seed, progress=progress))


def widen(batch: Batch, filler: int) -> Batch:
    """The same completions, filled up to the longest and one token more, with every position but the first.

    Args:
        batch: ``[B, T]``.
        filler: the token id after the end.

    Returns:
        A batch ``[B, T + 1]`` whose mask is what the released code averages over. Streams are 0 where the
        batch had no token; filler sees filler, where the released code's attention leaves it out.
    """
    width = batch.mask.shape[1] + 1
    mask = torch.ones(len(batch), width, dtype=torch.bool)
    mask[:, 0] = False
    episodes = [
        replace(
            episode,
            tokens=pad(episode.tokens, (0, width - len(episode.tokens)), value=filler),
            acted=torch.ones(width, dtype=torch.bool),
            turn=torch.zeros(width, dtype=torch.long),
        )
        for episode in batch.episodes
    ]
    streams = batch.streams.map(lambda value: pad(value, (0, 1)) if value.ndim == 2 else value)
    return replace(batch, episodes=episodes, mask=mask, streams=streams.with_(mask=mask))


def narrow(result: UpdateResult) -> UpdateResult:
    """What an update of a widened batch did, on the grid of the completions themselves."""

    def cut(grid: Tensor) -> Tensor:
        return grid[:, :-1]

    before = result.before
    assert before is not None  # its loss is one of entropies
    return replace(
        result,
        coefficient=cut(result.coefficient),
        before=replace(before, logp=cut(before.logp), entropy=cut(before.entropy)),
    )
