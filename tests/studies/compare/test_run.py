"""Real runs of the tiny model: made, skipped, continued, failed, stopped, measured against the base model."""

import io
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny import END, TURN_END, tiny_folder, tiny_model, tiny_tokenizer

from klent.errors import RunError
from klent.io.files import read_jsonl
from klent.measure.divergence import action_divergences, completion_divergence
from klent.models.load import LoadedModel
from klent.streams.episode import Episode
from klent.studies.compare import run as running
from klent.studies.compare.divergence import FILE
from klent.studies.compare.plan import plan_comparison
from klent.studies.compare.run import Stopped, run_comparison
from klent.tasks import Prompt

RECIPE = """\
model: model
method: grpo
task: {data: prompts.jsonl}
reward: "reward.py:digits"
steps: 2
prompts_per_step: 2
group_size: 2
rollout: {max_tokens: 6}
optimizer: {lr: 1.0e-2}
eval: {problems: 3, samples: 2}
"""
REWARD = """
def digits(completions, **columns):
    return [float(any(c.isdigit() for c in text)) for text in completions]
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "say {i}"}}\n' for i in range(40)))
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


def plan(*overrides, over=("method=grpo,rloo",), seeds=1):
    from pathlib import Path

    return plan_comparison("my.yaml", overrides, over, seeds, Path("runs"))


def go(planned):
    said = io.StringIO()
    page = run_comparison(planned, command="klent compare my.yaml", console=Console(file=said, width=200))
    return page, said.getvalue()


def test_runs_are_made_measured_and_then_skipped(world):
    page, said = go(plan())
    assert page.is_file()
    assert "1/2 grpo-seed0: 2 steps" in said
    for run in plan().runs:
        assert run.state == "done"
        row = json.loads((run.folder / FILE).read_text())
        assert row["kl/base"] > 0
        assert (row["base"], row["problems"], row["samples"]) == ("model", 3, 4)
        assert row["kl/base_completion"] == pytest.approx(row["kl/base"] * row["tokens"] / 12)
    grpo, rloo = (list(read_jsonl(run.folder / "metrics.jsonl")) for run in plan().runs)
    assert grpo[0]["reward/mean"] == rloo[0]["reward/mean"]  # the same prompts and the same random numbers
    before = page.read_bytes()
    again, said = go(plan())
    assert "1/2 grpo-seed0: already complete" in said
    assert again.read_bytes() == before


def test_a_page_is_redrawn_in_a_share_of_the_time_and_not_for_every_run(tmp_path, monkeypatch):
    from studies.compare.fake import fake_plan, finish

    planned = fake_plan(tmp_path, seeds=4)
    finish(planned, lambda arm, seed: 0.5)
    clock, drawn = [0.0], []

    def write_page(*_, **__):
        drawn.append(clock[0])
        clock[0] += 1.0  # what a page costs
        return tmp_path

    def train(*_):
        clock[0] += 10.0
        return True

    monkeypatch.setattr(running.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(running, "write_page", write_page)
    go(planned)  # all are complete: nothing changes until the end
    assert len(drawn) == 2
    drawn.clear()
    monkeypatch.setattr(running, "_finish", train)
    go(planned)
    assert 3 < len(drawn) < len(planned.runs) - 3
    assert all(after - before >= running.SHARE for before, after in itertools.pairwise(drawn[:-1]))


def test_a_failing_arm_does_not_take_the_others_with_it(world, monkeypatch):
    (world / "bad.py").write_text("def bad(completions, **columns):\n    raise RuntimeError('no')\n")
    planned = plan(
        "limits.unscorable_steps=1", over=('reward=[{fn: "bad.py:bad"}],[{fn: "reward.py:digits"}]',)
    )
    with pytest.raises(RunError, match="1 of 2 runs failed"):
        go(planned)
    assert [run.state for run in planned.runs][1] == "done"
    assert "failed" in (planned.folder / "compare.html").read_text()


def test_a_stop_says_how_to_go_on_and_the_same_command_does(world, monkeypatch):
    from klent.runs.loop import Loop

    real, steps = Loop.step, []

    def interrupted(self, number):
        steps.append(number)
        if len(steps) == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return real(self, number)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(Stopped, match="stopped in grpo-seed0; it is saved"):
        go(plan("steps=4"))
    assert [run.state for run in plan("steps=4").runs] == ["started", "new"]
    _, said = go(plan("steps=4"))
    assert "grpo-seed0: continues after step 2" in said
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]


def test_ctrl_c_between_steps_is_a_stop_too(world, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_finish", pressed)
    with pytest.raises(Stopped, match="stopped at once"):
        go(plan())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_divergence_of_a_token_by_hand(temperature):
    """Next-token distributions from a forward pass a prefix, the sum over the vocabulary written out."""
    policy, base = (
        LoadedModel(tiny_model(seed), tiny_tokenizer(), "tiny", (END, TURN_END)) for seed in (0, 1)
    )
    tokens = torch.tensor([30, 41, 52])
    rollout = Episode(Prompt("p", "x"), [20, 21], tokens, torch.zeros(3), torch.zeros(3), "", "length")
    found = completion_divergence(policy, base, rollout, temperature=temperature)
    for place in range(3):
        prefix = torch.tensor([[20, 21, *tokens[:place].tolist()]])
        with torch.no_grad():
            p, q = (
                torch.softmax(m.model(prefix).logits[0, -1].double() / temperature, 0).tolist()
                for m in (policy, base)
            )
        by_hand = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert float(found[place]) == pytest.approx(by_hand, rel=1e-4)
    assert float(completion_divergence(policy, policy, rollout, temperature=temperature).abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_completions_behind_a_shared_prompt_have_the_divergence_of_each_alone(temperature):
    loaded = [LoadedModel(tiny_model(seed), tiny_tokenizer(), "tiny", (END, TURN_END)) for seed in (0, 1)]
    rollouts = []
    for number, length in enumerate((3, 9, 1, 5, 7, 2)):
        prompt = [20 + number // 3, 21, 22][: 2 + number // 3]
        drawn = torch.Generator().manual_seed(number)
        tokens = torch.randint(20, 60, (length,), generator=drawn)
        one = Episode(Prompt(f"p/{number // 3}", "x"), prompt, tokens, "", "length")
        one.acted = torch.arange(length) % 4 != 2
        rollouts.append(one)
    found = action_divergences(*loaded, rollouts, samples=3, temperature=temperature)
    for one, values in zip(rollouts, found, strict=True):
        alone = completion_divergence(*loaded, one, temperature=temperature)
        torch.testing.assert_close(values, alone, rtol=1e-4, atol=1e-6)


def test_what_an_environment_said_is_not_counted_as_the_policys():
    policy, base = (
        LoadedModel(tiny_model(seed), tiny_tokenizer(), "tiny", (END, TURN_END)) for seed in (0, 1)
    )
    tokens = torch.tensor([30, 41, 52, 33])
    said = Episode(Prompt("p", "x"), [20, 21], tokens, torch.zeros(4), torch.zeros(4), "", "length")
    acted = torch.tensor([True, False, False, True])
    played = replace(said, acted=acted, turn=torch.tensor([0, 0, 1, 1]))
    every = completion_divergence(policy, base, said, temperature=1.0)
    assert torch.equal(completion_divergence(policy, base, played, temperature=1.0), every[acted])
