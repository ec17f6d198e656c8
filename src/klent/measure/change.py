"""What an update did to the distribution, measured on the tokens that it was made from."""

from collections.abc import Sequence

import torch

from klent.streams.batch import Batch, Stats
from klent.training.update import FirstPass, UpdateResult


def probe_rows(batch: Batch, result: UpdateResult, *, prompts: int) -> list[int]:
    """The completions to measure on: those of the first ``prompts`` prompts that the update computed."""
    known = result.before.known
    groups = batch.group[known].unique()[:prompts]
    return (known & torch.isin(batch.group, groups)).nonzero()[:, 0].tolist()


def distribution_change(
    batch: Batch, rows: Sequence[int], before: FirstPass, after: FirstPass | Stats
) -> dict[str, float]:
    r"""The change of entropy on the same prefixes, what the covariance theorem says of it, and the KL.

    .. math::
        \Delta H &= \tfrac1N \sum_t H'_t - H_t \\
        \widehat{\Delta H} &= -\tfrac1N \sum_t (\log\pi_t + H_t)(\log\pi'_t - \log\pi_t) \\
        \widehat{KL}(\pi \| \pi') &= \tfrac1N \sum_t r_t - 1 - \log r_t, \qquad r_t = \pi'_t / \pi_t

    The prediction is the lemma behind the Entropy Mechanism, :math:`\Delta H \approx -\mathrm{Cov}_{a \sim
    \pi}(\log \pi(a), \Delta z_a)`, estimated from the sampled tokens: :math:`E_a[\log \pi] = -H` is known
    exactly, and :math:`\Delta \log \pi` differs from the change of the logits by a constant that the
    covariance does not see. It is first order: the two part ways when a single update is large.

    Args:
        batch: the step.
        rows: the completions measured on.
        before: ``logp`` and ``entropy`` at the start of the update, ``[B, T]``, nats.
        after: the same after it.

    Returns:
        ``policy/entropy_delta``, ``policy/entropy_delta_predicted`` and ``kl/update``, nats per token; all 0
        where no completion had a coefficient, since then there was no update. Where the tokens are a data
        set's or a mixture's and not the policy's, only the first: the others are means over the policy's own
        tokens.

    Reference:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617, Lemma 1.
    """
    names = ["policy/entropy_delta", "policy/entropy_delta_predicted", "kl/update"]
    if not batch.on_policy:
        del names[1:]
    if not rows:
        return dict.fromkeys(names, 0.0)
    mask = batch.mask[rows]
    logp, entropy = before.logp[rows][mask].double(), before.entropy[rows][mask].double()
    logp_after, entropy_after = after.logp[rows][mask].double(), after.entropy[rows][mask].double()
    shift = logp_after - logp
    measured = (entropy_after - entropy).mean()
    predicted = -((logp + entropy) * shift).mean()
    kl = (torch.expm1(shift) - shift).mean()
    return dict(zip(names, (float(measured), float(predicted), float(kl)), strict=False))
