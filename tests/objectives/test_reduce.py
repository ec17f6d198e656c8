"""The one place that averages."""

import math

import pytest
import torch
from oracles import reduce as oracle

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

LOSS = table([1.0, 2.0, 3.0], [8.0, math.nan, math.nan], [math.nan] * 3)
MASK = mask_of("xxx", "x..", "...")


@pytest.mark.parametrize(
    ("over", "denominator", "expected", "weights"),
    [
        # 14 over 4 tokens
        ("tokens", None, 3.5, [[1 / 4] * 3, [1 / 4, 0, 0], [0] * 3]),
        ("tokens", 7, 2.0, [[1 / 7] * 3, [1 / 7, 0, 0], [0] * 3]),
        # means 2 and 8 over 2 sequences; the row without a token is none
        ("sequences", None, 5.0, [[1 / 6] * 3, [1 / 2, 0, 0], [0] * 3]),
        ("sequences", 4, 2.5, [[1 / 12] * 3, [1 / 4, 0, 0], [0] * 3]),
        ("constant", 28, 0.5, [[1 / 28] * 3, [1 / 28, 0, 0], [0] * 3]),
    ],
)
def test_reduce_tokens_table(
    over: str, denominator: float | None, expected: float, weights: list[list[float]]
) -> None:
    for divisor in (denominator, None if denominator is None else torch.tensor(denominator)):
        loss = LOSS.clone().requires_grad_()
        out = O.reduce_tokens(loss, MASK, over=over, denominator=divisor)
        assert_close(out, expected)
        assert_close(slope(out, loss), weights)


def test_reduce_tokens_averages_over_tokens_unless_told() -> None:
    assert_close(O.reduce_tokens(LOSS, MASK), 3.5)


@pytest.mark.parametrize(("over", "denominator"), [("tokens", None), ("sequences", None), ("constant", 3.0)])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_on_the_mask_gives_zero_and_runs_backward(
    over: str, denominator: float | None, shape: tuple[int, int]
) -> None:
    loss = torch.full(shape, math.nan, requires_grad=True)
    mask = torch.zeros(shape, dtype=torch.bool)
    out = O.reduce_tokens(loss, mask, over=over, denominator=denominator)
    out.backward()
    assert out.item() == 0.0
    assert loss.grad is not None
    assert loss.grad.tolist() == torch.zeros(shape).tolist()


def test_a_whole_step_without_tokens_may_say_so() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert O.reduce_tokens(torch.ones(2, 3), mask, denominator=torch.tensor(0)).item() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_reduce_tokens_agrees_with_oracle_and_has_its_gradient(seed: int) -> None:
    tokens = random_tokens(seed)
    loss, mask = tokens["advantage"].requires_grad_(), tokens["mask"]
    for over, denominator in [
        ("tokens", None),
        ("sequences", None),
        ("tokens", 9),
        ("sequences", 3),
        ("constant", 5),
    ]:

        def reduced(
            x: torch.Tensor, over: str = over, denominator: float | None = denominator
        ) -> torch.Tensor:
            return O.reduce_tokens(x, mask, over=over, denominator=denominator)

        assert_close(
            reduced(loss), oracle.reduce_tokens(loss.detach().numpy(), mask.numpy(), over, denominator)
        )
        assert torch.autograd.gradcheck(reduced, loss)
