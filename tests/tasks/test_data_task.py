"""Prompts from files and datasets."""

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klent.errors import ConfigError, DataError, TooLong
from klent.streams.prompt import Prompt
from klent.tasks import DataTask, lines, load_task, sources


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def open_data(
    data: str | Path,
    *,
    base: Path = Path("."),
    seed: int = 0,
    asked: int = 0,
    needed: tuple[str, ...] = (),
    **keys: Any,
) -> DataTask:
    """The task of a section with these keys."""
    section = {"data": str(data), **keys}
    task = load_task(section, seed=seed, heldout=asked, needed=needed, base=base)
    assert isinstance(task, DataTask)
    return task


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "answer": str(i)} for i in range(count)]


def test_a_row_becomes_a_prompt(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": "Ann", "tool_calls": None}]
    rows = [{"prompt": "2+2=", "answer": "4", "tags": ["a", 1, None]}, "", {"prompt": messages}]
    write(tmp_path / "p.jsonl", rows)
    task = open_data("p.jsonl", base=tmp_path)
    text, chat = sorted([task.train(0), task.train(1)], key=lambda prompt: prompt.id)
    assert (text.id, text.prompt, text.columns) == (
        "p.jsonl:1",
        "2+2=",
        {"answer": "4", "tags": ["a", 1, None]},
    )
    assert (chat.id, chat.prompt, chat.columns) == (
        "p.jsonl:3",
        [{"role": "user", "content": "hi", "name": "Ann"}],
        {},
    )
    assert task.name == "p"


def test_every_row_once_an_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", numbered(30))
    task = open_data("p.jsonl", base=tmp_path)
    epochs = [[task.train(e * 30 + i).id for i in range(30)] for e in range(3)]
    assert all(len(set(epoch)) == 30 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = open_data("p.jsonl", base=tmp_path)
    order = [61, 0, 35, 89, 2]  # no state: another order of asking, the same answers
    assert [again.train(p).id for p in order] == [epochs[p // 30][p % 30] for p in order]
    assert [open_data("p.jsonl", base=tmp_path, seed=1).train(i).id for i in range(30)] != epochs[0]


@given(
    prompts=st.lists(st.sampled_from("abcdefghij"), min_size=4, max_size=40),
    seed=st.integers(0, 5),
    heldout=st.sampled_from([0.1, 0.25, 0.5, 1, 2]),
)
@settings(max_examples=60, deadline=None)
def test_the_split_never_straddles_a_prompt(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], seed: int, heldout: float
) -> None:
    if len(set(prompts)) < 3:
        return
    folder = tmp_path_factory.mktemp("split")
    write(folder / "p.jsonl", [{"prompt": p, "row": i} for i, p in enumerate(prompts)])
    task = open_data("p.jsonl", base=folder, seed=seed, heldout=heldout)
    kept_out = [prompt.prompt for prompt in task.heldout(100)]
    trained = [task.train(position) for position in range(len(task))]
    assert len(set(map(str, kept_out))) == len(kept_out) >= 1
    assert not set(map(str, kept_out)) & {str(prompt.prompt) for prompt in trained}
    left = [p for p in prompts if p not in kept_out]
    assert Counter(str(prompt.prompt) for prompt in trained) == Counter(left)  # each other row, once


@pytest.mark.parametrize(
    ("heldout", "asked", "count"),
    [(0.1, 0, 5), (0.5, 0, 25), (7, 0, 7), (7, 9, 7), (None, 3, 3), (None, 64, 5), (None, 0, 0)],
)
def test_how_many_are_held_out(tmp_path: Path, heldout: float | None, asked: int, count: int) -> None:
    write(tmp_path / "p.jsonl", numbered(50))
    task = load_task({"data": "p.jsonl", "heldout": heldout}, seed=0, heldout=asked, base=tmp_path)
    assert len(task.heldout(1000)) == count
    assert task.heldout(3) == task.heldout(1000)[:3]


def test_the_split_follows_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", numbered(50))
    sides = [
        {p.id for p in open_data("p.jsonl", base=tmp_path, seed=s, heldout=10).heldout(10)} for s in (0, 0, 1)
    ]
    assert sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize(
    ("heldout", "error"),
    [
        *((value, ConfigError) for value in (-1, 0, 1.5, 7.0, "many", True)),
        (50, DataError),
        (0.999, DataError),
    ],
)
def test_a_share_that_cannot_be(tmp_path: Path, heldout: Any, error: type[Exception]) -> None:
    write(tmp_path / "p.jsonl", numbered(50))
    with pytest.raises(error, match=r"task\.heldout"):
        open_data("p.jsonl", base=tmp_path, heldout=heldout)


def test_heldout_from_its_own_file(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", numbered(10))
    write(tmp_path / "test.jsonl", [*numbered(3), {"prompt": "new"}, {"prompt": "new"}])
    task = open_data("p.jsonl", base=tmp_path, heldout_data="test.jsonl")
    assert [p.id for p in task.heldout(9)] == [f"test.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert {task.train(i).prompt for i in range(7)} == {f"question {i}" for i in range(3, 10)}
    assert len(task) == 7
    with pytest.raises(ConfigError, match="not both"):
        open_data("p.jsonl", base=tmp_path, heldout_data="test.jsonl", heldout=0.1)
    with pytest.raises(DataError, match="each of its 10 rows has a prompt that is held out"):
        open_data("p.jsonl", base=tmp_path, heldout_data="p.jsonl")


def test_a_system_message(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "c"}]
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}, {"prompt": own}]
    write(tmp_path / "p.jsonl", rows)
    task = open_data("p.jsonl", base=tmp_path, system="Be brief.")
    prompts: dict[str, Any] = {task.train(i).id: task.train(i).prompt for i in range(3)}
    brief = {"role": "system", "content": "Be brief."}
    assert prompts["p.jsonl:1"] == [brief, {"role": "user", "content": "a"}]
    assert prompts["p.jsonl:2"] == [brief, {"role": "user", "content": "b"}]
    assert prompts["p.jsonl:3"] == own


def test_another_prompt_column(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"question": "2+2=", "prompt": "unused"}])
    prompt = open_data("p.jsonl", base=tmp_path, prompt_column="question").train(0)
    assert (prompt.prompt, prompt.columns) == ("2+2=", {})  # what a reward calls `prompt` is not this column


