"""Choices of actions: made once for each optimizer step, over all of its actions, before it is cut.

A recipe's ``select`` puts selectors of klent.objectives under names. What a selector chooses becomes a stream
of that name, which terms of the loss read as they read any other (``dropped``, ``penalised``); under the name
``mask`` it narrows what every term sees. Ranks, fractions and means are those of the whole optimizer step, so
that the update does not depend on how the step is cut into micro-batches.
"""

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor

from klent.kit.seeds import derive_seed
from klent.streams.batch import Batch, Stats
from klent.training.term import Term

Select = Mapping[str, Mapping[str, Mapping[str, object] | None]]


class Selection:
    """The selectors of a recipe.

    Args:
        select: stream name -> {selector: settings}, one selector for each name.
    """

    def __init__(self, select: Select | None) -> None:
        self.selectors = {
            stream: Term.named(*item) for stream, choice in (select or {}).items() for item in choice.items()
        }

    @property
    def reads_policy(self) -> bool:
        """Whether a choice depends on the policy being trained, as it stands at the optimizer step."""
        return any({"logp", "entropy"} & term.streams for term in self.selectors.values())

    def choose(self, batch: Batch, rows: list[int], policy: Stats | None, *, seed: int) -> Batch:
        """``batch`` with one more stream for each choice, made among the actions of ``rows``.

        Args:
            batch: the step's episodes.
            rows: those of this optimizer step; they compete with one another and with no others.
            policy: the policy's numbers as it stands, ``[B, T]``; None where no selector reads them.
            seed: of this optimizer step; a selector that draws gets a generator made from it.

        Returns:
            A batch that shares everything with the given one but its streams. The choices are bool,
            ``[B, T]``, False off the mask and off ``rows``.
        """
        streams = batch.streams.with_(mask=batch.mask)
        if policy is not None:
            streams = streams.with_(logp=policy.logp, entropy=policy.entropy)
            streams = streams.or_else(logp_old=policy.logp, entropy_old=policy.entropy)
        candidates = streams.rows(rows)
        chosen: dict[str, Tensor] = {}
        for name, term in self.selectors.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "select", name))
            with torch.no_grad():
                choice = term(candidates, **({"generator": generator} if _draws(term) else {}))
            chosen[name] = torch.zeros_like(batch.mask)
            chosen[name][rows] = choice & batch.mask[rows]
        return batch.with_streams(batch.streams.choosing(chosen))


def _draws(term: Term) -> bool:
    return "generator" in inspect.signature(term.function).parameters
