"""The ledger of claims: one small file each; experiment, control, and a verdict by the figures."""

from klent.audit.claims import (
    collision,
    covariance_methods,
    cross_entropy,
    dpo_optimum,
    eighty_twenty,
    entropy_covariance,
    gaussian,
    k1_loss,
    k1_reward,
    k2_loss,
    k3_loss,
    majority_vote,
    positive_reward,
    ppl_conditions,
    qsft_fixed_point,
    qsft_uniform,
    rare_actions,
    reward_entropy_law,
    token_ratio,
)
from klent.audit.claims.claim import Claim, Figure, Verdict

CLAIMS: tuple[Claim, ...] = (
    k1_reward.CLAIM,
    positive_reward.CLAIM,
    k1_loss.CLAIM,
    k2_loss.CLAIM,
    k3_loss.CLAIM,
    token_ratio.CLAIM,
    gaussian.CLAIM,
    dpo_optimum.CLAIM,
    qsft_fixed_point.CLAIM,
    qsft_uniform.CLAIM,
    cross_entropy.CLAIM,
    entropy_covariance.CLAIM,
    rare_actions.CLAIM,
    reward_entropy_law.CLAIM,
    covariance_methods.CLAIM,
    eighty_twenty.CLAIM,
    collision.CLAIM,
    majority_vote.CLAIM,
    ppl_conditions.CLAIM,
)

__all__ = ["CLAIMS", "Claim", "Figure", "Verdict"]
