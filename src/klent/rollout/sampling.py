"""One token per row from its logits, with the numbers of the distribution that it was drawn from."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from klent.errors import DivergenceError

BLOCK = 256  # tokens of the vocabulary summed together before the search, which then reads one such block
LOG2_E = 1 / math.log(2)
TILE = 2**19  # logits worked on together on a CPU, 2 MB: they stay in the cache from one pass to the next


class Sampled(NamedTuple):
    """Tokens drawn, ``[R]`` each: their ids, and numbers of the distribution they came from, nats."""

    token: Tensor
    logp: Tensor
    """Log-probability of the token."""
    entropy: Tensor
    """Shannon entropy of the distribution."""
    renyi: Tensor
    """Its Rényi entropy of order 2, -log of the probability that two draws agree."""
    collision_logp: Tensor
    """The sum of squared probabilities times their logarithms."""


def sample_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Sampled:
    r"""Draw one token per row by inverting the cumulative distribution at one uniform number.

    .. math::
        q = \mathrm{renormalise}(\mathrm{top\text{-}p}(\mathrm{top\text{-}k}(\mathrm{softmax}(z / T)))),
        \qquad a = \min\{v : \sum_{u \le v} q_u > U\}

    The log-probability and the entropy are those of :math:`q`, truncation included, so an importance ratio
    built on them is a ratio of probabilities and not of unrelated numbers.

    Args:
        logits: ``[R, V]``, any floating dtype. Not changed.
        uniform: one number in [0, 1) per row, ``[R]``.
        temperature: :math:`T \ge 0`; 0 takes the most likely token (a distribution of entropy 0).
        top_p: keep the smallest set of most likely tokens whose probability reaches this, in (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all. Applied before ``top_p``.

    Returns:
        ``Sampled``; float32 numbers.

    Raises:
        DivergenceError: logits that are NaN or +inf, or a row that is -inf throughout: they are of no
            distribution.

    Example:
        >>> drawn = sample_tokens(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0.75, 0.75]))
        >>> drawn.token.tolist(), [round(x, 4) for x in drawn.logp.tolist()]
        ([1, 0], [-0.6931, -0.1269])
    """
    rows = max(1, TILE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    parts = []
    for part, u in zip(logits.split(rows), uniform.split(rows), strict=True):
        drawn, largest = draw(part, u, temperature=temperature, top_p=top_p, top_k=top_k)
        _refuse_diverged(largest)
        parts.append(drawn)
    return Sampled(*map(torch.cat, zip(*parts, strict=True)))


def draw(
    logits: Tensor, uniform: Tensor, *, temperature: float | Tensor, top_p: float, top_k: int
) -> tuple[Sampled, Tensor]:
    """:func:`sample_tokens` of all rows together, and each row's largest logit, which nothing here refuses.

    No number leaves the device. Where the largest logit is not finite, the row's token is one of the vocabulary, and
    its numbers mean nothing.

    Args:
        temperature: a number, or a tensor without dimensions, which is above 0.
    """
    if not isinstance(temperature, Tensor) and temperature == 0:
        largest, token = logits.max(dim=-1)
        zero = torch.zeros(len(logits), device=logits.device)
        return Sampled(token, zero, *(zero.clone() for _ in range(3))), largest
    count, size = logits.shape
    scaled = torch.zeros(count, -(-size // BLOCK) * BLOCK, device=logits.device)
    filled = scaled[:, :size]
    filled.copy_(logits).div_(temperature)
    largest = filled.amax(dim=-1, keepdim=True)
    filled -= largest
    scaled[:, size:] = float("-inf")
    if top_k or top_p < 1.0:
        filled.masked_fill_(~keep_tokens(filled, top_p=top_p, top_k=top_k), float("-inf"))
    weight = torch.exp2(scaled * LOG2_E)  # a quarter of the time of exp on a CPU
    token, total = _invert(weight, uniform, size)
    log_total = total.log()
    logp = scaled.gather(1, token) - log_total
    # 0 * -inf is NaN, and a token of weight 0 adds nothing to the entropy.
    mean = torch.linalg.vecdot(weight, scaled.clamp_min_(-1e4))[:, None] / total
    renyi = 2 * log_total - torch.linalg.vecdot(weight, weight)[:, None].log()
    squared = torch.linalg.vecdot(weight, scaled.mul_(weight))[:, None] / total.square()
    collision_logp = (squared - (-renyi).exp() * log_total).clamp_max(0.0)
    numbers = (logp, (log_total - mean).clamp_min(0.0), renyi.clamp_min(0.0), collision_logp)
    return Sampled(token[:, 0], *(x[:, 0] for x in numbers)), largest[:, 0]


def _invert(weight: Tensor, uniform: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The token that each uniform number falls on, below ``size``, and the sum of the weights, ``[R, 1]`` each.

    First the block that it falls into, then the token in that block: a cumulative sum over the whole vocabulary would
    be the longest part of the draw.
    """
    count = len(weight)
    blocks = weight.view(count, -1, BLOCK)
    cumulative = blocks.sum(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = _below(uniform[:, None].to(total) * total, total)
    block = torch.searchsorted(cumulative, threshold, right=True).clamp_max_(blocks.shape[1] - 1)
    threshold = threshold - torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_min(0)), 0.0)
    within = blocks[torch.arange(count, device=block.device), block[:, 0]].cumsum(dim=-1)
    offset = torch.searchsorted(within, _below(threshold, within[:, -1:]), right=True)
    return (block * BLOCK + offset).clamp_max_(size - 1), total


def _refuse_diverged(largest: Tensor) -> None:
    """Raise where the largest logit of a row is not finite; a NaN among logits is their maximum."""
    broken = int((~largest.isfinite()).sum())
    if broken:
        raise diverged(broken, len(largest))


def diverged(broken: int, rows: int) -> DivergenceError:
    """What to raise where so many rows have logits that are not finite."""
    return DivergenceError(
        f"the model has diverged: the logits of {broken} of {rows} rows are not finite, so no "
        "token can be drawn. Its weights hold NaN or inf, or are too large: usually optimizer.lr is too high"
    )


def _below(threshold: Tensor, total: Tensor) -> Tensor:
    """The threshold, kept strictly below the total, or rounding could ask for a token past the last one."""
    return torch.minimum(threshold, torch.nextafter(total, total.new_zeros(())))


def keep_tokens(scaled: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """True for the tokens that truncation keeps, ``[R, V]``; ties at the border go by index order."""
    width = min(top_k, scaled.shape[-1]) if top_k else scaled.shape[-1]
    ordered, index = scaled.topk(width, dim=-1)
    weight = ordered.softmax(dim=-1)
    # A token stays while the probability in front of it has not reached top_p: the first always stays.
    stays = (weight.cumsum(dim=-1) - weight) < top_p
    return torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, index, stays)