def test_a_whole_conversation_is_cut_before_its_last_answer(tmp_path: Path) -> None:
    ask, say = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"x": None}}}]}
    tool = {"role": "tool", "content": "4"}
    write(tmp_path / "p.jsonl", [{"messages": [ask, say, ask, call, tool, say], "answer": 4}])
    prompt = open_data("p.jsonl", base=tmp_path, needed=("completion",)).train(0)
    assert prompt.prompt == [ask, say, ask]
    assert prompt.columns == {"answer": 4, "completion": [{**call, "content": ""}, tool, say]}
    write(tmp_path / "p.jsonl", [{"messages": [ask]}])
    assert open_data("p.jsonl", base=tmp_path, prompt_column="messages").train(0).prompt == [ask]
    with pytest.raises(DataError, match=r"p\.jsonl:1: 'messages' has no message of the assistant"):
        open_data("p.jsonl", base=tmp_path, needed=("completion",))


def test_tools_and_arguments_of_the_template_travel_with_the_prompt(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [{"prompt": "a", "tools": tools}, {"prompt": "b", "tools": json.dumps(tools)}, {"prompt": "c"}]
    write(tmp_path / "p.jsonl", rows)
    task = open_data("p.jsonl", base=tmp_path, template={"enable_thinking": False}, clock="2025-02-03")
    given = {p.id[-1]: dict(p.template) for p in map(task.train, range(3))}
    always = {"enable_thinking": False, "clock": "2025-02-03"}
    assert given == {"1": {**always, "tools": tools}, "2": {**always, "tools": tools}, "3": always}


def test_prompts_that_do_not_fit_are_refused_or_left_out(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "x" * length} for length in (3, 9, 4, 8)])

    def check(prompt: Prompt) -> None:
        if len(prompt.prompt) > 5:
            raise TooLong(f"{prompt.id} is too long")

    with pytest.raises(TooLong, match=r"p\.jsonl:2 is too long"):
        open_data("p.jsonl", base=tmp_path).fit(check, check)
    task = open_data("p.jsonl", base=tmp_path, too_long="drop")
    assert task.fit(check, check) == 2
    assert {task.train(i).prompt for i in range(6)} == {"xxx", "xxxx"}
    write(tmp_path / "p.jsonl", [{"prompt": "x" * 9}])
    with pytest.raises(TooLong, match="every training prompt of p is too long"):
        open_data("p.jsonl", base=tmp_path, too_long="drop").fit(check, check)


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"prompt": "a",}'], r"p\.jsonl:2: not valid JSON: .* at column 16"),
        ([GOOD, "", "nonsense"], r"p\.jsonl:3: not valid JSON"),
        ([GOOD, '["a"]'], r"p\.jsonl:2: expected a JSON object with a prompt, not list"),
        (
            [GOOD, {"Prompt": "a"}],
            r"p\.jsonl:2: no 'prompt'; did you mean `Prompt`\?; .*task\.columns\.prompt=NAME",
        ),
        ([GOOD, {"prompt": None}], r"p\.jsonl:2: no 'prompt'"),
        ([GOOD, {}], r"columns are: none"),
        (
            [GOOD, {"question": "a"}],
            r"2: no 'prompt'; columns are: question; .*task\.columns\.prompt=question",
        ),
        ([GOOD, {"prompt": 3}], r"p\.jsonl:2: 'prompt' must be text or a list of messages, not int"),
        ([GOOD, {"prompt": " "}], r"p\.jsonl:2: 'prompt' is empty"),
        ([GOOD, {"prompt": []}], r"p\.jsonl:2: 'prompt' is an empty list"),
        (
            [GOOD, {"prompt": [{"role": "user"}]}],
            r"2: 'prompt', message 1: expected .*\"content\".* not .*user",
        ),
        ([GOOD, {"prompt": ["hi"]}], r"message 1: expected .* not \"hi\""),
        ([GOOD, {"prompt": [{"role": "user", "content": ["x"]}]}], r"message 1: expected"),
        (
            [GOOD, {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}],
            r"p\.jsonl:2: 'prompt', message 1: expected",
        ),
        ([GOOD, '{"prompt": "a", "prompt": "b"}'], r"p\.jsonl:2: the key 'prompt' occurs twice"),
        ([GOOD, {"prompt": "a", "completions": "b"}], r"p\.jsonl:2: a column cannot be called 'completions'"),
        ([GOOD, {"prompt": "a", "prompts": "b"}], r"p\.jsonl:2: a column cannot be called 'prompts'"),
        ([GOOD, {"prompt": "a", "tools": "add"}], r"p\.jsonl:2: 'tools': not valid JSON"),
        ([GOOD, {"prompt": "a", "tools": {"name": "add"}}], r"2: 'tools' must be a list of JSON schemas"),
        ([GOOD, {"messages": [{"role": "assistant", "content": "b"}]}], r"2: 'messages' has no user message"),
        ([], r"p\.jsonl: no rows"),
        (["", "  "], r"p\.jsonl: no rows"),
        ([[GOOD]], r"p\.jsonl: one JSON array; .*jq"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, rows: list[Any], message: str) -> None:
    write(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=message):
        open_data("p.jsonl", base=tmp_path)


