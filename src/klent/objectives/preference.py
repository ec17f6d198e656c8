"""Preferences between two answers to one prompt: as a loss on the policy, or on a model of the reward."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from klent.objectives.checks import check_choice, check_number, check_pairs
from klent.objectives.kinds import pair_loss

__all__ = ["bradley_terry", "dpo", "orpo", "simpo"]


@pair_loss
def dpo(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    logp_ref_chosen: Tensor,
    logp_ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    form: Literal["dpo", "ipo"] = "dpo",
    label_noise: float = 0.0,
) -> Tensor:
    """Direct preference optimisation.

        h = (logp_chosen - logp_ref_chosen) - (logp_rejected - logp_ref_rejected)
        dpo    L = -log σ(beta·h)
        cdpo   L = -(1 - ε)·log σ(beta·h) - ε·log σ(-beta·h),   ε = label_noise
        ipo    L = (h - 1/(2·beta))²

    The policy's own log-ratio to the reference serves as the reward, so that a step on preferences is a step
    towards the policy that would be best under that reward and a penalty of ``beta`` on the KL.

    Args:
        logp_chosen: log-probability of the preferred answer under the policy being trained, *summed* over its
            tokens, nats, ``[B]``. Receives the gradient.
        logp_rejected: the same of the other answer, to the same prompt. Receives the gradient.
        logp_ref_chosen: as ``logp_chosen``, under the reference. Receives no gradient.
        logp_ref_rejected: as ``logp_rejected``, under the reference. Receives no gradient.
        beta: strength of the KL penalty, in (0, inf): larger stays closer to the reference.
        form: ``dpo``, or ``ipo``, which aims at a fixed margin.
        label_noise: share of the pairs labelled the wrong way round, in [0, 0.5); above 0 it is cDPO.

    Returns:
        ``[B]``, not averaged. ln 2 where the policy is the reference (1/(4·beta²) with ``ipo``).

    Raises:
        TypeError: a tensor is not floating point or a setting not a number.
        ValueError: shapes are not ``[B]`` or differ, a setting is out of range, or ``label_noise`` is given
            with ``ipo``.

    Note:
        *Gradient.* ``-dL/dlogp_chosen = beta·(σ(-beta·h) - ε)`` and the opposite for the rejected one: only
        the difference is trained, and both log-probabilities may fall.

        *Exactness.* The equivalence with reward and *reverse* KL holds for summed log-probabilities; means
        over tokens are another objective. Z(x) cancels only between answers to one prompt. With labels that
        never disagree the best h is infinite for ``dpo``; ε bounds it at log((1 - ε)/ε)/beta, ``ipo`` at
        1/(2·beta).

    Example:
        >>> import torch
        >>> from klent.objectives import dpo
        >>> chosen, rejected = torch.tensor([-10.0, -10.0]), torch.tensor([-12.0, -12.0])
        >>> dpo(chosen, rejected, torch.tensor([-10.0, -15.0]), rejected)
        tensor([0.6931, 0.4741])

    References:
        Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290.
        Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences (IPO), 2023,
        arXiv:2310.12036.
        Mitchell, A Note on DPO with Noisy Preferences (cDPO), 2023.
    """
    check_pairs(
        logp_chosen=logp_chosen,
        logp_rejected=logp_rejected,
        logp_ref_chosen=logp_ref_chosen,
        logp_ref_rejected=logp_ref_rejected,
    )
    check_number("beta", beta, 0, math.inf, ends="()")
    check_choice("form", form, ("dpo", "ipo"))
    check_number("label_noise", label_noise, 0, 0.5, ends="[)")
    margin = (logp_chosen - logp_ref_chosen.detach()) - (logp_rejected - logp_ref_rejected.detach())
    if form == "ipo":
        if label_noise:
            raise ValueError(
                f"label_noise is {label_noise} with form='ipo', expected 0: the squared loss bounds the "
                "margin by itself. Take form='dpo' for cDPO"
            )
        return (margin - 1 / (2 * beta)).square()
    loss = -logsigmoid(beta * margin)
    # log σ(-x) = log σ(x) - x, so noise adds a term in x alone
    return loss + label_noise * beta * margin if label_noise else loss


@pair_loss
def simpo(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    beta: float = 2.0,
    margin: float = 1.0,
) -> Tensor:
    """Preference optimisation without a reference, on mean log-probabilities.

        h = logp_chosen / length_chosen - logp_rejected / length_rejected
        L = -log σ(beta·h - margin)

    The reward is the mean log-probability per token, which is also what decides how likely an answer looks to
    greedy decoding; the better one should win by ``margin``.

    Args:
        logp_chosen: log-probability of the preferred answer under the policy being trained, *summed* over its
            tokens, nats, ``[B]``. Receives the gradient.
        logp_rejected: the same of the other answer, to the same prompt. Receives the gradient.
        length_chosen: number of tokens that ``logp_chosen`` is summed over, ``[B]``. Receives no gradient.
        length_rejected: the same of ``logp_rejected``. Receives no gradient.
        beta: scale of the reward, in (0, inf); no coefficient of a KL.
        margin: by how much the better reward should exceed the other, the paper's γ, in [0, inf).

    Returns:
        ``[B]``, not averaged.

    Raises:
        TypeError: a tensor is not floating point or a setting not a number.
        ValueError: shapes are not ``[B]`` or differ, or a setting is out of range.

    Note:
        *Gradient.* ``-dL/dlogp_chosen = beta·σ(margin - beta·h) / length_chosen``: every token of a pair's longer
        answer is pushed less.

        *Exactness.* No optimum of a reward and a KL stands behind it: nothing holds the policy near where it
        began but the learning rate and the number of steps. With labels that never disagree h grows without end.

        *Released code.* The authors' (and TRL's ``CPOTrainer``) sets ``gamma_beta_ratio``, which is
        margin / beta here; 0.3 to 0.6 in their runs, with beta from 2 to 10.

    Example:
        >>> import torch
        >>> from klent.objectives import simpo
        >>> chosen, rejected = torch.tensor([-4.0, -4.0]), torch.tensor([-6.0, -6.0])
        >>> lengths = torch.tensor([4.0, 4.0]), torch.tensor([4.0, 12.0])
        >>> simpo(chosen, rejected, *lengths, beta=2.0, margin=1.0)
        tensor([0.6931, 2.1269])

    References:
        Meng, Xia and Chen, SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024,
        arXiv:2405.14734, equation 6.
    """
    check_pairs(
        logp_chosen=logp_chosen,
        logp_rejected=logp_rejected,
        length_chosen=length_chosen,
        length_rejected=length_rejected,
    )
    check_number("beta", beta, 0, math.inf, ends="()")
    check_number("margin", margin, 0, math.inf, ends="[)")
    gap = logp_chosen / length_chosen.detach() - logp_rejected / length_rejected.detach()
    return -logsigmoid(beta * gap - margin)


@pair_loss
def orpo(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    length_chosen: Tensor,
    length_rejected: Tensor,
    *,
    coef: float = 0.1,
) -> Tensor:
    """Odds-ratio preference optimisation: imitate the better answer, and prefer it by its odds.

        p = exp(logp / length)        odds = p / (1 - p)
        L = -logp_chosen / length_chosen - coef·log σ(log odds_chosen - log odds_rejected)

    One stage in place of supervised tuning and a preference loss: the first term teaches the better answers, the
    second keeps what it teaches from raising the worse ones with them.

    Args:
        logp_chosen: log-probability of the preferred answer under the policy being trained, *summed* over its
            tokens, nats, ``[B]``. Receives the gradient.
        logp_rejected: the same of the other answer, to the same prompt. Receives the gradient.
        length_chosen: number of tokens that ``logp_chosen`` is summed over, ``[B]``. Receives no gradient.
        length_rejected: the same of ``logp_rejected``. Receives no gradient.
        coef: weight of the odds ratio, the paper's λ, in [0, inf); 0 imitates alone.

    Returns:
        ``[B]``, not averaged.

    Raises:
        TypeError: a tensor is not floating point or ``coef`` not a number.
        ValueError: shapes are not ``[B]`` or differ, or ``coef`` is negative or infinite.

    Note:
        *Gradient.* ``d log odds/dlogp = 1 / (length·(1 - p))``: it grows without bound as an answer becomes
        certain. Where p rounds to 1 the odds count as those of the largest p below 1, without a gradient.

        *Exactness.* There is no reference and no KL: how far the policy goes is up to the number of steps.

        *Released code.* TRL's ``ORPOTrainer`` takes the first term over prompt and answer together, and averages
        it over the tokens of all better answers of a batch, so that long ones weigh more; here, as in the paper,
        each answer has its own mean, and the prompt has no loss.

    Example:
        >>> import torch
        >>> from klent.objectives import orpo
        >>> half = torch.tensor([0.5]).log()
        >>> orpo(2 * half, 3 * half, torch.tensor([2.0]), torch.tensor([3.0]), coef=0.1)
        tensor([0.7625])

    References:
        Hong, Lee and Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691, equations 4 to 7.
    """
    check_pairs(
        logp_chosen=logp_chosen,
        logp_rejected=logp_rejected,
        length_chosen=length_chosen,
        length_rejected=length_rejected,
    )
    check_number("coef", coef, 0, math.inf, ends="[)")
    chosen, rejected = logp_chosen / length_chosen.detach(), logp_rejected / length_rejected.detach()
    return -chosen - coef * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)), from log p."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - (-torch.expm1(logp)).log()


@pair_loss
def bradley_terry(reward_chosen: Tensor, reward_rejected: Tensor, *, margin: float | Tensor = 0.0) -> Tensor:
    """Negative log-likelihood of a preference under rewards: what trains a reward model.

        L = -log σ(r_chosen - r_rejected - margin)

    The better answer is the one with more reward, and how sure that is follows from the difference.

    Args:
        reward_chosen: reward of the preferred answer, ``[B]``. Receives the gradient.
        reward_rejected: reward of the other, ``[B]``. Receives the gradient.
        margin: by how much the preferred one should win, in [0, inf), or one number per pair, ``[B]``, larger
            for clearer preferences. Receives no gradient.

    Returns:
        ``[B]``, nats, not averaged.

    Raises:
        TypeError: a tensor is not floating point or ``margin`` not a number.
        ValueError: shapes are not ``[B]`` or differ, or ``margin`` is negative or infinite.

    Note:
        Only differences are identified: a constant, of a prompt or of all, can be added to the reward.

    Example:
        >>> import torch
        >>> from klent.objectives import bradley_terry
        >>> bradley_terry(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.6931, 0.3133])
        >>> bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]), margin=1.0)
        tensor([0.6931])

    References:
        Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39, 1952.
        Touvron et al., Llama 2 (margin), 2023, arXiv:2307.09288.
    """
    check_pairs(reward_chosen=reward_chosen, reward_rejected=reward_rejected)
    if isinstance(margin, Tensor):
        check_pairs(reward_chosen=reward_chosen, margin=margin)
        margin = margin.detach()
    else:
        check_number("margin", margin, 0, math.inf, ends="[)")
    return -logsigmoid(reward_chosen - reward_rejected - margin)
