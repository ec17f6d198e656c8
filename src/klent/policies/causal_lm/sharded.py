"""A policy whose weights are cut over the ranks (FSDP2), and put together for as long as they are needed.

Each layer is gathered as it is entered, forward and backward, and let go; its gradient is added up over the ranks,
and each keeps the rows that it holds. The embedding, the head and the last norm are gathered for the whole of a pass:
the fused head reads the weight of the head as one matrix.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from klent.errors import ModelError
from klent.models.exact import close
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import made_up_rows


def shard(policy: CausalPolicy, ranks: int) -> "Gathered":
    """Cut the weights of a policy over the ranks, all of which must call this; its names for them stay.

    Gradients arrive as sums over the ranks, added up in float32. Every rank must make the same number of passes, as
    each of them gathers weights from all.

    Args:
        policy: as loaded, whole and the same on every rank; nothing of it may have been given to an optimizer.
        ranks: how many there are.

    Returns:
        What puts the weights together.

    Raises:
        ModelError: cut, it gives other numbers than whole.
    """
    _, apart, _ = made_up_rows(policy.model)
    policy.train(False)
    with torch.no_grad():
        expected = policy(apart).logp
    mesh = init_device_mesh(policy.model.device.type, (ranks,))
    added_up = MixedPrecisionPolicy(
        reduce_dtype=_at_least_float32(policy.model.dtype), cast_forward_inputs=False
    )
    for part in (*_layers(policy), policy):
        cut = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=added_up)
        cut.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by counts of all ranks
        cut.set_force_sum_reduction_for_comms(True)
        cut.set_reduce_scatter_unused_params(True)  # an expert may be asked on one rank alone
    register_fsdp_forward_method(policy, "evaluate")
    with torch.no_grad():
        found = policy(apart).logp
    if not close(expected, found, policy.model.dtype):
        raise ModelError(
            "the model gives other log-probabilities once its weights are split over the ranks, because one part "
            "reads the weights of another. Set distributed: ddp"
        )
    return Gathered(policy)


class Gathered:
    """Within ``with gathered():`` every rank has all weights of the policy, as plain tensors in their places.

    There each rank may run the model as often as it likes, forward. What changes a weight there is lost.
    """

    def __init__(self, policy: CausalPolicy) -> None:
        self.parts = [part for part in policy.modules() if isinstance(part, FSDPModule)]
        self._depth = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Gather, and let go with the outermost; every rank must enter."""
        self._depth += 1
        if self._depth == 1:
            for part in self.parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for part in self.parts:
                    part.reshard()
                    part.set_reshard_after_forward(True, recurse=False)


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as it stands; ``state_dict`` would first let go what was gathered."""
    left_out = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = {name: value for name, value in model.named_buffers() if name not in left_out}
    weights = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    return weights | buffers


def _layers(policy: CausalPolicy) -> Sequence[nn.Module]:
    """What transformers says must stay on one device; none of them = the model is gathered at once."""
    names = set(getattr(policy.model, "_no_split_modules", None) or ())
    return [module for module in policy.modules() if type(module).__name__ in names]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32
