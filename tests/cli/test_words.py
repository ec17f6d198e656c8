"""Whatever is typed and whatever a file holds: an exit code and a sentence, never a traceback."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from klent.cli import app, common
from klent.config import describe_fields

RECIPE = """\
model: ./nothing
method: grpo
task: {data: prompts.jsonl}
reward: exact
steps: 2
"""
KEYS = [key for key, _, _ in describe_fields()]
VALUES = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "3000000",
    "1e400",
    ".nan",
    "-.inf",
    "9" * 5000,
    "1" + "0" * 400,
    '""',
    '[""]',
    "[]",
    "{}",
    "[[[]]]",
    "{a: {b: 1}}",
    '"\\0"',
    '"\\uD800"',
    '"../../x"',
    "a" * 300,
    "/",
    ".",
    "x.jsonl",
    "my.yaml",
    "nowhere.py:f",
    "exact",
    "grpo",
    "&a [*a]",
    "&a {b: *a}",
    "[" * 3000,
    "{a: " * 3000,
    "!!python/object/apply:os.system [ls]",
    "*a",
    "\x1b[31m",
    "é\u202e",
]
FILES = {
    "bytes.yaml": b"\xff\xfe\x00",
    "deep.yaml": b"a: " + b"[" * 100_000,
    "block.yaml": b"\n".join(b" " * i + b"a:" for i in range(2000)),
    "bomb.yaml": b"a0: &a0 [x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
    "digits.yaml": RECIPE.encode() + b"seed: " + b"9" * 5000,
    "list.yaml": b"- a\n- b\n",
    "empty.yaml": b"",
    "loop.yaml": b"a: &a {b: *a}",
    "long.yaml": b"a: b # " + b"x" * 2_000_000,
    "my.yaml": RECIPE.encode(),
}
LINES = [
    b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
    b'{"prompt": ' + b"[" * 50_000,
    b'{"prompt": "\\ud800"}',
    b'{"prompt": {"a": 1}}',
    b'{"prompt": NaN}',
    b'{"prompt": null}',
    b"\xff",
    b"[]",
    b"",
    b'{"prompt": "\x00"}',
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    rows = "".join(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(20))
    (tmp_path / "prompts.jsonl").write_text(rows)
    for console in (common.out, common.err):
        monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)

    return run


def answered(result: Result) -> None:
    """It ended with a status, and said why where that is not 0."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"a traceback: {result.exception!r}") from result.exception
    assert result.exit_code == 0 or result.output.strip()
    assert "Traceback" not in result.output
    assert not {"\x1b", "\u202e"} & set(result.output)


QUIET = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(st.sampled_from(KEYS), st.sampled_from(VALUES))
def test_any_value_of_any_key(run, key, value):
    answered(run("train", "my.yaml", f"{key}={value}", "--dry-run"))


VERBS = [
    ["train", "--dry-run"],
    ["train"],
    ["resume"],
    ["report"],
    ["eval"],
    ["eval", "--recipe"],
    ["sample", "./nothing"],
    ["sample", "./nothing", "Hi", "--alpha"],
    ["sample", "./nothing", "Hi", "--target", "./nothing", "--alpha"],
    ["sample", "./nothing", "Hi", "--top-p"],
    ["sample", "./nothing", "Hi", "--temperature"],
    ["sample", "./nothing", "Hi", "--max-tokens"],
    ["sample", "./nothing", "Hi", "--seed"],
    ["play"],
    ["play", "maze", "--policy"],
    ["play", "maze", "--config"],
    ["play", "maze", "--policy", "random", "--seed"],
    ["recipes", "show"],
    ["recipes", "cp"],
    ["recipes", "cp", "sft"],
    ["compare", "--dry-run"],
    ["compare", "my.yaml", "--dry-run", "--over"],
    ["select", "my.yaml", "--by"],
    ["select", "my.yaml", "--out"],
    ["controls", "--no-train"],
    ["audit"],
    ["audit", "reinforce"],
    ["models", "pull"],
    ["claims"],
    ["nothing"],
]


@QUIET
@given(st.sampled_from(VERBS), st.one_of(st.sampled_from([*FILES, *VALUES]), st.text(max_size=20)))
def test_any_argument_of_any_verb(run, verb, argument):
    if verb[0] == "audit" and "=" not in argument:
        argument = f"coef={argument}" if len(verb) > 1 else argument
    answered(run(*verb, argument))


@pytest.mark.parametrize("name", [name for name in FILES if name != "my.yaml"])
def test_files_that_are_no_recipe(run, name):
    for verb in (["train"], ["recipes", "cp"], ["compare"], ["eval", "./nothing", "--recipe"]):
        result = run(*verb, name)
        answered(result)
        assert result.exit_code != 0


