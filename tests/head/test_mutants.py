"""The head broken on purpose, one line at a time: every mutant must be told from the oracle."""

import inspect
import types
from collections.abc import Callable

import pytest
import torch
from oracles import head as oracle
from torch import Tensor

from head.helpers import Problem, problem
from klent.head import autograd, chunked
from klent.head.reference import token_stats_reference
from klent.head.stats import Head, LogitTransform, TokenStats

# (what is wrong, the line as it is, the line as it would be)
MUTANTS = [
    ("sign of the entropy gradient", "self.slope = (-e", "self.slope = (e"),
    ("entropy gradient without its mean", "((e * NATS * mean - c) / s", "((-c) / s"),
    ("entropy gradient not normalised", "(-e * NATS / s * logits", "(-e * NATS * logits"),
    ("sign of the logp gradient", "mean - c) / s", "mean + c) / s"),
    ("target token not pushed", "torch.where(inside, self.c[rows], 0.0)", "torch.zeros_like(self.c[rows])"),
    ("other tiles' targets pushed", "torch.where(inside, self.c[rows], 0.0)", "self.c[rows]"),
    ("temperature dropped from the logits", "scale / temperature / NATS", "scale / NATS"),
    ("factor dropped from the bias", "(bias.to(self.dtype) * self.factor)", "(bias.to(self.dtype) * 1)"),
    ("factor dropped from dhidden", "dhidden.mul_(logits.factor)", "dhidden"),
    ("factor dropped from dbias", "dbias.mul_(logits.factor)", "dbias"),
    ("bias dropped", "None if self.bias is None else self.bias[columns]", "None"),
    ("sum not rescaled to the new maximum", "s.mul_(scale).add_", "s.add_"),
    ("weighted sum not rescaled", ".mul_(scale).add_(z.mul_(exp)", ".add_(z.mul_(exp)"),
    ("weighted sum not moved", "u.addcmul_(s, shift).mul_(scale)", "u.mul_(scale)"),
    ("maximum forgotten", "m.copy_(top)", "pass"),
    ("sign of the entropy", "(s.log2() - mean) * NATS if", "(mean - s.log2()) * NATS if"),
    ("entropy of one tile", "(s.log2() - mean) * NATS if", "-mean * NATS if"),
    ("log-sum-exp without the sum", "(at_target - m) - s.log2()", "(at_target - m)"),
    ("target of the last tile wins", "torch.where(inside, z.gather(1, column).squeeze(1), at_target[rows])",
     "z.gather(1, column).squeeze(1)"),
    ("only the last tile of rows in dweight", "dw.add_(part)", "part"),
    ("only the last tile of columns in dhidden", "dhidden[block] += product", "dhidden[block] = product"),
    ("dbias of the last tile", "dbias[columns] += g.sum(0)", "dbias[columns] = g.sum(0)"),
    ("last, cut tile of columns lost", "range(0, length, size)", "range(0, length - length % size, size)"),
    ("rows with only an entropy coefficient dropped", "((c != 0) | (e != 0))", "(c != 0)"),
    ("rows with only a logp coefficient dropped", "((c != 0) | (e != 0))", "(e != 0)"),
    ("gradients of kept rows in the wrong place", "index_copy_(0, active, dhidden)",
     "index_copy_(0, torch.arange(len(active)), dhidden)"),
]  # fmt: skip
# The same for the sums of squared probabilities
COLLISION = [
    ("squares not rescaled", "s2.mul_(square).add_", "s2.add_"),
    ("squares rescaled once", "square = scale.square()", "square = scale"),
    ("weighted squares not moved", "u2.addcmul_(s2, shift).mul_(square)", "u2.mul_(square)"),
    ("weighted squares not rescaled", "u2.addcmul_(s2, shift).mul_(square)", "u2.addcmul_(s2, shift)"),
    ("squares moved before they are weighted", "u2.addcmul_(s2, shift)", "u2.addcmul_(s2 * square, shift)"),
    ("probabilities not squared", "vecdot(exp, z)", "vecdot(torch.ones_like(exp), z)"),
    ("not normalised", "collision = sums.s2 / square", "collision = sums.s2 / sums.s"),
    ("logarithm without its normaliser", "(sums.u2 / square - collision * sums.s.log2())", "(sums.u2 / square)"),
    ("bits for nats", "collision * sums.s.log2()) * NATS", "collision * sums.s.log2())"),
]  # fmt: skip
# The same for a head that scales and caps its logits
CAPPED = [
    ("slope of the cap missing", "g.addcmul_(g, tanh.square_(), value=-1)", "g"),
    ("slope of the cap reversed", "tanh.square_(), value=-1)", "tanh.square_(), value=1)"),
    ("cap not undone", "NATS * self.reach", "NATS"),
    ("scale dropped", "scale / softcap", "1 / softcap"),
    ("temperature dropped from the reach", "softcap / temperature", "softcap"),
    ("tanh after its square", "(y.tanh_() * self.reach, y)", "((y := y.tanh_() * self.reach), y)"),
]  # fmt: skip
# The node that both implementations share, and the chunked kernels
SOURCES = {module: inspect.getsource(module) for module in (autograd, chunked)}


