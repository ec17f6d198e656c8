"""What a GPU has to show, each a function of the device; tests/gpu/run.py runs them, without pytest.

They need torch, triton, transformers and klent's light dependencies. On a CPU the same functions run small, in
Triton's interpreter, so that what is sent to a GPU has run before.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny import END, TURN_END, tiny_folder, tiny_model, tiny_tokenizer
from torch import Tensor

import klent
from klent.config import load_recipe
from klent.mixture import solve, solve_alpha
from klent.models.load import LoadedModel
from klent.rollout.fused import has_kernels
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.recordable import graph_refusal
from klent.rollout.recorder import CudaRecorder, as_it_is
from klent.rollout.sampling import draw
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.runs.checkpoint import load_step
from klent.runs.train import train
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

Check = Callable[[str], str]
"""A device -> what was seen, in a line; an AssertionError where it is wrong."""

HEADS = {"cuda": [(257, 512, 50_257), (1024, 2048, 151_936), (33, 896, 32_000)], "cpu": [(5, 16, 300)]}
LIMITS = {
    torch.float32: (2e-6, 1e-5, 5e-5),
    torch.bfloat16: (2e-6, 1e-5, 1e-2),
}  # of logp, entropy, gradients


def head_is_exact(device: str) -> str:
    """Log-probability, entropy and gradients of the Triton head against float64 logits of the same inputs."""
    worst = [0.0, 0.0, 0.0]
    for rows, width, size in HEADS[torch.device(device).type]:
        for dtype, limits in LIMITS.items():
            torch.manual_seed(rows)
            hidden = torch.randn(rows, width, device=device).to(dtype)
            weight = (torch.randn(size, width, device=device) * width**-0.5).to(dtype)
            target = torch.randint(size, (rows,), device=device)
            c, e = torch.randn(2, rows, device=device)
            c[rows // 2 :], e[rows // 2 :] = 0.0, 0.0  # rows without a gradient are left out
            ours = _head(hidden, weight, target, c, e, implementation="triton")
            exact = _head(
                hidden.double(), weight.double(), target, c.double(), e.double(), implementation=None
            )
            errors = [_distance(x, y) for x, y in zip(ours, exact, strict=True)]
            seen = [errors[0], errors[1], max(errors[2:])]
            assert all(x <= limit for x, limit in zip(seen, limits, strict=True)), (
                rows,
                width,
                size,
                dtype,
                seen,
            )
            worst = [max(x, y) for x, y in zip(worst, seen, strict=True)]
    return "worst relative error of logp {:.1e}, entropy {:.1e}, gradients {:.1e}".format(*worst)


def _head(
    hidden: Tensor, weight: Tensor, target: Tensor, c: Tensor, e: Tensor, *, implementation: str | None
) -> list[Tensor]:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    if implementation is None:
        log_p = (hidden @ weight.T).log_softmax(-1)
        logp, entropy = log_p.gather(1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    else:
        out = klent.token_stats(hidden, weight, target, implementation=implementation)  # type: ignore[arg-type]
        assert out.entropy is not None
        logp, entropy = out.logp, out.entropy
    gradients = torch.autograd.grad([logp, entropy], [hidden, weight], [c.to(logp), e.to(logp)])
    return [logp.detach(), entropy.detach(), *gradients]


def _distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).abs().max() / exact.abs().max())


def solver_is_exact(device: str) -> str:
    """alpha and log q of all five criteria in the kernels against the same in float64 on the CPU."""
    worst = {}
    for size in (1000, 49_152) if device.startswith("cuda") else (1, 150):
        generator = torch.Generator().manual_seed(size)
        policy, target, reward = torch.randn(3, 8 if size > 150 else 3, size, generator=generator)
        target[::2] *= 3  # less entropy than the policy: the value is between the two
        for name, options in {
            "chernoff": {"criterion": "chernoff"},
            "kl_budget": {"criterion": "kl_budget", "value": 0.05},
            "ess": {"criterion": "ess", "value": 0.5},
            "entropy": {"criterion": "entropy", "value": max(math.log(size) - 1.5, 0.0)},
            "snr": {"criterion": "snr"},
            "snr of rewards": {"criterion": "snr", "reward": reward},
        }.items():
            exact = solve_alpha(policy.double(), target.double(), **options)  # type: ignore[arg-type]
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
            with patch.object(solve, "_has_kernel", lambda _: True):
                ours = solve_alpha(policy.to(device), target.to(device), **moved)  # type: ignore[arg-type]
            assert torch.equal(ours.converged.cpu(), exact.converged), (size, name)
            error = float((ours.alpha.cpu() - exact.alpha).abs().max())
            distance = float((ours.log_q.cpu().exp() - exact.log_q.exp()).abs().max())
            assert error < 2e-5 > distance, (size, name, error, distance)
            worst[name] = max(worst.get(name, 0.0), error)
    return "worst error of alpha: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())


TEXTS = ("1+1", "a much longer question than the others?", "2+3=", "x" * 90)
PROMPTS = [Prompt(f"p/{i}", [{"role": "user", "content": text}]) for i, text in enumerate(TEXTS)]
LONGEST = {"cuda": 80, "cpu": 18}  # tokens of a completion
OPTIONS = [
    SamplingOptions(max_tokens=1),
    SamplingOptions(max_tokens=1, temperature=0.7, top_p=0.9),
    SamplingOptions(max_tokens=1, temperature=0.0),
    SamplingOptions(max_tokens=1, top_k=9, stop=("a", "bc")),
]


def decoding_kernels_are_exact(device: str) -> str:
    """Attention of a new token and the draw against float64, in the shapes of a model that people use."""
    from klent.rollout import triton as kernels

    on_gpu = device.startswith("cuda")
    rows, longest, room, width, size = (32, 192, 2048, 64, 151_936) if on_gpu else (2, 64, 64, 16, 300)
    # The interpreter cannot multiply bfloat16.
    dtype, limit = (torch.bfloat16, 2e-2) if on_gpu else (torch.float32, 1e-5)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    query, key, value = normal(rows, 14, 1, width), normal(rows, 2, 1, width), normal(rows, 2, 1, width)
    prompts = normal(1, 2, longest, width), normal(1, 2, longest, width)
    written = normal(rows, 2, room, width), normal(rows, 2, room, width)
    length = torch.full((rows,), longest - 7, device=device)
    slot = torch.arange(rows, device=device)
    worst = 0.0
    for position in (0, room // 2, room - 1):
        ours = kernels.attend(
            query, key, value, prompts, written, slot=slot, length=length, group_size=rows, scaling=0.125,
            position=torch.tensor([position], device=device),
        )  # fmt: skip
        keys, values = (
            torch.cat([mine[:, :, 7:].expand(rows, -1, -1, -1), own[:, :, : position + 1]], dim=2)
            .double()
            .repeat_interleave(7, dim=1)
            for mine, own in zip(prompts, written, strict=True)
        )
        exact = (query.double() @ keys.mT * 0.125).softmax(-1) @ values
        worst = max(worst, _distance(ours.transpose(1, 2), exact))
    assert worst < limit, worst
    logits, uniform = 3 * torch.randn(rows, size, generator=generator), torch.rand(rows, generator=generator)
    heat = torch.tensor(0.8)
    token, numbers = kernels.draw(logits.to(device), uniform.to(device), heat.to(device))
    drawn, _ = draw(logits.double(), uniform.double(), temperature=heat, top_p=1.0, top_k=0)
    same = token.cpu() == drawn.token
    expected = torch.stack(drawn[1:], dim=1)[same]
    error = float((numbers[:, :4].cpu()[same] - expected).abs().max())
    assert same.sum() >= rows - 1, same
    assert error < 2e-5, error
    return f"attention to {worst:.1e}, {int(same.sum())} of {rows} tokens drawn alike, numbers to {error:.1e}"


def recorded_is_eager(device: str) -> str:
    """The recorded step says what step-by-step decoding says from the same uniform numbers, call after call.

    In float32 products of other shapes round otherwise, by 1e-6 or so: a token may differ where the uniform number
    falls that close to the border of two tokens, and what follows it then differs too.
    """
    model = tiny_model().to(device)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", (TURN_END, END))
    record = CudaRecorder() if device.startswith("cuda") else as_it_is
    refusal = graph_refusal(model, record)
    assert refusal is None, refusal
    same = total = 0
    for options in OPTIONS:
        options = replace(options, max_tokens=LONGEST[model.device.type])
        engine = TransformersEngine(loaded, options, decoding="graph", note=_refuse)
        for seed in (1, 2):
            with torch.no_grad():
                model.lm_head.weight.mul_(1.0 + 0.01 * seed)  # the optimizer moves weights in place
            recorded = engine.generate(PROMPTS, group_size=8, seed=seed)
            assert engine.sampler is not None
            assert (engine.sampler.fused is not None) == has_kernels(model.device)
            eager = TransformersEngine(loaded, options, decoding="eager").generate(
                PROMPTS, group_size=8, seed=seed
            )
            same += sum(_same(x, y) for x, y in zip(recorded, eager, strict=True))
            total += len(eager)
    assert same >= 0.97 * total, (same, total)
    return f"{same} of {total} completions token by token, their numbers to 1e-4"


def recorded_mixture_is_eager(device: str) -> str:
    """A mixture of two models by the recorded step: as step by step, alpha given and alpha solved for."""
    policy, target = (
        LoadedModel(tiny_model(seed).to(device), tiny_tokenizer(), "tiny", (TURN_END, END)) for seed in (0, 1)
    )
    options = SamplingOptions(max_tokens=LONGEST[policy.model.device.type], temperature=0.8)
    same = total = 0
    for alpha in (0.4, "chernoff"):
        recorded, eager = (
            MixtureEngine(policy, Target(target), options, alpha=alpha, decoding=way, note=_refuse)  # type: ignore[arg-type]
            for way in ("graph", "eager")
        )
        pairs = zip(
            *(engine.generate(PROMPTS, group_size=4, seed=3) for engine in (recorded, eager)), strict=True
        )
        alike = [_same(x, y) for x, y in pairs]
        same, total = same + sum(alike), total + len(alike)
        assert recorded.sampler is not None
    assert same >= 0.9 * total, (same, total)
    return f"{same} of {total} completions token by token, their numbers to 1e-4"


def _refuse(text: str) -> None:
    assert text.startswith("rollout.rows: up to "), text


def _same(recorded: Episode, eager: Episode) -> bool:
    if recorded.tokens.tolist() != eager.tokens.tolist() or recorded.finish != eager.finish:
        return False
    distance = max(
        float((getattr(recorded, k) - getattr(eager, k)).abs().max()) for k in ("logp", "entropy", "renyi")
    )
    assert distance < 1e-4, distance
    return True


def bfloat16_numbers_are_the_models(device: str) -> str:
    """In bfloat16, where tokens may differ: log-probabilities of what the recorded step said, read again."""
    model = tiny_model().to(device, torch.bfloat16)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", (TURN_END, END))
    engine = TransformersEngine(
        loaded, SamplingOptions(max_tokens=LONGEST[model.device.type]), decoding="graph", note=_refuse
    )
    worst = 0.0
    for episode in engine.generate(PROMPTS, group_size=4, seed=5):
        row = torch.tensor([episode.prompt_ids + episode.tokens.tolist()], device=device)
        with torch.no_grad():
            log_p = (
                model(input_ids=row[:, :-1]).logits[0, len(episode.prompt_ids) - 1 :].float().log_softmax(-1)
            )
        read = log_p.gather(1, episode.tokens[:, None].to(device))[:, 0].cpu()
        worst = max(worst, float((read - episode.logp).abs().max()))
    assert worst < 0.25, worst
    return f"largest difference {worst:.3f} nats"


RECIPE: dict[str, Any] = {
    "method": "sft",
    "rollout": {"engine": "dataset", "max_tokens": 32},
    "prompts_per_step": 4,
    "group_size": 1,
    "optimizer": {"lr": 2e-5, "max_grad_norm": None},
    "eval": None,
}


def _train(folder: Path, name: str, device: str, *overrides: str, resume: bool = False) -> Path:
    """A short run of the tiny model in ``folder``."""
    if not (folder / "model").is_dir():
        tiny_folder(folder / "model")
        lines = [{"prompt": f"{i}?", "completion": f"{i + 1} is what follows"} for i in range(4)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        whole = {
            **RECIPE,
            "model": str(folder / "model"),
            "task": {"data": str(folder / "rows.jsonl")},
            "steps": 40,
        }
        (folder / "recipe.yaml").write_text(json.dumps(whole))
    recipe = load_recipe(folder / "recipe.yaml", [f"name={name}", f"device={device}", *overrides])
    return train(recipe, folder / name, command="tests/gpu", resume=resume)


def resumed_is_uninterrupted(device: str) -> str:
    """With deterministic algorithms a run that was stopped ends bit for bit where the other does."""
    torch.use_deterministic_algorithms(True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder, every = Path(scratch), "checkpoint={every: 2, keep: 9}"
            runs = [_train(folder, "whole", device, "steps=6", every)]
            _train(folder, "parted", device, "steps=3", every)
            runs.append(_train(folder, "parted", device, "steps=6", every, resume=True))
            whole, parted = (load_step(run, 6, on_damage=_refuse).tensors for run in runs)
    finally:
        torch.use_deterministic_algorithms(False)
    for group, tensors in whole.items():
        assert tensors.keys() == parted[group].keys()
        for name, value in tensors.items():
            assert torch.equal(value, parted[group][name]), (group, name)
    return f"{sum(len(tensors) for tensors in whole.values())} tensors equal"


def masters_learn(device: str) -> str:
    """Under bfloat16 arithmetic, float32 weights learn what float32 learns; bfloat16 weights round it away."""
    ways = {
        "float32": "{weights: float32, compute: float32}",
        "masters": "{weights: float32, compute: bfloat16}",
        "bfloat16": "{weights: bfloat16, compute: bfloat16}",
    }
    gain, lost = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for way, precision in ways.items():
            run = _train(Path(scratch), way, device, f"precision={precision}", "checkpoint.every=0")
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            gain[way] = rows[0]["objective/loss"] - rows[-1]["objective/loss"]
            lost[way] = rows[-1]["update/rounded_away"]
    seen = "; ".join(f"{way}: loss falls by {gain[way]:.4f}, {lost[way]:.0%} rounded away" for way in ways)
    assert gain["masters"] > 0.7 * gain["float32"] > 2 * gain["bfloat16"], seen
    assert lost["bfloat16"] > 0.8 > 0.01 > lost["masters"], seen
    return seen


def rows_by_memory(device: str) -> str:
    """Few rows, many rows and what fits say the same; numbers of a GPU are those of its memory."""
    model = tiny_model().to(device)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", (TURN_END, END))
    options = SamplingOptions(max_tokens=12)
    said = []
    for rows in (3, 64, None):
        engine = TransformersEngine(loaded, options, rows=rows)
        episodes = engine.generate(PROMPTS, group_size=3, seed=2)
        said.append([episode.tokens.tolist() for episode in episodes])
    same = sum(a == b == c for a, b, c in zip(*said, strict=True))
    assert same >= math.floor(0.9 * len(said[0])), (same, len(said[0]))
    counted = next(iter(engine.rows.counted.values()))
    return f"{same} of {len(said[0])} completions alike; {counted} rows of the tiny model would fit"


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        head_is_exact,
        solver_is_exact,
        decoding_kernels_are_exact,
        recorded_is_eager,
        recorded_mixture_is_eager,
        bfloat16_numbers_are_the_models,
        rows_by_memory,
        resumed_is_uninterrupted,
        masters_learn,
    )
}