TRICKY = [
    '{"prompt": "a: \\"b\\": c", "answer": "1"}',
    '{"prompt": "a", "n": {"x": [{"y": 1}, {"y" : 2}]}}',
    '{"prompt" \t: "a"}',
    '{"prompt": "a", "prompt": "b"}',
    '{"prompt": "a", "n": {"x": 1, "x": 2}}',
    '{"prompt": "a"},{"prompt": "b"}',
    '{"prompt": [{}',
    "{}]}",
    '{"prompt": "\\ud800"}',
    b'{"prompt": "\xed\xa0\x80"}',
    '{"prompt": "a"}\r\n\r{"prompt": "b"}',
    "   ",
    "\x0c",
    "",
    "[]",
    '{"prompt": NaN}',
    "9" * 5000,
    "[" * 100_000,
]


@given(st.lists(st.sampled_from([*TRICKY[:3], *TRICKY]), max_size=6), st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_rows_read_at_once_are_those_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str | bytes], good: int
) -> None:
    from klent.tasks.lines import JsonLines

    file = tmp_path_factory.mktemp("lines") / "p.jsonl"
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    file.write_bytes(b"\n".join([b'{"prompt": "x"}'] * good + encoded))

    def read(rows: Any) -> list[Any]:
        seen: list[Any] = []
        try:
            for row in rows:
                seen.append(row)
        except DataError as error:
            seen.append(str(error))
        return seen

    try:
        source = JsonLines(file, "p.jsonl")
    except DataError:
        return
    assert read(source) == read(source[index] for index in range(len(source)))
    numbers = [number for number, line in enumerate(file.read_bytes().splitlines(), 1) if line.strip()]
    assert [source.place(index) for index in range(len(source))] == [
        f"p.jsonl:{number}" for number in numbers
    ]


