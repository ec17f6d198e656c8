"""A run goes on from its checkpoint with what made it, or says in words what is not as it was."""

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from processes import finish, printed
from processes import start as start_process
from safetensors.torch import load_file
from tiny import byte_level, tiny_folder, tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import klent
from klent.cli import app
from klent.config import load_recipe
from klent.errors import CheckpointError, ConfigError, RunError
from klent.io.files import read_jsonl
from klent.runs.console import QuietConsole
from klent.runs.fingerprint import defaults_of, free_changes, refuse_other_inputs, take_fingerprint
from klent.runs.train import train

RECIPE = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: reward.py:digits
steps: 3
prompts_per_step: 2
group_size: 3
rollout: {max_tokens: 4}
optimizer: {lr: 0.01}
checkpoint: {every: 1, keep: 3}
eval: {problems: 2, samples: 1}
"""
REWARD = """
def digits(completions, **columns):
    return [sum(ch.isdigit() for ch in c) / max(len(c), 1) for c in completions]
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in its folder, and that folder as the working folder."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    tiny_folder(project / "model")
    (project / "reward.py").write_text(REWARD)
    (project / "tiny.yaml").write_text(RECIPE)
    rows = [{"prompt": f"say {i}", "number": i} for i in range(20)]
    (project / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return project


def start(*overrides: str, name: str = "cut") -> Path:
    run = Path("runs") / name
    return train(load_recipe("tiny.yaml", overrides), run, command="c", console=QuietConsole())


def go_on(run: Path, *overrides: str) -> QuietConsole:
    console = QuietConsole()
    train(load_recipe(run / "config.yaml", overrides), run, command="c", resume=True, console=console)
    return console


def timeless(run: Path) -> list[dict[str, object]]:
    clock = ("time/", "memory/")
    return [
        {k: v for k, v in row.items() if not k.startswith(clock) and not k.endswith("per_second")}
        for row in read_jsonl(run / "metrics.jsonl")
    ]


def edit(run: Path, **values: object) -> None:
    """As with an editor in config.yaml."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | values))


# what may change, and what may not


def test_more_steps_end_as_if_they_had_been_asked_for_at_once(world):
    whole = start("steps=5", name="whole")
    run = start()
    go_on(run, "steps=5")
    assert timeless(run) == timeless(whole)
    weights = "final/model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    assert load_recipe(run / "config.yaml").steps == 5
    record = json.loads((run / "run.json").read_text())
    assert record["changed"] == [{"step": 3, "key": "steps", "before": 3, "after": 5}]


GAME = """
import random
from klent.environments import Step

class Larger:
    def reset(self, row, seed):
        self.random = random.Random(seed)
        self.turn = 0
        return [{"role": "user", "content": f"say {self.random.randrange(9)}"}]

    def step(self, action):
        self.turn += 1
        if "~" in action:
            raise ValueError(f"no tilde: {action}")
        return Step(f"and {self.random.randrange(9)}", sum(c.isdigit() for c in action) / 4, self.turn == 2)
"""


def test_episodes_of_an_environment_go_on_as_if_nothing_had_happened(world):
    (world / "game.py").write_text(GAME)
    (world / "tiny.yaml").write_text(
        RECIPE.replace("{data: prompts.jsonl}", "{env: game.py:Larger, turn_tokens: 4, credit: turn}")
        .replace("reward: reward.py:digits\n", "")
        .replace("max_tokens: 4", "max_tokens: 8")
    )
    start("steps=2", name="whole")
    start("steps=1", name="cut")
    console = go_on(Path("runs/cut"), "steps=2", "task.timeout=20", "task.workers=2")
    assert {warning.partition(":")[2].partition(" (")[0] for warning in console.warnings} >= {
        " steps",
        " task.timeout",
    }
    assert timeless(Path("runs/cut")) == timeless(Path("runs/whole"))
    weights = [(Path("runs") / name / "final/model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]
    row = timeless(Path("runs/whole"))[0]
    assert row["episode/turns"] > 1
    (sample, *_) = read_jsonl(Path("runs/whole/samples.jsonl"))
    assert [turn["by"] for turn in sample["turns"]][:2] == ["policy", "environment"]
    assert sample["turns"][0].keys() == {"by", "tokens", "reward", "advantage"}
    page = Path("runs/whole/report.html").read_text()
    assert '<span class="by">environment</span>' in page
    (world / "game.py").write_text(GAME.replace("/ 4", "/ 5"))
    with pytest.raises(ConfigError, match=r"task.max_turns \(then 8, now 9\)"):
        go_on(Path("runs/cut"), "steps=3", "task.max_turns=9")


def test_a_rate_changes_from_here_on_and_is_recorded_once_for_each_change(world):
    run = start()
    console = go_on(run, "steps=4", "optimizer.lr=1e-6", "checkpoint.keep=2", "limits.nonfinite_steps=5")
    assert any("optimizer.lr (then 0.01, now 1e-06)" in text for text in console.warnings)
    assert [row["optimizer/lr"] for row in read_jsonl(run / "metrics.jsonl")] == [0.01, 0.01, 0.01, 1e-6]
    edit(run, steps=5)
    go_on(run)
    go_on(run)
    record = json.loads((run / "run.json").read_text())
    assert [(item["step"], item["key"]) for item in record["changed"]] == [
        (3, "steps"),
        (3, "optimizer.lr"),
        (3, "checkpoint.keep"),
        (3, "limits.nonfinite_steps"),
        (4, "steps"),
    ]


EDITS = {
    "lora": ({"lora": {"rank": 2}}, "- lora "),
    "thermostat": ({"thermostat": {"target": 1.0}}, "- thermostat "),
    "seed": ({"seed": 7}, "- seed (then 0, now 7)"),
    "rollout": ({"rollout": {"max_tokens": 5}}, "- rollout.max_tokens (then 4, now 5)"),
    "a term": ({"loss": {"ppo_clip": {}, "kl_in_loss": {"coef": 0.1}}}, "- loss.kl_in_loss"),
    "the split": (
        {"eval": {"problems": 1, "samples": 1}},
        "- eval.problems (then 2, now 1): it decides which",
    ),
    "no split": ({"eval": None}, "- eval.problems (then 2, now 0)"),
    "reward": ({"reward": "last_number"}, "- reward"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_may_not_change_is_refused_by_name_and_nothing_is_touched(world, case):
    run = start()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    values, words = EDITS[case]
    edit(run, **values)
    before[run / "config.yaml"] = (run / "config.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        go_on(run, "steps=5")
    message = str(caught.value)
    assert words in message
    assert "cannot go on from step 3" in message
    assert "name=" in message
    left = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert {k: v for k, v in left.items() if k.name not in (".lock", ".owner", "rewards.log")} == {
        k: v for k, v in before.items() if k.name not in (".lock", ".owner", "rewards.log")
    }


def test_another_data_file_is_refused(world):
    run = start()
    text = Path("prompts.jsonl").read_text()
    Path("prompts.jsonl").write_text(text.replace("say 19", "say 91"))
    with pytest.raises(ConfigError, match=r"task\.data: the files that it names are not those of then"):
        go_on(run, "steps=5")
    Path("prompts.jsonl").write_text(text)
    go_on(run, "steps=5")


@pytest.mark.parametrize("damage", ["weights", "config"])
def test_another_base_model_under_the_same_name_is_refused(world, damage):
    run = start()
    if damage == "weights":
        tiny_folder(world / "other", seed=1)
        os.replace("other/model.safetensors", "model/model.safetensors")
    else:
        config = json.loads(Path("model/config.json").read_text())
        Path("model/config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(ConfigError, match="- model: the files that it names are not those of then"):
        go_on(run, "steps=5")


def test_a_reward_that_was_mended_is_said_and_recorded(world):
    run = start()
    Path("reward.py").write_text(REWARD + "\n# mended\n")
    console = go_on(run, "steps=4")
    assert any("reward.py" in text for text in console.warnings)
    record = json.loads((run / "run.json").read_text())
    assert "reward.py" in [item["key"] for item in record["changed"]]


def test_fewer_steps_than_are_done_are_refused(world):
    run = start()
    with pytest.raises(ConfigError, match=r"steps is 2, and 3 are done.*steps=\+"):
        go_on(run, "steps=2")


def without_fingerprints(run: Path) -> None:
    """Checkpoints as versions before the fingerprint wrote them."""
    import hashlib

    for folder in (run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        del state["fingerprint"]
        data = json.dumps(state).encode()
        (folder / "state.json").write_bytes(data)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_old_checkpoint_goes_on_with_a_warning(world):
    whole = start("steps=4", name="whole")
    run = start()
    without_fingerprints(run)
    console = go_on(run, "steps=4")
    assert any("000003" in text and "no fingerprint" in text for text in console.warnings)
    assert timeless(run) == timeless(whole)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lora": {"rank": 2}}, "of another model.*Put back model and lora"),
        ({"thermostat": {"target": 1.0, "steer": "temperature"}}, None),
    ],
    ids=["lora", "thermostat"],
)
def test_an_old_checkpoint_that_does_not_fit_gives_words(world, values, words):
    run = start()
    without_fingerprints(run)
    edit(run, **values)
    if words is None:
        go_on(run, "steps=4")
    else:
        with pytest.raises(CheckpointError, match=words):
            go_on(run, "steps=4")


def test_an_organs_state_of_another_kind_gives_words(world):
    run = start("thermostat.target=1.0", "thermostat.gain=0.25")
    for folder in (run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        state["organs"]["thermostat"] = {"other": 1}
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        data = (folder / "state.json").read_bytes()
        import hashlib

        manifest["files"]["state.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="a state of thermostat that does not fit"):
        go_on(run, "steps=4")


def test_a_setting_that_a_later_version_adds_is_no_difference(world):
    recipe = load_recipe("tiny.yaml")
    now = take_fingerprint(recipe.model_dump(mode="json"))
    before = json.loads(json.dumps(now.state()))
    del before["recipe"]["precision"]
    del before["recipe"]["update"]["packing"]
    refuse_other_inputs(Path("run"), 1, before, now, defaults_of(recipe))
    other = load_recipe("tiny.yaml", ["update.packing=off"])
    now = take_fingerprint(other.model_dump(mode="json"))
    with pytest.raises(ConfigError, match=r"update\.packing"):
        refuse_other_inputs(Path("run"), 1, before, now, defaults_of(other))


def test_how_a_reward_is_called_may_change_and_what_it_is_may_not(world):
    def fingerprint(**options):
        reward = {"fn": "judge.py:fn", "timeout": 10.0, "workers": 2, "memory_gb": None, **options}
        return take_fingerprint({"reward": [reward]})

    before = fingerprint().state()
    now = fingerprint(timeout=60.0, workers=8, memory_gb=4.0)
    refuse_other_inputs(Path("run"), 1, before, now, frozenset())
    changes = {change.key: change.after for change in free_changes(before, now)}
    assert changes == {"reward.0.timeout": 60.0, "reward.0.workers": 8, "reward.0.memory_gb": 4.0}
    for other in ({"workers": None}, {"weight": 0.5}, {"settings": {"same": "number"}}):
        with pytest.raises(ConfigError, match=f"reward.0.{next(iter(other))}"):
            refuse_other_inputs(Path("run"), 1, before, fingerprint(**other), frozenset())


def test_a_project_that_moved_goes_on(world, tmp_path, monkeypatch):
    run = start()
    monkeypatch.chdir(tmp_path)
    world.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    go_on(run, "steps=4")


# from any folder


def test_a_run_goes_on_from_any_folder(world, tmp_path, monkeypatch):
    whole = start("steps=4", name="whole")
    run = start().absolute()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "prompts.jsonl").write_text('{"prompt": "not these"}\n' * 30)  # of another project
    go_on(run, "steps=4")
    assert timeless(run) == timeless(world / whole)
    monkeypatch.chdir(world)
    go_on(run, "steps=5")


def test_a_run_whose_record_is_lost_is_found_from_its_folder(world, tmp_path, monkeypatch):
    run = start().absolute()
    (run / "run.json").unlink()
    monkeypatch.chdir(tmp_path)
    go_on(run, "steps=4")


def test_a_refused_start_leaves_no_folder(world):
    with pytest.raises(ConfigError, match="no function 'digit'"):
        start("reward=reward.py:digit")
    assert not Path("runs").exists()
    Path("runs").mkdir()
    with pytest.raises(klent.errors.ModelError):
        start("model=./modle")
    assert list(Path("runs").iterdir()) == []


# the command line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_does_not_exit_as_if_it_were_finished(world, number, code):
    output = Path("printed").resolve()
    process = start_process(Path.cwd(), output, "train", "tiny.yaml", "name=cut", "steps=100000")
    if any(line.startswith("step 2/") for line in printed(process, output)):
        os.kill(process.pid or 0, number)
    assert finish(process) == code
    rest = output.read_text()
    assert "can be resumed" in rest
    assert "klent resume runs/cut" in rest


def test_a_stop_in_the_last_step_is_a_finished_run(world):
    class Console(QuietConsole):
        def step(self, row):
            super().step(row)
            if row["step"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    console = Console()
    train(load_recipe("tiny.yaml"), Path("runs/cut"), command="c", console=console)
    assert console.stopped_by is None
    assert Path("runs/cut/final").is_dir()


def test_steps_are_added_to_those_done_on_the_command_line(world):
    run = start()
    runner = CliRunner()
    result = runner.invoke(app, ["resume", "cut", "steps=+2", "optimizer.lr=1e-6"])
    assert result.exit_code == 0, result.output
    assert len(timeless(run)) == 5
    assert load_recipe(run / "config.yaml").optimizer.lr == 1e-6
    result = runner.invoke(app, ["resume", "cut", "seed=3"])
    assert result.exit_code == 2
    assert "seed (then 0, now 3)" in " ".join(result.output.split())
    assert load_recipe(run / "config.yaml").seed == 0


def test_a_run_that_starts_from_another_runs_end_says_that_it_draws_the_same_prompts(world):
    from klent.runs.plan import describe_plan

    def said(*overrides: str) -> list[str]:
        return [
            line for line in describe_plan(load_recipe("tiny.yaml", overrides)) if line.startswith("prompts:")
        ]

    first = start("steps=1")
    (line,) = said(f"model={first}/final")
    assert "as runs/cut drew them (seed 0)" in line
    assert "seed=1" in line
    assert "task.heldout_data" in line
    assert said() == said(f"model={first}/final", "seed=1") == []
    assert said(f"model={first}/final", "task={gym: chain_sum}", "reward=gym") == []
    second = start("steps=1", f"model={first}/final", "seed=1", name="second")
    assert "as runs/cut drew them" in said(f"model={second}/final")[0]  # two runs ago
    assert "task.seed=2" in said(f"model={second}/final", "task.seed=1")[0]
    assert said(f"model={first}/final", "task.data=./prompts.jsonl") != []


def test_a_run_keeps_its_name(world):
    start()
    result = CliRunner().invoke(app, ["resume", "cut", "name=other"])
    assert result.exit_code == 2
    assert "a run keeps its name" in result.output


# code that is not what the run was started with


LOSS = """
from pathlib import Path
Path("imported").touch()
def mine(logp, advantage, mask):
    return -logp * advantage
"""


@pytest.fixture
def coded(world):
    """A run whose loss is a file of the project."""
    (world / "loss.py").write_text(LOSS)
    run = start("method=null", "loss={loss.py:mine: {}}", "advantage=group_advantage", "steps=1")
    (world / "imported").unlink()
    return run


def another_loss(run: Path) -> None:
    Path("loss.py").write_text(LOSS + "# another, as one process sees it too\n")


def another_file(run: Path) -> None:
    Path("other.py").write_text(LOSS)
    edit(run, loss={"other.py:mine": {}})


def through_the_method(run: Path) -> None:
    Path("mine.yaml").write_text("loss: {loss.py:mine: {}, hidden.py:mine: {}}\n")
    Path("hidden.py").write_text(LOSS)
    edit(run, method="mine.yaml")


@pytest.mark.parametrize("change", [another_loss, another_file, through_the_method])
def test_other_code_is_shown_and_not_imported_until_it_is_confirmed(world, coded, change):
    change(coded)
    for verb in (["resume", "cut"], ["eval", "cut"], ["export", "cut"]):
        result = CliRunner().invoke(app, verb)
        assert result.exit_code == 2, result.output
        assert "--yes" in result.output
        assert ".py: its content is another" in result.output or ".py: it was not named" in result.output
        assert not Path("imported").exists()
    if change is another_loss:
        result = CliRunner().invoke(app, ["resume", "cut", "--yes", "steps=2"])
        assert result.exit_code == 0, result.output
        assert Path("imported").exists()
        assert CliRunner().invoke(app, ["resume", "cut", "steps=3"]).exit_code == 0  # confirmed once


def test_the_same_code_needs_no_answer_also_where_the_record_is_torn_or_the_project_moved(world, coded):
    from klent.runs.code import changed_code

    assert changed_code(coded) == []
    (coded / "run.json").write_text("{")
    assert changed_code(coded) == []  # the checkpoint knows it too
    for folder in (coded / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    assert len(changed_code(coded)) == 2  # nothing is known: the loss and the reward are asked for


def test_two_files_of_one_name_and_a_models_own_code_are_recorded_apart(world):
    from klent.runs.code import code_hashes

    for folder in ("a", "b"):
        (world / folder).mkdir()
        (world / folder / "f.py").write_text(folder)
    values = {"loss": {"a/f.py:x": {}}, "reward": "b/f.py:x", "model": "model", "trust_remote_code": True}
    assert set(code_hashes(values)) == {"a/f.py", "b/f.py"}
    (world / "model" / "modeling.py").write_text("")
    assert set(code_hashes(values)) == {"a/f.py", "b/f.py", "modeling.py"}


# checkpoints as models


def test_a_checkpoint_is_exported_as_the_model_that_final_would_be(world):
    run = start("checkpoint.keep=3")
    result = CliRunner().invoke(app, ["export", "cut"])
    assert result.exit_code == 0, result.output
    for file in (run / "final").iterdir():
        assert file.read_bytes() == (run / "step-3" / file.name).read_bytes(), file.name
    result = CliRunner().invoke(app, ["export", "cut", "elsewhere", "--step", "2"])
    assert result.exit_code == 0, result.output
    weights = "model.safetensors"
    assert (Path("elsewhere") / weights).read_bytes() != (run / "final" / weights).read_bytes()
    for words, said in (
        (["export", "cut"], "exists already"),
        (["export", "cut", "--step", "7"], "no checkpoint of step 7; there are: 1, 2, 3"),
        (["export", "cut", "merged", "--merge"], "trained all weights"),
        (["sample", "runs/cut/checkpoints/000002", "Hi"], "klent export runs/cut --step 2"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code in (1, 2)
        assert said in " ".join(result.output.replace("│", " ").split())


def check_merged(base: Path, adapter: Path, merged: Path) -> None:
    """Every written weight is base + alpha / rank * B A, summed in float64 and rounded once to bfloat16."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    adapted = {name.split("base_model.model.")[1].split(".lora_")[0] for name in factors}
    assert adapted
    assert after.keys() == before.keys()
    for name, weight in before.items():
        expected = weight.double()
        if (stem := name.removesuffix(".weight")) in adapted:
            a, b = (factors[f"base_model.model.{stem}.lora_{side}.weight"].double() for side in "AB")
            expected = expected + scale * (b @ a)
            assert (b @ a).abs().max() > 0
        assert after[name].dtype == torch.bfloat16
        torch.testing.assert_close(
            after[name], expected.to(torch.bfloat16), rtol=0.008, atol=0
        )  # a unit of the last place
        assert (after[name] == expected.to(torch.bfloat16)).float().mean() > 0.99
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (merged / "adapter").exists()
    assert "merged into the weights" in (merged / "README.md").read_text()


def test_an_adapters_checkpoint_is_merged_and_needs_its_base_model(world):
    (world / "reward.py").write_text(
        "def digits(completions, **columns):\n    return [float(sum(map(ord, c)) % 7) for c in completions]\n"
    )  # never equal throughout, so that the adapter is not 0
    run = start("lora.rank=2", "steps=1")
    assert CliRunner().invoke(app, ["export", "cut"]).exit_code == 0
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (run / "step-1" / file).read_bytes() == (run / "final" / file).read_bytes()
    merged = CliRunner().invoke(app, ["export", "cut", "--merge", "--to", "merged", "--dtype", "bfloat16"])
    assert merged.exit_code == 0, merged.output
    check_merged(world / "model", run / "final" / "adapter", Path("merged"))
    for words, said in ((["a", "--to", "b"], "name two folders"), (["--dtype", "float8"], "no such type")):
        result = CliRunner().invoke(app, ["export", "cut", *words])
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())
    tiny_folder(world / "model", seed=1)
    result = CliRunner().invoke(app, ["export", "cut", "other"])
    assert result.exit_code == 1
    assert "its files have changed" in " ".join(result.output.replace("│", " ").split())


