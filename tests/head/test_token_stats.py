"""The chunked head against its definition and against NumPy: values, gradients, and the edges of both."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import head as oracle
from torch import Tensor

from head.helpers import Problem, everything, problem, stats
from klent import TokenStats, token_stats
from klent.head import chunked

SHAPES = [(41, 7, 1271), (1, 1, 1), (3, 5, 2), (17, 4, 64), (16, 4, 63), (33, 4, 65), (1, 8, 200)]
NAMES = ("hidden", "weight", "bias")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 rows x 64 tokens, so that small problems have many, whole and cut."""
    monkeypatch.setattr(chunked, "TILE_ROWS", 16)
    monkeypatch.setattr(chunked, "TILE_COLUMNS", 64)


def close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within ``tolerance`` of the largest value of each tensor (gradients cancel to any size)."""
    for name, value in expected.items():
        assert torch.isfinite(value).all(), name
        error = float((actual[name].double() - value).abs().max() / value.abs().max().clamp(min=1))
        assert error <= tolerance, f"{name} is off by {error:.2e}"


def from_numpy(p: Problem) -> dict[str, Tensor]:
    inputs = [x.double().numpy() for x in (p.hidden, p.weight)] + [p.target.numpy(), p.bias.double().numpy()]
    values = oracle.stats(*inputs, p.temperature)._asdict()
    slopes = oracle.gradients(*inputs, p.temperature, p.c.numpy(), p.e.numpy())._asdict()
    return {k: torch.from_numpy(v) for k, v in (values | {f"d{k}": v for k, v in slopes.items()}).items()}


@pytest.mark.parametrize("implementation", ["reference", "chunked", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("small_tiles")
def test_values_and_gradients_equal_the_oracle(shape: tuple[int, int, int], implementation: str) -> None:
    p = problem(*shape)
    close(everything(p, implementation=implementation), from_numpy(p), 1e-11)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 140)),
    st.floats(0.1, 10),
    st.integers(0, 10**6),
)
def test_any_shape_and_temperature_equal_the_reference(
    shape: tuple[int, int, int], temperature: float, seed: int
) -> None:
    p = replace(problem(*shape, seed=seed), temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "TILE_ROWS", 16)
        patch.setattr(chunked, "TILE_COLUMNS", 64)
        close(everything(p, implementation="chunked"), everything(p, implementation="reference"), 1e-9)


def test_real_tiles_in_float32() -> None:
    """Tiles of the real size, several in both directions, the last ones cut."""
    p = problem(chunked.TILE_ROWS + 37, 8, 2 * chunked.TILE_COLUMNS + 5, dtype=torch.float32)
    close(everything(p), everything(p.to(torch.float64), implementation="reference"), 2e-5)


@pytest.mark.usefixtures("small_tiles")
def test_gradcheck() -> None:
    p = problem(18, 3, 70)
    inputs = tuple(x.requires_grad_() for x in (p.hidden, p.weight, p.bias))

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        out = token_stats(hidden, weight, p.target, bias=bias, temperature=0.7, implementation="chunked")
        assert out.entropy is not None
        return out.logp, out.entropy

    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("wanted", [w for w in product([False, True], repeat=3) if any(w)], ids=str)
def test_each_input_may_be_frozen(wanted: tuple[bool, bool, bool]) -> None:
    p = problem(20, 5, 130)
    expected = everything(p, implementation="reference")
    for name, want in zip(NAMES, wanted, strict=True):
        getattr(p, name).requires_grad_(want)
    out = stats(p)
    assert out.entropy is not None
    torch.autograd.backward([out.logp, out.entropy], [p.c, p.e])
    for name, want in zip(NAMES, wanted, strict=True):
        assert (getattr(p, name).grad is not None) == want
        if want:
            torch.testing.assert_close(getattr(p, name).grad, expected[f"d{name}"])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("unused", ["c", "e"])
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_a_loss_of_one_output_only(unused: str, implementation: str) -> None:
    p = problem(20, 5, 130)
    p = replace(p, **{unused: torch.zeros(20, dtype=torch.float64)})
    expected = from_numpy(p)
    p.hidden.requires_grad_()
    p.weight.requires_grad_()
    out = stats(p, implementation=implementation, entropy=unused == "c")
    used, coefficient = (out.logp, p.c) if unused == "e" else (out.entropy, p.e)
    assert used is not None
    used.backward(coefficient)
    torch.testing.assert_close(p.hidden.grad, expected["dhidden"])
    torch.testing.assert_close(p.weight.grad, expected["dweight"])


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_without_entropy(implementation: str) -> None:
    p = problem(20, 5, 130)
    out = stats(p, implementation=implementation, entropy=False)
    assert out.entropy is None
    torch.testing.assert_close(out.logp, stats(p).logp)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("bias", [False, True])
def test_without_bias_or_temperature(bias: bool) -> None:
    p = problem(20, 5, 130)
    options = {"bias": p.bias if bias else None, "temperature": 1.0}
    for actual, expected in zip(
        stats(p, **options), stats(p, **options, implementation="reference"), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_leading_dimensions_are_kept() -> None:
    p = problem(12, 5, 30)
    flat = stats(p)
    out = token_stats(
        p.hidden.view(2, 3, 2, 5), p.weight, p.target.view(2, 3, 2), bias=p.bias, temperature=p.temperature
    )
    assert isinstance(out, TokenStats)
    assert out.entropy is not None
    assert out.logp.shape == out.entropy.shape == (2, 3, 2)
    assert torch.equal(out.logp.flatten(), flat.logp)
    single = token_stats(
        p.hidden[0], p.weight, p.target[0], bias=p.bias, temperature=p.temperature, entropy=False
    )
    torch.testing.assert_close(single.logp, flat.logp[0])


def test_no_rows_at_all() -> None:
    p = problem(3, 5, 30)
    hidden, weight = p.hidden[:0].requires_grad_(), p.weight.requires_grad_()
    out = token_stats(hidden, weight, p.target[:0])
    assert out.logp.shape == (0,)
    out.logp.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(30, 5, dtype=torch.float64))


@pytest.mark.usefixtures("small_tiles")
def test_strided_inputs_and_unchanged_inputs() -> None:
    """Transposed weight, every second hidden state, and gradient outputs of stride 0."""
    p = problem(20, 5, 130)
    q = replace(
        p,
        hidden=p.hidden.repeat_interleave(2, 0)[::2],
        weight=p.weight.T.contiguous().T,
        c=torch.ones(1, dtype=torch.float64).expand(20),
    )
    before = [x.clone() for x in (q.hidden, q.weight, q.bias, q.target)]
    close(everything(q), everything(replace(p, c=torch.ones(20)), implementation="reference"), 1e-11)
    assert all(torch.equal(x, y) for x, y in zip((q.hidden, q.weight, q.bias, q.target), before, strict=True))


# Extremes


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("small_tiles")
def test_logits_of_ten_thousand(implementation: str, dtype: torch.dtype) -> None:
    """Exact integers as logits: 3 tokens tie at the top, everything else is e**-10000 or less likely."""
    size = 200
    logits = torch.full((size,), -1e4, dtype=dtype)
    logits[torch.tensor([5, 70, 199])] = 1e4
    p = Problem(
        hidden=torch.ones(2, 1, dtype=dtype),
        weight=logits.unsqueeze(1),
        bias=torch.zeros(size, dtype=dtype),
        target=torch.tensor([70, 0]),
        c=torch.tensor([1.0, 2.0]),
        e=torch.tensor([1.0, -3.0]),
        temperature=1.0,
    )
    out = everything(p, implementation=implementation)
    torch.testing.assert_close(out["logp"], torch.tensor([-math.log(3), -2e4 - math.log(3)], dtype=dtype))
    torch.testing.assert_close(out["entropy"], torch.full((2,), math.log(3), dtype=dtype))
    expected = torch.zeros(size, dtype=dtype)  # of the bias: c ([v = target] - p) summed over the two rows
    expected[torch.tensor([5, 199])] = -1.0
    expected[70] = 0.0
    expected[0] = 2.0
    torch.testing.assert_close(out["dbias"], expected, atol=1e-5, rtol=0)
    assert all(torch.isfinite(x).all() for x in out.values())


@pytest.mark.usefixtures("small_tiles")
def test_a_certain_token_has_no_entropy_and_no_gradient() -> None:
    p = problem(30, 4, 150, dtype=torch.float32)
    bias = torch.zeros(150)
    bias[77] = 3e4
    out = everything(replace(p, bias=bias, target=torch.full((30,), 77)))
    assert torch.equal(out["logp"], torch.zeros(30))
    assert (out["entropy"] == 0).all()
    assert float(out["dhidden"].abs().max()) < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_entropy_stays_in_its_range(seed: int, scale: float) -> None:
    p = problem(5, 3, 100, seed=seed, dtype=torch.float32)
    out = stats(replace(p, hidden=p.hidden * scale))
    assert out.entropy is not None
    assert (out.entropy >= 0).all()
    assert (out.entropy <= math.log(100) * (1 + 1e-6)).all()
    assert (out.logp <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kept", [range(130, 150), range(0, 1), range(0, 200, 3)], ids=["late", "one", "some"]
)
@pytest.mark.usefixtures("small_tiles")
def test_masked_vocabulary(kept: range, dtype: torch.dtype) -> None:
    """-inf in the bias equals a smaller vocabulary, also where whole tiles are masked ahead of the others."""
    p = replace(problem(20, 4, 200, dtype=dtype), temperature=0.5)
    tokens = torch.tensor(kept)
    index = p.target % len(kept)
    mask = torch.full((200,), -torch.inf, dtype=dtype)
    mask[tokens] = p.bias[tokens]
    p = replace(p, bias=mask, target=tokens[index], e=p.e * 100)
    small = replace(p, bias=p.bias[tokens], weight=p.weight[tokens], target=index)
    out, expected = everything(p), everything(small, implementation="reference")
    for name in ("dweight", "dbias"):
        full = torch.zeros_like(out[name])
        full[tokens] = expected[name]
        expected[name] = full
    close(out, expected, 1e-10 if dtype == torch.float64 else 2e-3)


def test_a_masked_target_is_impossible() -> None:
    p = problem(4, 3, 9)
    p.bias[p.target[0]] = -torch.inf
    out, expected = everything(p), everything(p, implementation="reference")
    assert out["logp"][0] == expected["logp"][0] == -torch.inf
    for name in ("entropy", "dhidden", "dweight", "dbias"):
        torch.testing.assert_close(out[name], expected[name])


# The collision


def squares(out: TokenStats) -> tuple[Tensor | None, Tensor | None]:
    return out.collision, out.collision_logp


def test_the_stats_unpack_as_the_two_that_objectives_read() -> None:
    out = stats(problem(3, 4, 5), collision=True)
    logp, entropy = out
    assert logp is out.logp
    assert entropy is out.entropy


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("entropy", [True, False], ids=["with entropy", "without"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("small_tiles")
def test_collision_equals_the_oracle(
    shape: tuple[int, int, int], entropy: bool, softcap: float | None, implementation: str
) -> None:
    """Unequal tiles, one of the first tokens out of the vocabulary, temperature 0.7."""
    p = problem(*shape)
    if len(p.bias) > 2:
        p.bias[0] = -torch.inf
    arrays = (p.hidden.numpy(), p.weight.numpy(), p.bias.numpy(), p.temperature)
    out = stats(p, implementation=implementation, entropy=entropy, collision=True, softcap=softcap)
    for actual, expected in zip(squares(out), oracle.collision(*arrays, softcap), strict=True):
        torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-11, atol=1e-13)
    assert (out.entropy is None) == (not entropy)
    plain = stats(p, implementation=implementation, softcap=softcap)
    assert plain.collision is plain.collision_logp is None
    assert torch.equal(out.logp, plain.logp)
    assert not entropy or torch.equal(out.entropy, plain.entropy)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.usefixtures("small_tiles")
def test_collision_carries_no_gradient_and_changes_none(implementation: str) -> None:
    p = problem(20, 5, 130)
    expected = everything(p, implementation=implementation)
    actual = everything(p, implementation=implementation, collision=True)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    out = stats(replace(p, hidden=p.hidden.requires_grad_()), implementation=implementation, collision=True)
    assert out.collision is not None
    assert out.collision_logp is not None
    assert not out.collision.requires_grad
    assert not out.collision_logp.requires_grad
    (out.collision * out.logp).sum().backward()  # a weight, not a part of what is trained


@pytest.mark.usefixtures("small_tiles")
def test_collision_of_extreme_logits() -> None:
    """Three tokens that tie at the top give 1/3, a certain token 1, and whole tiles out of the vocabulary 0."""
    logits = torch.full((2, 200), -1e4)
    logits[0, torch.tensor([5, 70, 199])] = 1e4
    logits[1, 130] = 1e4
    out = token_stats(torch.eye(2), logits.T.contiguous(), torch.tensor([70, 130]), collision=True)
    torch.testing.assert_close(out.collision, torch.tensor([1 / 3, 1.0]))
    torch.testing.assert_close(out.collision_logp, torch.tensor([-math.log(3) / 3, 0.0]))
    p = problem(6, 4, 200)
    p.bias[:128] = -torch.inf
    small = replace(p, bias=p.bias[128:], weight=p.weight[128:], target=p.target % 72)
    for actual, expected in zip(*(squares(stats(x, collision=True)) for x in (p, small)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_collision_keeps_the_leading_dimensions() -> None:
    p = problem(6, 4, 20)
    out = token_stats(p.hidden.view(2, 3, 4), p.weight, p.target.view(2, 3), collision=True)
    assert out.collision is not None
    assert out.collision_logp is not None
    assert out.collision.shape == out.collision_logp.shape == (2, 3)


# Order and use


@pytest.mark.usefixtures("small_tiles")
def test_rows_are_independent() -> None:
    """A permutation of the rows permutes the result; the weight gradient of two halves adds up."""
    p = problem(40, 5, 130)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))

    def take(rows: Tensor) -> dict[str, Tensor]:
        return everything(replace(p, **{k: getattr(p, k)[rows] for k in ("hidden", "target", "c", "e")}))

    whole, shuffled = take(torch.arange(40)), take(order)
    for name in ("logp", "entropy", "dhidden"):
        torch.testing.assert_close(shuffled[name], whole[name][order])
    first, second = take(order[:13]), take(order[13:])
    torch.testing.assert_close(first["dweight"] + second["dweight"], whole["dweight"])


def test_tied_weight_collects_both_gradients() -> None:
    """The embedding that made the hidden states is also the output weight."""
    p = problem(12, 5, 30)
    grads = []
    for implementation in ("chunked", "reference"):
        weight = p.weight.clone().requires_grad_()
        out = token_stats(weight[p.target].sin(), weight, p.target.roll(1), implementation=implementation)
        assert out.entropy is not None
        (p.c * out.logp + p.e * out.entropy).sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("coefficient", [False, True], ids=["constant", "graph"])
def test_a_second_derivative_is_refused(coefficient: bool) -> None:
    """Whether or not the coefficients carry a graph themselves: staying silent would lose a gradient."""
    p = problem(4, 3, 9)
    p.hidden.requires_grad_()
    logp = stats(p).logp
    loss = logp.square().sum() if coefficient else logp.sum()
    with pytest.raises(RuntimeError, match=r"differentiable once.*implementation=.reference."):
        torch.autograd.grad(loss, p.hidden, create_graph=True)
    loss = stats(p, implementation="reference").logp.square().sum()
    (slope,) = torch.autograd.grad(loss, p.hidden, create_graph=True)
    slope.sum().backward()
    assert torch.isfinite(p.hidden.grad).all()


def test_same_numbers_with_and_without_gradient() -> None:
    p = problem(20, 5, 130)
    with torch.no_grad():
        plain = stats(p)
    p.weight.requires_grad_()
    tracked = stats(p)
    assert not plain.logp.requires_grad
    assert tracked.logp.requires_grad
    assert tracked.entropy is not None
    assert tracked.entropy.requires_grad
    assert torch.equal(plain.logp, tracked.logp.detach())


# Refusals

BAD = {
    "hidden and target": (
        {"target": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        r"must agree.*\[4, 3\].*\[3\]",
    ),
    "width": ({"weight": torch.zeros(9, 2)}, ValueError, r"weight must be \[V, H\] with H = 3.*\[9, 2\]"),
    "weight of one axis": ({"weight": torch.zeros(9)}, ValueError, r"weight must be \[V, H\]"),
    "no tokens": ({"weight": torch.zeros(0, 3), "bias": None}, ValueError, r"weight must be \[V, H\]"),
    "bias": ({"bias": torch.zeros(8)}, ValueError, r"bias must be \[V\] = \[9\].*\[8\]"),
    "target dtype": ({"target": torch.zeros(4, dtype=torch.int32)}, TypeError, "int64.*torch.int32"),
    "hidden dtype": ({"hidden": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "hidden must be.*int64"),
    "target too high": ({"target": torch.tensor([0, 1, 9, 2])}, ValueError, r"target holds 9.*\[0, 9\)"),
    "target of padding": ({"target": torch.tensor([0, 1, -100, 2])}, ValueError, "target holds -100"),
    "temperature 0": ({"temperature": 0.0}, ValueError, "temperature must be a positive number, not 0.0"),
    "temperature < 0": ({"temperature": -1.0}, ValueError, "temperature must be"),
    "temperature nan": ({"temperature": math.nan}, ValueError, "temperature must be"),
    "temperature inf": ({"temperature": math.inf}, ValueError, "temperature must be"),
    "scale 0": ({"scale": 0.0}, ValueError, "scale must be a finite number other than 0, not 0.0"),
    "scale nan": ({"scale": math.nan}, ValueError, "scale must be"),
    "softcap 0": ({"softcap": 0.0}, ValueError, "softcap must be a positive number or None, not 0.0"),
    "softcap inf": ({"softcap": math.inf}, ValueError, "softcap must be"),
    "implementation": (
        {"implementation": "fast"},
        ValueError,
        "'fast' is unknown: use auto, chunked, triton, reference",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_refused(case: str) -> None:
    changes, error, message = BAD[case]
    good = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(9, 3),
        "target": torch.zeros(4, dtype=torch.int64),
    }
    good["bias"] = torch.zeros(9)
    arguments = good | changes
    with pytest.raises(error, match=message):
        token_stats(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("target"), **arguments)


def test_hand_worked_table() -> None:
    """Words of probability 1/2, 1/4, 1/4: entropy 1.5 bits; at temperature 1/2 the odds are 4 : 1 : 1."""
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([2.0, 1.0, 1.0]).log().unsqueeze(1)
    out = token_stats(hidden, weight, torch.tensor([0, 2]))
    assert out.entropy is not None
    np.testing.assert_allclose(out.logp, [math.log(1 / 2), math.log(1 / 4)], rtol=1e-6)
    np.testing.assert_allclose(out.entropy, [1.5 * math.log(2)] * 2, rtol=1e-6)
    cold = token_stats(hidden, weight, torch.tensor([0, 2]), temperature=0.5)
    np.testing.assert_allclose(cold.logp, [math.log(4 / 6), math.log(1 / 6)], rtol=1e-6)


# Scaled and capped logits


def naive_capped(p: Problem, scale: float, softcap: float | None) -> dict[str, Tensor]:
    """In float64 from the definition of the models that do so; gradients by central differences."""

    def values(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        z = scale * (hidden @ weight.T + bias)
        if softcap is not None:
            z = softcap * (1 - 2 / (1 + (2 * z / softcap).exp()))
        odds = (z / p.temperature).exp()
        chance = odds / odds.sum(1, keepdim=True)
        logs = torch.where(chance > 0, chance, 1.0).log()
        return chance.gather(1, p.target[:, None])[:, 0].log(), -(chance * logs).sum(1)

    def loss(*inputs: Tensor) -> float:
        logp, entropy = values(*inputs)
        return float((p.c * logp).sum() + (p.e * entropy).sum())

    inputs = [p.hidden, p.weight, p.bias]
    out = dict(zip(("logp", "entropy"), values(*inputs), strict=True))
    for k, name in enumerate(NAMES):
        slope = torch.zeros_like(inputs[k])
        for index in range(slope.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [x.clone() for x in inputs]
                moved[k].view(-1)[index] += step
                sides.append(loss(*moved))
            slope.view(-1)[index] = (sides[0] - sides[1]) / 2e-5
        out[f"d{name}"] = slope
    return out


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 3.0), (0.25, None), (-0.5, 2.0), (2.0, 30.0)], ids=str)
def test_scale_and_softcap_equal_central_differences(
    scale: float, softcap: float | None, implementation: str
) -> None:
    p = problem(18, 2, 70)
    expected = naive_capped(p, scale, softcap)
    close(everything(p, implementation=implementation, scale=scale, softcap=softcap), expected, 1e-8)


@pytest.mark.usefixtures("small_tiles")
def test_capped_logits_in_float32_and_with_masked_words() -> None:
    """A cap has the last word: what the bias masks has the logit -softcap, as in the model."""
    p = problem(40, 5, 130, dtype=torch.float32)
    p.bias[::3] = -torch.inf
    options = {"scale": 1.5, "softcap": 4.0}
    exact = everything(p.to(torch.float64), implementation="reference", **options)
    assert all(torch.isfinite(x).all() for x in exact.values())
    close(everything(p, **options), exact, 1e-5)


def test_scale_is_a_temperature_and_a_wide_cap_is_none() -> None:
    p = problem(18, 4, 70)
    half = replace(p, temperature=p.temperature * 2)
    torch.testing.assert_close(everything(p, scale=0.5), everything(half))
    torch.testing.assert_close(stats(p, softcap=1e6).logp, stats(p).logp)
