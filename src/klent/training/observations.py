"""A loss of what an environment said as a term of a step, whose averages are over actions."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from klent.objectives.types import TokenLoss
from klent.streams.registry import Streams
from klent.training.term import Term


@dataclass(frozen=True)
class ObservationTerm(Term):
    """A function that reads ``observed``: its loss is on tokens that are no actions, which no average counts."""

    def loss(self, streams: Streams) -> TokenLoss:
        """An episode's sum at the first of its actions that is trained on, so that the sum over tokens is kept."""
        outcome = super().loss(streams)
        mask = streams.get("mask")
        assert mask is not None  # every batch has one
        first = mask & (mask.cumsum(dim=1) == 1)
        total = outcome.loss.sum(dim=1, keepdim=True)
        return outcome._replace(loss=torch.where(first, total, 0.0))

    def idle(self, streams: Streams) -> Tensor | None:
        """The whole of each episode in which nothing was said, and what the function says of the others."""
        observed = streams.observed
        assert observed is not None  # likewise
        silent = ~observed.any(dim=1, keepdim=True).expand_as(observed)
        declared = super().idle(streams)
        return silent if declared is None else silent | declared


def with_observations(terms: Iterable[Term]) -> list[Term]:
    """The terms, those of observations where their function reads what was observed; no ratio weighs these."""
    return [
        ObservationTerm.made_of(term, weighted=False) if "observed" in term.streams else term
        for term in terms
    ]