def test_a_merged_adapter_is_written_as_gguf_too_or_refused_before_anything_is(world):
    refused = CliRunner().invoke(app, ["export", str(start("lora.rank=2", "steps=1")), "--merge", "--gguf"])
    assert refused.exit_code == 1
    assert "not a byte-level BPE" in " ".join(refused.output.replace("│", " ").split())
    assert not Path("runs/cut/step-1").exists()
    tiny_model(vocab_size=304).save_pretrained(world / "model")
    byte_level().save_pretrained(world / "model")
    run = start("lora.rank=2", "steps=1", name="bytes")
    result = CliRunner().invoke(app, ["export", "bytes", "--merge", "--to", "merged", "--gguf"])
    assert result.exit_code == 0, result.output
    read = AutoModelForCausalLM.from_pretrained("merged", gguf_file="model.gguf", dtype=torch.float32)
    weights = load_file(run / "final" / "model.safetensors")
    assert weights.keys() - read.state_dict().keys() == set()
    for name, value in weights.items():
        assert torch.equal(read.state_dict()[name], value), name


def test_eval_finds_the_recipe_of_a_model_in_a_run(world, monkeypatch):
    run = start()
    CliRunner().invoke(app, ["export", "cut", "--step", "2"])
    of_run = json.loads(CliRunner().invoke(app, ["eval", "cut", "--json"]).stdout)
    for name in ("runs/cut/final", "cut/final"):
        result = CliRunner().invoke(app, ["eval", name, "--json"])
        assert result.exit_code == 0, result.output
        assert {**json.loads(result.stdout), "seconds": 0} == {**of_run, "seconds": 0}
    assert CliRunner().invoke(app, ["eval", "cut/step-2"]).exit_code == 0
    monkeypatch.chdir(run / "final")
    assert CliRunner().invoke(app, ["eval", "."]).exit_code == 0


