"""The mathematics: pure functions of per-token numbers, of four kinds.

Estimators turn rewards and log-probabilities into what an update needs; selectors choose tokens, always from
detached values; surrogates give a loss per token; one reduction averages it. Tensors are ``[B, T]`` unless
said, ``mask`` is bool, logarithms are natural (nats). A value off the mask is never read, and no input is
changed.
"""

from klent.objectives.advantage import gae, group_advantage, leave_one_out, reward_to_go
from klent.objectives.covariance import clip_cov, clip_cov_tokens, kl_cov, kl_cov_tokens
from klent.objectives.diffusion import ddpo, dpok
from klent.objectives.entropy import (
    RewardEntropyFit,
    entropy_loss,
    fit_reward_entropy,
    high_entropy_tokens,
    predicted_entropy_change,
    token_covariance,
)
from klent.objectives.exploration import entropy_ratio_clip, entropy_shaped
from klent.objectives.gaussian import gaussian_kl, gaussian_logp
from klent.objectives.importance import importance_weight
from klent.objectives.kl import kl_estimate, kl_in_loss, kl_in_reward
from klent.objectives.likelihood import cross_entropy, uniform_cross_entropy, weighted_cross_entropy
from klent.objectives.measures import (
    categorical_cross_entropy,
    categorical_entropy,
    categorical_kl,
    reinforce_logit_gradient,
    sft_logit_gradient,
)
from klent.objectives.preference import bradley_terry, dpo
from klent.objectives.qsft import qsft_policy, qsft_target
from klent.objectives.reduce import reduce_tokens
from klent.objectives.regret import cpl, policy_labeled_preference
from klent.objectives.semantic import empo_reward, semantic_entropy
from klent.objectives.surrogate import cispo, ppo_clip, reinforce
from klent.objectives.tokens import low_entropy_tokens, random_tokens
from klent.objectives.types import TokenLoss

__all__ = [  # noqa: RUF022 - by kind
    # surrogates: a loss per token
    "cross_entropy",
    "weighted_cross_entropy",
    "uniform_cross_entropy",
    "reinforce",
    "ppo_clip",
    "cispo",
    "clip_cov",
    "kl_cov",
    "entropy_shaped",
    "entropy_ratio_clip",
    "kl_in_loss",
    "entropy_loss",
    # surrogates: a loss per denoising step
    "ddpo",
    "dpok",
    # surrogates: a loss per pair
    "dpo",
    "bradley_terry",
    "policy_labeled_preference",
    "cpl",
    # selectors: which tokens
    "high_entropy_tokens",
    "low_entropy_tokens",
    "random_tokens",
    "clip_cov_tokens",
    "kl_cov_tokens",
    # estimators: advantage, reward and weight
    "group_advantage",
    "leave_one_out",
    "gae",
    "reward_to_go",
    "empo_reward",
    "importance_weight",
    # estimators: divergence and entropy
    "kl_in_reward",
    "kl_estimate",
    "token_covariance",
    "predicted_entropy_change",
    "semantic_entropy",
    "fit_reward_entropy",
    # estimators: Q-SFT's values
    "qsft_target",
    "qsft_policy",
    # estimators: exact numbers of full distributions
    "categorical_entropy",
    "categorical_cross_entropy",
    "categorical_kl",
    "gaussian_logp",
    "gaussian_kl",
    "sft_logit_gradient",
    "reinforce_logit_gradient",
    # the reduction
    "reduce_tokens",
    # what they return
    "TokenLoss",
    "RewardEntropyFit",
]
