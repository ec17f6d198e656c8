"""What the chunked head leaves undone: no [N, V], no row without coefficient, no gradient nobody needs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from head.helpers import everything, problem, stats
from klent.head import chunked

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_}


@dataclass
class Work(TorchDispatchMode):
    """Every matrix product (rows, inner, columns) and the largest and total memory of the tensors made."""

    products: list[tuple[int, int, int]] = field(default_factory=list)
    storages: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            left, right = args[-2:]
            self.products.append((left.shape[0], left.shape[1], right.shape[1]))
        elif func.overloadpacket is torch.ops.mkldnn._linear_pointwise:
            self.products.append((*args[0].shape, args[1].shape[0]))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage.data_ptr()] = storage  # kept alive, so that addresses stay distinct
        return out

    @property
    def largest(self) -> int:
        return max(storage.nbytes() for storage in self.storages.values())

    def multiplications(self) -> int:
        return sum(math.prod(shape) for shape in self.products)


@contextmanager
def small_tiles(rows: int, columns: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "TILE_ROWS", rows)
        patch.setattr(chunked, "TILE_COLUMNS", columns)
        yield


ROWS, WIDTH, VOCABULARY = 256, 4, 2048
ONE_PRODUCT = ROWS * WIDTH * VOCABULARY


def work(implementation: str = "chunked", *, c: Tensor, e: Tensor, frozen: tuple[str, ...] = ()) -> Work:
    """What the backward does for these coefficients."""
    p = replace(problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32), c=c, e=e)
    for name in {"hidden", "weight", "bias"} - set(frozen):
        getattr(p, name).requires_grad_()
    with small_tiles(64, 128):
        out = stats(p, implementation=implementation)
        assert out.entropy is not None
        with Work() as seen:
            torch.autograd.backward([out.logp, out.entropy], [c, e])
    return seen


def test_logits_are_never_held() -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    tile = 64 * 128 * 4
    sizes = {}
    for implementation in ("chunked", "reference"):
        with small_tiles(64, 128), Work() as seen:
            everything(p, implementation=implementation)
        sizes[implementation] = seen.largest
    assert sizes["reference"] == ROWS * VOCABULARY * 4  # the probe sees logits where there are some
    assert sizes["chunked"] <= max(
        2 * tile, VOCABULARY * WIDTH * 4
    )  # two tiles, or the gradient of the weight


def test_bfloat16_gradients_take_no_float32_weight() -> None:
    p = problem(ROWS, 64, VOCABULARY, dtype=torch.bfloat16)
    with small_tiles(64, 128), Work() as seen:
        everything(p)
    assert seen.largest <= max(2 * 64 * 128 * 4, VOCABULARY * 64 * 2, ROWS * 64 * 4)


def test_the_work_is_four_products() -> None:
    p = problem(ROWS, WIDTH, VOCABULARY, dtype=torch.float32)
    with small_tiles(64, 128), Work() as seen:
        everything(p)
    assert seen.multiplications() == 4 * ONE_PRODUCT


def test_rows_without_a_coefficient_are_skipped() -> None:
    """A fifth of the rows: 10% have a c, 10% an e."""
    c, e = torch.zeros(ROWS), torch.zeros(ROWS)
    c[::10] = 1.0
    e[5::10] = -0.5
    rows = int(((c != 0) | (e != 0)).sum())
    assert work(c=c, e=e).multiplications() == 3 * rows * WIDTH * VOCABULARY


@pytest.mark.parametrize(
    ("frozen", "products"), [(("weight",), 2), (("hidden",), 2), (("hidden", "weight"), 1)]
)
def test_a_frozen_input_costs_nothing(frozen: tuple[str, ...], products: int) -> None:
    ones = torch.ones(ROWS)
    assert work(c=ones, e=ones, frozen=frozen).multiplications() == products * ONE_PRODUCT


def test_no_coefficient_no_work() -> None:
    zeros = torch.zeros(ROWS)
    assert work(c=zeros, e=zeros).products == []
    assert work("reference", c=zeros, e=zeros).products  # the probe sees products where there are some
    out = everything(replace(problem(5, 3, 40), c=torch.zeros(5), e=torch.zeros(5)))
    assert all(torch.equal(out[k], torch.zeros_like(out[k])) for k in ("dhidden", "dweight", "dbias"))


def test_skipped_rows_change_nothing() -> None:
    p = problem(100, 5, 300)
    keep = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.3
    p = replace(p, c=p.c * keep, e=p.e * keep)
    with small_tiles(16, 64):
        out, expected = everything(p), everything(p, implementation="reference")
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value)
    assert torch.equal(out["dhidden"][~keep], torch.zeros_like(out["dhidden"][~keep]))


def test_a_broken_row_without_a_coefficient_does_no_harm() -> None:
    """NaN and infinity in dropped rows: their gradient is exactly 0, every other one as without them."""
    p = problem(40, 5, 200)
    drop = torch.zeros(40, dtype=torch.bool)
    drop[[0, 7, 39]] = True
    p = replace(p, c=p.c.masked_fill(drop, 0.0), e=p.e.masked_fill(drop, 0.0))
    broken = p.hidden.clone()
    broken[0], broken[7], broken[39] = math.nan, math.inf, -math.inf
    with small_tiles(16, 64):
        out, expected = everything(replace(p, hidden=broken)), everything(p)
    for name in ("dhidden", "dweight", "dbias"):
        assert torch.equal(out[name], expected[name])
    assert torch.equal(out["dhidden"][drop], torch.zeros(3, 5, dtype=torch.float64))
    assert torch.equal(out["logp"][~drop], expected["logp"][~drop])


def test_a_broken_row_with_a_coefficient_is_not_hidden() -> None:
    p = problem(8, 5, 30)
    p.hidden[3] = math.nan
    out = everything(p)
    assert out["logp"][3].isnan()
    assert out["entropy"][3].isnan()
    assert out["dhidden"][3].isnan().all()
    assert out["dweight"].isnan().any()
    assert torch.isfinite(out["dhidden"][4:]).all()
