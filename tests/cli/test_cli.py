"""The command line: what each verb passes on, prints and answers. Nothing here loads a model."""

import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

import klent
from klent.cli import app, common
from klent.config import recipes_folder
from klent.errors import RunError

RECIPE = """\
model: some/model
method: grpo
task: {gym: chain_sum, config: {min_terms: 2, max_terms: 3}}
reward: gym
steps: 4
"""
VERBS = [
    ["data"],
    ["train"],
    ["resume"],
    ["eval"],
    ["sample"],
    ["chat"],
    ["export"],
    ["play"],
    ["report"],
    ["runs"],
    ["compare"],
    ["watch"],
    ["doctor"],
    ["recipes", "ls"],
    ["recipes", "show"],
    ["recipes", "cp"],
    ["models", "ls"],
    ["models", "pull"],
]


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


_TASKS: dict[str, object] = {}


@pytest.fixture(autouse=True)
def tasks_load_once(monkeypatch):
    """A generator is a process of its own: every distinct task is really loaded, but once for all tests."""
    from klent import tasks

    load_task = tasks.load_task

    def load_once(section, **options):
        key = repr((section, sorted(options.items())))
        if key not in _TASKS:
            _TASKS[key] = load_task(section, **options)
        return _TASKS[key]

    monkeypatch.setattr(tasks, "load_task", load_once)


@pytest.fixture
def run(workdir, monkeypatch):
    for console in (common.out, common.err):
        monkeypatch.setattr(console, "_width", 200)  # whatever terminal the tests run in

    def run(*arguments: str):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)

    return run


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """Calls of the trainer, which does nothing but leave a run folder."""
    calls: list[dict] = []

    def train(recipe, run, **options):
        from klent.config import dump_recipe

        calls.append({"recipe": recipe, "run": run, **options})
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(dump_recipe(recipe))
        return run

    monkeypatch.setitem(sys.modules, "klent.runs.train", types.SimpleNamespace(train=train))
    return calls


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); sys.argv = ['klent', '--help']\n"
        "from klent.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time() - start, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, imported = done.stdout.splitlines()[-1].split(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 2.0
    assert "Train a model with a recipe." in done.stdout


def test_the_installed_command_is_this_one():
    done = subprocess.run(
        [sys.executable, "-c", "from klent.cli import main; main()", "--version"], capture_output=True
    )
    assert done.stdout.decode().strip() == f"klent {klent.__version__}"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example(run, verb):
    result = run(*verb, "--help")
    assert result.exit_code == 0
    assert (
        f"klent {' '.join(verb)}" in result.output.split("Options")[0].split("Usage", 1)[1].split("\n", 1)[1]
    )


def test_no_argument_shows_help(run):
    assert "Commands" in run().output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train"], 2),
        (["train", "my.yaml", "--steps", "3"], 2),
        (["train", "my.yaml", "stepz=3"], 2),
        (["train", "nowhere.yaml"], 2),
        (["train", "my.yaml", "--resume", "--fresh"], 2),
        (["eval", "some/model"], 2),
        (["recipes", "show"], 2),
        (["resume", "nowhere"], 1),
        (["report", "nowhere"], 1),
        (["models", "pull", "nowhere"], 1),
        (["fly"], 2),
    ],
)
def test_exit_codes_of_mistakes(run, arguments, code):
    result = run(*arguments)
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_a_refusal_is_a_panel_without_a_traceback(run):
    result = run("train", "my.yaml", "stepz=3", "lr=1")
    assert "2 problems in the recipe:" in result.stderr
    assert "command line: stepz=3: unknown key; did you mean `steps`?" in result.stderr
    assert "╭─ recipe or option refused" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["grpo"], "grpo is a method, not a recipe: klent train quickstart method=grpo"),
        (["my.yaml", "lora=true"], "Write lora={} for the defaults"),
        (["my.yaml", "lora.r=8"], "klent calls it `lora.rank`"),
        (["my.yaml", "track=tensorboard"], "Write track=[tensorboard]"),
        (["my.yaml", "device=gpu"], "should be auto, cpu, cuda or cuda:N"),
        (
            ["my.yaml", "rollout.engine=sglang"],
            "got 'sglang'. klent samples",
        ),
    ],
)
def test_a_habit_from_elsewhere_gets_an_answer_that_helps(run, arguments, answer):
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert answer in result.stderr


