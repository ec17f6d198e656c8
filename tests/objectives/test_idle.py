"""Where a loss says that it is idle, its gradient is 0, whatever the policy; and it is idle nowhere else."""

import math
import random
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klent import objectives as O
from klent.config.binding import choices_of, hyperparameters_of
from klent.objectives.kinds import Idle, declaration, token_loss, without_advantage, without_coef
from objectives.declared import Case, cases, functions, named, trained_by

NUMBERS = (0, 0.0, 1e-3, 0.05, 0.3, 0.9, 1, 1.3, 2, 7.5, 100, math.inf, -0.2)
LOSSES = functions("token_loss")
CASES = {str(case): case for case in cases(LOSSES)}
Batch = dict[str, Tensor]


def any_settings(function: Callable[..., Any], draw: random.Random) -> dict[str, Any]:
    """Settings from anywhere in their ranges, and beyond."""
    drawn: dict[str, Any] = {}
    for name, parameter in hyperparameters_of(function).items():
        options = typing.get_args(parameter.annotation)
        literal = [option for option in options if isinstance(option, str)]
        drawn[name] = draw.choice(literal or [*NUMBERS, *([None] if type(None) in options else [])])
    return drawn


def far_streams(case: Case, seed: int) -> Batch:
    """Numbers far outside the usual range; about half of the advantages and of the weights are 0."""
    generator = torch.Generator().manual_seed(seed)
    batch = case.batch(seed)
    for name, value in batch.items():
        spread = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        if name.startswith("logp"):
            batch[name] = -60 * spread * (torch.rand(value.shape, generator=generator) < 0.8)
        elif name.startswith("entropy"):
            batch[name] = 10 * spread * (torch.rand(value.shape, generator=generator) < 0.8)
        elif name in ("advantage", "weight"):
            size = 10 ** (8 * spread - 4) if name == "advantage" else spread
            batch[name] = value.sign() * size * (torch.rand(value.shape, generator=generator) < 0.5)
    return batch


def moved(case: Case, batch: Batch) -> Tensor:
    """Where the loss has a gradient in anything that it trains, ``[B, T]``; NaN is one."""
    inputs = {name: v.clone() for name, v in batch.items()}
    trained = [inputs[name].requires_grad_() for name in sorted(trained_by(case.function))]
    loss = case.call(inputs).loss
    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
    present = [gradient != 0 for gradient in gradients if gradient is not None]
    return torch.stack([g.any(dim=-1) if g.ndim == 3 else g for g in present]).any(dim=0) & batch["mask"]


def idle_at(case: Case, idle: Idle | None, batch: Mapping[str, Tensor]) -> Tensor:
    """Where ``idle`` says so, on the mask."""
    if idle is None:
        return torch.zeros_like(batch["mask"])
    claimed = idle(**named(case.function, batch), **case.settings)
    assert claimed.dtype == torch.bool
    assert claimed.shape == batch["mask"].shape
    return claimed & batch["mask"]


def check_exact(name: str, idle: Idle | None, seed: int) -> None:
    """No gradient where ``idle`` says so, at settings and numbers from far outside the usual range."""
    draw = random.Random(seed)
    batch = far_streams(Case(name, {}), seed)
    while True:
        case = Case(name, any_settings(getattr(O, name), draw))
        try:
            where = moved(case, batch)
        except (TypeError, ValueError):  # settings out of range are refused, not tested
            continue
        assert not (where & idle_at(case, idle, batch)).any(), case
        return


def check_whole(case: Case, idle: Idle | None, seed: int) -> None:
    """A gradient near the old policy wherever ``idle`` does not say so: nothing is computed for nothing."""
    batch = case.batch(seed)
    read = tuple(batch)
    for name in {"advantage"} & batch.keys():
        generator = torch.Generator().manual_seed(seed)
        batch[name] = batch[name] * (torch.rand(batch[name].shape, generator=generator) < 0.5)
    if "entropy_old" in batch:
        batch["entropy"] = batch["entropy_old"]
    if "value_old" in batch:
        batch["value"] = batch["value_old"]
    if "sample" in batch:
        batch["logp"] = O.gaussian_logp(batch["sample"], batch["mean"], batch["std"])
    shifted = [shifted_by(shift, batch) for shift in (-0.01, 0.0, 0.01)]
    nearby = [{name: {**batch, **old}[name] for name in read} for old in shifted]
    where = torch.stack([moved(case, b) for b in nearby]).any(dim=0)
    assert torch.equal(where, batch["mask"] & ~idle_at(case, idle, nearby[1])), case


