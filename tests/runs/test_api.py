"""klent.train, klent.evaluate and Run: everything that the command line does, from Python."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

import klent
from klent.errors import ConfigError, DataError, RunError
from klent.runs.train import train as resume_training

ROWS = [{"prompt": f"say {i}", "answer": str(i)} for i in range(20)]
SMALL: dict[str, Any] = {
    "prompts_per_step": 2,
    "group_size": 2,
    "rollout": {"max_tokens": 4},
    "eval": {"problems": 2, "samples": 1},
    "optimizer.lr": 1e-3,
    "quiet": True,
}


def letters(wish: str) -> Any:
    """A closure: the share of a completion's characters that are wished for."""

    def share(completions, log_metric, **columns):
        log_metric("asked", float(len(completions)))
        return [sum(ch in wish for ch in text) / max(len(text), 1) for text in completions]

    return share


class Judge:
    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.calls = 0

    def score(self, completions, answer, **columns):
        self.calls += 1
        return [self.scale * len(right) for right in answer]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a file of prompts, a recipe, and one finished run."""
    folder = tmp_path_factory.mktemp("api")
    tiny_folder(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = klent.train(
            model="model", task="prompts.jsonl", reward=letters("0123456789"), steps=2, name="done", **SMALL
        )
    assert run.path == Path("runs/done")
    return folder


@pytest.fixture(autouse=True)
def at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What klent.train asks the loop for; nothing is trained, a config.yaml is written."""
    calls: list[dict[str, Any]] = []

    def stand_in(recipe: Any, run: Path, **options: Any) -> Path:
        from klent.config import dump_recipe

        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(dump_recipe(recipe))
        calls.append({"recipe": recipe, "run": run, **options})
        return run

    monkeypatch.setattr("klent.runs.train.train", stand_in)
    return calls


def build(built: list[dict[str, Any]], *arguments: Any, **keywords: Any) -> Any:
    klent.train(*arguments, fresh=True, **keywords)
    return built[-1]["recipe"]


# a whole run


def test_a_run_from_keywords_alone_with_a_closure() -> None:
    run = klent.Run("runs/done")
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert all(0.0 <= row["reward/mean"] <= 1.0 for row in run.metrics)
    assert run.metrics[0]["reward/unscorable"] == 0.0
    assert run.metrics[0]["reward/asked"] == 4.0
    assert [row["step"] for row in run.evaluations] == [0, 2]
    assert run.report.stat().st_size > 10_000
    assert run.config.method == "grpo"
    assert run.config.optimizer.lr == 1e-3
    assert [reward.fn for reward in run.config.reward or ()] == ["python:share"]
    assert "share" in json.loads((run.path / "run.json").read_text())["command"]


def test_the_trained_model_is_loaded() -> None:
    model, tokenizer = klent.Run("runs/done").load()
    tokens = tokenizer("say 1", return_tensors="pt")
    assert model(**tokens).logits.shape[:2] == tokens.input_ids.shape


def test_how_a_run_shows_itself() -> None:
    run = klent.Run("runs/done")
    shown = repr(run)
    assert shown.startswith("Run('runs/done': steps 2 of 2, reward ")
    assert "held-out reward" in shown  # the share of digits: graded
    page = run._repr_html_()
    assert "runs/done/report.html" in page
    assert "2 of 2" in page


def test_no_run_there() -> None:
    with pytest.raises(RunError, match=r"model is not a run: it has no config\.yaml"):
        klent.Run("model")


def test_inside_a_running_event_loop() -> None:
    async def cell() -> klent.Run:
        return klent.train(
            model="model",
            task=ROWS[:8],
            reward=letters("abc"),
            name="cell",
            steps=1,
            **{**SMALL, "eval": None},
        )

    run = asyncio.run(cell())
    assert run.config.task.data == "runs/cell/prompts.jsonl"
    assert [json.loads(line) for line in (run.path / "prompts.jsonl").read_text().splitlines()] == ROWS[:8]
    with pytest.raises(ConfigError, match="started with other rows"):
        klent.train(
            model="model",
            task=ROWS[:7],
            reward=letters("abc"),
            name="cell",
            steps=1,
            resume=True,
            **{**SMALL, "eval": None},
        )


