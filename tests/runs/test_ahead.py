"""Sampling ahead of training: which weights sampled what, what a checkpoint keeps, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TURN_END, tiny_folder, tiny_model, tiny_tokenizer

from klent.config import load_recipe
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.ahead import Ahead
from klent.rollout.copied_engine import CopiedEngine
from klent.rollout.source import TaskSource
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.runs.console import QuietConsole
from klent.runs.objective import step_requirements
from klent.runs.rollout_check import examine_rollout
from klent.runs.train import train
from klent.streams.prompt import Prompt
from klent.training.update import Updater

RECIPE = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: reward.py:digits
steps: 6
prompts_per_step: 3
group_size: 3
rollout: {max_tokens: 6, staleness: 2}
optimizer: {lr: 0.02, schedule: cosine}
update: {minibatches: 3}
checkpoint: {every: 1, keep: 9}
eval: {problems: 2, samples: 1, every: 3}
"""
REWARD = """
def digits(completions, **columns):
    return [sum(ch.isdigit() for ch in c) / max(len(c), 1) for c in completions]
"""


class Numbers:
    """A task of numbered prompts."""

    def train(self, index: int) -> Prompt:
        return Prompt(f"n/{index}", "say " + "ho" * (index % 4) + str(index))


def loaded() -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))


def source_of(engine) -> TaskSource:
    return TaskSource(Numbers(), engine, None, prompts_per_step=2, group_size=3, seed=0)


def nudge(model, step: int) -> None:
    """In place of an update."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def drawn(staleness: int | None, steps: int = 5) -> list[list]:
    """The episodes of each step; None = sampled without a thread, with the model itself."""
    trained, options, taken = loaded(), SamplingOptions(max_tokens=7), []
    policy = CausalPolicy(trained.model, temperature=1.0)
    if staleness is None:
        source = source_of(TransformersEngine(trained, options))
    else:
        source = Ahead(source_of(CopiedEngine(trained, options)), staleness=staleness, last=steps)
    for step in range(1, steps + 1):
        if staleness is not None:
            source.sync(policy)
        taken.append(source.collect(step, len(taken)))
        nudge(trained.model, step)
    return taken


def same(mine, theirs) -> bool:
    return all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp) and torch.equal(a.entropy, b.entropy)
        for a, b in zip(mine, theirs, strict=True)
    )


def test_without_staleness_it_is_the_run_that_takes_turns_bit_for_bit():
    for mine, theirs in zip(drawn(0), drawn(None), strict=True):
        assert same(mine, theirs)


@pytest.mark.parametrize("staleness", [1, 3])
def test_a_step_is_sampled_by_the_weights_of_so_many_steps_ago(staleness):
    """Held against an engine over the weights as they were then."""
    found = drawn(staleness)
    for step, episodes in enumerate(found, 1):
        then, options = loaded(), SamplingOptions(max_tokens=7)
        for update in range(1, max(step - staleness, 1)):
            nudge(then.model, update)
        expected = source_of(TransformersEngine(then, options)).collect(step, 0)
        assert same(episodes, expected), step
        assert {episode.policy_version for episode in episodes} == {max(step - 1 - staleness, 0)}
    assert not same(found[-1], drawn(None)[-1])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    rows = [{"prompt": f"say {i}", "number": i} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def go(name: str, *overrides: str) -> Path:
    recipe = load_recipe("tiny.yaml", [f"name={name}", *overrides])
    return train(recipe, Path("runs") / name, command="c", console=QuietConsole())


def timeless(run: Path) -> list[dict]:
    clock = (
        "time/",
        "memory/",
        "sync/arrived",
    )  # the last: the first sync of a process has no change to show
    return [
        {k: v for k, v in row.items() if not k.startswith(clock) and not k.endswith("per_second")}
        for row in read_jsonl(run / "metrics.jsonl")
    ]


def test_a_run_that_is_cut_goes_on_bit_for_bit(project):
    """Cut after step 3, with two steps sampled and not trained on."""
    whole = go("whole")
    cut = go("cut", "steps=6")
    for step in ("000004", "000005", "000006"):
        for file in (cut / "checkpoints" / step).iterdir():
            file.unlink()
        (cut / "checkpoints" / step).rmdir()
    assert set(load_file(cut / "checkpoints" / "000003" / "ahead.safetensors")) == {"4", "5"}
    train(load_recipe(cut / "config.yaml"), cut, command="c", resume=True, console=QuietConsole())
    assert timeless(cut) == timeless(whole)
    mine, theirs = (load_file(run / "final" / "model.safetensors") for run in (cut, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_its_age_is_in_the_metrics_and_ratios_are_to_the_sampler(project):
    run = go("run")
    rows = timeless(run)
    assert [row["policy/staleness"] for row in rows] == [0, 3, 6, 6, 6, 6]  # optimizer steps, three a step
    assert all(row["sync/gap"] < 1e-5 for row in rows)
    arrived = [row["sync/arrived"] for row in read_jsonl(run / "metrics.jsonl") if "sync/arrived" in row]
    assert len(arrived) >= 3
    assert arrived == pytest.approx([1] * len(arrived), abs=0.05)
    fresh = timeless(go("fresh", "rollout.staleness=0"))
    assert rows[0]["reward/mean"] == fresh[0]["reward/mean"]
    assert clipped(rows[3]) > clipped(fresh[3])


def clipped(row: dict) -> float:
    """Share of tokens whose ratio to the sampler is past a clip."""
    return row["objective/clip_low"] + row["objective/clip_high"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=reinforce"], "takes completions for the policy's own, and with rollout.staleness=2"),
        (["rollout.engine=vllm"], "does not go with rollout.engine=vllm: it is scored by the trainer"),
        (["method=dppo", "update.distance=tv"], "does not go with update.distance: it is from the start"),
        (["rollout.decoding=graph"], "does not go with rollout.decoding=graph: it is recorded while"),
    ],
)
def test_what_needs_the_policy_as_it_stands_is_refused(overrides, words, project):
    with pytest.raises(ConfigError, match=words):
        load_recipe("tiny.yaml", overrides)


def test_weights_of_the_mismatch_make_any_loss_possible(project):
    rows = timeless(
        go("weighed", "method=reinforce", "advantage={group_advantage: {}}", "rollout.mismatch=truncate")
    )
    assert rows[-1]["mismatch/ess"] < 1
    assert rows[-1]["policy/staleness"] == 6


def test_what_the_sampler_says_is_not_measured_again(project, monkeypatch):
    """Three optimizer steps read logp_old, which is the sampler's; the passes are those for what changed, alone."""
    measured = []
    measure = Updater.measure

    def noting(self, batch, rows, *others, **more):
        measured.append(batch.lag)
        return measure(self, batch, rows, *others, **more)

    monkeypatch.setattr(Updater, "measure", noting)
    go("fresh", "rollout.staleness=0", "eval=null")
    before = len(measured)
    measured.clear()
    go("ahead", "eval=null")
    assert len(measured) <= before - 6  # one per step
    assert step_requirements(load_recipe("tiny.yaml", ["rollout.staleness=0"])).old
    assert not step_requirements(load_recipe("tiny.yaml")).old
    assert step_requirements(load_recipe("tiny.yaml", ["rollout.mismatch=truncate"])).old


def test_the_doctor_examines_a_sampler_that_runs_ahead(project):
    recipe = load_recipe("tiny.yaml", ["rollout.staleness=1"])
    checks = examine_rollout(recipe)
    assert [check.state for check in checks] == ["ok"] * 4
    assert "gap is flat" in checks[-1].text
