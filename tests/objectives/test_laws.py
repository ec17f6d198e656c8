"""What holds of every function of per-token numbers, whatever it computes."""

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klent import objectives as O
from klent.objectives import TokenLoss
from objectives.declared import cases, functions, provided, trained_by, with_mask
from objectives.helpers import assert_close

Tokens = dict[str, Tensor]

LOSSES = {str(case): case for case in cases(functions("token_loss"))}
# one number (or choice) per token, without gradient
NUMBERS = {
    str(case): case
    for case in cases(with_mask("selector", "token_weight", "token_reward", "advantage", "estimator"))
}
EVERY = LOSSES | NUMBERS
IN_ORDER = {name for table in provided("IN_ORDER") for name in table}
ORDERED = {name for table in provided("ORDERED") for name in table}
LAYOUT_FREE = [
    key
    for key, case in EVERY.items()
    if case.name not in ORDERED and "generator" not in inspect.signature(case.function).parameters
]

sizes = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
law = settings(max_examples=15, deadline=None)


def values_of(out: TokenLoss | Tensor) -> Tensor:
    return out.loss if isinstance(out, TokenLoss) else out


def loss_and_slopes(name: str, batch: Tokens) -> tuple[TokenLoss, list[Tensor]]:
    """A loss and its derivative in each tensor of the batch, 0 where it takes none."""
    inputs = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in batch.items()}
    out = LOSSES[name].call(inputs)
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
            result[name] = torch.where(over(batch["mask"], value), value, noise)
    return result


def over(mask: Tensor, value: Tensor) -> Tensor:
    """The mask as it broadcasts to ``value``, which may have coordinates."""
    return mask[..., None] if value.ndim == 3 else mask


def padded(batch: Tokens) -> Tokens:
    """One more row and two more columns, off the mask, with junk."""
    rows, columns = batch["mask"].shape
    result = {}
    for name, value in batch.items():
        wide = torch.zeros(rows + 1, columns + 2, *value.shape[2:], dtype=value.dtype)
        wide[:rows, :columns] = value
        result[name] = wide
    return spoiled(result)


def indexed(batch: Tokens, index: Any) -> Tokens:
    return {name: value[index] for name, value in batch.items()}


@pytest.mark.parametrize("name", LOSSES)
@law
@given(size=sizes)
def test_losses_do_not_read_what_is_off_the_mask(name: str, size: tuple[int, int, int]) -> None:
    batch = LOSSES[name].batch(*size)
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
            assert not torch.where(over(other["mask"], after), 0, after).any()
        for key, (total, count) in out.metrics.items():
            assert_close(again.metrics[key][0], total)
            assert_close(again.metrics[key][1], count)


@pytest.mark.parametrize("name", NUMBERS)
@law
@given(size=sizes)
def test_numbers_do_not_read_what_is_off_the_mask(name: str, size: tuple[int, int, int]) -> None:
    batch = NUMBERS[name].batch(*size)
    rows, columns = batch["mask"].shape
    expected = NUMBERS[name].call(batch)
    assert not expected[~batch["mask"]].any()
    for other in (spoiled(batch), padded(batch)):
        again = NUMBERS[name].call(other)
        assert_close(again[:rows, :columns].double(), expected.double())
        assert not again[~other["mask"]].any()


@pytest.mark.parametrize("name", LAYOUT_FREE)
@law
@given(size=sizes, seed=st.integers(0, 100))
def test_order_of_rows_and_columns_does_not_matter(name: str, size: tuple[int, int, int], seed: int) -> None:
    case, generator = EVERY[name], torch.Generator().manual_seed(seed)
    batch = case.batch(*size)
    rows, columns = batch["mask"].shape
    row = torch.randperm(rows, generator=generator)[:, None]
    in_order = case.name in IN_ORDER
    column = torch.arange(columns) if in_order else torch.randperm(columns, generator=generator)
    moved = values_of(case.call(indexed(batch, (row, column))))
    assert_close(moved.double(), values_of(case.call(batch))[row, column].double())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("over", ["tokens", "sequences", "constant"])
@law
@given(size=sizes, cut=st.integers(0, 4))
def test_parts_of_a_step_add_up_to_the_step(
    name: str, over: str, size: tuple[int, int, int], cut: int
) -> None:
    batch = LOSSES[name].batch(*size)
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
    outs = [LOSSES[name].call(part) for part in parts]
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
    case = LOSSES[name]
    inputs = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in case.batch(0).items()}
    out = case.call(inputs)
    out.loss.sum().backward()
    trained = {name for name, value in inputs.items() if value.grad is not None}
    assert trained == trained_by(case.function) != set()
    assert all(not value.requires_grad for pair in out.metrics.values() for value in pair)
    assert all(value.ndim == 0 for pair in out.metrics.values() for value in pair)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_carry_no_gradient(name: str) -> None:
    batch = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in NUMBERS[name].batch(0).items()}
    assert not NUMBERS[name].call(batch).requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_unchanged(name: str) -> None:
    batch = EVERY[name].batch(0)
    before = {key: value.clone() for key, value in batch.items()}
    EVERY[name].call(batch)
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


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    case = EVERY[name]
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.batch(0).items()}
    selects = case.name in functions("selector")
    assert values_of(case.call(batch)).dtype == (torch.bool if selects else dtype)