def test_in_a_thread_with_a_function_that_fails_in_every_way_and_a_method() -> None:
    def careful(completions, answer, **columns):
        import time

        if len(completions) > 1:
            raise RuntimeError("one at a time")
        if int(answer[0]) % 3 == 0:
            time.sleep(60)
        return [None if int(answer[0]) % 3 == 1 else 1.0]

    runs: list[klent.Run] = []
    judge = Judge(2.0)
    settings = {**SMALL, "prompts_per_step": 3, "eval": None, "seed": 8}

    def work() -> None:
        reward = [{"fn": careful, "timeout": 0.3}, {"fn": judge.score, "weight": 0}]
        runs.append(
            klent.train(
                model="model", task="prompts.jsonl", reward=reward, steps=1, name="thread", **settings
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (row,) = runs[0].metrics
    assert row["reward/unscorable"] == pytest.approx(2 / 3)  # answers 0, 1 and 2 modulo 3
    assert row["reward/mean"] == row["reward/careful"] == 1.0
    assert 2.0 <= row["reward/score"] <= 4.0  # answers have one or two digits
    assert judge.calls == 0


def test_a_stopped_run_is_resumed_with_its_function(world: Path) -> None:
    def fn(completions, **columns):
        return [float(len(set(text))) for text in completions]

    settings: dict[str, Any] = {
        **SMALL,
        "model": "model",
        "task": "prompts.jsonl",
        "checkpoint": {"every": 1},
    }
    whole = klent.train(name="whole", reward=fn, steps=3, **settings)
    cut = world / "runs" / "cut"
    shutil.copytree(whole.path, cut)
    config = (cut / "config.yaml").read_text().replace("name: whole", "name: cut")
    (cut / "config.yaml").write_text(config)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoints" / "000003")
    with pytest.raises(RunError, match=r"no trained model yet: .*klent\.train\(name='cut', resume=True\)"):
        klent.evaluate(klent.Run("runs/cut"))
    with pytest.raises(
        ConfigError, match=r"python:fn: .*klent\.train\(RECIPE, reward=fn\), with resume=True"
    ):
        klent.train(name="cut", resume=True, quiet=True)
    run = klent.train(name="cut", reward=fn, resume=True, quiet=True)
    kept = ("step", "reward/mean", "policy/entropy", "grad/norm")
    assert [[row[key] for key in kept] for row in run.metrics] == [
        [row[key] for key in kept] for row in whole.metrics
    ]
    assert (run.final / "model.safetensors").read_bytes() == (whole.final / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"started with other values of steps\. Continue it as it was"):
        klent.train(name="cut", reward=fn, steps=9, resume=True, quiet=True)


def test_the_command_line_asks_for_the_function() -> None:
    run = klent.Run("runs/done")
    with pytest.raises(ConfigError, match="it is a Python function, which a recipe or run folder names"):
        resume_training(run.config, run.path, command="klent resume runs/done", resume=True)


# the recipe that keywords make


def test_overrides_nested_and_dotted_lie_over_the_recipe(built: list[dict[str, Any]]) -> None:
    (Path("mine.yaml")).write_text(
        "model: model\nmethod: rloo\ntask: {data: prompts.jsonl, system: be brief}\nreward: exact\nsteps: 9\n"
        "optimizer: {lr: 0.1, weight_decay: 0.5}\nloss: {kl_in_loss: {coef: 0.1}}\n"
    )
    recipe = build(
        built,
        "mine.yaml",
        steps=4,
        optimizer={"lr": 0.2},
        loss={"kl_in_loss": None},
        **{"rollout.max_tokens": 7, "optimizer.eps": 1e-6},
    )
    assert (recipe.name, recipe.method, recipe.steps) == ("mine", "rloo", 4)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.eps) == (0.2, 0.5, 1e-6)
    assert recipe.rollout.max_tokens == 7
    assert "kl_in_loss" not in recipe.loss
    assert recipe.task.system == "be brief"
    assert built[-1]["command"].startswith("klent.train('mine.yaml', steps=4, optimizer={'lr': 0.2}")
    from klent.config import load_recipe

    assert recipe == load_recipe(
        "mine.yaml",
        ["steps=4", "optimizer.lr=0.2", "loss.kl_in_loss=null", "rollout.max_tokens=7", "optimizer.eps=1e-6"],
    )


def test_a_mapping_is_a_recipe_and_keywords_lie_over_it(built: list[dict[str, Any]]) -> None:
    values = {
        "name": "dict",
        "model": Path("model"),
        "task": {"gym": "chain_sum"},
        "method": "rloo",
        "steps": 3,
    }
    recipe = build(
        built, {**values, "reward": letters("x")}, reward=["exact", letters("y")], task="prompts.jsonl"
    )
    assert (recipe.name, recipe.method, recipe.model, recipe.steps) == ("dict", "rloo", "model", 3)
    assert recipe.task.data == "prompts.jsonl"
    assert [reward.fn for reward in recipe.reward] == ["exact", "python:share"]
    assert built[-1]["rewards"]["share"](["y"], print) == [1.0]


def test_a_shipped_recipe_by_name(built: list[dict[str, Any]]) -> None:
    recipe = build(built, "quickstart", reward={letters("x"): 0.5, "gym": 1.0}, **{"eval.reward": "gym"})
    assert [(reward.fn, reward.weight) for reward in recipe.reward] == [("python:share", 0.5), ("gym", 1.0)]
    assert [reward.fn for reward in recipe.eval.reward] == ["gym"]
    assert recipe.method is not None


def test_a_loss_of_ones_own_needs_no_method(built: list[dict[str, Any]]) -> None:
    recipe = build(
        built,
        model="model",
        task="prompts.jsonl",
        reward="exact",
        steps=1,
        loss={"reinforce": {}},
        name="own",
    )
    assert recipe.method is None
    assert list(recipe.loss) == ["reinforce"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"optimizer": {"lr": -1.0}},
            r"klent\.train: optimizer={lr: -1\.0}: optimizer\.lr: should be greater than 0; got",
        ),
        ({"optimizer.lr": -1.0}, r"klent\.train: optimizer\.lr=-1\.0: should be greater than 0"),
        ({"learning_rate": 1e-4}, r"klent calls it `optimizer\.lr`"),
        ({"loss": len}, r"klent\.train: loss: a recipe cannot hold a builtin_function.*only a reward may be"),
        ({"reward": object()}, r"klent\.train: reward: a recipe cannot hold a object"),
        ({"reward": "exakt"}, r"did you mean `exact`"),
        ({"resume": True, "fresh": True}, "choose one"),
        ({"task": [{"prompt": {1, 2}}]}, r"task: row 1 cannot be written as JSON"),
    ],
)
def test_what_is_refused(built: list[dict[str, Any]], keywords: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {
        "model": "model",
        "task": "prompts.jsonl",
        "reward": "exact",
        "steps": 1,
        "name": "no",
    }
    with pytest.raises((ConfigError, DataError), match=message):
        klent.train(**{**fine, **keywords})
    assert built == []


def test_a_run_that_exists(built: list[dict[str, Any]]) -> None:
    fine: dict[str, Any] = {
        "model": "model",
        "task": "prompts.jsonl",
        "reward": "exact",
        "steps": 1,
        "name": "twice",
    }
    klent.train(**fine, resume=True)  # nothing to resume yet
    assert built[-1]["resume"] is False
    with pytest.raises(RunError, match=r"resume=True to continue .* fresh=True .* name='twice-2'"):
        klent.train(**fine)
    klent.train(name="twice", resume=True)
    assert built[-1]["resume"] is True
    assert built[-1]["recipe"] == built[0]["recipe"]
    klent.train(**fine, fresh=True)
    assert Path("runs/twice.1/config.yaml").is_file()
    klent.train(**fine, runs="elsewhere")
    assert Path("elsewhere/twice/config.yaml").is_file()


# evaluation


def test_evaluate_a_run_as_its_recipe_says() -> None:
    run = klent.Run("runs/done")
    evaluation = klent.evaluate(run, reward=letters("0123456789"))
    last = run.evaluations[-1]
    bounds = ("accuracy", "low", "high", "reward_low", "reward_high")
    assert [getattr(evaluation, name) for name in bounds] == [last.get(name) for name in bounds]
    assert evaluation.reward == last["reward"]
    assert evaluation.entropy == pytest.approx(last["entropy"])
    assert (evaluation.problems, evaluation.samples) == (2, 1)
    assert evaluation.row["unscorable"] == 0.0
    assert repr(evaluation).startswith(("Evaluation(mean reward 0.", "Evaluation(accuracy 0."))


def test_evaluate_a_model_on_rows() -> None:
    always = lambda completions, **columns: [1.0] * len(completions)  # noqa: E731
    seen = klent.evaluate("model", ROWS[:5], always, samples=2, rollout={"max_tokens": 2})
    assert (seen.accuracy, seen.problems, seen.samples, seen.reward) == (1.0, 5, 2, 1.0)
    few = klent.evaluate("model", "prompts.jsonl", "exact", problems=3, samples=1, rollout={"max_tokens": 2})
    assert (few.problems, few.accuracy) == (3, 0.0)
    assert few.row["length"] <= 2
    part = klent.evaluate("model", {"data": "prompts.jsonl"}, "exact", samples=1, rollout={"max_tokens": 2})
    assert part.problems == 2  # a tenth of them is held out


def test_evaluate_needs_a_reward() -> None:
    with pytest.raises(ConfigError, match=r"reward"):
        klent.evaluate("model", ROWS)


# imports


def test_import_klent_loads_nothing_heavy() -> None:
    code = (
        "import sys, klent; assert klent.__all__; dir(klent)\n"
        "heavy = {'torch', 'pydantic', 'transformers', 'yaml', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from klent import Run, train; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_of_a_refused_start_leave_no_folder(world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(klent.errors.ModelError):
        klent.train(model="./nothing", task=ROWS, reward=letters("0"), steps=1, **SMALL)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "mine.txt").write_text("keep")
    with pytest.raises(RunError):
        klent.train(model=str(world / "model"), task=ROWS, reward=letters("0"), steps=1, **SMALL)
    assert [file.name for file in (tmp_path / "runs" / "run").iterdir()] == ["mine.txt"]


def test_a_run_is_watched_while_it_goes_on_and_its_page_ends_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python, and by the verb that goes on with a run."""
    from typer.testing import CliRunner

    from klent.cli import app
    from klent.runs import watching

    begun: list[subprocess.Popen[str]] = []

    def started(*arguments: Any, **named: Any) -> subprocess.Popen[str]:
        begun.append(subprocess.Popen(*arguments, **named))
        return begun[-1]

    stand_in = types.SimpleNamespace(Popen=started, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(watching, "subprocess", stand_in)
    (Path() / "always.py").write_text(
        "def one(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    klent.train(
        model="model", task="prompts.jsonl", reward="always.py:one", steps=1, name="seen", watch=True, **SMALL
    )
    assert re.fullmatch(r"watch: http://127\.0\.0\.1:\d+/\n", capsys.readouterr().out)
    assert begun[0].wait(60) == 0
    result = CliRunner().invoke(app, ["resume", "seen", "steps=+1", "--watch", "--yes"])
    assert result.exit_code == 0, result.output
    assert "watch: http://127.0.0.1:" in result.output
    assert begun[1].wait(60) == 0
    assert "--until-input-ends" in begun[1].args