# files that inform


def test_a_damaged_byte_in_the_logs_is_said_with_its_line_and_the_run_goes_on(world):
    whole = start("steps=4", name="whole")
    run = start()
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        lines = (run / name).read_bytes().splitlines(keepends=True)
        lines[1] = b"\xff" + lines[1][1:]
        (run / name).write_bytes(b"".join(lines))
    console = go_on(run, "steps=4")
    assert any("metrics.jsonl:2 is damaged" in text for text in console.warnings)
    assert any("eval.jsonl:2 is damaged" in text for text in console.warnings)
    weights = "final/model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    with pytest.warns(UserWarning, match="metrics.jsonl:2 is damaged"):
        assert [row["step"] for row in klent.Run(run).metrics] == [1, 3, 4]


def test_every_single_damaged_byte_of_a_row_lets_the_run_go_on(world):
    """What Watch and the evaluations read; without training."""
    from klent.io.files import read_steps
    from klent.measure.watch import Watch

    run = start()
    row = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
    file = run / "damaged.jsonl"
    for position in range(0, len(row) - 1, 3):
        for byte in (b"\x00", b"9", b'"', b"}", b"x"):
            file.write_bytes(row[:position] + byte + row[position + 1 :] + row)
            rows = list(read_steps(file, on_damage=lambda line: None))
            assert 1 <= len(rows) <= 2
            Watch(rows)


