"""A witness from outside, where it is installed: ``polgrad``, value and gradient of losses, advantages, averages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from klent import objectives as O

polgrad = pytest.importorskip("polgrad", reason="polgrad is not installed")
advantages = pytest.importorskip("polgrad.advantages")
aggregate = pytest.importorskip("polgrad.aggregate")
kl = pytest.importorskip("polgrad.kl")
losses = pytest.importorskip("polgrad.losses")

OVER = {
    "tokens": aggregate.Aggregation.TOKEN_MEAN,
    "sequences": aggregate.Aggregation.SEQ_MEAN_TOKEN_MEAN,
    "constant": aggregate.Aggregation.SEQ_MEAN_TOKEN_SUM,
}


@pytest.fixture
def streams() -> dict[str, Tensor]:
    """Six completions of one to seven tokens, off-policy enough that clips bind on both sides."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(6, 7, dtype=torch.float64, generator=generator)

    lengths = torch.tensor([1, 7, 3, 5, 2, 6])
    logp = -1.5 + 0.5 * draw()
    return {
        "logp": logp,
        "logp_old": logp + 0.4 * draw(),
        "logp_ref": logp + 0.7 * draw(),
        "advantage": draw(),
        "mask": torch.arange(7) < lengths[:, None],
    }


def reduced(loss: Tensor, mask: Tensor, over: str) -> Tensor:
    return O.reduce_tokens(
        loss, mask, over=over, denominator=float(len(mask)) if over == "constant" else None
    )  # type: ignore[arg-type]


def agree(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logp: Tensor) -> None:
    """The same value and the same gradient."""
    results = []
    for function in (ours, theirs):
        leaf = logp.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert results[0][1].abs().max() > 0


def settings(surrogate: str, ratio: str = "token", clip: Any = None, over: str = "tokens") -> Any:
    return losses.PolicyLossConfig(
        ratio=losses.RatioKind(ratio),
        surrogate=losses.SurrogateKind(surrogate),
        clip=clip,
        aggregation=OVER[over],
    )


def clip(low: float | None, high: float, cap: float | None = None) -> Any:
    return losses.ClipConfig(eps_low=low, eps_high=high, ratio_cap=cap)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], Any]] = {
    "reinforce": (O.reinforce, {}, ("reinforce", "token", None)),
    "ppo": (O.ppo_clip, {"clip_low": 0.2, "clip_high": 0.28}, ("pg_clip", "token", clip(0.2, 0.28))),
    "dual clip": (
        O.ppo_clip,
        {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.3},
        ("pg_clip", "token", clip(0.2, 0.2, 1.3)),
    ),
    "gspo": (
        O.ppo_clip,
        {"clip_low": 0.1, "clip_high": 0.1, "ratio": "sequence"},
        ("pg_clip", "sequence", clip(0.1, 0.1)),
    ),
    "cispo": (O.cispo, {"ratio_max": 1.2}, ("cispo", "token", clip(None, 0.2))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("over", OVER)
def test_policy_losses(name: str, over: str, streams: dict[str, Tensor]) -> None:
    function, ours, theirs = CASES[name]
    advantage = streams["advantage"][:, :1].expand(6, 7) if name == "gspo" else streams["advantage"]
    old = {} if function is O.reinforce else {"logp_old": streams["logp_old"]}

    def by_klent(logp: Tensor) -> Tensor:
        out = function(logp=logp, advantage=advantage, mask=streams["mask"], **old, **ours)
        return reduced(out.loss, streams["mask"], over)

    def by_polgrad(logp: Tensor) -> Tensor:
        loss: Tensor = losses.policy_loss(
            settings(*theirs, over),
            logprobs=logp,
            old_logprobs=streams["logp_old"],
            advantages=advantage,
            response_mask=streams["mask"],
        ).loss
        return loss

    agree(by_klent, by_polgrad, streams["logp"])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("over", OVER)
def test_estimators(estimator: Any, over: str, streams: dict[str, Tensor]) -> None:
    ref, mask = streams["logp_ref"], streams["mask"]
    agree(
        lambda logp: reduced(O.kl_estimate(logp, ref, estimator=estimator), mask, over),
        lambda logp: kl.kl_loss(logp, ref, kl.KLEstimator(estimator), OVER[over], response_mask=mask),
        streams["logp"],
    )


def test_the_reverse_kl_in_the_loss_has_the_gradient_of_its_surrogate(streams: dict[str, Tensor]) -> None:
    ref, mask, gradients = streams["logp_ref"], streams["mask"], []
    for function in (
        lambda logp: reduced(
            O.kl_in_loss(logp, ref, mask, coef=1.0, logp_old=logp.detach()).loss, mask, "tokens"
        ),
        lambda logp: kl.reverse_kl_grad_surrogate(logp, ref, OVER["tokens"], response_mask=mask),
    ):
        leaf = streams["logp"].clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_the_kl_in_the_reward(streams: dict[str, Tensor]) -> None:
    logp, ref, mask = streams["logp"], streams["logp_ref"], streams["mask"]
    theirs = kl.kl_in_reward(torch.zeros_like(logp), logp, ref, kl.KLEstimator.K1, 0.05, response_mask=mask)
    torch.testing.assert_close(O.kl_in_reward(logp, ref, mask, coef=0.05), theirs)


def test_advantages(streams: dict[str, Tensor]) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.3, 0.9, 0.2, 0.5, 0.5], dtype=torch.float64)
    group = torch.tensor([3, 3, 3, 1, 1, 1, 4, 4])
    for scale in ("std", "none"):
        config = advantages.GroupNormConfig(scale=scale, eps=0.0 if scale == "none" else 1e-300)
        theirs = advantages.grpo_advantages(rewards, group, config)
        torch.testing.assert_close(O.group_advantage(rewards, group, scale=scale), theirs)  # type: ignore[arg-type]
    torch.testing.assert_close(O.leave_one_out(rewards, group), advantages.rloo_advantages(rewards, group))
    values, paid, mask = streams["logp_ref"], streams["advantage"], streams["mask"]
    theirs, _ = advantages.gae(
        torch.where(mask, paid, 0.0),
        values,
        config=advantages.GAEConfig(gamma=0.9, lam=0.8),
        response_mask=mask,
    )
    torch.testing.assert_close(O.gae(paid, values, mask, gamma=0.9, lam=0.8), theirs)
