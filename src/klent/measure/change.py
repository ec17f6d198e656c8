"""What an update did to the distribution, measured on the tokens that it was made from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from klent.objectives import entropy_effect
from klent.streams.batch import Batch, Stats
from klent.training.update import FirstPass, UpdateResult


def probe_rows(batch: Batch, result: UpdateResult, *, prompts: int) -> list[int]:
    """The completions to measure on: those of the first ``prompts`` prompts that the update computed."""
    if result.before is None:
        return []
    known = result.before.known
    groups = batch.group[known].unique()[:prompts]
    return (known & torch.isin(batch.group, groups)).nonzero()[:, 0].tolist()


def distribution_change(
    batch: Batch,
    rows: Sequence[int],
    before: FirstPass,
    after: FirstPass | Stats,
    coefficient: Tensor | None = None,
) -> dict[str, float]:
    r"""The change of entropy on the same prefixes, what the covariance theorem says of it, and the KL.

    .. math::
        \Delta H &= \tfrac1N \sum_t H'_t - H_t \
        \widehat{\Delta H} &= -\tfrac1N \sum_t (\log\pi_t + H_t)(\log\pi'_t - \log\pi_t) \
        \widehat{KL}(\pi \| \pi') &= \tfrac1N \sum_t r_t - 1 - \log r_t, \qquad r_t = \pi'_t / \pi_t

    The prediction is the lemma behind the Entropy Mechanism, :math:`\Delta H \approx -\mathrm{Cov}_{a \sim
    \pi}(\log \pi(a), \Delta z_a)`, estimated from the sampled tokens: :math:`E_a[\log \pi] = -H` is known
    exactly, and :math:`\Delta \log \pi` differs from the change of the logits by a constant that the
    covariance does not see. It is first order: the two part ways when a single update is large.

    Where the sampler gives the sums over squared probabilities, there is a second prediction: each token's exact
    effect times one step on the logits that all share, see :func:`exact_prediction`.

    Args:
        batch: the step.
        rows: the completions measured on.
        before: ``logp`` and ``entropy`` at the start of the update, ``[B, T]``, nats.
        after: the same after it.
        coefficient: ``-dL/dlogp`` of each action, ``[B, T]``, in any unit that all share; None: no second prediction.

    Returns:
        ``policy/entropy_delta``, ``policy/entropy_delta_predicted``, ``kl/update`` and, with a coefficient and the
        sampler's sums, ``policy/entropy_delta_exact``, nats per token; all 0
        where no completion had a coefficient, since then there was no update. Where the tokens are a data
        set's or a mixture's and not the policy's, only the first: the others are means over the policy's own
        tokens.

    Reference:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617, Lemma 1.
    """
    names = ["policy/entropy_delta", "policy/entropy_delta_predicted", "kl/update"]
    sampling = batch.at_sampling
    exact = coefficient is not None and sampling is not None and sampling.collision is not None
    if not batch.on_policy:
        del names[1:]
    elif exact:
        names.append("policy/entropy_delta_exact")
    if not rows:
        return dict.fromkeys(names, 0.0)
    mask = batch.mask[rows]
    logp, entropy = before.logp[rows][mask].double(), before.entropy[rows][mask].double()
    logp_after, entropy_after = after.logp[rows][mask].double(), after.entropy[rows][mask].double()
    shift = logp_after - logp
    measured = (entropy_after - entropy).mean()
    predicted = -((logp + entropy) * shift).mean()
    kl = (torch.expm1(shift) - shift).mean()
    values = [float(measured), float(predicted), float(kl)]
    if exact and coefficient is not None and sampling is not None:
        values.append(
            exact_prediction(sampling, rows, coefficient[rows], mask, after.logp[rows] - before.logp[rows])
        )
    return dict(zip(names, values, strict=False))


def exact_prediction(
    sampling: Stats, rows: Sequence[int], coefficient: Tensor, mask: Tensor, shift: Tensor
) -> float:
    r"""The change of entropy from each token's exact effect and one step on the logits that all tokens share.

    .. math::
        g_t = c_t (1 - 2 p_t + \textstyle\sum_v p_v^2), \qquad
        \eta = \sum_t g_t \Delta\log\pi_t \Big/ \sum_t g_t^2, \qquad
        \widehat{\Delta H} = \tfrac1N \sum_t \eta \cdot \mathrm{effect}(c_t)

    A network has no step on the logits: its weights move, and with them the logits of every position. Were each
    position moved by its own token alone, with one step :math:`\eta`, its log-probability would rise by
    :math:`\eta g_t`; :math:`\eta` is the least-squares fit of that to the log-probabilities measured. So the size of
    the prediction rests on what was measured, its sign on the effects, and what tokens do to one another is left
    out.

    Args:
        sampling: the policy's numbers while the step sampled, with the sums over squared probabilities.
        rows: the completions measured on.
        coefficient: ``-dL/dlogp`` of their actions, ``[rows, T]``.
        mask: their actions, bool.
        shift: the measured change of their log-probabilities, nats.

    Returns:
        Nats per token; 0 where nothing was pushed.
    """
    logp, entropy, collision, collision_logp = (
        torch.where(mask, grid[rows].double(), 0.0)
        for grid in (sampling.logp, sampling.entropy, sampling.collision, sampling.collision_logp)
        if grid is not None
    )
    push = torch.where(mask, coefficient.double(), 0.0)
    effect = entropy_effect(logp, entropy, collision, collision_logp, push, mask)
    own = push * (1 - 2 * logp.exp() + collision)
    square = own.square().sum()
    step = (own * torch.where(mask, shift.double(), 0.0)).sum() / square if square > 0 else square
    return float(step * effect[mask].mean())
