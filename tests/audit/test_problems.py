"""Losses that cannot be certified: each gets a sentence, none a traceback."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from klent import objectives as O
from klent.audit import certify


def raises(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    raise KeyError("no such thing\nand a second line")


def raises_off_policy(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    if len(mask) == 5 and not torch.equal(logp, logp_old):
        raise ValueError("not mine")
    return logp - logp_old


def nan(logp: Tensor, mask: Tensor) -> Tensor:
    return (logp * 0 - 1).log()


def inf(logp: Tensor, mask: Tensor) -> Tensor:
    return logp / 0


def nan_gradient(logp: Tensor, mask: Tensor) -> Tensor:
    return (logp - logp.detach()).abs().sqrt()


def scalar(logp: Tensor, mask: Tensor) -> Tensor:
    return (logp * mask).sum() / mask.sum()


def number(logp: Tensor, mask: Tensor) -> float:
    return 1.0


def per_sequence(logp: Tensor, mask: Tensor) -> Tensor:
    return logp.sum(dim=1)


def transposed(logp: Tensor, mask: Tensor) -> Tensor:
    return logp.T


def widened(logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -logp * advantages[:, None]


def nothing(logp: Tensor, mask: Tensor) -> None:
    return None


def integers(logp: Tensor, mask: Tensor) -> Tensor:
    return logp.long()


def detached(logp: Tensor, mask: Tensor) -> Tensor:
    return logp.detach()


def elsewhere(logp: Tensor, mask: Tensor) -> Tensor:
    return torch.ones_like(logp).requires_grad_()


def foreign(logp: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return logp * values


def unset(logp: Tensor, mask: Tensor, *, coef: float) -> Tensor:
    return coef * logp


CASES: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (raises, {}, r"raised KeyError: 'no such thing.* \(test_problems.py:\d+\)"),
    (raises_off_policy, {}, r"raised ValueError: not mine \(test_problems.py:\d+\) \(off-policy\)"),
    (nan, {}, "returned NaN at 41 of 41 tokens"),
    (inf, {}, "returned inf at 41 of 41 tokens"),
    (nan_gradient, {}, "has a gradient that is (NaN|inf), though its values are finite"),
    (scalar, {}, r"returned a scalar.*one loss per token, \[B, T\]"),
    (number, {}, "returned a scalar"),
    (per_sequence, {}, r"returned shape \[15\] for logp of shape \[15, 3\].*put a sequence's loss on one"),
    (transposed, {}, r"returned shape \[3, 15\]"),
    (widened, {}, r"returned shape \[15, 15, 3\].*every argument is \[B, T\], advantages too"),
    (nothing, {}, "returned NoneType, not a tensor"),
    (integers, {}, r"returned torch.int64, not floating point"),
    (detached, {}, "returned a tensor without a gradient.*in_reward"),
    (elsewhere, {}, "does not depend on logp, entropy, .* or skewed_kl"),
    (foreign, {}, "needs `values`, which the auditor cannot supply"),
    (unset, {}, "needs `coef`; set it"),
    (unset, {"coeff": 1.0}, "takes no `coeff`; it takes coef"),
    (O.kl_in_loss, {"coef": -1.0}, r"raised ValueError: coef is -1.0.*\(kl.py:\d+\)"),
    (O.kl_in_loss, {"coef": 1.0, "estimator": "k1"}, "the mean gradient of k1 is zero"),
    (O.kl_in_reward, {"coef": 1.0}, "without a gradient"),
    (O.weighted_cross_entropy, {}, "needs `logp_dummy`"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: getattr(case[0], "__name__", "?") + str(case[1]))
def test_a_problem_is_a_sentence(case: tuple[Callable[..., Any], dict[str, Any], str]) -> None:
    loss, settings, pattern = case
    found = certify(loss, **settings)
    assert found.problem is not None
    with pytest.raises(AssertionError, match=f"(?s){pattern}"):
        raise AssertionError(found.problem)
    assert "\n" not in found.problem
    assert found.on_policy.follows == found.off_policy.follows == "unknown"
    assert not found.restoring_force
    assert found.problem in str(found)
    assert found.to_dict()["on_policy"]["relative_error"] is None
