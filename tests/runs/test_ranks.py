"""Runs on real ranks, processes that gloo joins: they are the run of one, and one that dies ends it in words.

Nothing here hangs on rounding: no tokens are selected (the first ones of a prompt's completions have one entropy),
and the reference is another model (the KL from one's own start is 0 or rounding). tests/protocols/test_world.py
selects.
"""

import json
import os
import signal
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from processes import finish, printed, start
from safetensors.torch import load_file
from tiny import tiny_folder

from klent.config import load_recipe
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.kit.world import OneProcess
from klent.runs.console import QuietConsole
from klent.runs.interrupt import StopRequest
from klent.runs.train import train

RECIPE = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: reward.py:digits
loss: {kl_in_loss: {coef: 0.05}}
reference: other
thermostat: {target: 4.0}
steps: 6
prompts_per_step: 4
group_size: 3
rollout: {max_tokens: 6}
optimizer: {lr: 0.01, schedule: cosine, warmup_steps: 2}
update: {minibatches: 2}
checkpoint: {every: 2, keep: 9}
eval: {problems: 3, samples: 2, every: 3}
"""
GAME = """
model: model
method: grpo
task: {env: maze, max_turns: 3, turn_tokens: 4}
rollout: {max_tokens: 12}
steps: 2
prompts_per_step: 3
group_size: 2
optimizer: {lr: 0.01}
eval: null
"""
REWARD = """
def digits(completions, **columns):
    with open("asked", "a") as file:
        file.write("x")
    return [sum(ch.isdigit() for ch in c) / max(len(c), 1) for c in completions]
"""
OF_ITS_OWN = ("time/", "memory/", "tokens/train")  # padding is counted, and other cuts pad otherwise


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    tiny_folder(tmp_path / "other", seed=1)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "game.yaml").write_text(GAME)
    rows = [{"prompt": f"say {i}" * (1 + i % 3), "number": i} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def ranks(folder: Path, size: int, *arguments: str) -> list[BaseProcess]:
    """``klent ARGUMENTS`` as torchrun starts it, each rank's output in its own file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(
            folder,
            folder / f"rank{rank}.log",
            *arguments,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]


def numbers(run: Path) -> list[dict[str, float]]:
    rows = read_jsonl(run / "metrics.jsonl")
    return [
        {k: v for k, v in row.items() if not k.startswith(OF_ITS_OWN) and not k.endswith("per_second")}
        for row in rows
    ]


def check_same_run(run: Path, expected: Path, *, atol: float = 2e-5) -> None:
    """To the rounding of float32: the order in which numbers add up differs."""
    mine, theirs = numbers(run), numbers(expected)
    found, weights = (load_file(folder / "final" / "model.safetensors") for folder in (run, expected))
    count = sum(weight.numel() for weight in weights.values())
    assert len(mine) == len(theirs) > 0
    for row, wanted in zip(mine, theirs, strict=True):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            # A share of weights has steps: of one weight the last bit may decide whether it moved.
            near = 1.5 / count if name == "update/rounded_away" else atol
            assert row[name] == pytest.approx(value, rel=2e-3, abs=near), (wanted["step"], name)
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=atol, rtol=1e-4)


def alone(project: Path, recipe: str, name: str, *changes: str) -> Path:
    chosen = load_recipe(recipe, [f"name={name}", *changes])
    return train(chosen, Path("runs") / name, command="c", console=QuietConsole())


def test_two_ranks_are_the_run_of_one(project):
    """Also a thermostat, evaluations, checkpoints, and a reward that is asked once."""
    expected = alone(project, "tiny.yaml", "one")
    asked = (project / "asked").read_text()
    (project / "asked").unlink()
    both = ranks(project, 2, "train", "tiny.yaml", "name=two")
    assert [finish(process) for process in both] == [0, 0], (project / "rank0.log").read_text()
    run = project / "runs" / "two"
    check_same_run(run, expected)
    assert (project / "asked").read_text() == asked  # a reward is asked by one rank
    assert (project / "rank1.log").read_text() == ""
    mine, theirs = (read_jsonl(folder / "eval.jsonl") for folder in (run, expected))
    assert [row["rewards"] for row in mine] == [row["rewards"] for row in theirs]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000002", "000004", "000006"]
    assert (run / "report.html").is_file()
    first = load_file(expected / "checkpoints" / "000002" / "model.safetensors")
    last = load_file(expected / "final" / "model.safetensors")
    assert max(float((first[name] - last[name]).abs().max()) for name in first) > 1e-3  # it did learn


