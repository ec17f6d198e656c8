"""What holds of every function of per-token numbers, whatever it computes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klent import objectives as O
from klent.objectives import TokenLoss
from objectives.helpers import assert_close, random_tokens

Tokens = dict[str, Tensor]

LOSSES: dict[str, Callable[[Tokens], TokenLoss]] = {
    "cross_entropy": lambda b: O.cross_entropy(b["logp"], b["mask"]),
    "reinforce": lambda b: O.reinforce(b["logp"], b["advantage"], b["mask"]),
    "ppo_clip": lambda b: O.ppo_clip(b["logp"], b["logp_old"], b["advantage"], b["mask"]),
    "ppo_clip dual": lambda b: O.ppo_clip(b["logp"], b["logp_old"], b["advantage"], b["mask"], dual_clip=1.3),
    "ppo_clip sequence": lambda b: O.ppo_clip(
        b["logp"], b["logp_old"], b["advantage"], b["mask"], clip_low=0.05, clip_high=0.05, ratio="sequence"
    ),
    "cispo": lambda b: O.cispo(b["logp"], b["logp_old"], b["advantage"], b["mask"], ratio_max=1.2),
    "kl_in_loss": lambda b: O.kl_in_loss(b["logp"], b["logp_ref"], b["mask"], coef=0.1),
    "kl_in_loss forward": lambda b: O.kl_in_loss(
        b["logp"], b["logp_ref"], b["mask"], coef=0.1, divergence="forward", logp_old=b["logp_old"]
    ),
    "entropy_loss": lambda b: O.entropy_loss(b["entropy"], b["mask"], coef=-0.1),
    "weighted_cross_entropy": lambda b: O.weighted_cross_entropy(
        b["logp"], b["logp_other"], b["weight"], b["mask"]
    ),
    "uniform_cross_entropy": lambda b: O.uniform_cross_entropy(
        b["logp"], b["logp_other"], b["weight"], b["mask"], actions=5
    ),
    "clip_cov": lambda b: O.clip_cov(
        b["logp"], b["logp_old"], b["advantage"], b["mask"], dropped=b["chosen"], clip_high=0.2
    ),
    "kl_cov": lambda b: O.kl_cov(
        b["logp"], b["logp_old"], b["advantage"], b["mask"], penalised=b["chosen"], coef=0.1
    ),
    "kl_cov kl": lambda b: O.kl_cov(
        b["logp"], b["logp_old"], b["advantage"], b["mask"], penalised=b["chosen"], penalty="kl"
    ),
    "entropy_shaped": lambda b: O.entropy_shaped(
        b["logp"], b["logp_old"], b["entropy"], b["advantage"], b["mask"]
    ),
    "entropy_ratio_clip": lambda b: O.entropy_ratio_clip(
        b["logp"], b["logp_old"], b["entropy"], b["weight"], b["advantage"], b["mask"], low=0.5, high=0.9
    ),
}
# one number (or choice) per token, without gradient
NUMBERS: dict[str, Callable[[Tokens], Tensor]] = {
    "kl_in_reward": lambda b: O.kl_in_reward(b["logp"], b["logp_ref"], b["mask"], coef=0.1),
    "high_entropy_tokens": lambda b: O.high_entropy_tokens(b["entropy"], b["mask"], fraction=0.3),
    "low_entropy_tokens": lambda b: O.low_entropy_tokens(b["entropy"], b["mask"], fraction=0.7),
    "random_tokens": lambda b: O.random_tokens(
        b["mask"], fraction=0.3, generator=torch.Generator().manual_seed(0)
    ),
    "token_covariance": lambda b: O.token_covariance(b["logp"], b["advantage"], b["mask"]),
    "gae": lambda b: O.gae(b["advantage"], b["entropy"], b["mask"], gamma=0.9, lam=0.8),
    "reward_to_go": lambda b: O.reward_to_go(b["advantage"], b["mask"], gamma=0.9),
    "clip_cov_tokens": lambda b: O.clip_cov_tokens(
        b["logp"], b["advantage"], b["mask"], fraction=0.3, low=0, generator=torch.Generator().manual_seed(0)
    ),
    "kl_cov_tokens": lambda b: O.kl_cov_tokens(b["logp"], b["advantage"], b["mask"], fraction=0.3),
    "importance_weight": lambda b: O.importance_weight(b["logp"], b["logp_old"], b["mask"], high=1.1),
    "importance_weight sequence": lambda b: O.importance_weight(
        b["logp"], b["logp_old"], b["mask"], ratio="sequence", low=0.5, outside="drop"
    ),
}
IN_ORDER = {"gae", "reward_to_go"}  # these read a sequence from left to right
# the order decides a draw, and between equals: the covariances of two tokens are one number
ORDERED = {"clip_cov_tokens", "kl_cov_tokens", "random_tokens"}
TRAINED = {"entropy_loss": {"entropy"}}  # the others train logp
TRAINED |= {name: {"logp", "logp_other"} for name in ("weighted_cross_entropy", "uniform_cross_entropy")}

batches = st.builds(random_tokens, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
law = settings(max_examples=15, deadline=None)


def loss_and_slopes(name: str, batch: Tokens) -> tuple[TokenLoss, list[Tensor]]:
    """A loss and its derivative in each tensor of the batch, 0 where it takes none."""
    inputs = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in batch.items()}
    out = LOSSES[name](inputs)
    wanted = [v for v in inputs.values() if v.is_floating_point()]
    slopes = torch.autograd.grad(out.loss.sum(), wanted, allow_unused=True)
    return out, [torch.zeros_like(v) if s is None else s for v, s in zip(wanted, slopes, strict=True)]


def spoiled(batch: Tokens, seed: int = 0) -> Tokens:
    """The same on the mask; NaN and infinities off it."""
    generator = torch.Generator().manual_seed(seed)
    junk = torch.tensor([math.nan, math.inf, -math.inf, 1e300], dtype=torch.float64)
    result = {"mask": batch["mask"]}
    for name, value in batch.items():
        if name != "mask":
            noise = junk[torch.randint(4, value.shape, generator=generator)]
            noise = noise if value.is_floating_point() else ~value
            result[name] = torch.where(batch["mask"], value, noise)
    return result


def padded(batch: Tokens) -> Tokens:
    """One more row and two more columns, off the mask, with junk."""
    rows, columns = batch["mask"].shape
    result = {}
    for name, value in batch.items():
        wide = torch.zeros(rows + 1, columns + 2, dtype=value.dtype)
        wide[:rows, :columns] = value
        result[name] = wide
    return spoiled(result)


def indexed(batch: Tokens, index: Any) -> Tokens:
    return {name: value[index] for name, value in batch.items()}


@pytest.mark.parametrize("name", LOSSES)
@law
@given(batch=batches)
def test_losses_do_not_read_what_is_off_the_mask(name: str, batch: Tokens) -> None:
    out, slopes = loss_and_slopes(name, batch)
    for other in (spoiled(batch), padded(batch)):
        again, other_slopes = loss_and_slopes(name, other)
        rows, columns = batch["mask"].shape
        # A wider row is summed in another order, which the last bit of a float64 may show.
        slack = 0.0 if other["mask"].shape == (rows, columns) else 1e-14
        torch.testing.assert_close(again.loss[:rows, :columns], out.loss, rtol=slack, atol=slack)
        assert not again.loss[~other["mask"]].any()
        for before, after in zip(slopes, other_slopes, strict=True):
            torch.testing.assert_close(after[:rows, :columns], before, rtol=slack, atol=slack)
            assert not after[~other["mask"]].any()
        for key, (total, count) in out.metrics.items():
            assert_close(again.metrics[key][0], total)
            assert_close(again.metrics[key][1], count)


@pytest.mark.parametrize("name", NUMBERS)
@law
@given(batch=batches)
def test_numbers_do_not_read_what_is_off_the_mask(name: str, batch: Tokens) -> None:
    rows, columns = batch["mask"].shape
    expected = NUMBERS[name](batch)
    assert not expected[~batch["mask"]].any()
    for other in (spoiled(batch), padded(batch)):
        again = NUMBERS[name](other)
        assert_close(again[:rows, :columns].double(), expected.double())
        assert not again[~other["mask"]].any()


@pytest.mark.parametrize("name", [name for name in [*LOSSES, *NUMBERS] if name not in ORDERED])
@law
@given(batch=batches, seed=st.integers(0, 100))
def test_order_of_rows_and_columns_does_not_matter(name: str, batch: Tokens, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = batch["mask"].shape
    row = torch.randperm(rows, generator=generator)[:, None]
    column = torch.arange(columns) if name in IN_ORDER else torch.randperm(columns, generator=generator)
    evaluate = NUMBERS.get(name) or (lambda b: LOSSES[name](b).loss)
    assert_close(evaluate(indexed(batch, (row, column))).double(), evaluate(batch)[row, column].double())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("over", ["tokens", "sequences", "constant"])
@law
@given(batch=batches, cut=st.integers(0, 4))
def test_parts_of_a_step_add_up_to_the_step(name: str, over: str, batch: Tokens, cut: int) -> None:
    mask = batch["mask"]
    lengths = mask.sum(dim=1)
    count = {"tokens": lengths.sum(), "sequences": (lengths > 0).sum(), "constant": torch.tensor(24.0)}[over]
    whole_out, _ = loss_and_slopes(name, batch)
    whole = O.reduce_tokens(
        whole_out.loss,
        mask,
        over=over,
        denominator=count if over == "constant" else None,
    )
    parts = [indexed(batch, slice(None, cut)), indexed(batch, slice(cut, None))]
    outs = [LOSSES[name](part) for part in parts]
    reduced = [
        O.reduce_tokens(out.loss, part["mask"], over=over, denominator=count)
        for out, part in zip(outs, parts, strict=True)
    ]
    assert_close(sum(reduced, torch.tensor(0.0)), whole)
    for key, (total, tokens) in whole_out.metrics.items():
        assert_close(outs[0].metrics[key][0] + outs[1].metrics[key][0], total)
        assert_close(outs[0].metrics[key][1] + outs[1].metrics[key][1], tokens)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_train_the_policy_and_nothing_else(name: str) -> None:
    batch = random_tokens(0)
    inputs = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in batch.items()}
    out = LOSSES[name](inputs)
    out.loss.sum().backward()
    trained = {name for name, value in inputs.items() if value.grad is not None}
    assert trained == TRAINED.get(name, {"logp"})
    assert all(not value.requires_grad for pair in out.metrics.values() for value in pair)
    assert all(value.ndim == 0 for pair in out.metrics.values() for value in pair)


@pytest.mark.parametrize("name", [*LOSSES, *NUMBERS])
def test_inputs_are_unchanged(name: str) -> None:
    batch = random_tokens(0)
    before = {key: value.clone() for key, value in batch.items()}
    (NUMBERS.get(name) or LOSSES[name])(batch)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


def test_group_estimators_and_reduction_leave_inputs_unchanged() -> None:
    rewards, group = torch.tensor([1.0, math.nan, 0.5]), torch.tensor([2, 2, 2])
    O.group_advantage(rewards, group)
    O.leave_one_out(rewards, group)
    assert torch.equal(rewards.nan_to_num(nan=-9.0), torch.tensor([1.0, -9.0, 0.5]))
    assert group.tolist() == [2, 2, 2]
    loss, mask = torch.tensor([[1.0, math.nan]]), torch.tensor([[True, False]])
    O.reduce_tokens(loss, mask, over="sequences")
    assert math.isnan(loss[0, 1])


@pytest.mark.parametrize("name", [*LOSSES, *NUMBERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in random_tokens(0).items()}
    out = (NUMBERS.get(name) or LOSSES[name])(batch)
    values = out.loss if isinstance(out, TokenLoss) else out
    assert values.dtype == (torch.bool if name.endswith("_tokens") else dtype)