@pytest.mark.parametrize(
    "text", ["", '{"klent": "0', "[]", "null", '{"wall_seconds": "x", "started": 3}', "[" * 5000]
)
def test_a_torn_record_is_begun_anew(world, text):
    run = start()
    (run / "run.json").write_text(text)
    console = go_on(run, "steps=4")
    assert any("run.json:1 is damaged" in line for line in console.warnings) == ("wall" not in text)
    record = json.loads((run / "run.json").read_text())
    assert record["finished"]
    assert record["wall_seconds"] >= 0


def test_a_step_zero_that_is_lost_is_not_measured_with_trained_weights(world):
    run = start()
    rows = (run / "eval.jsonl").read_bytes().splitlines(keepends=True)
    (run / "eval.jsonl").write_bytes(b"x" + rows[0][1:] + b"".join(rows[1:]))
    go_on(run, "steps=4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [row["step"] for row in klent.Run(run).evaluations] == [3, 4]


# links


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "checkpoints", "final", "run.json", "config.yaml", ".lock", ".owner", "rewards.log"],
)
def test_a_symbolic_link_in_a_run_is_refused_and_its_target_untouched(world, name):
    run = start()
    target = world / "precious"
    if (run / name).is_dir():
        (run / name).rename(target)
        (target / ".000009.7.tmp").mkdir()
    else:
        target.write_bytes((run / name).read_bytes() if (run / name).exists() else b"mine")
        (run / name).unlink(missing_ok=True)
    before = sorted((str(p), p.read_bytes() if p.is_file() else b"") for p in [target, *target.rglob("*")])
    (run / name).symlink_to(target)
    with pytest.raises(RunError, match=f"{name} is a symbolic link to "):
        train(load_recipe("tiny.yaml", ["steps=4"]), run, command="c", resume=True, console=QuietConsole())
    after = sorted((str(p), p.read_bytes() if p.is_file() else b"") for p in [target, *target.rglob("*")])
    assert after == before


def test_a_run_folder_that_is_itself_a_link_is_the_users_choice(world, tmp_path):
    run = start()
    (tmp_path / "disk").mkdir()
    run.rename(tmp_path / "disk" / "cut")
    run.symlink_to(tmp_path / "disk" / "cut")
    go_on(run, "steps=4")
    assert len(timeless(run)) == 4
