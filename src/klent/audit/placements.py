"""Every place where a KL penalty is put, and the objectives of klent, as losses to compare in an audit."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from klent import objectives as O
from klent.audit.call import LossFunction
from klent.audit.certificate import Certificate, certify
from klent.audit.rewards import in_reward

Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Placement:
    """A loss with its settings and a name.

    Attributes:
        name: its name in tables.
        loss: the argument of `certify`.
        settings: keyword arguments of the loss.
        aim: candidate that it is meant to have the gradient of.
    """

    name: str
    loss: LossFunction
    settings: tuple[tuple[str, object], ...] = ()
    aim: str = ""

    def certificate(self) -> Certificate:
        """The certificate of the loss with these settings."""
        return certify(self.loss, reduce=None, **dict(self.settings))


def plain(logp: Tensor, logp_ref: Tensor, mask: Tensor, *, estimator: Estimator) -> Tensor:
    """The estimator as a loss, as if the policy had just sampled the tokens."""
    return O.kl_estimate(logp, logp_ref, estimator=estimator)


def weighted(
    logp: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor,
    mask: Tensor,
    *,
    estimator: Estimator,
    differentiated: bool,
) -> Tensor:
    """The estimator times each token's ratio, which is differentiated or taken as a number."""
    log_ratio = torch.where(mask, logp - logp_old, 0.0)
    log_ratio = log_ratio if differentiated else log_ratio.detach()
    return log_ratio.exp() * O.kl_estimate(logp, logp_ref, estimator=estimator)


def penalty(logp: Tensor, logp_ref: Tensor, mask: Tensor, *, estimator: Estimator) -> Tensor:
    """The estimator as a cost per token; `in_reward` makes a loss of it."""
    return -O.kl_estimate(logp, logp_ref, estimator=estimator)


def weighted_reward(
    logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor, *, over: str, to_go: bool = True
) -> Tensor:
    """k1 in the reward with importance weights: each token's own ratio, or that of the whole sequence."""
    reward = O.kl_in_reward(logp, logp_ref, mask, coef=1.0)
    advantage = O.reward_to_go(reward, mask) if to_go else reward
    log_ratio = torch.where(mask, logp - logp_old, 0.0).detach()
    if over == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
    return O.reinforce(logp, advantage * log_ratio.exp(), mask).loss


def clip_cov(logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor) -> O.TokenLoss:
    """Clip-Cov with its selector."""
    dropped = O.clip_cov_tokens(logp, advantage, mask)
    return O.clip_cov(logp, logp_old, advantage, mask, dropped=dropped)


def kl_cov(logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor) -> O.TokenLoss:
    """KL-Cov with its selector."""
    penalised = O.kl_cov_tokens(logp, advantage, mask)
    return O.kl_cov(logp, logp_old, advantage, mask, penalised=penalised)


def _of(name: str, loss: LossFunction, **settings: object) -> Placement:
    return Placement(name, loss, tuple(settings.items()))


_ESTIMATORS = ("k1", "k2", "k3")

KL_PLACEMENTS = (
    *(_of(f"{k} in the loss", plain, estimator=k) for k in _ESTIMATORS),
    *(_of(f"ρ·{k} in the loss", weighted, estimator=k, differentiated=True) for k in _ESTIMATORS),
    *(_of(f"sg(ρ)·{k} in the loss", weighted, estimator=k, differentiated=False) for k in _ESTIMATORS),
    *(_of(f"{k} in the reward, to go", in_reward(penalty), estimator=k) for k in _ESTIMATORS),
    *(
        _of(f"{k} in the reward, of the token", in_reward(penalty, to_go=False), estimator=k)
        for k in _ESTIMATORS
    ),
    _of("k1 in the reward, to go, ρ of the token", weighted_reward, over="token"),
    _of("k1 in the reward, of the token, ρ of the token", weighted_reward, over="token", to_go=False),
    _of("k1 in the reward, to go, ρ of the sequence", weighted_reward, over="sequence"),
    _of("`kl_in_loss`, reverse", O.kl_in_loss, coef=1.0),
    _of("`kl_in_loss`, forward", O.kl_in_loss, coef=1.0, divergence="forward"),
    _of("`kl_in_reward` with `reward_to_go`", in_reward(O.kl_in_reward), coef=1.0),
)

OBJECTIVES = (
    _of("`cross_entropy`", O.cross_entropy),
    _of("`reinforce`", O.reinforce),
    _of("`ppo_clip`", O.ppo_clip),
    _of("`ppo_clip`, bounds off", O.ppo_clip, clip_low=1.0, clip_high=float("inf")),
    _of('`ppo_clip(ratio="sequence")`', O.ppo_clip, ratio="sequence"),
    _of("`cispo`", O.cispo),
    _of("`ce_gppo`", O.ce_gppo),
    _of("`dppo`, without `distance`", O.dppo),
    _of("`dppo`, bounds off", O.dppo, threshold=float("inf"), ratio_max=float("inf")),
    _of("`drpo`, without `distance`", O.drpo),
    _of("`clip_cov` with `clip_cov_tokens`", clip_cov),
    _of("`kl_cov` with `kl_cov_tokens`", kl_cov),
    _of("`entropy_loss`, coef 1", O.entropy_loss, coef=1.0),
    _of("`entropy_loss`, coef -0.01", O.entropy_loss, coef=-0.01),
)