def test_rows_are_kept_as_they_are_in_the_file(tmp_path: Path) -> None:
    import tracemalloc

    rows = [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(5000)]
    size = write(tmp_path / "p.jsonl", rows).stat().st_size
    tracemalloc.start()
    task = open_data("p.jsonl", base=tmp_path, asked=64)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(task) == 5000 - 64
    assert held - size < 100 * len(rows)  # as objects: 700 bytes a row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "completions": "b"},
            r"p\.jsonl:2: no 'completion'; did you mean `completions`\?",
        ),
        (
            {"prompt": "a", "completion": [{"role": "user", "content": "b"}]},
            r"p\.jsonl:2: 'completion' ends with a message of role 'user'",
        ),
        (
            {"prompt": "a", "completion": [{"role": "asistant", "content": "b"}]},
            r"p\.jsonl:2: 'completion', message 1: unknown role 'asistant'; did you mean `assistant`",
        ),
        ({"prompt": "a", "completion": " "}, r"p\.jsonl:2: 'completion' is empty\. Fill it in, or remove"),
        ({"prompt": "a", "completion": []}, r"p\.jsonl:2: 'completion' is an empty list of messages"),
        (
            {"prompt": "a", "completion": [{"role": "assistant", "content": ""}]},
            r"p\.jsonl:2: 'completion', message 1: the assistant's message is empty.*Write its answer",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            r"p\.jsonl:2: 'messages' has no message of the assistant after the user's last.*Add the answer",
        ),
        ({"prompt": "a", "completion": 3}, r"p\.jsonl:2: 'completion' must be text or a list of messages"),
    ],
)
def test_needed_columns(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    write(tmp_path / "p.jsonl", [GOOD, row])
    with pytest.raises(DataError, match=message):
        load_task({"data": "p.jsonl"}, seed=0, heldout=0, needed=("completion",), base=tmp_path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:2: not UTF-8 text \(byte 13 of the line\)"):
        open_data("p.jsonl", base=tmp_path)


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "\xc3\xa9"}\r\n\r\n{"prompt": "b\xe2\x80\xa8c"}'
    )
    task = open_data("p.jsonl", base=tmp_path)
    assert {p.id: p.prompt for p in map(task.train, range(2))} == {"p.jsonl:1": "é", "p.jsonl:3": "b\u2028c"}


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no file {name} .*{tmp_path}"):
        open_data(name, base=tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "p.xml").write_text("<a>")
    with pytest.raises(ConfigError, match=r"p\.xml is none of \.jsonl, \.csv"):
        open_data("p.xml", base=tmp_path)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "answer": i,
            "day": datetime.date(2024, 1, 1 + i),
            "image": b"\x89PNG",
        }
        for i in range(4)
    ]
    rows[0]["prompt"][0]["name"] = "Ann"  # the table gives every other message a null here
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    task = open_data("p.parquet", base=tmp_path)
    prompts = {prompt.id: prompt for prompt in map(task.train, range(4))}
    assert prompts["p.parquet:2"].prompt == [{"role": "user", "content": "question 1"}]
    assert prompts["p.parquet:2"].columns == {"answer": 1, "day": "2024-01-02"}
    json.dumps([prompt.columns for prompt in prompts.values()])


