"""What `klent data` finds in a file: lengths, duplicates and refused rows, each where it stands."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer
from typer.testing import CliRunner

from klent.cli import app
from klent.cli.data import _fitting_reward
from klent.config.sections import read_task
from klent.tasks import survey as module
from klent.tasks.survey import Survey, survey


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def look(path: Path, kind: str = "data", needed: tuple[str, ...] = (), **options: Any) -> Survey:
    section: Any = read_task({kind: str(path), **options.pop("keys", {})})
    return survey(section, needed=needed, **options)


ROWS = [
    {"prompt": "1 + 1 =", "answer": "2"},
    {"prompt": "1 + 1 =", "answer": "3"},
    "",
    {"prompt": " ", "answer": None},
    '{"prompt": "x",}',
    {"prompt": "a much longer question than the others", "answer": 4},
    {"prompt": "1 + 1 =", "n": [1]},
    {"promt": "y"},
]


def test_rows_are_counted_refused_and_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROWS)
    found = look(path, first=2)
    assert (found.rows, found.refused, found.repeated) == (7, 3, 2)
    assert [reason.removeprefix(f"{path}:")[:3] for reason in found.reasons] == ["4: ", "5: ", "8: "]
    assert "'prompt' is empty" in found.reasons[0]
    assert "not valid JSON" in found.reasons[1]
    assert "did you mean `promt`" in found.reasons[2]
    assert found.repeats == [(f"{path}:2", f"{path}:1"), (f"{path}:7", f"{path}:1")]
    assert [prompt.id for prompt in found.first] == [f"{path}:1", f"{path}:2"]
    assert (found.prompt_tokens, found.answer_tokens) == (None, {})
    answers = found.columns["answer"]
    assert (answers.filled, dict(answers.kinds), answers.longest) == (3, {"text": 2, "number": 1}, 1)
    assert found.columns["prompt"].longest == len("a much longer question than the others")
    assert found.columns["n"].kinds == {"list": 1}


def test_tokens_are_those_of_the_prompt_as_the_model_reads_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    chat = [
        {"role": "user", "content": "say more words here"},
        {"role": "assistant", "content": "more words"},
    ]
    path = write(
        tmp_path / "p.jsonl", [{"messages": chat}, {"messages": [*chat[:1], {**chat[1], "content": "so"}]}]
    )
    found = look(path, tokenizer=tokenizer, needed=("completion",))
    (first, second) = found.first
    # one token a letter: <|im_start|>, "user\n", the text, <|im_end|>, "\n", <|im_start|>, "assistant\n"
    length = len("user\n") + len("say more words here") + len("\n") + len("assistant\n") + 3
    assert found.prompt_tokens == (2, length, length, length, first.id)
    # behind it: the answer, <|im_end|> and the new line of the template
    assert found.answer_tokens["completion"] == (2, 10 + 2, 10 + 2, 10 + 2, first.id)
    assert second.id.endswith(":2")


def test_of_a_large_file_the_tokens_of_some_rows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNTED", 10)
    rows = [{"prompt": "word " * (index + 1)} for index in range(95)]
    found = look(write(tmp_path / "p.jsonl", rows), tokenizer=tiny_tokenizer(), first=0)
    assert found.prompt_tokens is not None
    assert found.prompt_tokens.counted == 10
    assert found.prompt_tokens.place.endswith(":91")  # the last of 1, 11, 21, ...
    assert found.repeated == 0


def test_pairs_and_logged_play_are_read_as_such(tmp_path: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "a"}]
    found = look(write(tmp_path / "p.jsonl", pairs), "pairs", ("chosen", "rejected"))
    assert found.refused == 1
    assert "are the same" in found.reasons[0]
    turns = [{"observation": "go", "action": "left", "reward": 1}]
    played = [{"turns": turns}, {"turns": []}]
    found = look(write(tmp_path / "g.jsonl", played), "trajectories", ("trajectory",))
    assert (found.refused, len(found.first)) == (1, 1)


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", *arguments])


def test_the_command_shows_a_file_and_how_to_train_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("klent.models.pull.pulled", lambda name: None)
    Path("p.csv").write_text('q,gold\nwhat is 1+1?,"so #### 1,002"\n')
    answer = run("p.csv", "task.columns={prompt: q, answer: gold}")
    assert answer.exit_code == 0, answer.output
    assert "prompt (in the file: q)" in answer.output
    assert "klent train quickstart task.data=p.csv 'task.columns={prompt: q, answer: gold}' reward=gsm8k" in (
        " ".join(answer.output.split())
    )
    assert "name a model with model=FOLDER" in answer.output


def test_the_command_refuses_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("klent.models.pull.pulled", lambda name: None)
    Path("p.csv").write_text("q\n\x1b[31mred\n")
    answer = run("p.csv")
    assert answer.exit_code == 1
    assert "p.csv:2: no 'prompt'; columns are: q" in answer.output
    assert "\x1b" not in answer.output
    answer = run("p.csv", "optimizer.lr=1")
    assert answer.exit_code == 2
    assert "klent data RECIPE task.data=p.csv optimizer=" in " ".join(answer.output.replace("│", " ").split())
    assert run("none.jsonl").exit_code == 2


def test_a_recipe_s_data_is_shown_with_what_its_method_needs() -> None:
    answer = run("sft", "--rows", "0", "model=" + str(Path(__file__).parent / "nothing"))
    assert answer.exit_code == 1  # the model is named, and is not there
    assert "there is no model folder" in " ".join(answer.output.replace("│", " ").split())
    assert run("quickstart").exit_code == 2


@pytest.mark.parametrize(
    ("answers", "reward"),
    [
        (["5", "8"], "last_number"),
        (["1/2 m", "x = 3"], "math_verify"),
        (["5", "Paris"], "exact"),
        (["blue"], "exact"),
    ],
)
def test_the_reward_that_it_names_reads_every_answer_shown(
    tmp_path: Path, answers: list[str], reward: str
) -> None:
    rows = [{"prompt": f"question {n}", "answer": answer} for n, answer in enumerate(answers)]
    assert _fitting_reward(look(write(tmp_path / "p.jsonl", rows))) == reward


def test_a_file_without_rows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("klent.models.pull.pulled", lambda name: None)
    for name, text in {"empty.jsonl": "", "header.csv": "prompt,answer\n"}.items():
        Path(name).write_text(text)
        answer = run(name)
        assert answer.exit_code == 1
        assert f"{name} has no rows" in answer.output
