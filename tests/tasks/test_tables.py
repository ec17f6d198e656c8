"""CSV, TSV and columns under other names: what a file of somebody else becomes."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klent.errors import ConfigError, DataError
from klent.tasks import DataTask, load_task
from klent.tasks.comma_separated import CommaSeparated
from klent.tasks.lines import JsonLines


def task_of(path: Path, needed: tuple[str, ...] = (), **keys: Any) -> DataTask:
    task = load_task({"data": str(path), **keys}, seed=0, heldout=0, needed=needed)
    assert isinstance(task, DataTask)
    return task


def rows_of(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    path.write_bytes(text.encode())
    rows = CommaSeparated(path, path.name)
    assert list(rows) == [rows[index] for index in range(len(rows))]
    return [(rows.place(index), rows[index]) for index in range(len(rows))]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), tabs=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_the_library_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], tabs: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / ("p.tsv" if tabs else "p.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
        writer.writerows([("prompt", "answer"), *rows])
    table = CommaSeparated(path, path.name)
    full = [row for row in rows if any(cell.strip() for cell in row)]
    assert list(table) == [{"prompt": a or None, "answer": b or None} for a, b in full]


def test_places_are_the_first_lines_of_records(tmp_path: Path) -> None:
    text = '\ufeffprompt,answer\r\n"two\nlines, and ""quotes""",4\r\n\r\n , \nlast,-1\n'
    assert rows_of(tmp_path / "p.csv", text) == [
        ("p.csv:2", {"prompt": 'two\nlines, and "quotes"', "answer": "4"}),
        ("p.csv:6", {"prompt": "last", "answer": "-1"}),
    ]


def test_semicolons_and_tabs_separate_too(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "p.csv", "prompt;answer\n1,5 + 1;2,5\n")[0][1] == {
        "prompt": "1,5 + 1",
        "answer": "2,5",
    }
    assert rows_of(tmp_path / "p.tsv", "prompt\tanswer\na;b\tc,d\n")[0][1] == {
        "prompt": "a;b",
        "answer": "c,d",
    }


def test_a_cell_may_be_long_and_messages_are_json(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * 200_000
    ((_, row),) = rows_of(tmp_path / "p.csv", f"prompt\n{long}\n")
    assert (row["prompt"], csv.field_size_limit()) == (long, before)
    chat = '"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""a""}]"'
    (tmp_path / "m.csv").write_text(f"messages,answer\n{chat},a\n")
    prompt = task_of(tmp_path / "m.csv", ("completion",)).train(0)
    assert prompt.prompt == [{"role": "user", "content": "q"}]
    assert prompt.columns == {"answer": "a", "completion": [{"role": "assistant", "content": "a"}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"p\.csv: no rows"),
        ("prompt,answer\n", r"p\.csv: no rows"),
        ("prompt,prompt\na,b\n", r"p\.csv:1: column 'prompt' is there 2 times"),
        ("prompt,\na,b\n", r"p\.csv:1: a column has no name"),
        ("prompt,answer\na,1\nb\n", r"p\.csv:3: 1 cell, but the header has 2 columns"),
        ("prompt,answer\na,1\nb,2,3\n", r"p\.csv:3: 3 cells"),
        ('prompt,answer\na,1\n"b,2\nc,3\n', r"p\.csv:3: not readable: a double quote .* does not end"),
        ('prompt,answer\n"a" b,1\n', r"p\.csv:2: not readable"),
        ("prompt,answer\n,1\n", r"p\.csv:2: no 'prompt': the column has no value in this row"),
        ("frage,answer\na,1\n", r"p\.csv:2: no 'prompt'; columns are: frage, answer"),
        ("messages\nhello\n", r"p\.csv:2: 'messages' is not JSON"),
        (b"prompt\na\n\xff\n", r"p\.csv:3: not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "p.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        task_of(tmp_path / "p.csv")


def test_a_table_that_is_missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.data: there is no file"):
        task_of(tmp_path / "none.csv")
    (tmp_path / "p.xlsx").write_text("")
    with pytest.raises(ConfigError, match=r"is none of \.jsonl, \.csv, \.tsv and \.parquet"):
        task_of(tmp_path / "p.xlsx")


def test_the_same_prompts_from_csv_json_lines_and_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"question": f"what is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]
    with open(tmp_path / "p.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
    tasks = [
        task_of(tmp_path / f"p.{kind}", columns={"prompt": "question", "answer": "answer"}, heldout=4)
        for kind in ("csv", "jsonl", "parquet")
    ]
    drawn = [[(t.train(i).prompt, t.train(i).columns) for i in range(16)] for t in tasks]
    assert drawn[0] == drawn[1] == drawn[2]
    assert sorted(columns["answer"] for _, columns in drawn[0]) != []
    kept = [[p.prompt for p in t.heldout(9)] for t in tasks]
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 4


@pytest.mark.parametrize(
    ("row", "columns", "prompt", "others"),
    [
        ('{"question": "q", "answer": "a"}', {"prompt": "question"}, "q", {"answer": "a"}),
        ('{"question": "q", "prompt": "p"}', {"prompt": "question"}, "q", {}),  # the other is hidden
        ('{"q": "x", "long": "l", "answer": 3}', {"prompt": "q", "answer": "long"}, "x", {"answer": "l"}),
        ('{"prompt": "q", "rm": {"gold": 4}}', {"answer": "rm.gold"}, "q", {"answer": 4, "rm": {"gold": 4}}),
        ('{"q": "x", "a.b": 1}', {"prompt": "q", "answer": "a.b"}, "x", {"answer": 1}),
        ('{"q": "x", "a": null}', {"prompt": "q", "answer": "a"}, "x", {"answer": None}),
    ],
)
def test_columns_get_the_names_that_klent_reads(
    tmp_path: Path, row: str, columns: dict[str, str], prompt: str, others: dict[str, object]
) -> None:
    (tmp_path / "p.jsonl").write_text(row + "\n")
    read = task_of(tmp_path / "p.jsonl", columns=columns).train(0)
    assert (read.prompt, read.columns) == (prompt, others)


def test_a_column_that_is_not_there_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "a", "answer": 1}\n{"question": "a", "answr": 1}\n')
    with pytest.raises(
        DataError,
        match=r"p\.jsonl:1: no column 'questions' for task.columns.prompt; did you mean `question`\?;",
    ):
        task_of(tmp_path / "p.jsonl", columns={"prompt": "questions"})
    with pytest.raises(
        DataError, match=r"p\.jsonl:2: no column 'answer' for task.columns.answer; did you mean `answr`"
    ):
        task_of(tmp_path / "p.jsonl", columns={"prompt": "question", "answer": "answer"})
    with pytest.raises(ConfigError, match=r"task\.columns"):
        task_of(tmp_path / "p.jsonl", columns={"prompt": 3})


def test_pairs_are_renamed_too(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("q,good,bad\nwhat?,yes,no\n")
    section = {
        "pairs": str(tmp_path / "p.csv"),
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    }
    prompt = load_task(section, seed=0, heldout=0, needed=("chosen", "rejected")).train(0)
    assert (prompt.prompt, prompt.columns) == ("what?", {"chosen": "yes", "rejected": "no"})


def test_json_lines_and_csv_are_counted_alike(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\n\nb\n")
    (tmp_path / "p.jsonl").write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    ours = CommaSeparated(tmp_path / "p.csv", "p")
    lines = JsonLines(tmp_path / "p.jsonl", "p")
    assert [ours.place(i) for i in range(2)] == [lines.place(i) for i in range(2)] == ["p:2", "p:4"]
