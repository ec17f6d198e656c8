"""Logged play judged in its game: returns in eval.jsonl, the player of values, and eval, sample and play of it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, tiny_folder, tiny_tokenizer
from typer.testing import CliRunner

import klent
from klent.cli import app
from klent.config import load_recipe, make_recipe
from klent.errors import ConfigError, ModelError
from klent.io.files import read_jsonl
from klent.models.load import load_policy
from klent.rollout.value_engine import ValueEngine
from klent.runs.console import QuietConsole
from klent.runs.engines import plain_sampler
from klent.runs.plan import describe_plan
from klent.runs.targets import open_model
from klent.runs.train import train
from klent.tasks import load_task

WORLD = """
from klent.environments import Step

class Choice:
    '''Eight openings, one turn: a is worth 1, and nothing else is worth anything.'''

    def __init__(self, prize=1.0):
        self.prize = prize

    def reset(self, row, seed):
        return f"s{row.get('number', seed % 8)}"

    def step(self, action):
        return Step("", self.prize * (action == "a"), done=True)
"""
PLAY = {"env": "world.py:Choice", "turn_tokens": 2, "timeout": 100}
OPTIMIZER = {"lr": 0.02}


def recipe(*overrides: str, **changes: object):
    values = {
        "name": "n",
        "model": "model",
        "task": {"trajectories": "log.jsonl", "heldout_data": "heldout.jsonl"},
        "steps": 40,
        "prompts_per_step": 16,
        "optimizer": OPTIMIZER,
        "checkpoint": {"every": 0},
        "eval": {"problems": 8, "samples": 4, "every": 20, "play": PLAY},
    }
    return make_recipe({**values, **changes}, overrides)


def run(name: str, *overrides: str, **changes: object) -> Path:
    folder = Path("runs") / name
    return train(recipe(*overrides, **changes), folder, command="c", console=QuietConsole())


def values(name: str, *overrides: str, **changes: object) -> Path:
    of_values = {"method": "qsft", "model": "runs/data/final", "bellman": {"rate": 0.2, "beta": 20.0}}
    return run(name, *overrides, **{**of_values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone of a log half of which is right, and values on top of it."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("played")
    os.chdir(folder)
    (folder / "world.py").write_text(WORLD)
    tiny_folder(folder / "model")
    rows = [
        {"turns": [{"observation": f"s{number}", "action": action, "reward": float(action == "a")}]}
        for number in range(8)
        for action in "ab"
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    apart = {
        "turns": [{"observation": "s9", "action": "a", "reward": 1.0}]
    }  # so that no opening lacks an action
    (folder / "heldout.jsonl").write_text(json.dumps(apart) + "\n")
    run("data", method="sft")
    values("values")
    yield folder
    os.chdir(before)


@pytest.fixture
def world(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def evals(name: str) -> list[dict]:
    return list(read_jsonl(Path("runs") / name / "eval.jsonl"))


def cli(*arguments: str):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def said(*arguments: str) -> str:
    """What a verb printed, without the frame of an error and its line breaks."""
    return " ".join(cli(*arguments).output.replace("│", " ").split())


def test_returns_are_in_eval_before_in_the_course_of_and_after_training(world):
    rows = evals("data")
    assert [row["step"] for row in rows] == [0, 20, 40]
    last = rows[-1]
    assert {"reward", "low", "high", "loss"} <= last.keys()
    assert (last["problems"], last["samples"], len(last["rewards"])) == (8, 4, 8)
    assert (last["turns"], last["prefill"]) == (1.0, 8 * len("s0"))  # an opening once for its four samples
    assert rows[0]["reward"] < 0.2 < last["reward"] < 0.8  # a clone is right as often as its log
    assert any(
        "held-out starts of world.py:Choice x 4" in line for line in describe_plan(recipe(method="sft"))
    )


def test_values_are_played_and_not_sampled(world):
    """p gives the dummy half of its probability and a the other; the player says a."""
    assert evals("values")[-1]["reward"] > 0.95
    loaded, player = open_model("runs/values/final", load_recipe("runs/values/config.yaml"))
    assert player is not None
    ids = torch.tensor([tiny_tokenizer()("s3", add_special_tokens=False).input_ids])
    p = loaded.model(input_ids=ids).logits[0, -1].softmax(-1)
    assert p[-1].item() > 0.3
    assert len(p) == len(VOCABULARY) + 1
    reference = load_policy("runs/data/final").model.state_dict()
    assert all(
        torch.equal(value, reference[name]) for name, value in player.behaviour.model.state_dict().items()
    )


def test_eval_gives_the_last_row_again_and_another_beta_another(world):
    result = cli("eval", "values", "--json")
    assert result.exit_code == 0, result.output
    again, last = json.loads(result.output.splitlines()[-1]), evals("values")[-1]
    for key in ("reward", "low", "high", "rewards", "entropy", "length"):
        assert again[key] == last[key], key
    assert klent.evaluate(klent.Run(Path("runs/values"))).reward == last["reward"]
    plain = json.loads(cli("eval", "values", "bellman.beta=0", "--json").output.splitlines()[-1])
    assert plain["reward"] < 0.8


def test_training_plays_with_the_weights_that_are_trained_and_is_resumed_bit_for_bit(world):
    plain = values("unplayed", "eval.play=null", "eval.samples=2", steps=3)
    whole, cut = values("whole", "eval.every=1", steps=3), values("cut", "eval.every=1", steps=2)
    extended = load_recipe(cut / "config.yaml", ["steps=3", "bellman.beta=20"])
    train(extended, cut, command="c", resume=True, console=QuietConsole())
    for other in (cut, plain):
        one, two = (folder / "checkpoints/000003/model.safetensors" for folder in (other, whole))
        assert one.read_bytes() == two.read_bytes()
    rewards = [{row["step"]: row["rewards"] for row in evals(name)} for name in ("whole", "cut")]
    assert rewards[0] == rewards[1]
    words = ("eval.play.env=world.py:Choice", "eval.play.turn_tokens=2", "eval.samples=4", "--json")
    late = json.loads(cli("eval", "unplayed", *words).output.splitlines()[-1])
    assert late["rewards"] == evals("whole")[-1]["rewards"]
    assert "eval.play.env=NAME" in said("eval", "unplayed")


def test_another_beta_may_come_with_a_resumed_run_and_is_recorded(world):
    folder = values("tilted", steps=1)
    changed = load_recipe(folder / "config.yaml", ["steps=2", "bellman.beta=3"])
    train(changed, folder, command="c", resume=True, console=QuietConsole())
    assert "bellman.beta" in (folder / "run.json").read_text()
    refused = load_recipe(folder / "config.yaml", ["steps=3", "bellman.min_behaviour=0.2"])
    with pytest.raises(ConfigError, match=r"bellman\.min_behaviour \(then 0\.01, now 0\.2\)"):
        train(refused, folder, command="c", resume=True, console=QuietConsole())


def test_the_model_of_the_data_that_is_gone_is_named_with_what_to_do(world):
    settings = load_recipe("runs/values/config.yaml", ["reference=./gone"])
    with pytest.raises(
        ModelError, match=r"gone.*the model of the data.*reference=FOLDER .*--behaviour FOLDER"
    ):
        open_model("runs/values/final", settings)
    assert "It is the model of the data" in said("sample", "values", "s1", "--behaviour", "./gone")


def test_sample_writes_with_the_player_and_refuses_its_options_elsewhere(world, monkeypatch):
    from klent.runs import sample as module

    used = []
    monkeypatch.setattr(
        module, "plain_sampler", lambda *given: used.append(plain_sampler(*given)) or used[-1]
    )
    shutil.copytree("runs/data/final", "moved", dirs_exist_ok=True)
    words = ("--beta", "3", "--behaviour", "moved", "--max-tokens", "5")
    assert cli("sample", "values", "s1", *words).exit_code == 0
    assert isinstance(used[0], ValueEngine)
    assert (used[0].beta, used[0].target.loaded.source) == (3.0, "moved")
    for name, why in (("data", "data learnt none"), ("model", "model is no run")):
        assert why in said("sample", name, "s1", "--beta", "3")
    assert "cannot be mixed with another model" in said("sample", "values", "s1", "--target", "model")
    assert "beta makes it greedier" in said("sample", "values", "s1", "--temperature", "0.5")


@pytest.mark.parametrize("policy", ["values", "runs/data/final", "model"])
def test_a_model_plays_and_its_record_is_a_log(world, policy):
    file = Path(f"{policy.replace('/', '-')}.jsonl")
    words = ("--episodes", "70", "--turn-tokens", "2", "--seed", "5", "--record", str(file))
    result = cli("play", "world.py:Choice", "--policy", policy, *words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 70
    assert all(list(row) == ["start", "seed", "turns", "return"] for row in rows)
    assert all(row["turns"][0]["observation"] == f"s{row['seed'] % 8}" for row in rows)
    earned = sum(row["return"] for row in rows) / 70
    assert f"return {earned:.3f}, mean of 70 episodes" in result.output
    assert "64 episodes played: 128 tokens read, " in result.output
    assert {"values": earned > 0.9, "runs/data/final": 0.2 < earned < 0.8, "model": earned < 0.2}[policy]
    assert load_task({"trajectories": str(file)}, seed=0, heldout=0).train(0).columns["rewards"] is not None


def test_a_model_begins_where_a_scripted_player_does_and_says_the_whole_start(world):
    words = ("--episodes", "3", "--config", "turns=2", "--seed", "7", "--record")
    assert cli("play", "maze", "--policy", "optimal", *words, "one.jsonl").exit_code == 0
    result = cli(
        "play", "maze", "--policy", "model", "--turn-tokens", "3", "--max-turns", "1", *words, "two.jsonl"
    )
    assert result.exit_code == 0, result.output
    assert "3 episodes cut at the limit of 1 turn (--max-turns)" in " ".join(result.output.split())
    one, two = (
        [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for scripted, played in zip(one, two, strict=True):
        assert (scripted["start"], scripted["seed"]) == (played["start"], played["seed"])
        assert scripted["turns"][0]["observation"] == played["turns"][0]["observation"]


def test_what_only_a_model_reads_is_refused_with_other_players(world):
    for words in (("--beta", "0"), ("--turn-tokens", "3")):
        assert f"{words[0]} is for a run or a model" in said("play", "maze", "--policy", "optimal", *words)
    assert "model is no run" in said("play", "maze", "--policy", "model", "--beta", "1")


def test_rows_of_a_file_are_all_held_out(world):
    Path("starts.jsonl").write_text("".join(json.dumps({"number": n}) + "\n" for n in range(5)))
    run(
        "rows",
        method="sft",
        steps=1,
        eval={"problems": 64, "samples": 1, "play": {**PLAY, "rows": "starts.jsonl"}},
    )
    assert evals("rows")[-1]["problems"] == 5


def test_a_constant_weight_learns_nothing_of_rewards(world):
    """The control: p is weight times the data's model, whatever an action earned, and the dummy has the rest."""
    folder = values("constant", bellman={"target": "constant", "weight": 0.6, "beta": 20.0}, steps=60)
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert {row["bellman/target"] for row in rows} == {0.6}
    ids = torch.tensor([tiny_tokenizer()("s3", add_special_tokens=False).input_ids])
    p, data = (
        load_policy(f"runs/{name}/final").model(input_ids=ids).logits[0, -1].softmax(-1)
        for name in ("constant", "data")
    )
    assert float(p[-1]) == pytest.approx(0.4, abs=0.1)
    for action in "ab":
        token = tiny_tokenizer().convert_tokens_to_ids(action)
        assert float(p[token] / data[token]) == pytest.approx(0.6, abs=0.2)
    assert not (folder / "checkpoints/000060/bellman.safetensors").exists()


