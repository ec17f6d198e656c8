"""Choices of tokens: made once for each optimizer step, over all of its tokens, before it is cut.

A recipe's ``select`` puts selectors of klent.objectives under names. What a selector chooses becomes a token
stream of that name, which terms of the loss read as they read any other (``dropped``, ``penalised``); under
the name ``mask`` it narrows what every term sees. Ranks, fractions and means are those of the whole optimizer
step, so that the update does not depend on how the step is cut into micro-batches.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from klent.control.schedule import derive_seed
from klent.streams.batch import Batch
from klent.training.term import Term

Select = Mapping[str, Mapping[str, Mapping[str, Any] | None]]


class Selection:
    """The selectors of a recipe.

    Args:
        select: stream name -> {selector: settings}, one selector for each name.
    """

    def __init__(self, select: Select | None) -> None:
        self.selectors = {
            stream: _with_generator(Term.named(*item))
            for stream, choice in (select or {}).items()
            for item in choice.items()
        }

    @property
    def reads_policy(self) -> bool:
        """Whether a choice depends on the policy being trained, as it stands at the optimizer step."""
        return any({"logp", "entropy"} & term.streams for term in self.selectors.values())

    def choose(self, batch: Batch, rows: list[int], own: Mapping[str, Tensor], *, seed: int) -> Batch:
        """``batch`` with a stream more for each choice, made among the tokens of ``rows``.

        Args:
            batch: the step's completions.
            rows: those of this optimizer step; they compete with one another and with no others.
            own: ``logp`` and ``entropy`` of the policy as it stands, ``[B, T]``, nats.
            seed: of this optimizer step; a selector that draws gets a generator made from it.

        Returns:
            A batch that shares everything with the given one but its streams. The choices are bool,
            ``[B, T]``, False off the mask and off ``rows``.
        """
        streams = {"logp_old": own["logp"], "entropy_old": own["entropy"], **batch.streams, **own}
        streams = {name: value[rows] for name, value in streams.items()} | {"mask": batch.mask[rows]}
        chosen: dict[str, Tensor] = {}
        for name, term in self.selectors.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "select", name))
            with torch.no_grad():
                choice = term({**streams, "generator": generator})
            chosen[name] = torch.zeros_like(batch.mask)
            chosen[name][rows] = choice & streams["mask"]
        return replace(batch, streams={**batch.streams, **chosen})


def _with_generator(term: Term) -> Term:
    drawn = "generator" in inspect.signature(term.function).parameters
    return replace(term, streams=term.streams | {"generator"}) if drawn else term
