"""What is refused, and that the message says what was wrong and what to do."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from klent import objectives as O

X, MASK = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
R, G = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
H = torch.tensor([1.0, 2.0, 3.0])

Call = Callable[[], Any]

RANGES: list[tuple[Call, str]] = [
    (lambda: O.ppo_clip(X, X, X, MASK, clip_low=1.5), "clip_low is 1.5, expected a number in [0, 1]"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_low=-0.1), "clip_low is -0.1"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_high=-0.1), "clip_high is -0.1, expected a number in [0, inf]"),
    (lambda: O.ppo_clip(X, X, X, MASK, clip_high=math.nan), "clip_high is nan"),
    (lambda: O.ppo_clip(X, X, X, MASK, dual_clip=1), "dual_clip is 1, expected a number in (1, inf]"),
    (lambda: O.ppo_clip(X, X, X, MASK, ratio="word"), "ratio is 'word', expected one of 'token', 'sequence'"),
    (lambda: O.cispo(X, X, X, MASK, ratio_max=0.5), "ratio_max is 0.5, expected a number in [1, inf]"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=-1), "coef is -1, expected a number in [0, inf)"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=math.inf), "coef is inf"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, divergence="both"), "divergence is 'both'"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k4"), "estimator is 'k4'"),
    (lambda: O.kl_in_reward(X, X, MASK, coef=-1), "coef is -1"),
    (lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k4"), "estimator is 'k4'"),
    (lambda: O.kl_estimate(X, X, estimator="k4"), "estimator is 'k4', expected one of 'k1', 'k2', 'k3'"),
    (lambda: O.entropy_loss(X, MASK, coef=math.inf), "coef is inf, expected a number in (-inf, inf)"),
    (lambda: O.high_entropy_tokens(X, MASK, fraction=0), "fraction is 0, expected a number in (0, 1]"),
    (lambda: O.high_entropy_tokens(X, MASK, fraction=20), "fraction is 20"),
    (lambda: O.group_advantage(R, G, scale="mad"), "scale is 'mad', expected one of 'std', 'none'"),
    (lambda: O.gae(X, X, MASK, gamma=1.1), "gamma is 1.1, expected a number in [0, 1]"),
    (lambda: O.gae(X, X, MASK, lam=-1), "lam is -1"),
    (lambda: O.reward_to_go(X, MASK, gamma=2), "gamma is 2"),
    (
        lambda: O.reduce_tokens(X, MASK, over="batch"),
        "over is 'batch', expected one of 'tokens', 'sequences'",
    ),
    (lambda: O.reduce_tokens(X, MASK, over="constant"), "denominator is None, expected a number"),
    (lambda: O.reduce_tokens(X, MASK, denominator=0), "denominator is 0, expected a number in (0, inf)"),
    (
        lambda: O.reduce_tokens(X, MASK, denominator=torch.ones(2)),
        "denominator has shape [2], expected a scalar",
    ),
]

SHAPES: list[tuple[Call, str]] = [
    (lambda: O.reinforce(X, X[:, :2], MASK), "advantage has shape [2, 2], expected [2, 3] as mask has"),
    (lambda: O.reinforce(X, X[:, 0], MASK), "write advantage[:, None].expand(mask.shape)"),
    (lambda: O.ppo_clip(X, X[:1], X, MASK), "logp_old has shape [1, 3]"),
    (lambda: O.cispo(X[:1], X, X, MASK), "logp has shape [1, 3]"),
    (lambda: O.cross_entropy(X[0], MASK[0]), "mask has shape [3], expected [B, T]"),
    (lambda: O.kl_in_loss(X, X, MASK, coef=1, logp_old=X[:1]), "logp_old has shape [1, 3]"),
    (lambda: O.kl_in_reward(X, X[:1], MASK, coef=1), "logp_ref has shape [1, 3]"),
    (lambda: O.kl_estimate(X, X[:1]), "logp_ref has shape [1, 3], expected [2, 3] as logp has"),
    (lambda: O.categorical_kl(X, X[:1]), "logp_q has shape [1, 3], expected [2, 3] as logp_p has"),
    (lambda: O.token_covariance(X, X[:1], MASK), "advantage has shape [1, 3]"),
    (lambda: O.high_entropy_tokens(X[:1], MASK), "entropy has shape [1, 3]"),
    (lambda: O.entropy_loss(X[:1], MASK, coef=1), "entropy has shape [1, 3]"),
    (lambda: O.gae(X, X[:1], MASK), "values has shape [1, 3]"),
    (lambda: O.reward_to_go(X[:1], MASK), "rewards has shape [1, 3]"),
    (lambda: O.reduce_tokens(X[:1], MASK), "loss has shape [1, 3]"),
    (lambda: O.group_advantage(X, G), "rewards has shape [2, 3], expected [n]"),
    (lambda: O.group_advantage(R, G[:3]), "group has shape [3], expected [4] as rewards has"),
    (lambda: O.leave_one_out(R, G[:3]), "group has shape [3]"),
    (lambda: O.fit_reward_entropy(X, X), "entropy has shape [2, 3], expected [n]"),
    (lambda: O.fit_reward_entropy(H, H[:2]), "reward has shape [2], expected [3] as entropy has"),
    (lambda: O.fit_reward_entropy(H[:2], H[:2]), "entropy has 2 points, expected at least 3"),
    (lambda: O.fit_reward_entropy(H * math.nan, H), "not finite"),
    (lambda: O.fit_reward_entropy(H, H / 0), "not finite"),
    (lambda: O.fit_reward_entropy(torch.full((9,), 0.7), torch.arange(9.0)), "entropy is constant"),
    (lambda: O.fit_reward_entropy(torch.tensor([0.1 + 0.2, 0.3, 0.3]), H), "entropy is constant"),
]

TYPES: list[tuple[Call, str]] = [
    (
        lambda: O.cross_entropy(X, MASK.long()),
        "mask has dtype torch.int64, expected torch.bool: write mask.bool()",
    ),
    (lambda: O.cross_entropy(X, [[True] * 3] * 2), "mask is of type list, expected torch.Tensor"),
    (lambda: O.cross_entropy(X.long(), MASK), "logp has dtype torch.int64, expected floating point"),
    (lambda: O.cross_entropy(None, MASK), "logp is of type NoneType, expected torch.Tensor"),
    (lambda: O.kl_estimate(X.long(), X), "logp has dtype torch.int64"),
    (
        lambda: O.group_advantage(G, G),
        "rewards has dtype torch.int64, expected floating point: write rewards.float()",
    ),
    (lambda: O.group_advantage(R, R), "group has dtype torch.float32, expected integers"),
    (lambda: O.group_advantage(R, G.bool()), "group has dtype torch.bool, expected integers"),
    (lambda: O.leave_one_out(R, list(range(4))), "group is of type list"),
    (lambda: O.entropy_loss(X, MASK, coef=True), "coef is True, expected a number"),
    (lambda: O.entropy_loss(X, MASK, coef="0.1"), "coef is '0.1', expected a number"),
    (lambda: O.entropy_loss(X, MASK, coef=None), "coef is None, expected a number"),
    (lambda: O.fit_reward_entropy(G, G), "entropy has dtype torch.int64"),
]

PLACEMENTS: list[tuple[Call, list[str]]] = [
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k1"),
        [
            "mean gradient of k1 is zero",
            "kl_in_loss(logp, logp_ref, mask, coef=...)",
            "kl_in_reward(logp, logp_ref, mask",
        ],
    ),
    (
        lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k2"),
        ["k2 has no restoring force near the reference", "kl_in_loss(logp, logp_ref, mask, coef=...)"],
    ),
    (
        lambda: O.kl_in_reward(X, X, MASK, coef=1, estimator="k3"),
        ["k3 has no restoring force near the reference", "kl_in_reward(logp, logp_ref, mask, coef=...)"],
    ),
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k3"),
        [
            "as a loss k3 follows the forward KL",
            "write divergence='forward'",
            "for reverse drop estimator",
        ],
    ),
    (
        lambda: O.kl_in_loss(X, X, MASK, coef=1, estimator="k2", divergence="forward"),
        ["as a loss k2 follows the reverse KL", "write divergence='reverse'"],
    ),
]


@pytest.mark.parametrize(("call", "message"), RANGES + SHAPES)
def test_wrong_values_and_shapes(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=" ") as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(("call", "message"), TYPES)
def test_wrong_types(call: Call, message: str) -> None:
    with pytest.raises(TypeError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize(("call", "messages"), PLACEMENTS)
def test_wrong_placements_say_why_and_what_is_right(call: Call, messages: list[str]) -> None:
    with pytest.raises(ValueError, match=" ") as error:
        call()
    for message in messages:
        assert message in str(error.value)


def test_ends_of_ranges_are_allowed() -> None:
    O.ppo_clip(X, X, X, MASK, clip_low=0, clip_high=0, dual_clip=math.inf)
    O.ppo_clip(X, X, X, MASK, clip_low=1, clip_high=math.inf)
    O.cispo(X, X, X, MASK, ratio_max=1)
    O.cispo(X, X, X, MASK, ratio_max=math.inf)
    O.kl_in_loss(X, X, MASK, coef=0, divergence="forward", estimator="k3")
    O.kl_in_loss(X, X, MASK, coef=0, divergence="reverse", estimator="k2")
    O.kl_in_reward(X, X, MASK, coef=0, estimator="k1")
    O.high_entropy_tokens(X, MASK, fraction=1)
    O.gae(X, X, MASK, gamma=0, lam=0)
