"""Divergences over the whole vocabulary against plain torch that holds all logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from klent.head import divergence as module
from klent.head.divergence import Head, token_divergence
from klent.head.stats import LogitTransform

ROWS, VOCABULARY = 3, 11
UNSURE = 1.9  # nats; between the entropies of the target's rows
KINDS = [
    ("forward", 0.0),
    ("reverse", 0.0),
    ("forward", 0.1),
    ("reverse", 0.3),
    ("jeffreys", 0.0),
    ("jeffreys", 0.2),
    ("reverse", 0.0, UNSURE),
    ("reverse", 0.3, UNSURE),
    ("total_variation", 0.0),
]
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(temperature=0.7, scale=1.3),
    LogitTransform(temperature=1.4, softcap=2.0),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(module, "TILE_ROWS", 2)
    monkeypatch.setattr(module, "TILE_COLUMNS", 4)


def heads(
    transform: LogitTransform = TRANSFORMS[1], *, dtype: torch.dtype = torch.float64
) -> tuple[Head, Head]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    policy = Head(draw(ROWS, 6), draw(VOCABULARY, 6), draw(VOCABULARY), transform)
    return policy, Head(draw(ROWS, 4), draw(VOCABULARY, 4), None, LogitTransform(temperature=0.9))


def distribution(head: Head) -> Tensor:
    logits = head.hidden.double() @ head.weight.double().T
    logits = (logits if head.bias is None else logits + head.bias.double()) * head.transform.scale
    if head.transform.softcap is not None:
        logits = torch.tanh(logits / head.transform.softcap) * head.transform.softcap
    return (logits / head.transform.temperature).softmax(-1)


def reference(
    policy: Head, target: Head, divergence: str, skew: float, forward_above: float | None = None
) -> Tensor:
    p, t = distribution(policy), distribution(target).detach()
    if divergence == "total_variation":
        return (p - t).clamp(min=0).sum(-1)  # what the policy has more of, and so has less of elsewhere

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return (first * (first / (skew * first + (1 - skew) * second)).log()).sum(-1)

    share = {"forward": 1.0, "reverse": 0.0, "jeffreys": 1.0}[divergence]
    if forward_above is not None:
        share = (-(t * t.log()).sum(-1) > forward_above).to(p.dtype)
    return share * kl(t, p) + (0.0 if divergence == "forward" else kl(p, t))


def gradients(function: Any, policy: Head, target: Head, *kind: Any) -> tuple[Tensor, ...]:
    inputs = [x.clone().requires_grad_() for x in (policy.hidden, policy.weight, policy.bias)]
    value = function(Head(*inputs, policy.transform), target, *kind)
    coefficient = torch.linspace(-1, 2, ROWS, dtype=value.dtype)
    return value.detach(), *torch.autograd.grad(value, inputs, coefficient)


def fused(policy: Head, target: Head, divergence: Any, skew: float, above: float | None = None) -> Tensor:
    return token_divergence(policy, target, divergence=divergence, skew=skew, forward_above=above)


def test_the_target_is_sure_in_some_rows_and_not_in_others() -> None:
    _, target = heads()
    t = distribution(target)
    assert (-(t * t.log()).sum(-1) > UNSURE).unique().tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_values_and_gradients_are_those_of_plain_torch(kind, transform) -> None:
    actual = gradients(fused, *heads(transform), *kind)
    for left, right in zip(actual, gradients(reference, *heads(transform), *kind), strict=True):
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind) -> None:
    policy, target = heads()
    inputs = [x.clone().requires_grad_() for x in (policy.hidden, policy.weight, policy.bias)]
    assert torch.autograd.gradcheck(lambda *x: fused(Head(*x, policy.transform), target, *kind), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_inputs(kind, dtype) -> None:
    policy, target = heads(dtype=dtype)
    actual, expected = gradients(fused, policy, target, *kind), gradients(reference, policy, target, *kind)
    assert actual[0].dtype == torch.float32
    assert actual[1].dtype == dtype
    for left, right in zip(actual, expected, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 or left is actual[0] else 5e-2
        torch.testing.assert_close(left.double(), right.double(), atol=tolerance, rtol=tolerance)


def test_equal_models_are_at_distance_zero_with_no_pull() -> None:
    policy, _ = heads()
    for kind in KINDS:
        value, *slopes = gradients(fused, policy, policy, *kind)
        assert value.abs().max() < 1e-12
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-12


def test_tokens_that_one_side_lacks() -> None:
    policy, target = heads(LogitTransform())
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    bias[3] = -torch.inf
    without = target._replace(bias=bias)
    assert fused(policy, without, "reverse", 0.0).isinf().all()
    alone = policy._replace(bias=bias)  # the forward divergence is inf, but for rows where it is not added
    unsure = fused(alone, target, "reverse", 0.0, UNSURE)
    assert sorted(unsure.isinf().tolist()) == [False, False, True]
    for kind in (("forward", 0.0), ("forward", 0.1), ("reverse", 0.3), ("total_variation", 0.0)):
        actual = gradients(fused, policy, without, *kind)
        assert all(x.isfinite().all() for x in actual)
        assert actual[0].max() < -torch.log(torch.tensor(kind[1])) if kind[1] else True


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.size = max(self.size, x.numel())
        return out


def test_nothing_as_large_as_the_logits_is_made() -> None:
    policy = Head(torch.randn(40, 3, requires_grad=True), torch.randn(50, 3, requires_grad=True))
    target = Head(torch.randn(40, 2), torch.randn(50, 2))
    with Largest() as seen:
        fused(policy, target, "reverse", 0.2).sum().backward()
    assert 100 < seen.size <= 150  # the gradient of a weight, and not 40 x 50 logits
    with Largest() as all_of_them:
        reference(policy, target, "reverse", 0.2)
    assert all_of_them.size == 2000


def test_what_does_not_fit_is_refused() -> None:
    policy, target = heads()
    with pytest.raises(ValueError, match="2 rows, 11 and 11 tokens"):
        token_divergence(policy, target._replace(hidden=target.hidden[:2]))
    with pytest.raises(ValueError, match="target's hidden"):
        token_divergence(policy, target._replace(weight=policy.weight))
    with pytest.raises(ValueError, match=r"skew is 1.0"):
        token_divergence(policy, target, skew=1.0)
    with pytest.raises(ValueError, match="belongs to divergence 'reverse': jeffreys has the forward"):
        token_divergence(policy, target, divergence="jeffreys", forward_above=1.0)
    with pytest.raises(ValueError, match="forward_above is -1"):
        token_divergence(policy, target, forward_above=-1.0)
    with pytest.raises(ValueError, match="'both'"):
        token_divergence(policy, target, divergence="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"skew is 0.1 with total_variation"):
        token_divergence(policy, target, divergence="total_variation", skew=0.1)


def test_total_variation_table() -> None:
    # p = (0.5, 0.3, 0.2), t = (0.2, 0.35, 0.45): 0.3. Half of p with the signs + - -, whose sum happens to be 0.
    p, t = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [0.2, 0.35, 0.45]))
    one, weight = torch.ones(1, 1, dtype=torch.float64), p.log()[:, None].requires_grad_()
    value = fused(Head(one, weight), Head(one, t.log()[:, None]), "total_variation", 0.0)
    torch.testing.assert_close(value.detach(), torch.tensor([0.3], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), weight)
    torch.testing.assert_close(slope[:, 0], torch.tensor([0.25, -0.15, -0.1], dtype=torch.float64))


def test_disjoint_supports_are_at_total_variation_one() -> None:
    far = torch.tensor([[80.0], [0.0]])
    one = torch.ones(1, 1)
    value = fused(Head(one, far), Head(one, far.flip(0)), "total_variation", 0.0)
    assert float(value) == 1.0
