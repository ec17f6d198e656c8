"""What the tests of this folder share: float64 tables, random tokens, and gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Row = Sequence[float]


class Mutant(NamedTuple):
    """One plausible mistake in the source, and a test that must notice it."""

    mistake: str
    file: str
    old: str
    new: str
    killer: Callable[[], object]


def table(*rows: Row) -> Tensor:
    """A float64 tensor, a row per argument."""
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(*rows: str) -> Tensor:
    """A mask drawn with ``x`` (on) and ``.`` (off): ``mask_of("xx.", "x..")``."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def slope(loss: Tensor, *inputs: Tensor) -> Tensor:
    """Derivative of the summed loss in the first of ``inputs``."""
    return torch.autograd.grad(loss.sum(), inputs, retain_graph=True)[0]


def random_tokens(seed: int, rows: int = 4, columns: int = 6) -> dict[str, Tensor]:
    """Every per-token input by name, random, float64; of several rows the last is off the mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    logp = -normal().abs() - 0.05
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    if rows > 1:
        mask[-1] = False
    return {
        "logp": logp,
        "logp_old": logp + 0.3 * normal(),
        "logp_ref": logp + 0.5 * normal(),
        "advantage": normal(),
        "entropy": normal().abs(),
        "mask": mask,
        "logp_other": -normal().abs() - 0.05,
        "weight": torch.rand(rows, columns, generator=generator, dtype=torch.float64),
        "chosen": torch.rand(rows, columns, generator=generator) < 0.4,
    }


def assert_close(actual: Tensor, expected: object, tolerance: float = 1e-12) -> None:
    """Equal to ``expected`` (a tensor, array, list or number) in shape and, up to ``tolerance``, in value."""
    if not isinstance(expected, Tensor):
        expected = torch.from_numpy(np.array(expected, dtype=np.float64))
    expected = expected.to(actual.dtype)
    torch.testing.assert_close(actual.detach(), expected, rtol=tolerance, atol=tolerance)