def test_returns_are_played_against_the_reference_too(world):
    folder = values("returns", bellman={"target": "returns", "beta": 20.0})
    assert evals("returns")[-1]["reward"] > 0.95
    assert load_recipe(folder / "config.yaml", ["reference=model"]).reference == "model"


REFUSED = {
    "another task": (
        {"task": {"data": "d.jsonl"}},
        "eval.play: is for task: {trajectories: FILE}; this task has held-out problems of its own; remove it",
    ),
    "a turn longer than all": (
        {"rollout": {"max_tokens": 1}},
        "eval.play.turn_tokens: 2 is more than rollout.max_tokens (1)",
    ),
    "a reward model": ({"reward": {"model": "rm"}}, "would miss what is said between turns"),
    "temperatures of a player": (
        {"method": "qsft", "eval": {"temperatures": [0]}},
        "eval.temperatures: is not used: the player of values needs temperature 1",
    ),
    "a constant without a weight": (
        {"method": "qsft", "bellman": {"target": "constant"}},
        "bellman.weight: is missing: target constant gives it to every action",
    ),
    "a weight that nothing reads": (
        {"method": "qsft", "bellman": {"weight": 0.5}},
        "bellman.weight: is not used with target: bellman",
    ),
    "a rate without a network": (
        {"method": "qsft", "bellman": {"target": "returns", "rate": 0.5}},
        "bellman.rate: is not used with target: returns, which has no target network",
    ),
    "a discount that a constant does not read": (
        {
            "method": "qsft",
            "bellman": {"target": "constant", "weight": 0.5},
            "task": {"trajectories": "l.jsonl", "discount": 0.9},
        },
        "task.discount: is not used",
    ),
    "a tilt of no values": ({"bellman": {"beta": 3.0}}, "bellman: is not used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_nothing_reads(case):
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        recipe(**{"method": "sft", **changes})
    assert words in " ".join(str(error.value).split())


def test_what_another_trainer_calls_beta_is_the_kl(world):
    with pytest.raises(ConfigError, match=r"klent calls it `loss\.kl_in_loss\.coef`"):
        recipe(method="sft", beta=0.1)
