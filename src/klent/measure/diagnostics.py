"""Where a step spends its entropy: covariance in the tail, fork tokens, what the gradient falls on."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from klent.objectives import entropy_effect
from klent.objectives.masking import largest, share
from klent.streams.batch import Batch, Stats

TAILS = {"0.02": 2e-4, "0.2": 2e-3, "2": 0.02, "20": 0.2}
"""The percent of tokens that a covariance quantile is over, and the same as a fraction."""

FORKS = 0.2
"""The share of tokens, those of highest entropy, that counts as forks."""

NGRAM = 4
"""Tokens in a run of tokens that counts as a repetition when a completion has it twice."""

WORDS_KEPT = 20


def covariance_tails(covariance: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean covariance of the top 0.02%, 0.2%, 2% and 20% of a step's tokens, and the share these last hold.

    Entropy is spent by few tokens: where the top 0.2% stand far above the mean, leaving those out of the
    update is what Clip-Cov and KL-Cov do.

    Args:
        covariance: of each token, ``[B, T]``, as ``token_covariance`` returns it.
        mask: the tokens, ``[B, T]`` bool.

    Returns:
        ``covariance/top_0.02`` to ``covariance/top_20``, in nats times units of advantage. A share is rounded
        up to whole tokens, so that below 5000 tokens the first is the largest token alone.
    """
    ordered = covariance[mask].double().sort(descending=True).values
    count = torch.tensor(len(ordered))
    return {
        f"covariance/top_{name}": float(ordered[: int(share(fraction, count))].mean())
        for name, fraction in TAILS.items()
        if len(ordered)
    }


def effect_metrics(sampling: Stats, advantage: Tensor, mask: Tensor) -> dict[str, float]:
    """What the step's pushes do to the entropy, exact to first order at each token's own position.

    Args:
        sampling: the policy's numbers while the step sampled.
        advantage: what each token is pushed with, ``[B, T]``.
        mask: the tokens, ``[B, T]`` bool.

    Returns:
        ``entropy/effect``, the mean of ``entropy_effect``: nats per unit of step on the logits; ``entropy/spending``,
        the share of pushed tokens whose effect is negative. Nothing where the sampler does not give the sums over
        squared probabilities.
    """
    if sampling.collision is None or sampling.collision_logp is None or not mask.any():
        return {}
    numbers = (sampling.logp, sampling.entropy, sampling.collision, sampling.collision_logp)
    effect = entropy_effect(*numbers, advantage, mask)[mask].double()
    pushed = effect[effect != 0]
    found = {"entropy/effect": float(effect.mean())}
    return found | ({"entropy/spending": float((pushed < 0).double().mean())} if len(pushed) else {})


def fork_share(entropy: Tensor, coefficient: Tensor, mask: Tensor) -> dict[str, float]:
    r"""What falls on the 20% of tokens with the highest entropy.

    .. math::
        \text{gradient share} = \sum_{t \in F} |c_t| \Big/ \sum_t |c_t|, \qquad
        F = \text{the } \lceil N/5 \rceil \text{ tokens of highest } H_t

    Args:
        entropy: of each token's distribution, nats, ``[B, T]``.
        coefficient: ``-dL/dlogp`` of each token, ``[B, T]``.
        mask: the tokens, ``[B, T]`` bool.

    Returns:
        ``forks/threshold``, the lowest entropy among them, nats; ``forks/entropy_share``, their share of the
        step's entropy; ``forks/token_share``, theirs of the tokens that have a coefficient; and
        ``forks/gradient_share``. A share of nothing is left out.
    """
    if not mask.any():
        return {}
    forks = largest(entropy, mask, share(FORKS, mask.sum()))
    size = torch.where(mask, coefficient, 0.0).abs().double()
    found = {"forks/threshold": float(entropy[forks].min())}
    shares = {"entropy_share": torch.where(mask, entropy, 0.0).double(), "token_share": (size > 0).double()}
    for name, weight in (shares | {"gradient_share": size}).items():
        if weight.sum() > 0:
            found[f"forks/{name}"] = float(weight[forks].sum() / weight.sum())
    return found