def test_a_recipe_that_is_no_text_cannot_be_shown(run):
    result = run("recipes", "show", "bytes.yaml")
    answered(result)
    assert result.exit_code == 1
    assert "bytes.yaml is not UTF-8 text" in result.output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.stop=['']", "rollout.stop"),
        ("reward={exact: {}}", ""),
        ("reward=[{fn: exact, timeout: 3000000}]", "at most 1,000,000"),
        ("seed=" + "9" * 5000, "a number of 5,000 digits"),
        ("name=" + "a" * 300, "at most 200 characters"),
        ("rollout=" + "[" * 40, "nested more than 32 levels deep"),
        ("rollout=&a [*a]", "nested more than 32 levels deep"),
    ],
)
def test_values_that_no_run_could_use(run, override, message):
    result = run("train", "my.yaml", override, "--dry-run")
    answered(result)
    assert result.exit_code == (2 if message else 0)
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("line", LINES)
def test_rows_that_are_no_data(run, tmp_path, line):
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n' * 3 + line + b"\n")
    answered(run("train", "my.yaml", "--dry-run"))


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b'{"step": ' + b"[" * 50_000, b'{"step": "x"}\n', b"[]\n"]
)
@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "eval.jsonl", "run.json", "samples.jsonl"])
def test_run_folders_that_are_damaged(run, tmp_path, file, content):
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RECIPE)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    (folder / file).write_bytes(content)
    answered(run("report", "r"))
    answered(run("resume", "r"))


def test_an_alias_bomb_costs_no_time_in_the_report_either(run, tmp_path):
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes(FILES["bomb.yaml"])
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    answered(run("report", "r"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "some/file: no space left on device. Free space on that disk"),
        (errno.EACCES, "some/file: permission denied. Change its permissions"),
        (errno.ENAMETOOLONG, "some/file: file name too long. Choose a shorter name."),
        (errno.EIO, "some/file: input/output error. --debug shows where."),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(run, monkeypatch, number, message):
    import os

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("klent.config.load_recipe", refuse)
    result = run("train", "my.yaml")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" in run("--debug", "train", "my.yaml").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "-1 is no temperature"),
        (["--temperature", "nan"], "nan is no temperature"),
        (["--temperature", "inf"], "inf is no temperature"),
        (["--target-temperature", "nan"], "nan is no temperature"),
        (["--top-p", "nan"], "nan is not in (0, 1]"),
        (["--top-p", "0"], "0 is not in (0, 1]"),
        (["--top-p", "1.5"], "1.5 is not in (0, 1]"),
        (["--top-k", "-1"], "--top-k"),
        (["--target", "./nothing", "--alpha", "nan"], "--alpha nan: expected a number in [0, 1]"),
        (["--target", "./nothing", "--alpha", "kl_budget=nan"], "expected a number in [0, 1]"),
        (["--target", "./nothing", "--alpha", "kl_budget=0"], "kl_budget must be more than 0 nats"),
        (["--target", "./nothing", "--alpha", "ess=2"], "ess must lie in (0, 1]"),
    ],
)
def test_options_of_sample_out_of_range(run, arguments, message):
    result = run("sample", "./nothing", "Hi", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_recipes_cp_writes_nothing_outside_its_destination(run, tmp_path):
    source, target = tmp_path / "theirs", tmp_path / "home" / "mine"
    (source / "inside").mkdir(parents=True)
    target.mkdir(parents=True)
    (tmp_path / ".profile").write_text("bad")
    (source / "inside" / "rows.jsonl").write_text("{}\n")
    (target / "link").symlink_to(tmp_path)
    (source / "link").mkdir()
    (source / "link" / "rows.jsonl").write_text("{}\n")
    for key in ("data", "pairs", "trajectories", "heldout_data", "rows"):
        for path in ("../.profile", "inside/../../.profile", "link/rows.jsonl"):
            (source / "r.yaml").write_text(f"task: {{{key}: {path}}}\n")
            before = sorted(tmp_path.rglob("*"))
            result = run("recipes", "cp", "theirs/r.yaml", "home/mine/r.yaml")
            assert result.exit_code == 2, result.output
            assert "would be written outside home/mine" in " ".join(result.output.replace("│", " ").split())
            assert sorted(tmp_path.rglob("*")) == before
    (source / "r.yaml").write_text("task: {data: inside/rows.jsonl}\n")
    assert run("recipes", "cp", "theirs/r.yaml", "home/mine").exit_code == 0
    assert (target / "inside" / "rows.jsonl").is_file()


def test_recipes_cp_follows_no_link(run, tmp_path):
    (tmp_path / "out.yaml").symlink_to(tmp_path / "victim")
    assert run("recipes", "cp", "sft", "out.yaml").exit_code == 1
    assert run("recipes", "cp", "sft", "out.yaml", "--force").exit_code == 1
    assert not (tmp_path / "victim").exists()


def test_what_a_model_writes_is_shown_and_not_obeyed(run, monkeypatch):
    import types

    text = "\x1b]0;owned\x07\x1b[2J 4\r\n\u202etxt\x9b31m\ud800 é 👩\u200d🔬"
    numbers = [0.5, 0.5]
    mixed = types.SimpleNamespace(
        text=text,
        tokens=[text, "ok"],
        alpha=numbers,
        kl_policy=numbers,
        kl_target=numbers,
        log_weight=numbers,
    )
    monkeypatch.setattr("klent.runs.sample.sample", lambda *a, **k: [text])
    monkeypatch.setattr("klent.runs.sample.sample_mixture", lambda *a, **k: [mixed])
    shown = "\\x1b]0;owned\\x07\\x1b[2J 4\\x0d\n\\u202etxt\\x9b31m\\ud800 é 👩\u200d🔬"
    assert run("sample", "m", "Hi").output == shown + "\n"
    output = run("sample", "m", "Hi", "--target", "n").output
    assert output.startswith(shown + "\n")
    assert not set("\x1b\x07\r\u202e\x9b") & set(output)