def test_a_rank_that_dies_ends_the_run_and_one_rank_goes_on(project):
    expected = alone(project, "tiny.yaml", "one")
    both = ranks(project, 2, "train", "tiny.yaml", "name=cut", "checkpoint.every=1")
    for line in printed(both[0], project / "rank0.log"):
        if line.startswith("step 3/"):
            os.kill(both[1].pid, signal.SIGKILL)
            break
    assert finish(both[0]) == 1
    said = " ".join((project / "rank0.log").read_text().split())
    assert "cannot reach the other ranks" in said
    assert "klent resume RUN" in said
    run = project / "runs" / "cut"
    assert not (run / "final").exists()
    assert len(numbers(run)) in (3, 4, 5)
    train(load_recipe(run / "config.yaml"), run, command="c", resume=True, console=QuietConsole())
    check_same_run(run, expected)


def test_weights_sharded_over_two_ranks_give_the_run_of_one(project):
    """FSDP2: also the thermostat, the reference, held-out problems, and a final folder like any other."""
    expected = alone(project, "tiny.yaml", "one")
    both = ranks(project, 2, "train", "tiny.yaml", "name=two", "distributed=fsdp")
    assert [finish(process) for process in both] == [0, 0], (project / "rank0.log").read_text()
    run = project / "runs" / "two"
    check_same_run(run, expected)
    assert sorted(p.name for p in (run / "final").iterdir()) == sorted(
        p.name for p in (expected / "final").iterdir()
    )
    here, there = (folder / "checkpoints" / "000004" for folder in (run, expected))
    state = json.loads((here / "state.json").read_text())["organs"].keys()
    assert state == json.loads((there / "state.json").read_text())["organs"].keys()
    files = sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file())
    assert len([name for name in files if name.startswith("model/")]) == 2
    assert len([name for name in files if name.startswith("optimizer/")]) == 2
    assert [name for name in files if not name.endswith((".safetensors", ".json"))] == []
    for name in ("model", "optimizer"):
        saved, whole = together(here / name), load_file(there / f"{name}.safetensors")
        assert saved.keys() == whole.keys()
        for key, value in whole.items():
            assert saved[key].shape == value.shape
            torch.testing.assert_close(saved[key], value, atol=2e-5, rtol=1e-3)
        sizes = [sum(t.numel() for t in load_file(path).values()) for path in (here / name).iterdir()]
        assert max(sizes) < 0.55 * sum(sizes)


def together(folder: Path) -> dict[str, torch.Tensor]:
    """The rows of every rank's file, in the order of the ranks; one process has no part in it."""
    parts: dict[str, list[torch.Tensor]] = {}
    for file in sorted(folder.iterdir()):
        for name, value in load_file(file).items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(rows) if rows[0].dim() else rows[0] for name, rows in parts.items()}


def test_a_rank_with_a_part_of_the_weights_dies_and_one_rank_with_all_goes_on(project):
    expected = alone(project, "tiny.yaml", "one")
    both = ranks(project, 2, "train", "tiny.yaml", "name=cut", "checkpoint.every=1", "distributed=fsdp")
    for line in printed(both[0], project / "rank0.log"):
        if line.startswith("step 3/"):
            os.kill(both[1].pid, signal.SIGKILL)
            break
    assert finish(both[0]) == 1
    assert "cannot reach the other ranks" in " ".join((project / "rank0.log").read_text().split())
    run = project / "runs" / "cut"
    assert not (run / "final").exists()
    one = load_recipe(run / "config.yaml", ["distributed=auto"])
    train(one, run, command="c", resume=True, console=QuietConsole())
    check_same_run(run, expected)


def test_a_run_of_one_goes_on_with_its_weights_sharded_over_three(project):
    (project / "tiny.yaml").write_text(RECIPE.replace("schedule: cosine", "schedule: constant"))
    expected = alone(project, "tiny.yaml", "one")
    run = alone(project, "tiny.yaml", "more", "steps=3")
    three = ranks(project, 3, "resume", "runs/more", "steps=6", "distributed=fsdp")
    assert [finish(process) for process in three] == [0, 0, 0], (project / "rank0.log").read_text()
    check_same_run(run, expected)


