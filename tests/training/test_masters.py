"""float32 master weights under bfloat16 arithmetic: small steps add up, and are lost without."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_folder
from torch import nn

from klent.control.rounding import RoundedAway
from klent.training.masters import MasterWeights

RATE = 1e-6


def bfloat16_weights(seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((0.02 * torch.randn(200, 100, generator=generator)).bfloat16())


@pytest.mark.parametrize(("dtype", "lost"), [(torch.bfloat16, (0.9, 1.0)), (torch.float32, (0.0, 0.0))])
def test_steps_that_bfloat16_weights_lose_arrive_in_their_masters(dtype, lost):
    """AdamW under a constant gradient moves every weight by the rate a step: 200 steps are 0.0002."""
    weight = bfloat16_weights()
    start = weight.detach().float().clone()
    masters = MasterWeights({"w": weight}, dtype)
    optimizer = torch.optim.AdamW(masters.named.values(), lr=RATE, weight_decay=0.0)
    masters.follow(optimizer)
    said: list[str] = []
    watch = RoundedAway(optimizer, said.append)
    for _ in range(200):
        optimizer.zero_grad(set_to_none=True)
        weight.float().sum().backward()
        optimizer.step()
    step = type("Step", (), {"number": 200})()
    share = watch.after_update(step)["update/rounded_away"]
    assert lost[0] <= share <= lost[1]
    assert bool(said) == (dtype == torch.bfloat16)
    moved = start - weight.detach().float()
    if dtype == torch.float32:
        exact = start - masters.named["w"].detach()
        assert float((exact - 200 * RATE).abs().max()) < 1e-6  # float32 rounds too, 200 times
        assert abs(float(moved.mean()) / (200 * RATE) - 1) < 0.15  # and their roundings, roughly
        assert torch.equal(weight.detach(), masters.named["w"].detach().bfloat16())
    else:
        assert float(moved.mean()) < 0.1 * 200 * RATE
        assert "precision.weights=float32" in said[0]


def test_gradients_of_microbatches_add_up_in_float32():
    """1 + 1/256 is 1 in bfloat16: each small gradient would be lost beside the first."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    masters = MasterWeights({"w": weight}, torch.float32)
    for factor in (1.0, *[1 / 256] * 256):
        (factor * weight.float()).sum().backward()
    assert weight.grad is None
    assert masters.named["w"].grad.tolist() == [2.0] * 3


def test_parameters_that_are_wide_enough_are_their_own_masters():
    wide, narrow = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    assert MasterWeights({"w": wide, "n": narrow}, torch.bfloat16).named == {"w": wide, "n": narrow}
    masters = MasterWeights({"w": wide, "n": narrow}, torch.float32)
    assert masters.named["w"] is wide
    assert masters.named["n"].dtype == torch.float32


RECIPE = {
    "name": "run",
    "model": "model",
    "method": "sft",
    "device": "cpu",
    "task": {"data": "rows.jsonl"},
    "rollout": {"engine": "dataset", "max_tokens": 32},
    "steps": 40,
    "prompts_per_step": 4,
    "group_size": 1,
    "optimizer": {"lr": 2e-5, "max_grad_norm": None},
    "checkpoint": {"every": 0},
    "eval": None,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    tiny_folder(folder / "model")
    lines = [{"prompt": f"{i}?", "completion": f"{i + 1} is what follows"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(world: Path, name: str, *overrides: str, resume: bool = False) -> Path:
    from klent.config import load_recipe
    from klent.runs.train import train as train_recipe

    recipe = load_recipe(world / "recipe.yaml", [f"name={name}", f"model={world / 'model'}", *overrides])
    return train_recipe(recipe, world / name, command="test", resume=resume)


@pytest.fixture(scope="module")
def losses(world):
    """Loss at first and at last, and the share of updates that was lost, of each way to hold the weights."""
    kinds = {
        "float32": ("precision.compute=float32",),
        "masters": ("precision.compute=bfloat16",),
        "bfloat16": ("precision={weights: bfloat16, compute: bfloat16}",),
    }
    runs = {kind: rows_of(train(world, kind, *overrides)) for kind, overrides in kinds.items()}
    return {
        kind: (rows[0]["objective/loss"], rows[-1]["objective/loss"], rows[-1]["update/rounded_away"])
        for kind, rows in runs.items()
    }


def test_masters_learn_where_bfloat16_weights_do_not(losses):
    """The tiny model, its weights near 0.2, 40 steps of 2e-5: what float32 learns in them, and its masters."""
    gain = {kind: first - last for kind, (first, last, _) in losses.items()}
    assert gain["float32"] > 0.02
    assert gain["masters"] > 0.7 * gain["float32"]
    assert gain["bfloat16"] < 0.3 * gain["float32"]
    assert losses["bfloat16"][2] > 0.8
    assert losses["masters"][2] < 0.01
    assert losses["float32"][2] < 0.01


def test_a_run_with_masters_resumes_bit_for_bit(world):
    """The checkpoint holds the masters: their roundings would lose what has not shown yet."""
    from klent.runs.checkpoint import load_step

    options = ("precision.compute=bfloat16", "checkpoint={every: 2, keep: 9}")
    whole = train(world, "whole", "steps=6", *options)
    train(world, "parted", "steps=3", *options)
    parted = train(world, "parted", "steps=6", *options, resume=True)
    ends = [load_step(run, 6, on_damage=pytest.fail).tensors for run in (whole, parted)]
    assert ends[0].keys() == ends[1].keys()
    for group, tensors in ends[0].items():
        for name, value in tensors.items():
            assert torch.equal(value, ends[1][group][name]), (group, name)
    assert {value.dtype for value in ends[0]["model"].values()} == {torch.float32}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in ends[0]["model"].values())
