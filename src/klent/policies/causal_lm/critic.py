"""A critic: what it expects of the reward still to come, read before each action: a head or two, maybe a trunk."""

import math
from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from klent.policies.causal_lm.forward import predicting_states
from klent.policies.causal_lm.model import CausalModel
from klent.policies.causal_lm.packing import Pack

OF_CRITIC = frozenset({"value", "logit_second"})
"""The streams that it may give."""


class Critic(nn.Module):
    """One number per action, linear in a hidden state; two where it values actions too.

        V(s) = w·h(s) + b,    Q(s, a) = W_a·h(s)

    The head is float32 whatever the trunk is: a reward's differences are smaller than bfloat16 tells apart.

    Args:
        width: of the hidden states.
        trunk: the model that makes them; None = the policy's own, whose layers the value's gradient then moves too.
        device: of the head.
    """

    def __init__(
        self, width: int, trunk: CausalModel | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1, dtype=torch.float32, device=device)
        nn.init.zeros_(self.head.weight)  # expects nothing until it has learnt something
        nn.init.zeros_(self.head.bias)
        self.actions: nn.Parameter | None = None
        self.trunk = trunk
        self.takes_blocks = False
        self.squares: dict[str, Tensor] = {}
        if trunk is not None:
            _freeze_head(trunk)

    @torch.no_grad()
    def add_actions(self, rows: int, generator: torch.Generator) -> None:
        """Give it a value of each of so many actions, small and random: a second opinion is no copy of the first."""
        weight = torch.empty(rows, self.head.in_features)
        nn.init.normal_(weight, std=0.1 / math.sqrt(self.head.in_features), generator=generator)
        self.actions = nn.Parameter(weight.to(self.head.weight.device))

    @torch.no_grad()
    def start_from(self, weight: Tensor, offset: float) -> None:
        """Take over a reward model's head, ``[1, H]``, and what is added to each of its scores."""
        self.head.weight.copy_(weight)
        self.head.bias.fill_(offset)

    def parted(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states twice: for the policy's head and for this one, so that each one's gradient is told apart.

        Without layers of its own; :meth:`shares` says how large the two gradients were.
        """
        if self.trunk is not None or not states.requires_grad:
            return states, states
        copies = states.view_as(states), states.view_as(states)
        for copy, whose in zip(copies, ("policy", "critic"), strict=True):
            copy.register_hook(partial(self._note, whose))
        return copies

    def _note(self, whose: str, gradient: Tensor) -> None:
        square = gradient.detach().double().square().sum()
        self.squares[whose] = self.squares[whose] + square if whose in self.squares else square

    def shares(self) -> tuple[float, float]:
        """Squared gradients at the shared states since the last call, of the policy's loss and of this one's."""
        policy, critic = (float(self.squares.get(whose, 0.0)) for whose in ("policy", "critic"))
        self.squares = {}
        return policy, critic

    def numbers(self, rows: Pack, states: Tensor, also: Collection[str]) -> dict[str, Tensor]:
        """Before each of the ``N`` actions, what is asked for: ``value``; ``logit_second``, of the action, ``[N]``.

        Args:
            rows: as packed.
            states: the policy's hidden states for them, ``[N, H]``; read where the critic has no trunk of its own.
            also: which; float32.
        """
        if self.trunk is not None:
            states = predicting_states(self.trunk, rows, blocks=self.takes_blocks)
        states, numbers = states.float(), {}
        if "value" in also:
            numbers["value"] = self.head(states).squeeze(-1)
        if "logit_second" in also:
            assert self.actions is not None  # given where a term reads it
            chosen = self.actions.index_select(0, rows.target.to(states.device))
            numbers["logit_second"] = (states * chosen).sum(-1)
        return numbers


def _freeze_head(trunk: CausalModel) -> None:
    """A trunk's own head over the vocabulary is never used; where it is no embedding too, it is not trained."""
    head = trunk.get_output_embeddings()
    if head is None:
        return
    used = {id(parameter) for parameter in _embedding(trunk)}
    for parameter in (head.weight, getattr(head, "bias", None)):
        if isinstance(parameter, nn.Parameter) and id(parameter) not in used:
            parameter.requires_grad_(False)


def _embedding(trunk: CausalModel) -> list[nn.Parameter]:
    embedding = trunk.get_input_embeddings()
    return [] if embedding is None else list(embedding.parameters())
