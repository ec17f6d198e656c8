"""How a device draws tokens by itself: the part of a recorded step that is not the model's."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from klent.rollout.sampling import draw


class Drawn(NamedTuple):
    """A token for each row, ``[R]``; columns of what is known of it, the first as of ``Sampled``, ``[R]`` each; and
    the largest logit, not finite where a model has diverged."""

    token: Tensor
    numbers: Sequence[Tensor]
    largest: Tensor


class How(Protocol):
    """How tokens are drawn from the logits of all readers. No number may leave the device."""

    @property
    def key(self) -> tuple[object, ...]:
        """What a recording cannot change."""
        ...

    @property
    def columns(self) -> int:
        """Numbers of a token."""
        ...

    @property
    def temperature(self) -> float:
        """What :meth:`__call__` gets as ``temperature``, which may change from call to call; 0 is greedy."""
        ...

    def __call__(
        self, logits: Sequence[Tensor], uniform: Tensor, *, temperature: Tensor, share: Tensor, fused: bool
    ) -> Drawn:
        """Draw.

        Args:
            logits: of each reader, ``[R, V]``.
            uniform: a number in [0, 1) for each row, ``[R]``.
            temperature: as set, without dimensions.
            share: a number of each row, as the call was given it, ``[R]``.
            fused: whether klent's kernels may be used.
        """
        ...


class Draw(NamedTuple):
    """From one reader's logits; see :func:`klent.rollout.sampling.sample_tokens`."""

    temperature: float
    top_p: float
    top_k: int

    @property
    def key(self) -> tuple[object, ...]:
        return self.temperature == 0, self.top_p, self.top_k

    @property
    def columns(self) -> int:
        return 4

    def __call__(
        self, logits: Sequence[Tensor], uniform: Tensor, *, temperature: Tensor, share: Tensor, fused: bool
    ) -> Drawn:
        if fused and self.temperature and self.top_p == 1.0 and not self.top_k:
            from klent.rollout.triton import draw as draw_on_chip

            token, numbers = draw_on_chip(logits[0], uniform, temperature)
            return Drawn(token, numbers[:, :4].unbind(1), numbers[:, 4])
        heat = temperature if self.temperature else 0.0
        drawn, largest = draw(logits[0], uniform, temperature=heat, top_p=self.top_p, top_k=self.top_k)
        return Drawn(drawn.token, drawn[1:], largest)
