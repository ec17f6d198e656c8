"""The policy as it was: its trained weights set aside, and put back into the model for a pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class KeptWeights:
    """A copy of what is trained; the rest of the model is shared with it.

    Args:
        model: whose trained parameters are kept; all of a model, or its adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if parameter.requires_grad
        ]
        self.trained = list({id(parameter): parameter for _, _, parameter in self.places}.values())
        self.copies = {id(p): nn.Parameter(torch.empty_like(p), requires_grad=False) for p in self.trained}
        self._exact: dict[int, Tensor] = {}
        self._moved = False
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Set the weights aside as they are now."""
        for parameter in self.trained:
            self.copies[id(parameter)].copy_(parameter)
        self._exact.clear()
        self._moved = False

    @torch.no_grad()
    def blend(self, rate: float) -> None:
        """Move the weights that were set aside towards those of now: ``kept <- (1 - rate) kept + rate now``."""
        for parameter in self.trained:
            exact = self.exact(parameter)
            self.take(parameter, exact.lerp_(parameter.to(exact.dtype), rate))
        self._moved = True

    def exact(self, parameter: nn.Parameter) -> Tensor:
        """What is kept of a parameter, in float32 at least: a narrower sum would round small rates away."""
        copy = self.copies[id(parameter)]
        if copy.dtype.itemsize >= torch.float32.itemsize:
            return copy.detach()
        return self._exact.setdefault(id(parameter), copy.detach().float())

    @torch.no_grad()
    def take(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Keep this of a parameter; the model's copy is its rounding."""
        self.exact(parameter).copy_(value)
        self.copies[id(parameter)].copy_(value)

    @property
    def moved(self) -> bool:
        """Whether a weight is another than the one that was kept.

        Looked at and not deduced: a fused optimizer leaves the version counters of tensors as they were. Only as
        long as nothing has moved are all weights read, which is little beside a forward pass.
        """
        self._moved = self._moved or not all(torch.equal(p, self.copies[id(p)]) for p in self.trained)
        return self._moved

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model with the weights that were kept. The trained ones are not touched, nor is a graph over them."""
        for module, name, parameter in self.places:
            module._parameters[name] = self.copies[id(parameter)]
        try:
            yield
        finally:
            for module, name, parameter in self.places:
                module._parameters[name] = parameter
