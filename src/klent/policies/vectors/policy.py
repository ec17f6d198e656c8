"""A policy whose actions are vectors: a network that gives the distribution of each, in every state."""

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from klent.policies.vectors.gaussian import ActionDistribution
from klent.streams.batch import Batch, Stats
from klent.streams.episode import Episode

Divergence = Literal["reverse", "forward", "jeffreys"]
Compare = Callable[[ActionDistribution, ActionDistribution, Tensor], Tensor]
"""How far the policy's distributions are from the reference's at these places, ``[N]``."""


def divergence_of(kind: Divergence) -> Compare:
    """The exact divergence that ``update.kl`` names."""

    def compare(policy: ActionDistribution, reference: ActionDistribution, place: Tensor) -> Tensor:
        there = policy.kl(reference) if kind != "forward" else 0.0
        back = reference.kl(policy) if kind != "reverse" else 0.0
        return there + back  # type: ignore[return-value]

    return compare


class VectorPolicy(nn.Module):
    """A :class:`klent.policies.policy.Policy` over vectors; its reference is of the same kind.

    Args:
        actor: (states ``[N, S]``, places in the episode ``[N]``) -> distribution of each action.
        reference: an actor that is never trained, for the stream ``kl``; None where nothing reads it.
        compare: what ``kl`` is; by default KL(policy ‖ reference), exact.
        budget: actions in a forward pass.
    """

    def __init__(
        self,
        actor: nn.Module,
        *,
        reference: nn.Module | None = None,
        compare: Compare | None = None,
        budget: int = 4096,
    ) -> None:
        super().__init__()
        self.actor = actor
        self._reference = [reference]  # in a list, so that its weights are none of this module's
        self.compare = compare or divergence_of("reverse")
        self.budget = budget

    def trainable(self) -> dict[str, nn.Parameter]:
        """The actor's parameters that receive gradients, by its own names."""
        return {name: p for name, p in self.actor.named_parameters() if p.requires_grad}

    def microbatches(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        """Rows in order, at most ``budget`` actions in a pass; a unit is never cut."""
        cut: list[list[int]] = []
        size = 0
        ordered = sorted(rows, key=lambda row: int(batch.unit[row]))
        for _, unit in groupby(ordered, key=lambda row: int(batch.unit[row])):
            members = list(unit)
            more = sum(len(batch.episodes[row].tokens) for row in members)
            if cut and size + more <= self.budget:
                cut[-1] += members
                size += more
            else:
                cut.append(members)
                size = more
        return cut

    def evaluate(self, batch: Batch, rows: Sequence[int], *, also: Collection[str] = ()) -> Stats:
        """The numbers of these episodes' actions; ``kl`` where it is wanted and there is a reference."""
        episodes = [batch.episodes[row] for row in rows]
        states, actions, place = joined(episodes)
        mask = batch.mask[list(rows)]
        policy = self.actor(states, place)
        kl = self.divergence(policy, episodes, states, place) if "kl" in also else None
        return Stats(
            _grid(policy.logp(actions), mask),
            _grid(policy.entropy(), mask),
            kl=None if kl is None else _grid(kl, mask),
            tokens=len(place),
            targets=len(place),
        )

    def divergence(
        self, policy: ActionDistribution, episodes: Sequence[Episode], states: Tensor, place: Tensor
    ) -> Tensor | None:
        """The stream ``kl`` of these actions, ``[N]``: from the reference; None where there is none."""
        if self._reference[0] is None:
            return None
        with torch.no_grad():
            reference = self._reference[0](states, place)
        return self.compare(policy, reference, place)


def joined(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
    """Every action of these episodes: what was read ``[N, S]``, what was chosen ``[N, A]``, its place ``[N]``.

    Raises:
        ValueError: an episode of tokens.
    """
    for episode in episodes:
        if episode.states is None or episode.actions is None:
            raise ValueError("an episode has tokens, not states and actions; make it with Episode.of_actions")
    read = [e.states[e.acted] for e in episodes if e.states is not None]
    chosen = [e.actions[e.acted] for e in episodes if e.actions is not None]
    return torch.cat(read), torch.cat(chosen), torch.cat([e.tokens[e.acted] for e in episodes])


def _grid(values: Tensor, mask: Tensor) -> Tensor:
    """One number per action on the grid of its rows, 0 elsewhere."""
    mask = mask.to(values.device)
    grid = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return grid.index_put((mask,), values)
