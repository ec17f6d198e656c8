"""Atomic writes and whole folders: never half of one, and never through a symbolic link."""

import os
from pathlib import Path

import pytest

from klent.io.files import read_jsonl, read_steps, write_atomic
from klent.io.folders import remove_folder, replace_folder, sweep, whole_folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody else's, with a file."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    return folder


def untouched(precious: Path) -> bool:
    return [(p.name, p.read_text()) for p in precious.iterdir()] == [("thesis.txt", "mine")]


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path, precious):
    link = tmp_path / "run.json"
    link.symlink_to(precious / "thesis.txt")
    (tmp_path / f".run.json.{os.getpid()}.tmp").symlink_to(precious / "thesis.txt")
    write_atomic(link, "new")
    assert not link.is_symlink()
    assert link.read_text() == "new"
    assert untouched(precious)


def test_a_sweep_removes_links_and_not_what_they_point_to(tmp_path, precious):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".final.7.tmp").symlink_to(precious)
    (run / ".config.yaml.7.tmp").symlink_to(precious / "thesis.txt")
    (run / ".best.7.tmp").symlink_to(tmp_path / "nowhere")
    sweep(run)
    assert list(run.iterdir()) == []
    (precious / ".x.7.tmp").write_text("mine")
    (run / "checkpoints").symlink_to(precious)
    sweep(run / "checkpoints")
    (precious / ".x.7.tmp").unlink()
    assert untouched(precious)


def test_folders_that_are_links_are_replaced_and_not_emptied(tmp_path, precious):
    final = tmp_path / "final"
    final.symlink_to(precious)
    with whole_folder(final) as scratch:
        (scratch / "model").write_text("new")
    assert not final.is_symlink()
    assert (final / "model").read_text() == "new"
    best = tmp_path / "best"
    best.symlink_to(precious)
    replace_folder(final, best)
    assert (best / "model").read_text() == "new"
    remove_folder(best)
    best.symlink_to(precious)
    remove_folder(best)
    with pytest.raises(KeyError), whole_folder(best):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert untouched(precious)


def test_damaged_lines_are_told_by_number_and_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'{"step": 1}\n{"st\xffp": 2}\n[3]\n' + b"[" * 9999 + b'\n{"stop": 5}\n{"step": 6}\n{"ste'
    )
    damage: list[str] = []
    assert list(read_jsonl(file, on_damage=damage.append)) == [{"step": 1}, {"stop": 5}, {"step": 6}]
    assert [line.split(" ")[0] for line in damage] == [f"{file}:{number}" for number in (2, 3, 4)]
    assert list(read_steps(file, on_damage=damage.append)) == [{"step": 1}, {"step": 6}]
    with pytest.warns(UserWarning, match="is damaged"):
        list(read_jsonl(file))
