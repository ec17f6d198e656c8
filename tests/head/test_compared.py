"""Token statistics and reverse KL in one sweep, against plain torch that holds all logits."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from klent.head import chunked, compared, token_stats
from klent.head.compared import comparable, token_stats_and_kl
from klent.head.divergence import token_divergence
from klent.head.stats import Head, LogitTransform

ROWS, VOCABULARY = 7, 11
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(temperature=0.7, scale=1.3),
    LogitTransform(temperature=1.4, softcap=2.0),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunked, compared):
        monkeypatch.setattr(module, "TILE_ROWS", 3)
        monkeypatch.setattr(module, "TILE_COLUMNS", 4)


def heads(transform: LogitTransform, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Head, Head]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    policy = Head(draw(ROWS, 6) * 3, draw(VOCABULARY, 6), None, transform)
    return policy, Head(draw(ROWS, 4), draw(VOCABULARY, 4), None, LogitTransform(temperature=0.9))


def log_probs(head: Head) -> Tensor:
    logits = head.hidden.double() @ head.weight.double().T * head.transform.scale
    if head.transform.softcap is not None:
        logits = torch.tanh(logits / head.transform.softcap) * head.transform.softcap
    return (logits / head.transform.temperature).log_softmax(-1)


def plain(policy: Head, target: Tensor, other: Head) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_probs(policy), log_probs(other).detach()
    return p.gather(1, target[:, None])[:, 0], -(p.exp() * p).sum(-1), (p.exp() * (p - q)).sum(-1)


TARGET = torch.tensor([0, 3, 10, 4, 5, 5, 7])
COEFFICIENTS = torch.randn(3, ROWS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def everything(function, policy: Head, other: Head, coefficients: Tensor = COEFFICIENTS) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in (policy.hidden, policy.weight)]
    values = function(policy._replace(hidden=inputs[0], weight=inputs[1]), TARGET, other)
    loss = sum((c.to(v) * v).sum() for c, v in zip(coefficients, values, strict=True))
    return [*(v.detach() for v in values), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("coefficients", [COEFFICIENTS, COEFFICIENTS * torch.tensor([[0.0], [0.0], [1.0]])])
def test_values_and_gradients_are_those_of_plain_torch(
    transform: LogitTransform, coefficients: Tensor
) -> None:
    actual = everything(token_stats_and_kl, *heads(transform), coefficients)
    for one, other in zip(actual, everything(plain, *heads(transform), coefficients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_gradcheck() -> None:
    policy, other = heads(TRANSFORMS[2])
    inputs = [x.clone().requires_grad_() for x in (policy.hidden, policy.weight)]
    assert torch.autograd.gradcheck(
        lambda *x: token_stats_and_kl(policy._replace(hidden=x[0], weight=x[1]), TARGET, other), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_two_nodes(dtype: torch.dtype) -> None:
    policy, other = heads(TRANSFORMS[1], dtype)
    stats = token_stats(policy.hidden, policy.weight, TARGET, temperature=0.7, scale=1.3)
    out = token_stats_and_kl(policy, TARGET, other)
    torch.testing.assert_close(out.logp, stats.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.entropy, stats.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.kl, token_divergence(policy, other), rtol=1e-5, atol=1e-5)


def test_equal_models_are_at_distance_zero() -> None:
    policy, _ = heads(TRANSFORMS[2], torch.float32)
    out = token_stats_and_kl(policy, TARGET, policy)
    assert out.kl.abs().max() < 1e-6


def test_rows_without_a_coefficient_cost_nothing_and_have_no_gradient() -> None:
    policy, other = heads(TRANSFORMS[0])
    spoiled = policy.hidden.clone()
    spoiled[2] = torch.nan
    some = COEFFICIENTS.clone()
    some[:, 2] = 0
    hidden = spoiled.requires_grad_()
    values = token_stats_and_kl(policy._replace(hidden=hidden), TARGET, other)
    kept = [torch.where(torch.arange(ROWS) == 2, 0.0, v) for v in values]
    gradient = torch.autograd.grad(sum((c * v).sum() for c, v in zip(some, kept, strict=True)), hidden)[0]
    assert gradient.isfinite().all()
    assert not gradient[2].any()


def test_what_it_cannot_do_is_refused() -> None:
    policy, other = heads(TRANSFORMS[0])
    assert comparable(policy, other)
    assert not comparable(policy._replace(bias=torch.zeros(VOCABULARY)), other)
    with pytest.raises(ValueError, match="same rows and vocabulary"):
        token_stats_and_kl(policy, TARGET, other.first(9))
    with pytest.raises(ValueError, match="same rows and vocabulary"):
        token_stats_and_kl(policy, TARGET, replace_rows(other))
    frozen = policy._replace(hidden=policy.hidden.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(
            token_stats_and_kl(frozen, TARGET, other).kl.sum(), frozen.hidden, create_graph=True
        )


def replace_rows(head: Head) -> Head:
    return head._replace(hidden=head.hidden[:3])


class Products(TorchDispatchMode):
    """Counts matrix products by their number of multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(name in str(function) for name in ("mm", "linear")) and isinstance(out, Tensor):
            a = next(x for x in args if isinstance(x, Tensor) and x.ndim == 2 and x.shape[0] == out.shape[0])
            self.work += out.numel() * a.shape[1]
        return out


def test_two_products_of_each_model_and_two_for_the_gradient() -> None:
    policy, other = heads(TRANSFORMS[0])
    width = (policy.hidden.shape[1], other.hidden.shape[1])
    with Products() as counted:
        everything(token_stats_and_kl, policy, other)
    assert counted.work == ROWS * VOCABULARY * (4 * width[0] + 2 * width[1])
