"""Which tokens: the choices that a claim about high-entropy tokens has to be compared with."""

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import selector
from klent.objectives.masking import drawn, largest, share

__all__ = ["low_entropy_tokens", "random_tokens"]


@selector
def low_entropy_tokens(entropy: Tensor, mask: Tensor, *, fraction: float = 0.8) -> Tensor:
    """The tokens at which the policy was surest: all but the forks of the text.

        S = the ⌈fraction·N⌉ tokens of smallest Hₜ among the N on the mask

    The other side of ``high_entropy_tokens``: trained on alone, they show what the forks were worth.

    Args:
        entropy: of the next-token distributions, nats, ``[B, T]``. Receives no gradient.
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share to choose, in (0, 1].

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask: at least one if the mask has any.
        Of equal entropies the earlier token (by row, then column) is chosen.

    Raises:
        TypeError: ``mask`` is not bool, ``entropy`` not floating point, or ``fraction`` not a number.
        ValueError: shapes differ or ``fraction`` is outside (0, 1].

    Note:
        *Batch dependence.* Tokens of the whole call compete: choose before cutting a batch.

        *Complement.* With 1 - fraction, ``high_entropy_tokens`` chooses the rest, and one token more where
        fraction·N is not whole.

    Example:
        >>> import torch
        >>> from klent.objectives import low_entropy_tokens
        >>> entropy = torch.tensor([[0.1, 2.0, 0.3], [1.5, 0.2, 0.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> low_entropy_tokens(entropy, mask, fraction=0.4)
        tensor([[ True, False, False],
                [False,  True, False]])

    References:
        Wang et al., Beyond the 80/20 Rule, 2025, arXiv:2506.01939 (the bottom 80%).
    """
    check_tokens(mask, entropy=entropy)
    check_number("fraction", fraction, 0, 1, ends="(]")
    return largest(-entropy, mask, share(fraction, mask.sum()))


@selector
def random_tokens(mask: Tensor, *, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """Tokens drawn with equal chances: the control of every other choice.

        S = ⌈fraction·N⌉ of the N tokens on the mask, without replacement

    A choice that does no better than this has not chosen anything.

    Args:
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share to choose, in (0, 1].
        generator: source of the draw, on the device of ``mask``; None is torch's own.

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask: exactly ⌈fraction·N⌉.

    Raises:
        TypeError: ``mask`` is not bool or ``fraction`` not a number.
        ValueError: ``mask`` is not ``[B, T]`` or ``fraction`` is outside (0, 1].

    Note:
        *Batch dependence.* The count is of the whole call, rounded up once: choose before cutting a batch.
        On the CPU the draw depends on the number of tokens on the mask and their order, not on the padding.

    Example:
        >>> import torch
        >>> from klent.objectives import random_tokens
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> random_tokens(mask, fraction=0.4, generator=torch.Generator().manual_seed(0))
        tensor([[ True, False, False],
                [ True, False, False]])

    References:
        A random fifth of the tokens is the control of arXiv:2605.07660.
    """
    check_tokens(mask)
    check_number("fraction", fraction, 0, 1, ends="(]")
    return largest(drawn(mask, generator), mask, share(fraction, mask.sum()))
