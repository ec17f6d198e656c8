"""klent's objective in TRL's trainer: its gradient is that of klent's own updater on the same completions."""

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder, tiny_model

pytest.importorskip("trl", reason="trl is not installed: pip install 'klent[trl]'")
pytest.importorskip("datasets")

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig

from klent.errors import ConfigError
from klent.integrations.trl import GRPOTrainer, mask_of
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.update import Updater

GENERATIONS, LONGEST = 4, 32
PROMPTS = ["1+1", "say what?", "2", "and so on and on"]


def reward(completions, **columns):
    """Another number for nearly every text."""
    return [None if len(text) == 3 else (sum(map(ord, text)) % 17) / 16 for text in completions]


class Spy(TrainerCallback):
    """Keeps the gradient of each optimizer step, and the weights that it was taken at."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args, state, control, model=None, **others):
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_pre_optimizer_step(self, args, state, control, model=None, **others):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})


def trained(folder: Path, objective: object, **settings: object) -> tuple[GRPOTrainer, Spy, list[list[dict]]]:
    """Two optimizer steps of TRL on the tiny model, each of two micro-batches, and the batches that it saw."""
    tiny_folder(folder / "model")
    values = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": GENERATIONS,
        "max_completion_length": LONGEST,
        "max_steps": 2,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }
    spy, seen = Spy(), []
    trainer = GRPOTrainer(
        str(folder / "model"),
        [reward],
        GRPOConfig(str(folder / "out"), **values),
        objective=objective,
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model", padding_side="left"),
        callbacks=[spy],
    )
    prepare = trainer._prepare_inputs

    def noting(batch):
        inputs = prepare(batch)
        if not seen or seen[-1] is not trainer._buffered_inputs:
            seen.append(trainer._buffered_inputs)
        return inputs

    trainer._prepare_inputs = noting
    trainer.train()
    return trainer, spy, seen


def witness(part, parts: list[dict], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of klent's updater on the completions of these micro-batches, put back into groups."""
    rows = []
    for seen in parts:
        for row in range(len(seen["prompt_ids"])):
            prompt = seen["prompt_ids"][row][seen["prompt_mask"][row].bool()].tolist()
            length = int(seen["completion_mask"][row].sum())
            episode = Episode(
                Prompt(str(prompt), ""), prompt, seen["completion_ids"][row][:length].clone(), "", "stop"
            )
            episode.acted = mask_of(seen)[row][:length]
            rows.append((prompt, float(seen["klent.rewards"][row]), episode))
    rows.sort(key=lambda row: row[0])
    batch = make_batch([e for *_, e in rows], [r for _, r, _ in rows], group_size=GENERATIONS)
    model = tiny_model()
    model.load_state_dict(weights, strict=False)
    policy = CausalPolicy(model, temperature=1.0, packing=Packing(True, 4096, 0))
    step = Updater(
        policy,
        torch.optim.SGD(policy.parameters(), lr=0.0),
        part.objective,
        learning_rate=lambda number: 0.0,
        reduction=part.reduction,
    )
    batch.streams.logp_old = step.measure(batch, range(len(batch))).logp
    if step.needs.reference:
        reference = CausalPolicy(tiny_model(), temperature=1.0)
        batch.streams.logp_ref = step.measure(batch, range(len(batch)), reference).logp
    step.objective.estimate_advantage(batch)
    step.run(batch, seed=0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


OBJECTIVES = {
    "grpo": "grpo",
    "dapo with KL": {"method": "dapo", "loss": {"kl_in_loss": {"coef": 0.3}}},
    "dr_grpo, KL in the reward, entropy": {
        "method": "dr_grpo",
        "token_reward": {"kl_in_reward": {"coef": 0.2}},
        "loss": {"entropy_loss": {"coef": -0.05}},
    },
    "most uncertain tokens": {
        "method": "rloo",
        "select": {"mask": {"high_entropy_tokens": {"fraction": 0.4}}},
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_gradient_is_klents(name, tmp_path):
    """At the first step and at the second, whose policy is no longer the reference."""
    trainer, spy, seen = trained(tmp_path, OBJECTIVES[name])
    assert len(seen) == len(spy.gradients) == 2
    for parts, gradient, weights in zip(seen, spy.gradients, spy.weights, strict=True):
        expected = witness(trainer.klent, parts, weights)
        size = max(float(value.abs().max()) for value in expected.values())
        assert size > 1e-4
        for key, value in expected.items():
            torch.testing.assert_close(gradient[key], value, atol=2e-6 * max(size, 1.0), rtol=1e-4)
    moved = max(float((spy.weights[0][key] - spy.weights[1][key]).abs().max()) for key in spy.weights[0])
    assert moved > 1e-3


def test_lengths_differ_and_some_completions_are_unscorable(tmp_path):
    """What the gradients above were compared on."""
    _, _, seen = trained(tmp_path, "grpo")
    lengths = {int(row) for parts in seen for part in parts for row in part["completion_mask"].sum(1)}
    prompts = {int(row) for parts in seen for part in parts for row in part["prompt_mask"].sum(1)}
    rewards = torch.cat([part["klent.rewards"] for parts in seen for part in parts])
    assert len(lengths) > 2
    assert len(prompts) > 1
    assert len(set(rewards[rewards.isfinite()].tolist())) > 4
    first = seen[0]
    assert first[0]["klent.divisor"] == sum(int(part["completion_mask"].any(1).sum()) for part in first)


def test_klents_metrics_are_in_trls_log(tmp_path):
    trainer, _, _ = trained(tmp_path, OBJECTIVES["dapo with KL"])
    rows = [row for row in trainer.state.log_history if "klent/clip_high" in row or "entropy" in row]
    assert rows
    assert all(math.isfinite(row["entropy"]) and row["entropy"] > 0 for row in rows)
    assert any(key.startswith("klent/") for key in rows[0])


@pytest.mark.parametrize(
    ("settings", "objective", "words"),
    [
        ({"epsilon": 0.3}, "grpo", "GRPOConfig.epsilon is 0.3"),
        ({"beta": 0.1}, "grpo", "GRPOConfig.beta is 0.1"),
        ({}, {"method": "grpo", "steps": 3}, "objective has steps, which TRL decides"),
        ({}, "ppo", "objective needs value, and TRL does not give"),
        ({}, {"method": "grpo", "loss": {"sequence_kl": {"coef": 0.1}}}, "objective needs kl"),
        ({"num_iterations": 2}, OBJECTIVES["most uncertain tokens"], "is to take 2 with one batch"),
        ({}, {"loss": {"ppo_clp": {}}}, "did you mean `ppo_clip`"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, objective, words, tmp_path):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        trained(tmp_path, objective, **settings)
