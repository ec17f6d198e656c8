"""Logits that the forward leaves to the backward: the same numbers, for one product less."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from head.helpers import Problem, everything, problem, stats
from head.test_work import Work, small_tiles
from klent.head import chunked

ROWS, WIDTH, VOCABULARY = 24, 8, 200
ALL = 4 * ROWS * VOCABULARY
CAPS: list[dict[str, Any]] = [{}, {"softcap": 3.0, "scale": 0.5}]
BUDGETS = [4 * ROWS * 64, ALL]


@pytest.fixture(autouse=True, params=["chunked", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Small tiles: several of rows, several of columns, the last of both shorter."""
    if request.param == "triton":
        pytest.importorskip("triton")
        from klent.head import triton as gpu

        if not gpu.triton.knobs.runtime.interpret:
            pytest.skip("needs TRITON_INTERPRET=1 or a GPU")
        for name, size in (("TILE_ROWS", 10), ("TILE_COLUMNS", 64), ("BLOCK", 32)):
            monkeypatch.setattr(gpu, name, size)
    monkeypatch.setattr(chunked, "TILE_ROWS", 10)
    monkeypatch.setattr(chunked, "TILE_COLUMNS", 64)
    return request.param


def sparse(p: Problem) -> Problem:
    """A third of the rows have a coefficient: those that are left do not begin where the tiles do."""
    keep = torch.arange(ROWS) % 3 == 1
    return replace(p, c=p.c * keep, e=p.e * keep)


@pytest.mark.parametrize("options", CAPS, ids=str)
@pytest.mark.parametrize("rows", ["all", "some"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_numbers_and_gradients_are_the_definitions(
    implementation: str, budget: int, rows: str, options: dict[str, Any]
) -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    p.bias[5] = -torch.inf
    p = p if rows == "all" else sparse(p)
    exact = everything(p.to(torch.float64), implementation="reference", **options)
    actual = everything(p, implementation=implementation, keep_bytes=budget, **options)
    for name, value in exact.items():
        torch.testing.assert_close(actual[name].double(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", CAPS, ids=str)
def test_a_second_backward_finds_them_untouched(implementation: str, options: dict[str, Any]) -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    p.hidden.requires_grad_()
    out = stats(p, implementation=implementation, keep_bytes=ALL, **options)
    first, second = (torch.autograd.grad(out.logp.sum(), p.hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.abs().max()) > 0


def test_nothing_is_kept_where_no_gradient_is_wanted(implementation: str) -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    with torch.no_grad(), Work() as bare:
        stats(p, implementation=implementation)
    with torch.no_grad(), Work() as asked:
        stats(p, implementation=implementation, keep_bytes=ALL)
    assert len(asked.storages) == len(bare.storages)


@pytest.mark.parametrize(("budget", "products"), [(0, 4.0), (4 * ROWS * 128, 3.36), (ALL, 3.0)])
def test_each_kept_tile_saves_its_product(budget: int, products: float) -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    with small_tiles(10, 64), Work() as seen:
        everything(p, keep_bytes=budget)
    assert seen.multiplications() == pytest.approx(products * ROWS * WIDTH * VOCABULARY)


def test_no_more_is_kept_than_was_allowed() -> None:
    m = torch.zeros(ROWS)
    for budget in (0, 4 * ROWS * 64 - 1, 4 * ROWS * 64, 4 * ROWS * 150, ALL):
        tiles: tuple[Tensor, ...] = chunked.room_for_tiles(m, VOCABULARY, 64, budget)
        kept = sum(tile.numel() * 4 for tile in tiles)
        assert kept <= budget
        assert budget - kept < 4 * ROWS * 64 or kept == ALL


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_bytes must be at least 0, not -1"):
        stats(problem(2, 2, 5), keep_bytes=-1)
