"""The mathematics: pure functions of per-token numbers, of four kinds.

Estimators turn rewards and log-probabilities into what an update needs; selectors choose tokens, always from
detached values; surrogates give a loss per token; one reduction averages it. Tensors are ``[B, T]`` unless
said, ``mask`` is bool, logarithms are natural (nats). A value off the mask is never read, and no input is
changed.
"""

from klent.objectives.advantage import gae, group_advantage, leave_one_out, reward_to_go
from klent.objectives.entropy import (
    RewardEntropyFit,
    entropy_loss,
    fit_reward_entropy,
    high_entropy_tokens,
    token_covariance,
)
from klent.objectives.kl import categorical_kl, kl_estimate, kl_in_loss, kl_in_reward
from klent.objectives.likelihood import cross_entropy
from klent.objectives.reduce import reduce_tokens
from klent.objectives.surrogate import cispo, ppo_clip, reinforce
from klent.objectives.types import TokenLoss

__all__ = [  # noqa: RUF022 - by kind
    # surrogates: a loss per token
    "cross_entropy",
    "reinforce",
    "ppo_clip",
    "cispo",
    "kl_in_loss",
    "entropy_loss",
    # selectors: which tokens
    "high_entropy_tokens",
    # estimators: advantage
    "group_advantage",
    "leave_one_out",
    "gae",
    "reward_to_go",
    # estimators: divergence and entropy
    "kl_in_reward",
    "kl_estimate",
    "categorical_kl",
    "token_covariance",
    "fit_reward_entropy",
    # the reduction
    "reduce_tokens",
    # what they return
    "TokenLoss",
    "RewardEntropyFit",
]
