"""Optimizer steps of a tiny model whose weights are sharded over real ranks, and of the same model whole."""

import json
import os
from pathlib import Path

import torch
from helpers_training import GRPO, batch, episodes, pairs
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from klent.kit.world import OneProcess
from klent.models.load import recompute_activations
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.sharded import plain_weights, shard
from klent.streams.batch import Batch, make_batch
from klent.training.masters import MasterWeights
from klent.training.objective import Objective
from klent.training.ranks import joined
from klent.training.reduction import Reduction
from klent.training.shards import whole
from klent.training.update import Updater

CASES = ("float64", "float32", "idle", "untied", "pairs", "checkpointing", "masters")


def model_of(case: str) -> torch.nn.Module:
    model = tiny_model(tie_word_embeddings=case != "untied")
    if case == "checkpointing":
        recompute_activations(model)
    if case == "masters":
        return model.to(torch.bfloat16)
    return model if case == "float32" else model.double()


def rows_of(case: str) -> Batch:
    """Of unequal lengths; ``idle`` has two groups whose rewards are equal, so that one rank has nothing to do."""
    if case == "pairs":
        return pairs(3)
    if case == "idle":
        return make_batch(episodes(), [1.0] * 8 + [1.0, 0.0, 0.0, 0.5], group_size=4, whole_groups=True)
    return batch()


def objective_of(case: str) -> Objective:
    if case == "pairs":
        return Objective({"dpo": {"beta": 0.5}}, None, None)
    if case == "idle":
        return Objective(*GRPO)
    chosen = {"mask": {"high_entropy_tokens": {"fraction": 0.4}}} if case == "float64" else None
    return Objective({**GRPO[0], "entropy_loss": {"coef": -0.1}}, GRPO[1], None, chosen)


def steps_of(case: str, world: object) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Two batches of an optimizer step or two each: tensors and numbers of what came of it.

    Micro-batches are so small that one rank has more of them than another, and gradients are clipped. Where an
    optimizer step has one prompt, the ranks share its completions, which are packed otherwise than together: equal to
    the float32 in which Llama takes norms, whatever the rest is.
    """
    policy = CausalPolicy(model_of(case), temperature=1.0, packing=Packing(True, 48, 0))
    sharded = world.size > 1
    gathered = shard(policy, world.size) if sharded else None
    masters = MasterWeights(policy.trainable(), torch.float32)
    optimizer = torch.optim.AdamW(masters.named.values(), lr=1e-2, weight_decay=0.1, fused=True)
    masters.follow(optimizer)
    step = Updater(
        policy,
        optimizer,
        objective_of(case),
        learning_rate=lambda number: 0.01 / (1 + number),
        reduction=Reduction(over="pairs" if case == "pairs" else "tokens"),
        minibatches=2 if case in ("float32", "idle") else 1,
        max_grad_norm=0.05,
        world=world,
        moved=masters.named,
        sharded=sharded,
    )
    rows = rows_of(case)
    step.objective.estimate_advantage(rows)
    before = step.measure(rows, range(len(rows)))
    first, second = (step.run(rows, seed=seed) for seed in (0, 1))
    tensors = {
        **{f"weight.{name}": whole(p.detach()) for name, p in masters.named.items()},
        **{f"gradient.{name}": whole(p.grad) for name, p in masters.named.items() if p.grad is not None},
        **{f"moment.{name}": whole(optimizer.state[p]["exp_avg_sq"]) for name, p in masters.named.items()},
        "coefficient": second.coefficient,
        "logp": before.logp,
        "logp.then": second.before.logp,
    }
    if gathered is not None:
        with gathered():
            written = {name: value.clone() for name, value in plain_weights(policy.model).items()}
    else:
        written = dict(policy.model.state_dict())
    tensors |= {f"written.{name}": value.detach().clone() for name, value in written.items()}
    numbers = {
        "loss": [first.loss, second.loss],
        "norm": [first.grad_norm, second.grad_norm],
        "sums": {name: list(pair) for name, pair in second.sums.items()},
        "targets": second.targets,
    }
    held = sum(p.to_local().numel() if sharded else p.numel() for p in policy.trainable().values())
    return tensors, {**numbers, "held": held}


def on_rank(rank: int, size: int, port: int, folder: Path) -> None:
    """Every case on this rank; what it saw is in ``CASE-RANK`` files of the folder."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("fsdp") as world:
        for case in CASES:
            tensors, numbers = steps_of(case, world)
            save_file(
                {name: t.contiguous() for name, t in tensors.items()}, folder / f"{case}-{rank}.safetensors"
            )
            (folder / f"{case}-{rank}.json").write_text(json.dumps(numbers))


def alone(case: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The same in one process."""
    return steps_of(case, OneProcess())


def read(folder: Path, case: str, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """What a rank saw."""
    name = f"{case}-{rank}"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())
