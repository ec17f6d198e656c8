"""The positions that the released code of One-shot Entropy Minimization takes for the completion.

It reads the entropies at the prompt's length and behind without shifting them, so that it drops the one that
the first token was drawn from; and it does not look where a completion ended, so that what the model expects
behind the end, up to the longest of the batch and one further, is minimised with the rest. Kept to see what
that does; :func:`widen` goes before the update and :func:`narrow` after it.
"""

from dataclasses import replace

import torch
from torch.nn.functional import pad

from klent.streams.batch import Batch
from klent.training.update import UpdateResult


def widen(batch: Batch, filler: int) -> Batch:
    """The same completions, filled up to the longest and one token more, with every position but the first.

    Args:
        batch: ``[B, T]``.
        filler: the token id behind the end, as ``generate`` of transformers fills up: the pad token.

    Returns:
        A batch ``[B, T + 1]`` whose mask is what the released code averages over. Streams are 0 where the
        batch had no token; filler sees filler, where the released code's attention leaves it out.
    """
    width = batch.mask.shape[1] + 1
    rollouts = [
        replace(r, tokens=pad(r.tokens, (0, width - len(r.tokens)), value=filler)) for r in batch.rollouts
    ]
    mask = torch.ones(len(rollouts), width, dtype=torch.bool)
    mask[:, 0] = False
    streams = {name: pad(value, (0, 1)) for name, value in batch.streams.items()}
    return Batch(rollouts, batch.group, batch.reward, mask, streams)


def narrow(result: UpdateResult) -> UpdateResult:
    """What an update of a widened batch did, on the grid of the completions themselves."""
    coefficient = result.coefficient[:, :-1]
    before = {name: value[:, :-1] if value.dim() == 2 else value for name, value in result.before.items()}
    return replace(result, coefficient=coefficient, before=before)