def test_parquet_that_is_not(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"p\.parquet: not a readable parquet file"):
        open_data("p.parquet", base=tmp_path)


def test_a_saved_dataset_with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parts = {name: datasets.Dataset.from_list(numbered(n)) for name, n in (("train", 6), ("test", 2))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    task = open_data("saved", base=tmp_path, heldout_split="test")
    assert {p.id for p in task.heldout(5)} == {"saved/test:1", "saved/test:2"}
    assert {task.train(i).id for i in range(4)} == {f"saved/train:{i}" for i in range(3, 7)}
    with pytest.raises(ConfigError, match=r"no 'tests'; did you mean `test`\?; it has train, test"):
        open_data("saved", base=tmp_path, split="tests")


def test_a_folder_of_files_as_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", numbered(3))
    task = open_data("folder", base=tmp_path)
    assert {task.train(i).prompt for i in range(3)} == {f"question {i}" for i in range(3)}


def test_a_dataset_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigError, match=r"cannot load 'someone/something' \(split 'train'\): no network"):
        open_data("someone/something", base=tmp_path)


# files that do not fit into memory


def large_rows(count: int = 3000) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i), "text": "x" * 800} for i in range(count)]


def in_order(task: DataTask) -> list[Prompt]:
    """Two epochs, and the held-out prompts."""
    return [*map(task.train, range(2 * len(task))), *task.heldout(1000)]


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_a_large_file_is_read_from_the_disk_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bytes
) -> None:
    """Blank lines, the byte order mark, the end of the file, and lines that cross the blocks of the search."""
    odd = [
        "",
        "  ",
        '{"prompt": "é"}',
        "\t",
        ' {"prompt": "a"}',
        *map(json.dumps, large_rows(200)),
        "",
        "   ",
    ]
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + ends.join(line.encode() for line in odd))
    held = in_order(open_data("p.jsonl", base=tmp_path, asked=20))
    monkeypatch.setattr(lines, "IN_MEMORY", 10)
    for size in (1000, 997, 1 << 24):
        monkeypatch.setattr(lines, "_READ", size)
        assert in_order(open_data("p.jsonl", base=tmp_path, asked=20)) == held


def test_lines_are_found_wherever_a_block_of_the_search_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'\n{"prompt": "a"}\n   \n\t\n {"prompt": "b"}\n\n{"prompt": "c"}\r\n \r\n{"prompt": "d"}\n  '
    (tmp_path / "p.jsonl").write_bytes(content)
    monkeypatch.setattr(lines, "IN_MEMORY", 10)
    for size in range(1, len(content) + 2):
        monkeypatch.setattr(lines, "_READ", size)
        rows = lines.JsonLines(tmp_path / "p.jsonl", "p")
        assert [row["prompt"] for row in rows] == ["a", "b", "c", "d"], size
        assert [rows.place(index) for index in range(4)] == ["p:2", "p:5", "p:7", "p:9"], size