def test_debug_adds_the_traceback(run, monkeypatch):
    monkeypatch.setattr("klent.cli.common._debug", False)
    result = run("train", "my.yaml", "stepz=3", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_other_errors_of_klent_exit_with_1(run, monkeypatch):
    def train(*_, **__):
        raise RunError("the disk is full: make room")

    monkeypatch.setitem(sys.modules, "klent.runs.train", types.SimpleNamespace(train=train))
    result = run("train", "my.yaml")
    assert result.exit_code == 1
    assert "the disk is full: make room" in result.stderr


def test_an_interrupt_exits_with_130(run, monkeypatch):
    def train(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "klent.runs.train", types.SimpleNamespace(train=train))
    assert run("train", "my.yaml").exit_code == 130


def test_the_trainer_takes_what_the_command_line_passes():
    from klent.runs.train import train

    inspect.signature(train).bind("recipe", Path("run"), command="klent train", resume=True, console=None)


def test_train_passes_everything_on(run, trained):
    assert run("train", "my.yaml", "steps=7", "name=x", "--runs", "out").exit_code == 0
    (call,) = trained
    assert (call["recipe"].steps, call["run"], call["resume"]) == (7, Path("out/x"), False)
    assert call["command"] == "klent train my.yaml steps=7 name=x --runs out"


def test_train_resume_starts_or_goes_on(run, trained):
    assert run("train", "my.yaml", "--resume").exit_code == 0
    assert run("train", "my.yaml", "--resume").exit_code == 0
    assert [call["resume"] for call in trained] == [False, True]


def test_train_resume_refuses_another_recipe(run, trained):
    run("train", "my.yaml")
    result = run("train", "my.yaml", "steps=9", "seed=2", "--resume")
    assert result.exit_code == 2
    assert "was started with other values of steps, seed" in result.stderr
    assert len(trained) == 1


def test_fresh_moves_earlier_runs_aside(run, trained, workdir):
    for _ in range(3):
        assert run("train", "my.yaml", "--fresh").exit_code == 0
    assert sorted(path.name for path in (workdir / "runs").iterdir() if path.is_dir()) == [
        "my",
        "my.1",
        "my.2",
    ]
    assert [call["resume"] for call in trained] == [False] * 3


def test_fresh_leaves_a_run_in_use_alone(run, trained, workdir):
    from klent.runs.folder import RunFolder

    run("train", "my.yaml")
    with RunFolder.open(workdir / "runs" / "my"):
        result = run("train", "my.yaml", "--fresh")
    assert result.exit_code == 1
    assert "is in use by" in result.stderr
    assert not (workdir / "runs" / "my.1").exists()


def test_resume_finds_a_run_by_folder_and_by_name(run, trained):
    run("train", "my.yaml", "steps=7")
    for name in ("runs/my", "my"):
        assert run("resume", name).exit_code == 0
        assert trained[-1]["recipe"].steps == 7
        assert (trained[-1]["run"], trained[-1]["resume"]) == (Path("runs/my"), True)


def test_a_missing_run_is_answered_with_those_there_are(run, trained):
    run("train", "my.yaml")
    assert "runs holds my" in run("resume", "mine").stderr


def test_dry_run_shows_recipe_and_plan_and_writes_nothing(run, workdir, trained):
    before = sorted(workdir.rglob("*"))
    result = run("train", "my.yaml", "--dry-run", "loss.kl_in_loss.coef=0.1", "update.epochs=2")
    assert result.exit_code == 0, result.output
    assert sorted(workdir.rglob("*")) == before
    assert trained == []
    for part in (
        "clip_low: 0.2",
        "# each step: 8 prompts of chain_sum x 8 completions, at most 256 tokens each",
        "# loss: kl_in_loss(coef=0.1, divergence=reverse) reads logp, logp_old, logp_ref",
        "# reference model: the policy as it was at the start",
        "# update: 2 optimizer steps",
        "# log-probs at the start of the step: one more forward pass",
        "# in total: 4 steps, 256 completions",
        "# first prompt: ",
        "# would write runs/my; this was a dry run",
    ):
        assert part in result.output
    (workdir / "again.yaml").write_text(result.output)
    assert run("train", "again.yaml", "--dry-run").output == result.output


@pytest.mark.parametrize("name", sorted(file.stem for file in recipes_folder().glob("*.yaml")))
def test_every_shipped_recipe_dry_runs(run, name):
    result = run("train", name, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"would write runs/{name}" in result.output


def test_a_dry_run_refuses_what_the_generator_refuses(run):
    result = run("train", "my.yaml", "task.config.min_term=3", "--dry-run")
    assert result.exit_code == 2
    assert "did you mean `min_terms`" in result.stderr


def test_recipes_ls_and_show(run):
    listed = run("recipes", "ls").output
    for name in ("quickstart", "sft", "grpo_kl_loss", "dr_grpo", "gspo"):
        assert name in listed
    shown = run("recipes", "show", "quickstart").output
    assert shown.strip() == (recipes_folder() / "quickstart.yaml").read_text().strip()
    assert "group_advantage" in run("recipes", "show", "grpo").output
    assert "cross_entropy" in run("recipes", "show", "methods/sft").output


def test_recipes_show_fields_has_every_key_with_a_meaning():
    from klent.config import describe_fields

    rows = {key: (default, meaning) for key, default, meaning in describe_fields()}
    assert rows["rollout.temperature"][0] == "1.0"
    assert rows["model"][0] == "required"
    assert {"task.gym", "task.data", "lora.rank", "limits.nonfinite_steps", "track"} <= set(rows)
    assert [key for key, (_, meaning) in rows.items() if not meaning] == []


def test_recipes_show_fields_prints_them(run):
    output = run("recipes", "show", "--fields").output
    assert "optimizer.max_grad_norm" in output
    assert "Sampling temperature" in output


def test_recipes_cp_gives_a_recipe_that_loads(run, workdir):
    (workdir / "own").mkdir()
    assert run("recipes", "cp", "sft", "own").exit_code == 0
    assert (workdir / "own" / "sft.yaml").read_text() == (recipes_folder() / "sft.yaml").read_text()
    assert (workdir / "own" / "data" / "sums.jsonl").is_file()
    assert "completions read from own/data/sums.jsonl" in run("train", "own/sft.yaml", "--dry-run").output
    again = run("recipes", "cp", "sft", "own")
    assert again.exit_code == 1
    assert "own/sft.yaml exists; pass --force" in again.stderr
    assert run("recipes", "cp", "sft", "own", "--force").exit_code == 0


@pytest.mark.parametrize("name", sorted(file.stem for file in (recipes_folder() / "studies").glob("*.yaml")))
def test_a_shipped_study_is_planned_listed_and_copied_with_its_data(run, workdir, name):
    planned = run("study", name, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert f"would write runs/{name}" in planned.output
    assert name in run("recipes", "ls").output
    (workdir / "own").mkdir()
    copied = run("recipes", "cp", name, "own")
    assert copied.exit_code == 0, copied.stderr
    assert f"train it with: klent study own/{name}.yaml" in copied.output
    assert "own/data/sums.jsonl" in run("study", f"own/{name}.yaml", "--dry-run").output
    as_recipe = run("train", name)
    assert as_recipe.exit_code == 2
    assert f"klent study {name}" in as_recipe.stderr
    wrong = run("study", f"{name}x")
    assert wrong.exit_code == 2
    assert f"did you mean `{name}`" in wrong.stderr


def test_models_ls(run):
    assert "smollm2-135m" in run("models", "ls").output


def test_doctor(run):
    output = run("doctor").output
    for entry in ("python", "torch", "transformers", "device", "extra tasks", "extra wandb", "cache", "disk"):
        assert entry in output
    assert "smollm2-135m" in output


def test_doctor_says_what_to_install(run, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else real(name))
    assert "pip install 'klent[lora]'" in run("doctor").output
    needed = run("doctor", "--recipe", "quickstart", "lora.rank=8", "model=./nowhere/x", "reward=exact")
    assert needed.exit_code == 1
    said = " ".join(needed.output.split())
    assert "missing model there is no model folder at ./nowhere/x" in said
    assert "missing extra lora for low-rank adapters (lora): pip install 'klent[lora]'" in said
    assert "ok extra tasks" in said
    assert "tensorboard" not in said
    assert run("doctor", "--recipe", "quickstart", "--rollout", "quickstart").exit_code == 2


def test_doctor_knows_every_extra():
    import tomllib

    from klent.runs.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"all", "dev"}


def test_eval_of_graded_and_of_unscorable_answers(run, trained, monkeypatch):
    rows = [
        {
            "reward": 0.3,
            "reward_low": 0.2,
            "reward_high": 0.4,
            "problems": 9,
            "samples": 2,
            "temperature": 1.0,
        },
        {"reward": None, "problems": 9, "samples": 2, "unscorable_why": {"f raised KeyError": 18}},
    ]
    monkeypatch.setattr("klent.runs.evaluate.evaluate_model", lambda *_, note: rows.pop(0))
    graded = run("eval", "a/b", "--recipe", "my.yaml").output
    assert "mean reward at temperature 1: 0.300 (95% interval 0.200 to 0.400)" in graded
    assert "accuracy" not in graded
    nothing = run("eval", "a/b", "--recipe", "my.yaml").output
    assert "no completion could be scored" in nothing
    assert "held out, 18 completions unscorable: f raised KeyError" in nothing
    assert "interval" not in nothing


def test_eval_of_a_run_uses_its_final_model_and_recipe(run, trained, workdir, monkeypatch):
    seen = []

    def evaluate_model(model, recipe, note):
        seen.append((model, recipe))
        greedy = {"accuracy@0": 0.75, "low@0": 0.7, "high@0": 0.8, "reward@0": 0.75}
        own = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "reward": 0.5, "temperature": 1.0, **greedy}
        return own | {"problems": 9, "samples": 2, "entropy": 1.25}

    monkeypatch.setattr("klent.runs.evaluate.evaluate_model", evaluate_model, raising=False)
    run("train", "my.yaml")
    assert "has no final model yet; finish it with `klent resume runs/my`" in run("eval", "my").stderr
    (workdir / "runs" / "my" / "final").mkdir()
    result = run("eval", "my", "eval.problems=9")
    assert result.exit_code == 0, result.output
    (model, recipe) = seen[-1]
    assert (model, recipe.model, recipe.eval.problems) == ("runs/my/final", "some/model", 9)
    assert "9 problems x 2 samples" in result.output
    assert "accuracy at temperature 1: 0.500 (95% interval 0.400 to 0.600)" in result.output
    assert "accuracy greedily (one sample): 0.750 (95% interval 0.700 to 0.800)" in result.output
    assert "mean reward at temperature 1: 0.500" in result.output
    assert "entropy: 1.250" in result.output
    assert run("eval", "a/b", "--recipe", "my.yaml", "--json").output.startswith('{"accuracy": 0.5')
    assert seen[-1][0] == "a/b"


def test_eval_refuses_problems_that_the_run_may_have_trained_on(run, trained, workdir, monkeypatch):
    monkeypatch.setattr("klent.runs.evaluate.evaluate_model", lambda model, recipe: pytest.fail("measured"))
    run("train", "my.yaml")
    (workdir / "runs" / "my" / "final").mkdir()
    result = run("eval", "my", "eval.problems=500")
    assert result.exit_code == 2
    assert "eval.problems=500, but the run held out only" in " ".join(result.stderr.split())


def test_eval_without_evaluation_in_the_recipe(run):
    result = run("eval", "a/b", "--recipe", "my.yaml", "eval=null")
    assert result.exit_code == 2
    assert "eval.problems=64" in result.stderr


def test_sample_prints_completions(run, monkeypatch):
    seen = {}

    def sample(model, prompt, **options):
        seen.update(options, model=model, prompt=prompt)
        return ["one [bold]", "two"]

    monkeypatch.setitem(sys.modules, "klent.runs.sample", types.SimpleNamespace(sample=sample))
    result = run("sample", "a/b", "Hi", "-n", "2", "--temperature", "0.5")
    assert result.exit_code == 0, result.output
    assert (seen["model"], seen["prompt"], seen["count"], seen["temperature"]) == ("a/b", "Hi", 2, 0.5)
    assert "one [bold]\n" in result.output
    assert "two\n" in result.output


def test_sample_between_two_models(run, monkeypatch):
    seen = {}

    def sample_mixture(model, target, prompt, **options):
        seen.update(options, model=model, target=target, prompt=prompt)
        numbers = [0.25, 0.75]
        return [
            types.SimpleNamespace(
                text="so [b]",
                tokens=["so", " [b]"],
                alpha=numbers,
                kl_policy=[0.01, 0.6],
                kl_target=numbers,
                log_weight=[-1.0, 0.5],
            )
        ]

    sampler = types.SimpleNamespace(sample_mixture=sample_mixture)
    monkeypatch.setitem(sys.modules, "klent.runs.sample", sampler)
    result = run("sample", "--policy", "a/b", "--target", "c/d", "--alpha", "ess=0.5", "Hi")
    assert result.exit_code == 0, result.output
    assert (seen["model"], seen["target"], seen["prompt"], seen["alpha"]) == ("a/b", "c/d", "Hi", "ess=0.5")
    assert [line.split() for line in result.output.splitlines()[:5]] == [
        ["so", "[b]"],
        [],
        ["so", "·[b]"],
        ["alpha", "0.25", "0.75"],
        ["KL", "0.01", "0.60"],
    ]
    assert "alpha 0.500, KL to the model 0.305 and to the target 0.500" in result.output
    assert "exp(-0.50)" in result.output
    run("sample", "a/b", "Hi", "--target-prompt", "{prompt}!")
    assert (seen["target"], seen["target_prompt"]) == ("a/b", "{prompt}!")
    refused = run("sample", "a/b", "two", "words")
    assert refused.exit_code == 2
    assert "expected a model and a prompt, got 3" in refused.stderr


def test_temperature_0_is_greedy(run, monkeypatch):
    from klent.runs import engines
    from klent.runs import sample as module

    seen = {}

    class Engine:
        def __init__(self, loaded, options, **work):
            seen["temperature"] = options.temperature

        def generate(self, prompts, *, group_size, seed):
            return []

    monkeypatch.setattr(
        module,
        "load_policy",
        lambda name, device: types.SimpleNamespace(tokenizer=types.SimpleNamespace(chat_template=None)),
    )
    monkeypatch.setattr(engines, "TransformersEngine", Engine)
    assert run("sample", "a/b", "Hi", "--temperature", "0").exit_code == 0
    assert seen == {"temperature": 0.0}
    assert "0 is greedy" in run("sample", "--help").output
    assert run("sample", "a/b", "Hi", "--temperature", "-1").exit_code == 2


def test_report_prints_where_the_page_is(run, trained, monkeypatch):
    monkeypatch.setattr("klent.report.write_report", lambda run: run / "report.html")
    run("train", "my.yaml")
    assert run("report", "my").output.strip() == "report: runs/my/report.html"