def build(line: str = "", mutated: str = "") -> types.ModuleType:
    """The chunked head with one line changed, in its node or in its kernels, with tiles of 16 x 64."""
    modules = {}
    for original, source in SOURCES.items():
        modules[original] = types.ModuleType(original.__name__)
        exec(
            compile(source.replace(line, mutated) if line else source, "mutant", "exec"),
            vars(modules[original]),
        )
    head = modules[chunked]
    vars(head).update(TILE_ROWS=16, TILE_COLUMNS=64, fused_token_stats=modules[autograd].fused_token_stats)
    return head


def check_unique(line: str) -> None:
    count = sum(source.count(line) for source in SOURCES.values())
    assert count == 1, f"the line to break occurs {count} times: {line}"


def a_problem() -> Problem:
    """Logits that grow from tile to tile in some rows and shrink in others; every kind of coefficient."""
    p = problem(40, 3, 150)
    p.c[::4] = 0.0
    p.e[::3] = 0.0
    p.hidden.mul_(2)
    return p


def everything_of(compute: Callable[..., TokenStats], p: Problem, transform: LogitTransform) -> list[Tensor]:
    """Both values and the three gradients."""
    inputs = [x.clone().requires_grad_() for x in (p.hidden, p.weight, p.bias)]
    hidden, weight, bias = inputs
    out = compute(Head(hidden, weight, bias, transform), p.target, True)
    assert out.entropy is not None
    slopes = torch.autograd.grad([out.logp, out.entropy], inputs, [p.c, p.e])
    return [out.logp.detach(), out.entropy.detach(), *slopes]


def off(actual: Tensor, truth: Tensor) -> bool:
    return not torch.allclose(actual, truth, rtol=1e-9, atol=1e-9)


def differs(module: types.ModuleType, p: Problem) -> bool:
    """Whether any value or gradient is off by more than 1e-9 from NumPy."""
    actual = everything_of(module.token_stats_chunked, p, LogitTransform(p.temperature))
    arrays = (p.hidden.numpy(), p.weight.numpy(), p.target.numpy(), p.bias.numpy(), p.temperature)
    expected = (*oracle.stats(*arrays), *oracle.gradients(*arrays, p.c.numpy(), p.e.numpy()))
    return any(off(a, torch.from_numpy(t)) for a, t in zip(actual, expected, strict=True))


def differs_capped(module: types.ModuleType, p: Problem) -> bool:
    """The same for capped logits, from the definition, which has its own test against differences."""
    transform = LogitTransform(p.temperature, 0.7, 3.0)
    actual = everything_of(module.token_stats_chunked, p, transform)
    expected = everything_of(token_stats_reference, p, transform)
    return any(off(a, b) for a, b in zip(actual, expected, strict=True))


def differs_in_collision(module: types.ModuleType, p: Problem) -> bool:
    """Whether a sum of squared probabilities is off from NumPy."""
    head = Head(p.hidden, p.weight, p.bias, LogitTransform(p.temperature))
    out = module.token_stats_chunked(head, p.target, True, True)
    actual = (out.collision, out.collision_logp)
    arrays = (p.hidden.numpy(), p.weight.numpy(), p.bias.numpy(), p.temperature)
    return any(off(a, torch.from_numpy(t)) for a, t in zip(actual, oracle.collision(*arrays), strict=True))


def test_the_head_itself_survives() -> None:
    assert not differs(build(), a_problem())
    assert not differs_in_collision(build(), a_problem())
    assert not differs_capped(build(), a_problem())


@pytest.mark.parametrize(("line", "mutated"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(line: str, mutated: str) -> None:
    check_unique(line)
    assert differs(build(line, mutated), a_problem())


@pytest.mark.parametrize(("line", "mutated"), [m[1:] for m in COLLISION], ids=[m[0] for m in COLLISION])
def test_mutant_of_the_collision_is_caught(line: str, mutated: str) -> None:
    check_unique(line)
    assert differs_in_collision(build(line, mutated), a_problem())


@pytest.mark.parametrize(("line", "mutated"), [m[1:] for m in CAPPED], ids=[m[0] for m in CAPPED])
def test_mutant_of_the_capped_head_is_caught(line: str, mutated: str) -> None:
    check_unique(line)
    assert differs_capped(build(line, mutated), a_problem())
