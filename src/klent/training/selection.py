"""Choices and weights of actions: made once for each optimizer step, over all of its actions, before it is cut.

A recipe's ``select`` puts selectors of klent.objectives under names. What a selector chooses becomes a stream
of that name, which terms of the loss read as they read any other (``dropped``, ``penalised``); under the name
``mask`` it narrows what every term sees. A recipe's ``weigh`` puts weights under the names of terms, whose losses
they multiply. Ranks, fractions, means and maxima are those of the whole optimizer step, so that the update does not
depend on how the step is cut into micro-batches.
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
    """The selectors and weights of a recipe.

    Args:
        select: stream name -> {selector: settings}, one selector for each name.
        weigh: name of a loss term -> {weight: settings}, one weight for each term.
    """

    def __init__(self, select: Select | None, weigh: Select | None = None) -> None:
        self.selectors = _named(select)
        self.weights = _named(weigh)

    @property
    def functions(self) -> list[Term]:
        """Every selector and weight."""
        return [*self.selectors.values(), *self.weights.values()]

    @property
    def reads_policy(self) -> bool:
        """Whether a choice depends on the policy being trained, as it stands at the optimizer step."""
        return self.reads_collision or any({"logp", "entropy"} & term.streams for term in self.functions)

    @property
    def reads_collision(self) -> bool:
        """Whether a choice depends on sums over the policy's squared probabilities."""
        return any({"collision", "collision_logp"} & term.streams for term in self.functions)

    def choose(self, batch: Batch, rows: list[int], policy: Stats | None, *, seed: int) -> Batch:
        """``batch`` with one more stream for each choice and weight, made among the actions of ``rows``.

        Args:
            batch: the step's episodes.
            rows: those of this optimizer step; they compete with one another and with no others.
            policy: the policy's numbers as it stands, ``[B, T]``; None where no selector reads them.
            seed: of this optimizer step; a selector that draws gets a generator made from it.

        Returns:
            A batch that shares everything with the given one but its streams. The choices are bool,
            ``[B, T]``, False off the mask and off ``rows``. Weights are of the actions that are trained, and 0
            elsewhere.
        """
        streams = batch.streams.with_(mask=batch.mask)
        if policy is not None:
            streams = streams.with_(logp=policy.logp, entropy=policy.entropy)
            streams = streams.with_(collision=policy.collision, collision_logp=policy.collision_logp)
            streams = streams.or_else(logp_old=policy.logp, entropy_old=policy.entropy)
        candidates = streams.rows(rows)
        chosen: dict[str, Tensor] = {}
        for name, term in self.selectors.items():
            generator = torch.Generator().manual_seed(derive_seed(seed, "select", name))
            with torch.no_grad():
                choice = term(candidates, **({"generator": generator} if _draws(term) else {}))
            chosen[name] = torch.zeros_like(batch.mask)
            chosen[name][rows] = choice & batch.mask[rows]
        if "mask" in chosen:
            candidates = candidates.with_(mask=chosen["mask"][rows])
        weights: dict[str, Tensor] = {}
        for name, term in self.weights.items():
            with torch.no_grad():
                weight = term(candidates)
            weights[name] = torch.zeros(batch.mask.shape, dtype=weight.dtype)
            weights[name][rows] = torch.where(batch.mask[rows], weight, 0.0)
        return batch.with_streams(batch.streams.choosing(chosen).weighing(weights))


def _named(section: Select | None) -> dict[str, Term]:
    return {name: Term.named(*item) for name, entry in (section or {}).items() for item in entry.items()}


def _draws(term: Term) -> bool:
    return "generator" in inspect.signature(term.function).parameters
