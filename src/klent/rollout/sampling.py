"""One token for each row from its logits, with the numbers of the distribution really drawn from."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sampled(NamedTuple):
    """Tokens drawn, ``[R]`` each: ids, log-probability and entropy of their distribution, nats."""

    token: Tensor
    logp: Tensor
    entropy: Tensor


def sample_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Sampled:
    r"""Draw one token a row by inverting the cumulative distribution at one uniform number.

    .. math::
        q = \mathrm{renormalise}(\mathrm{top\text{-}p}(\mathrm{top\text{-}k}(\mathrm{softmax}(z / T)))),
        \qquad a = \min\{v : \sum_{u \le v} q_u > U\}

    The log-probability and the entropy are those of :math:`q`, truncation included, so an importance ratio
    built on them is a ratio of probabilities and not of unrelated numbers.

    Args:
        logits: ``[R, V]``, any floating dtype. Not changed.
        uniform: one number in [0, 1) a row, ``[R]``.
        temperature: :math:`T \ge 0`; 0 takes the most likely token (a distribution of entropy 0).
        top_p: keep the smallest set of most likely tokens whose probability reaches this, in (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all. Applied before ``top_p``.

    Returns:
        ``Sampled``; float32 numbers.

    Example:
        >>> drawn = sample_tokens(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0.75, 0.75]))
        >>> drawn.token.tolist(), [round(x, 4) for x in drawn.logp.tolist()]
        ([1, 0], [-0.6931, -0.1269])
    """
    if temperature == 0:
        token = logits.argmax(dim=-1)
        zero = torch.zeros(len(logits), device=logits.device)
        return Sampled(token, zero, zero.clone())
    scaled = logits.float() / temperature
    scaled -= scaled.amax(dim=-1, keepdim=True)
    if top_k or top_p < 1.0:
        scaled.masked_fill_(~_kept(scaled, top_p=top_p, top_k=top_k), float("-inf"))
    weight = scaled.exp()
    cumulative = weight.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, or rounding could ask for a token behind the last one.
    threshold = torch.minimum(uniform[:, None].to(total) * total, torch.nextafter(total, total.new_zeros(())))
    token = torch.searchsorted(cumulative, threshold, right=True)
    log_total = total.log()
    logp = scaled.gather(1, token) - log_total
    # 0 * -inf is NaN, and a token of weight 0 adds nothing to the entropy.
    entropy = log_total - (weight * scaled.clamp_min_(-1e4)).sum(dim=-1, keepdim=True) / total
    return Sampled(token[:, 0], logp[:, 0], entropy[:, 0].clamp_min(0.0))


def _kept(scaled: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """True for the tokens that truncation keeps, ``[R, V]``; ties at the border go by index order."""
    width = min(top_k, scaled.shape[-1]) if top_k else scaled.shape[-1]
    ordered, index = scaled.topk(width, dim=-1)
    weight = ordered.softmax(dim=-1)
    # A token stays while the probability in front of it has not reached top_p: the first always stays.
    stays = (weight.cumsum(dim=-1) - weight) < top_p
    return torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, index, stays)
