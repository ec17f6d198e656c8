"""The ledger of claims: one small file per claim, with an experiment, a control and a computed verdict."""

from klent.claims.claim import Claim, Figure, RealRuns, Subject, Verdict
from klent.claims.entropy import (
    collision,
    control_budget,
    covariance_methods,
    eighty_twenty,
    entropy_covariance,
    entropy_effect,
    rare_actions,
    reward_entropy_law,
)
from klent.claims.forgetting import imitation, ppo_clip, sharpening
from klent.claims.kl import (
    cross_entropy,
    gaussian,
    k1_loss,
    k1_reward,
    k2_loss,
    k3_loss,
    positive_reward,
    reward_front,
    sequence_estimators,
    token_ratio,
    trust_region,
)
from klent.claims.mixture import chernoff, efficiency, expansion, family, robust, snr
from klent.claims.preference import dpo_optimum, ppl_conditions
from klent.claims.qsft import fixed_point, uniform
from klent.claims.unlabeled import entropy_minimisation, majority_vote, semantic_thresholds

CLAIMS: tuple[Claim, ...] = (
    k1_reward.CLAIM,
    positive_reward.CLAIM,
    k1_loss.CLAIM,
    k2_loss.CLAIM,
    k3_loss.CLAIM,
    token_ratio.CLAIM,
    sequence_estimators.CLAIM,
    reward_front.CLAIM,
    trust_region.CLAIM,
    gaussian.CLAIM,
    dpo_optimum.CLAIM,
    fixed_point.CLAIM,
    uniform.CLAIM,
    cross_entropy.CLAIM,
    entropy_covariance.CLAIM,
    entropy_effect.CLAIM,
    rare_actions.CLAIM,
    reward_entropy_law.CLAIM,
    covariance_methods.CLAIM,
    control_budget.CLAIM,
    eighty_twenty.CLAIM,
    collision.CLAIM,
    imitation.FORGETTING,
    imitation.PREDICTION,
    sharpening.CLAIM,
    ppo_clip.CLAIM,
    majority_vote.CLAIM,
    semantic_thresholds.CLAIM,
    entropy_minimisation.PEAK,
    entropy_minimisation.TEMPERATURE,
    entropy_minimisation.SHIFT,
    entropy_minimisation.ORDER,
    ppl_conditions.CLAIM,
    expansion.CLAIM,
    robust.CLAIM,
    family.CLAIM,
    chernoff.CLAIM,
    snr.CLAIM,
    efficiency.CLAIM,
)

#: subject -> its title, in the order in which subjects are shown
SUBJECTS: dict[Subject, str] = {
    "kl": "KL divergence and its estimators",
    "preference": "Learning from preferences",
    "qsft": "Q-SFT",
    "entropy": "Entropy",
    "forgetting": "Forgetting, and what reinforcement adds",
    "unlabeled": "Training without labels",
    "mixture": "Sampling from a mixture of policy and teacher",
}

__all__ = ["CLAIMS", "SUBJECTS", "Claim", "Figure", "RealRuns", "Subject", "Verdict"]