def test_a_run_whose_weights_two_ranks_hold_goes_on_over_three(project):
    """Cut otherwise: rows of one file go to two ranks, and of two files to one."""
    (project / "tiny.yaml").write_text(RECIPE.replace("schedule: cosine", "schedule: constant"))
    expected = alone(project, "tiny.yaml", "one")
    both = ranks(project, 2, "train", "tiny.yaml", "name=more", "steps=3", "distributed=fsdp")
    assert [finish(process) for process in both] == [0, 0], (project / "rank0.log").read_text()
    three = ranks(project, 3, "resume", "runs/more", "steps=6")
    assert [finish(process) for process in three] == [0, 0, 0], (project / "rank0.log").read_text()
    check_same_run(project / "runs" / "more", expected)


def test_a_run_of_one_goes_on_on_three_ranks(project):
    """At a constant rate, so that three steps are the first half of six."""
    (project / "tiny.yaml").write_text(RECIPE.replace("schedule: cosine", "schedule: constant"))
    expected = alone(project, "tiny.yaml", "one")
    started = load_recipe("tiny.yaml", ["name=more", "steps=3"])
    run = train(started, Path("runs/more"), command="c", console=QuietConsole())
    three = ranks(project, 3, "resume", "runs/more", "steps=6")
    assert [finish(process) for process in three] == [0, 0, 0], (project / "rank0.log").read_text()
    check_same_run(run, expected)
    assert [row["step"] for row in numbers(run)] == [1, 2, 3, 4, 5, 6]


def test_games_are_played_by_ranks_as_by_one(project):
    expected = alone(project, "game.yaml", "one")
    both = ranks(project, 2, "train", "game.yaml", "name=two")
    assert [finish(process) for process in both] == [0, 0], (project / "rank0.log").read_text()
    check_same_run(project / "runs" / "two", expected)


def test_a_stop_that_one_rank_hears_stops_all_after_the_same_step(project):
    both = ranks(project, 2, "train", "tiny.yaml", "name=stop", "steps=400", "checkpoint.every=0")
    for line in printed(both[0], project / "rank0.log"):
        if line.startswith("step 2/"):
            os.kill(both[1].pid, signal.SIGTERM)
            break
    codes = [finish(process) for process in both]
    assert codes[0] == 128 + signal.SIGTERM
    run = project / "runs" / "stop"
    steps = len(numbers(run))
    assert 2 <= steps < 400
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"{steps:06d}"]


def test_a_signal_while_the_others_are_waited_for_is_not_lost():
    class Late(OneProcess):
        def gather(self, said):
            if said == b"0":
                os.kill(os.getpid(), signal.SIGTERM)
            return [said]

    told = []
    with StopRequest(lambda: told.append(1), Late()) as stop:
        assert [stop.agreed(), stop.agreed(), stop.agreed()] == [False, True, True]
    assert told == [1]
    assert stop.signal == signal.SIGTERM


def test_what_cannot_be_is_refused(project, monkeypatch):
    for distributed in ("ddp", "fsdp"):
        recipe = load_recipe("tiny.yaml", [f"distributed={distributed}"])
        with pytest.raises(ConfigError, match=f"distributed is {distributed}, .*torchrun"):
            train(recipe, Path("runs/no"), command="c")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="distributed is none, and 2 processes"):
        train(load_recipe("tiny.yaml", ["distributed=none"]), Path("runs/no"), command="c")
    assert not Path("runs").exists()


def test_more_ranks_than_prompts_are_refused(project):
    both = ranks(project, 2, "train", "tiny.yaml", "prompts_per_step=1", "update.minibatches=1")
    assert finish(both[0]) == 2
    assert "prompts_per_step is 1, and there are 2 ranks" in " ".join(
        (project / "rank0.log").read_text().split()
    )
    finish(both[1])
    assert not (project / "runs").exists()


def test_what_ranks_cannot_share_is_refused(project):
    both = ranks(project, 2, "eval", "model")
    assert [finish(process) for process in both] == [2, 2]
    assert "`klent eval`, which ranks cannot share" in " ".join((project / "rank1.log").read_text().split())
