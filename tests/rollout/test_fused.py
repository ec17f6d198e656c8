"""klent's kernels of a decoded token, in Triton's interpreter, against the operations that they replace."""

import importlib.util
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from tiny import TURN_END, tiny_model
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from klent.policies.causal_lm.probe import evaluating
from klent.rollout import static
from klent.rollout.decoding import made_up, read_alone, trial
from klent.rollout.graph import GraphSampler
from klent.rollout.how import Draw
from klent.rollout.recordable import graph_refusal
from klent.rollout.recorder import as_it_is
from klent.rollout.sampling import draw

pytest.importorskip("triton", reason="the kernels need Triton: pip install triton")

import triton

from klent.rollout import triton as kernels
from klent.rollout.fused import Fused

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before TRITON_INTERPRET=1 was set", allow_module_level=True)


#: relative; the interpreter cuts bfloat16 off where a GPU rounds, twice in a row here
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-6}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 64, 300])
def test_a_norm(dtype, width):
    x, weight = 3 * random(2, 3, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    ratio = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-3)
    exact = weight * ratio.to(dtype)
    ours = kernels.normalise(x, weight, 1e-3)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, exact, rtol=ROUNDING[dtype], atol=1e-6)


def test_a_norm_of_narrow_numbers_by_wide_weights_is_wide():
    x, weight = random(4, 16, dtype=torch.bfloat16), random(16, seed=1)
    assert kernels.normalise(x, weight, 1e-6).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate(dtype):
    gates, values = 4 * random(3, 1, 700, dtype=dtype), random(3, 1, 700, dtype=dtype, seed=1)
    exact = torch.nn.functional.silu(gates) * values
    torch.testing.assert_close(kernels.gate(gates, values), exact, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("width", [2, 8, 20])
def test_a_rotation(width):
    query, key = random(3, 1, 5, width).transpose(1, 2), random(3, 1, 2, width, seed=1).transpose(1, 2)
    angle = 3 * random(3, 1, width, seed=2)
    cos, sin = angle.cos(), (angle + 0.3).sin()

    def turned(x):
        one, two = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([-two, one], dim=-1) * sin[:, None]

    for ours, x in zip(kernels.rotate(query, key, cos, sin), (query, key), strict=True):
        torch.testing.assert_close(ours, turned(x))


class Lines:
    """Rows of prompts of unequal lengths with completions under way, in some order."""

    def __init__(self, dtype: torch.dtype, repeat: int, width: int, position: int, group_size: int) -> None:
        self.kv_heads, self.longest, room = 2, 192, 96
        self.length = torch.tensor([1, 192, 70]).repeat_interleave(group_size)
        places = 3 * group_size
        self.slot = torch.randperm(places, generator=torch.Generator().manual_seed(1))
        rows = max(places - 1, 1)  # one has ended
        self.prompts = tuple(random(3, 2, self.longest, width, dtype=dtype, seed=s) for s in (1, 2))
        self.completions = tuple(random(places, 2, room, width, dtype=dtype, seed=s) for s in (3, 4))
        for memory in self.completions:
            memory[:, :, position:] = torch.nan  # not written yet
        for memory in self.prompts:
            memory[0, :, :-1] = memory[2, :, :-70] = torch.nan  # padding
        self.query = random(rows, 1, 2 * repeat, width, dtype=dtype, seed=5).transpose(1, 2)
        self.key, self.value = (random(rows, 2, 1, width, dtype=dtype, seed=s) for s in (6, 7))
        self.position, self.group_size = position, group_size

    def exact(self, scaling: float) -> torch.Tensor:
        out = []
        for row, query in enumerate(self.query.double()):
            place = int(self.slot[row])
            own = []
            for prompts, completions, new in zip(
                self.prompts, self.completions, (self.key, self.value), strict=True
            ):
                prompt = prompts[place // self.group_size, :, self.longest - int(self.length[place]) :]
                own.append(
                    torch.cat([prompt, completions[row, :, : self.position], new[row]], dim=1).double()
                )
            repeat = len(query) // self.kv_heads
            key, value = (x.repeat_interleave(repeat, dim=0) for x in own)
            out.append(((query @ key.transpose(1, 2)) * scaling).softmax(-1) @ value)
        return torch.stack(out).transpose(1, 2)


@pytest.mark.parametrize(
    ("dtype", "repeat", "width", "position", "group_size", "splits"),
    [
        (torch.float32, 3, 20, 0, 2, 1),
        (torch.float32, 1, 16, 33, 1, 1),
        (torch.float32, 17, 8, 64, 1, 1),
        (torch.float32, 2, 16, 95, 2, 4),
        (torch.float32, 2, 16, 0, 1, 8),  # some parts see nothing
        (torch.float16, 7, 64, 50, 2, 2),  # the interpreter cannot multiply bfloat16
    ],
)
def test_attention_over_what_is_written(dtype, repeat, width, position, group_size, splits, monkeypatch):
    monkeypatch.setattr(kernels, "_splits", lambda *_: splits)
    lines = Lines(dtype, repeat, width, position, group_size)
    exact = lines.exact(0.3)
    ours = kernels.attend(
        lines.query, lines.key, lines.value, lines.prompts, lines.completions, slot=lines.slot,
        length=lines.length, position=torch.tensor([position]), group_size=group_size, scaling=0.3,
    )  # fmt: skip
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6 if dtype == torch.float32 else 4e-3)
    rows = len(lines.query)
    for memory, new in zip(lines.completions, (lines.key, lines.value), strict=True):
        assert torch.equal(memory[:rows, :, position], new[:, :, 0])
        assert memory[rows:, :, position].isnan().all()


@pytest.mark.parametrize("size", [1, 5, 64, 130])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_a_draw(size, temperature, monkeypatch):
    monkeypatch.setattr(kernels, "WORDS", 32)
    logits = 3 * random(40, size)
    logits[3, : size // 2] = -torch.inf
    logits[4, : size - 1] = -torch.inf
    logits[5] -= 1e4
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(2))
    uniform[:2] = torch.tensor([0.0, 1 - 2**-24])
    heat = torch.tensor(temperature)
    token, numbers = kernels.draw(logits, uniform, heat)
    exact, largest = draw(logits.double(), uniform.double(), temperature=heat, top_p=1.0, top_k=0)
    assert token.tolist() == exact.token.tolist()
    torch.testing.assert_close(numbers[:, :4], torch.stack(exact[1:], dim=1).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(numbers[:, 4], largest.float())


def test_a_token_without_probability_is_never_drawn(monkeypatch):
    """Rounding of the cumulative sum may point at one: the next that has some is taken, or the last."""
    monkeypatch.setattr(kernels, "WORDS", 16)
    logits = torch.full((64, 50), -torch.inf)
    logits[:, [3, 20, 21]] = torch.tensor([0.0, 1.0, -2.0])
    uniform = torch.linspace(0, 1 - 2**-24, 64)
    token, numbers = kernels.draw(logits, uniform, torch.tensor(1.0))
    assert set(token.tolist()) == {3, 20, 21}
    assert numbers.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_of_no_distribution_are_told_by_the_largest(bad):
    logits = random(3, 100)
    logits[1, 40] = bad
    if bad == -torch.inf:
        logits[1] = bad
    token, numbers = kernels.draw(logits, torch.full((3,), 0.5), torch.tensor(1.0))
    assert numbers[:, 4].isfinite().tolist() == [True, False, True]
    assert ((token >= 0) & (token < 100)).all()


def qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=200, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_model, qwen])
def test_a_model_on_kernels_gives_its_own_logits(make):
    model = make()
    fused = Fused(model)
    layers = len(model.model.layers)
    assert (len(fused.forwards), len(fused.rotary)) == (3 * layers + 1, 1)
    assert graph_refusal(model, as_it_is, fused) is None
    with evaluating(model):
        exact = read_alone(model)
        ours = trial(lambda *a, **k: static.StaticDecoder(*a, fused=fused, **k), model)
    torch.testing.assert_close(ours, exact, rtol=0, atol=2e-5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_norm_of_another_kind_keeps_its_own_forward():
    config = Gemma2Config(
        vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    fused = Fused(Gemma2ForCausalLM(config))
    assert not [module for module, _ in fused.forwards if "Norm" in type(module).__name__]


def test_a_forward_of_its_own_is_put_back():
    model = tiny_model()
    fused = Fused(model)
    norm = model.model.norm
    hook = norm.forward = lambda x: 2 * type(norm).forward(norm, x)
    with fused():
        assert norm.forward is not hook
        x = random(2, 1, 32)
        with torch.enable_grad():  # a thread that trains meanwhile
            assert torch.equal(norm(x), hook(x))
    assert norm.forward is hook


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_sampling_on_kernels_says_what_sampling_without_them_says(temperature):
    model = tiny_model()
    prompts, _ = made_up(model)
    said = [
        GraphSampler(model, pad=0, stop_ids=(TURN_END, 7, 8), fused=fused)(
            prompts, group_size=2, uniform=random(4, 9).sigmoid(), rooms=[9] * 3 + [4],
            how=Draw(temperature, 1.0, 0),
        )
        for fused in (None, Fused(model))
    ]  # fmt: skip
    with torch.no_grad():
        plain, ours = said
    assert (ours.lengths, ours.stopped) == (plain.lengths, plain.stopped)
    for row, length in enumerate(plain.lengths):
        assert torch.equal(ours.tokens[row, :length], plain.tokens[row, :length])
        torch.testing.assert_close(
            ours.numbers[row, :length], plain.numbers[row, :length], rtol=1e-4, atol=2e-5
        )


def test_a_layer_is_five_kernels_beside_its_products(monkeypatch):
    """Two norms, the rotation, attention and the gate; behind the layers one norm more, and two for the draw."""
    model, launched = tiny_model(), []

    class Counted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    fused = Fused(model)
    for name in ("_normalise", "_gate", "_rotate", "_attend", "_join", "_weigh", "_pick"):
        monkeypatch.setattr(kernels, name, Counted(name))
    sampler = GraphSampler(model, pad=0, stop_ids=(), fused=fused)
    with torch.no_grad():
        sampler([[1, 2, 3]], group_size=1, uniform=random(1, 3), rooms=[3], how=Draw(1.0, 1.0, 0))
    layers = len(model.model.layers)
    expected = {"_normalise": 2 * layers + 1, "_rotate": layers, "_attend": layers, "_gate": layers}
    expected |= {"_weigh": 1, "_pick": 1}
    assert Counter(launched) == {name: 3 * count for name, count in expected.items()}


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from klent.rollout import triton as kernels

def build(kernel, constants, **types):
    names = [p.name for p in kernel.params]
    signature = {n: types.get(n, "constexpr" if n in constants else "*bf16") for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    for arch in (80, 90):
        assert triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["ptx"]

i32 = lambda *names: dict.fromkeys(names, "i32")
build(kernels._normalise, {"BLOCK": 1024}, stride="i32", eps="fp32", width="i32")
build(kernels._gate, {"BLOCK": 1024}, size="i32")
build(kernels._rotate, {"HALF": 32, "BLOCK": 32},
      **i32("query_row", "query_head", "key_row", "key_head", "heads", "kv_heads"))
strides = [f"{x}_{y}" for x in ("query", "key", "value") for y in ("row", "head")]
for splits in (1, 4):
    build(kernels._attend, {"KV_HEADS": 2, "REPEAT": 7, "WIDTH": 64, "SPLITS": splits, "BLOCK": 64,
          "HEADS_BLOCK": 16, "WIDTH_BLOCK": 64}, **i32(*strides, "group_size", "longest", "room"),
          slot="*i64", length="*i64", position="*i64", parts="*fp32", scaling="fp32")
build(kernels._join, {"WIDTH": 64, "WIDTH_BLOCK": 64, "SPLITS": 4}, parts="*fp32")
draw = dict(stride="i32", temperature="*fp32", parts="*fp32", size="i32", blocks="i32", uniform="*fp32",
            tokens="*i64", numbers="*fp32")
build(kernels._weigh, {"WORDS": 4096}, **draw)
build(kernels._pick, {"WORDS": 4096, "BLOCKS": 64}, **draw)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton.backends.nvidia") is None, reason="Triton without CUDA")
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """Types and shapes that the interpreter does not look at; compiling needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
