"""Master weights: float32 copies that the optimizer moves, of weights that the model computes with in bfloat16.

bfloat16 has 8 significant bits. A weight near 0.02 is a multiple of 0.00012, so that a step of 1e-6 is rounded
away every time, and a hundred of them too. The master takes every step; the model's weight is its rounding, which
sampler, trainer and evaluation share.
"""

from collections.abc import Mapping

import torch
from torch import nn


class MasterWeights:
    """What an optimizer moves in place of a model's parameters.

    After a backward pass the gradient of a narrower parameter is added to its master's, in the master's type, and
    freed; after every optimizer step, and after a checkpoint is taken back, the parameter is the rounded master.
    Parameters of that type or a wider one are their own masters.

    Args:
        trainable: the parameters by name.
        dtype: of the masters.

    Attributes:
        named: what is moved, by the names of ``trainable``: what an optimizer is built over and a checkpoint holds.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
        >>> masters = MasterWeights({"w": weight}, torch.float32)
        >>> optimizer = torch.optim.SGD(masters.named.values(), lr=0.001)
        >>> masters.follow(optimizer)
        >>> for _ in range(2):
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> round(masters.named["w"].item(), 5), weight.item()   # gradients add up: 0.001, then 0.002
        (0.997, 0.99609375)
    """

    def __init__(self, trainable: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.named = {name: self._master(parameter, dtype) for name, parameter in trainable.items()}

    def _master(self, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        if parameter.dtype.itemsize >= dtype.itemsize:
            return parameter
        master = nn.Parameter(parameter.detach().to(dtype))
        self.pairs.append((parameter, master))

        def pass_on(narrow: torch.Tensor) -> None:
            """Micro-batches add up in the master's type."""
            assert narrow.grad is not None
            if master.grad is None:
                master.grad = narrow.grad.to(dtype)
            else:
                master.grad += narrow.grad
            narrow.grad = None

        parameter.register_post_accumulate_grad_hook(pass_on)
        return master

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Round the masters into the model whenever this optimizer has moved them, or taken a state back."""
        if self.pairs:
            optimizer.register_step_post_hook(lambda *_: self.write())
            optimizer.register_load_state_dict_post_hook(lambda *_: self.write())

    @torch.no_grad()
    def write(self) -> None:
        """The model's weights are the rounded masters."""
        for parameter, master in self.pairs:
            parameter.copy_(master)
