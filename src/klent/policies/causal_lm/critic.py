"""A critic: what it expects of the reward still to come, read before each action. A head, and maybe a trunk."""

import torch
from torch import Tensor, nn

from klent.policies.causal_lm.forward import predicting_states
from klent.policies.causal_lm.model import CausalModel
from klent.policies.causal_lm.packing import Pack


class Critic(nn.Module):
    """One number per action, linear in a hidden state.

        V(s) = w·h(s) + b

    Args:
        width: of the hidden states.
        trunk: the model that makes them; None = the policy's own, whose layers the value's gradient then moves too.
        dtype: of the head's weights.
        device: of the head.
    """

    def __init__(
        self,
        width: int,
        trunk: CausalModel | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1, dtype=dtype, device=device)
        nn.init.zeros_(self.head.weight)  # expects nothing until it has learnt something
        nn.init.zeros_(self.head.bias)
        self.trunk = trunk
        self.takes_blocks = False

    def values(self, rows: Pack, states: Tensor) -> Tensor:
        """The value before each of the ``N`` actions, ``[N]`` float32.

        Args:
            rows: as packed.
            states: the policy's hidden states for them, ``[N, H]``; read where the critic has no trunk of its own.
        """
        if self.trunk is not None:
            states = predicting_states(self.trunk, rows, blocks=self.takes_blocks)
        value: Tensor = self.head(states)
        return value.squeeze(-1).float()
