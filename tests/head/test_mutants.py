"""The head broken on purpose, one line at a time: every mutant must be told from the oracle."""

import inspect
import types

import pytest
import torch
from oracles import head as oracle
from torch import Tensor

from head.helpers import Problem, problem
from klent.head import chunked

# (what is wrong, the line as it is, the line as it would be)
MUTANTS = [
    ("sign of the entropy gradient", "self.slope = (-e / s)", "self.slope = (e / s)"),
    ("entropy gradient without its mean", "((e * mean - c) / s)", "((-c) / s)"),
    ("entropy gradient not normalised", "self.slope = (-e / s)", "self.slope = (-e)"),
    ("sign of the logp gradient", "((e * mean - c) / s)", "((e * mean + c) / s)"),
    ("target word not pushed", "torch.where(here, self.c[rows], 0.0)", "torch.zeros_like(self.c[rows])"),
    ("other tiles' targets pushed", "torch.where(here, self.c[rows], 0.0)", "self.c[rows]"),
    ("temperature dropped from the logits", "self.hidden = self.hidden / temperature", "pass"),
    ("temperature dropped from the bias", "(bias.to(self.dtype) / temperature)", "(bias.to(self.dtype) * 1)"),
    ("temperature dropped from dhidden", "dhidden.div_(ctx.temperature)", "dhidden"),
    ("temperature dropped from dbias", "dbias.div_(ctx.temperature)", "dbias"),
    ("bias dropped", "torch.addmm(self.bias[words], x, w.T, out=z)", "torch.mm(x, w.T, out=z)"),
    ("sum not rescaled to the new maximum", "s.mul_(scale).add_", "s.add_"),
    ("weighted sum not rescaled", ".mul_(scale).add_(z.mul_(exp)", ".add_(z.mul_(exp)"),
    ("weighted sum not moved", "u.addcmul_(s, shift).mul_(scale)", "u.mul_(scale)"),
    ("maximum forgotten", "m.copy_(top)", "pass"),
    ("sign of the entropy", "s.log() - mean if entropy", "mean - s.log() if entropy"),
    ("entropy of one tile", "s.log() - mean if entropy", "-mean if entropy"),
    ("log-sum-exp without the sum", "(at_target - m) - s.log()", "(at_target - m)"),
    ("target of the last tile wins", "torch.where(here, z.gather(1, column).squeeze(1), at_target[rows])",
     "z.gather(1, column).squeeze(1)"),
    ("only the last tile of rows in dweight", "dw.addmm_(g.T, hidden[rows])", "dw.copy_(g.T @ hidden[rows])"),
    ("only the last tile of words in dhidden", "dhidden[rows].addmm_(g, w)", "dhidden[rows].copy_(g @ w)"),
    ("dbias of the last tile", "dbias[words] += g.sum(0)", "dbias[words] = g.sum(0)"),
    ("last, cut tile of words lost", "range(0, length, size)", "range(0, length - length % size, size)"),
    ("rows with only an entropy coefficient dropped", "((c != 0) | (e != 0))", "(c != 0)"),
    ("rows with only a logp coefficient dropped", "((c != 0) | (e != 0))", "(e != 0)"),
    ("gradients of kept rows in the wrong place", "index_copy_(0, active, dhidden)",
     "index_copy_(0, torch.arange(len(active)), dhidden)"),
]  # fmt: skip
SOURCE = inspect.getsource(chunked)


def build(source: str) -> types.ModuleType:
    """The chunked head from this text, with tiles of 16 rows x 64 words."""
    module = types.ModuleType("mutant")
    exec(compile(source, "mutant", "exec"), module.__dict__)
    module.__dict__.update(TILE_ROWS=16, TILE_WORDS=64)
    return module


def a_problem() -> Problem:
    """Logits that grow from tile to tile in some rows and shrink in others; every kind of coefficient."""
    p = problem(40, 3, 150)
    p.c[::4] = 0.0
    p.e[::3] = 0.0
    p.hidden.mul_(2)
    return p


def differs(module: types.ModuleType, p: Problem) -> bool:
    """Whether any value or gradient is off by more than 1e-9 from NumPy."""
    inputs = [x.clone().requires_grad_() for x in (p.hidden, p.weight, p.bias)]
    hidden, weight, bias = inputs
    out = module.token_stats_chunked(hidden, weight, p.target, bias, p.temperature, True)
    slopes = torch.autograd.grad([out.logp, out.entropy], inputs, [p.c, p.e])
    arrays = (p.hidden.numpy(), p.weight.numpy(), p.target.numpy(), p.bias.numpy(), p.temperature)
    expected = (*oracle.stats(*arrays), *oracle.gradients(*arrays, p.c.numpy(), p.e.numpy()))

    def off(actual: Tensor, truth: Tensor) -> bool:
        return not torch.allclose(actual, truth, rtol=1e-9, atol=1e-9)

    return any(off(a.detach(), torch.from_numpy(t)) for a, t in zip((*out, *slopes), expected, strict=True))


def test_the_head_itself_survives() -> None:
    assert not differs(build(SOURCE), a_problem())


@pytest.mark.parametrize(("line", "mutated"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(line: str, mutated: str) -> None:
    assert SOURCE.count(line) == 1, f"the line to break occurs {SOURCE.count(line)} times: {line}"
    assert differs(build(SOURCE.replace(line, mutated)), a_problem())