def test_of_a_large_file_hardly_anything_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in allocations, which the load of the machine does not change."""
    import tracemalloc

    size = write(tmp_path / "p.jsonl", large_rows()).stat().st_size
    monkeypatch.setattr(lines, "IN_MEMORY", 10)
    monkeypatch.setattr(lines, "_READ", 1 << 14)
    monkeypatch.setattr(lines, "_BLOCK", 16)
    tracemalloc.start()
    task = open_data("p.jsonl", base=tmp_path, asked=8)
    prompts = sum(len(task.train(position).id) > 0 for position in range(2 * len(task)))
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prompts == 2 * 2992
    assert held < 140 * 3000 < most < size / 3  # a row has 900 bytes


def test_a_large_file_that_changes_is_refused_and_one_that_is_replaced_is_not_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "IN_MEMORY", 10)
    file = write(tmp_path / "p.jsonl", large_rows(20))
    task = open_data("p.jsonl", base=tmp_path)
    before = [task.train(position) for position in range(20)]
    write(tmp_path / "other.jsonl", large_rows(3)).replace(file)
    assert [task.train(position) for position in range(20)] == before
    task = open_data("p.jsonl", base=tmp_path)
    with open(file, "a") as opened:
        opened.write('{"prompt": "later"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl: the file was changed while it was in use"):
        task.train(0)


def test_a_large_parquet_file_is_unpacked_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(large_rows()), tmp_path / "p.parquet", row_group_size=500)
    held = in_order(open_data("p.parquet", base=tmp_path, asked=8))
    monkeypatch.setattr(sources, "IN_MEMORY", 10)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = pyarrow.total_allocated_bytes()
    task = open_data("p.parquet", base=tmp_path, asked=8)
    assert pyarrow.total_allocated_bytes() - before < 500_000  # of 2.5 MB
    assert in_order(task) == held
    assert list((tmp_path / "temporary").iterdir()) == []


# ShareGPT's layout


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in said]


def test_conversations_are_read_like_messages(tmp_path: Path) -> None:
    shared = [
        {"conversations": turns(("human", "2 + 2?"), ("gpt", "4")), "id": "a"},
        {
            "conversations": turns(
                ("system", "Be brief."), ("human", "3?"), ("gpt", "3"), ("human", "4?"), ("gpt", "4")
            )
        },
        {"conversations": turns(("human", "5?"), ("gpt", "5")), "system": "Be kind."},
        {"conversations": [{"role": "user", "content": "6?"}, {"role": "assistant", "content": "6"}]},
    ]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def as_messages(row: dict[str, Any]) -> dict[str, Any]:
        messages = [
            turn if "role" in turn else {"role": roles[turn["from"]], "content": turn["value"]}
            for turn in row["conversations"]
        ]
        if "system" in row:
            messages = [{"role": "system", "content": row["system"]}, *messages]
        return {"messages": messages, **{key: row[key] for key in row if key == "id"}}

    write(tmp_path / "shared.jsonl", shared)
    write(tmp_path / "p.jsonl", [as_messages(row) for row in shared])
    for needed in ((), ("completion",)):
        a, b = (
            load_task({"data": name}, seed=0, heldout=0, needed=needed, base=tmp_path)
            for name in ("shared.jsonl", "p.jsonl")
        )
        for position in range(4):
            one, other = a.train(position), b.train(position)
            assert (one.prompt, one.columns) == (other.prompt, other.columns)
    assert {len(a.train(position).prompt) for position in range(4)} == {1, 2, 4}


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (turns(("human", "a"), ("gtp", "b")), r"turn 2: unknown speaker 'gtp'; did you mean `gpt`"),
        ([{"from": "human"}], r'turn 1: each turn must be \{"from": "human", "value": "text"\}'),
        ([], "'conversations' must be a list of turns, not empty"),
        ("hello", "'conversations' must be a list of turns, not str"),
        (turns(("gpt", "b")), "has no user message"),
    ],
)
def test_what_is_wrong_with_a_conversation(tmp_path: Path, conversation: Any, message: str) -> None:
    write(tmp_path / "p.jsonl", [{"conversations": conversation}])
    with pytest.raises(DataError, match=rf"p\.jsonl:1.*{message}"):
        open_data("p.jsonl", base=tmp_path)
