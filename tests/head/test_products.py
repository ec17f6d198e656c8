"""The products of a linear layer: the numbers of float64, whoever computes them."""

import pytest
import torch
from torch import nn

from klent.head import products
from klent.head.products import Linear, product, use_onednn_linears


@pytest.fixture(autouse=True, params=[range(0), range(1 << 20)], ids=["oneDNN", "MKL"])
def mkls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which weights are left to MKL, by their number of elements."""
    monkeypatch.setattr(products, "_MKLS", request.param)


SHAPES = [(1, 1, 1), (3, 5, 2), (64, 48, 17), (0, 4, 3), (130, 7, 256)]


@pytest.mark.parametrize(("rows", "inner", "outer"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_product_is_that_of_float64(rows: int, inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
    b = torch.randn(outer) if bias else None
    expected = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    torch.testing.assert_close(product(x, weight, b).double(), expected, rtol=1e-5, atol=1e-5)


def test_product_takes_transposed_and_sliced_views() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, 24), torch.randn(24, 30)
    torch.testing.assert_close(product(x, weight.T), x @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(weight.T, x), weight.T @ x.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x[3:21, 4:12], weight.T[5:9, 4:12]), x[3:21, 4:12] @ weight[4:12, 5:9])
    batch = torch.randn(2, 3, 24)
    torch.testing.assert_close(product(batch, weight.T), batch @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_ordinary_product(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 4).to(dtype), torch.randn(3, 4).to(dtype)
    assert torch.equal(product(x, weight), nn.functional.linear(x, weight))


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_float64(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 17, bias=bias, dtype=torch.float64)
    layer = nn.Linear(24, 17, bias=bias)
    layer.load_state_dict(plain.state_dict())
    use_onednn_linears(layer)
    x = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    y = x.detach().float().requires_grad_()
    seed = torch.randn(2, 9, 17, dtype=torch.float64)
    plain(x).backward(seed)
    layer(y).backward(seed.float())
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(y.grad.double(), x.grad, rtol=1e-5, atol=1e-5)
    for actual, exact in zip(layer.parameters(), plain.parameters(), strict=True):
        assert actual.grad is not None
        torch.testing.assert_close(actual.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_weights_of_some_sizes_are_left_to_the_ordinary_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []

    def onednn(x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
        taken.append(weight.numel())
        return nn.functional.linear(x, weight)

    monkeypatch.setattr(products, "_ONEDNN", onednn)
    monkeypatch.setattr(products, "_MKLS", range(8, 24))
    x = torch.randn(3, 4)
    for rows in (1, 2, 5, 6):
        weight = torch.randn(rows, 4)
        assert torch.equal(product(x, weight), nn.functional.linear(x, weight))
    assert taken == [4, 24]


def test_frozen_weights_get_no_gradient_and_cost_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MKLS", range(0))
    layer = nn.Linear(6, 4, bias=False).requires_grad_(False)
    use_onednn_linears(layer)
    count = 0

    def counted(*args: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return product(*args)

    monkeypatch.setattr(products, "product", counted)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(3, 6))
    assert count == 2


def test_use_onednn_linears_keeps_names_weights_and_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_onednn_linears(model)
    assert type(model[0]) is Linear
    assert isinstance(model[2], nn.Linear)
    assert model[2].weight is model[0].weight
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_subclass_with_its_own_forward_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(4, 4))
    use_onednn_linears(model)
    assert type(model[0]) is Scaled


def test_the_switch_of_torch_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("oneDNN was asked although it is switched off")

    monkeypatch.setattr(products, "_ONEDNN", refuse)
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(product(x, weight), x @ weight.T)
    monkeypatch.setattr(products, "_ONEDNN", None)
    assert torch.equal(product(x, weight), x @ weight.T)