def selected_and_rest(
    entropy: Tensor, covariance: Tensor | None, selected: Tensor, mask: Tensor
) -> dict[str, float]:
    """The tokens that the update acts on, and the others, side by side.

    Args:
        entropy: nats, ``[B, T]``.
        covariance: of each token, ``[B, T]``; None where nothing was sampled.
        selected: True on the tokens with a coefficient, ``[B, T]`` bool.
        mask: the tokens, ``[B, T]`` bool.

    Returns:
        ``selected/fraction``; ``selected/entropy`` and ``rest/entropy``, ``selected/covariance`` and
        ``rest/covariance``: means over either part, left out where it is empty.
    """
    found = {"selected/fraction": float(selected[mask].double().mean())} if mask.any() else {}
    for part, where in (("selected", mask & selected), ("rest", mask & ~selected)):
        if where.any():
            found[f"{part}/entropy"] = float(entropy[where].mean())
            if covariance is not None:
                found[f"{part}/covariance"] = float(covariance[where].mean())
    return found


def collision_metrics(batch: Batch) -> dict[str, float]:
    r"""How likely two draws are to agree, which is Rényi's entropy of order 2 on another scale.

    .. math::
        \sum_v p_v^2 = E_{a \sim p}[p_a], \qquad H_2 = -\log \sum_v p_v^2 \le H

    ``policy/collision`` is the mean of the first, estimated without bias by the probabilities of the sampled
    tokens, so that it costs nothing. ``policy/renyi`` is the mean of the second, exact, where the sampler
    reports it (``renyi`` of an episode).
    """
    logp = batch.streams.logp_gen
    if logp is None or batch.mixed or not batch.tokens:
        return {}
    row = {"policy/collision": float(logp[batch.mask].double().exp().mean())}
    order_two = [e.renyi[e.acted] for e in batch.episodes if e.renyi is not None]
    if len(order_two) == len(batch):
        row["policy/renyi"] = float(torch.cat(order_two).double().mean())
    return row


def repetition(tokens: Sequence[Tensor], *, length: int = NGRAM) -> float | None:
    """Share of a completion's n-grams that it had before, averaged over completions; None if all are short.

    Args:
        tokens: token ids of each completion, ``[L]`` each.
        length: tokens of an n-gram; shorter completions are left out.

    Example:
        The 4-grams of 1 2 1 2 1 2 are 1212, 2121 and 1212: one in three is a repetition.

        >>> round(repetition([torch.tensor([1, 2, 1, 2, 1, 2])]), 4)
        0.3333
    """
    shares = []
    for ids in tokens:
        if len(ids) < length:
            continue
        grams = torch.zeros(len(ids) - length + 1, dtype=torch.int64)
        for place in range(length):  # a polynomial hash that wraps around: equal grams have equal sums
            grams = grams * 6364136223846793005 + ids[place : len(ids) - length + 1 + place] + 1
        shares.append(1.0 - len(grams.unique()) / len(grams))
    return sum(shares) / len(shares) if shares else None


def fork_words(batch: Batch, tokenizer: Any, *, count: int = WORDS_KEPT) -> list[dict[str, Any]]:
    """The words at which the policy was least sure in this step: rows of ``forks.jsonl``.

    Tokens are taken together by the word that they spell, spaces aside; the entropy is that of the
    distribution from which the word was drawn. A word must have been drawn at least twice, and in at least
    one of a thousand tokens, so that no rare token leads the list.

    Args:
        batch: the step.
        tokenizer: decodes single ids.
        count: words kept.

    Returns:
        ``{"word", "entropy" (mean, nats), "count"}``, the highest entropy first; empty where nothing was
        sampled.
    """
    if batch.streams.entropy_gen is None:
        return []
    entropy = batch.streams.entropy_gen[batch.mask]
    ids = pad_sequence([episode.tokens for episode in batch.episodes], batch_first=True)[batch.mask]
    kinds, place = ids.unique(return_inverse=True)
    times = torch.bincount(place, minlength=len(kinds))
    total = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, place, entropy.double())
    words: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kind, each, summed in zip(kinds.tolist(), times.tolist(), total.tolist(), strict=True):
        word = words[_word(tokenizer.decode([kind]))]
        word[0] += each
        word[1] += summed
    least = max(2.0, len(ids) / 1000)
    known: list[dict[str, Any]] = [
        {"word": word, "entropy": round(summed / each, 5), "count": int(each)}
        for word, (each, summed) in words.items()
        if each >= least
    ]
    return sorted(known, key=lambda row: (-float(row["entropy"]), row["word"]))[:count]


def _word(text: str) -> str:
    """A token without the spaces around it; white space alone stays as it is."""
    return text.strip(" ") or text