def shifted_by(shift: float, batch: Batch) -> Batch:
    """What the policy is compared with, moved away from it a little, and how far that is."""
    if "logp" not in batch:
        return {}
    near = dict.fromkeys({"logp_old", "logp_gen"} & batch.keys(), batch["logp"] + shift)
    return near | {name: torch.full_like(batch["logp"], abs(shift)) for name in {"distance"} & batch.keys()}


def idle_of(name: str) -> Idle | None:
    declared = declaration(getattr(O, name))
    assert declared is not None
    return declared.idle


@pytest.mark.parametrize("name", LOSSES)
def test_there_is_no_gradient_where_a_loss_is_idle(name: str) -> None:
    for seed in range(40):
        check_exact(name, idle_of(name), seed)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_there_is_a_gradient_wherever_a_loss_is_not_idle(case: str, seed: int) -> None:
    check_whole(CASES[case], idle_of(CASES[case].name), seed)


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip", "cispo", "clip_cov", "entropy_shaped", "ce_gppo"])
def test_at_the_old_policy_a_policy_gradient_is_idle_exactly_where_its_gradient_is_0(name: str) -> None:
    for seed in range(20):
        case = Case(name, {})
        batch = case.batch(seed)
        batch["advantage"] = batch["advantage"] * (batch["advantage"].abs() > 0.5)
        if "logp_old" in batch:
            batch["logp"] = batch["logp_old"]
        assert torch.equal(moved(case, batch), batch["mask"] & ~idle_at(case, idle_of(name), batch))


TOO_MUCH: dict[str, tuple[str, Idle]] = {
    "every bad token": ("ppo_clip", lambda advantage, **_: advantage <= 0),
    "small advantages": ("cispo", lambda advantage, **_: advantage.abs() < 1),
    "ratio out of bounds now": (
        "ppo_clip",
        lambda logp, logp_old, advantage, **_: (advantage == 0) | ((logp - logp_old).abs() > 1),
    ),
    "penalised ones too": ("kl_cov", without_advantage),
    "a bonus": ("entropy_loss", lambda mask, coef, **_: torch.full_like(mask, coef <= 0)),
    "far from the reference": ("kl_in_loss", lambda logp, logp_ref, **_: (logp - logp_ref).abs() > 20),
    "the data without a weight": ("weighted_cross_entropy", lambda weight, **_: weight == 0),
    "the KL forgotten": ("dpok", without_advantage),
}


@pytest.mark.parametrize(("name", "idle"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_an_idle_that_claims_too_much_is_noticed(name: str, idle: Idle) -> None:
    with pytest.raises(AssertionError):
        [check_exact(name, idle, seed) for seed in range(40)]


TOO_LITTLE: dict[str, tuple[Case, Idle | None]] = {
    "never": (Case("reinforce", {}), None),
    "the dropped": (Case("clip_cov", {}), without_advantage),
    "neither": (Case("kl_cov", {}), None),
    "no coefficient": (Case("entropy_loss", {"coef": 0.0}), None),
}


@pytest.mark.parametrize(("case", "idle"), TOO_LITTLE.values(), ids=TOO_LITTLE.keys())
def test_an_idle_that_claims_too_little_is_noticed(case: Case, idle: Idle | None) -> None:
    with pytest.raises(AssertionError):
        [check_whole(case, idle, seed) for seed in range(5)]


def test_a_wrapper_does_not_inherit_what_the_wrapped_function_declared() -> None:
    import functools

    @functools.wraps(O.ppo_clip)
    def mine(*args: Any, **kwargs: Any) -> Any:
        return O.ppo_clip(*args, **kwargs)

    assert declaration(O.ppo_clip) is not None
    assert declaration(mine) is None


def test_a_declaration_is_read_back() -> None:
    @token_loss(idle=without_coef)
    def mine(logp: Tensor, mask: Tensor, *, coef: float) -> Tensor:
        return coef * logp * mask

    declared = declaration(mine)
    assert declared is not None
    assert declared.kind == "token_loss"
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert without_coef(mask, coef=0.0).all()
    assert not without_coef(mask, coef=-1e-9).any()
    assert choices_of(mine) == set()
