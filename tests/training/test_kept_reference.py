"""Reference log-probabilities are measured once for each completion, and what is on disk is right or not used."""

import os
import shutil
from importlib.metadata import version

import pytest
import torch
from helpers_training import pairs
from safetensors.torch import load_file, save_file
from tiny import TURN_END, tiny_folder, tiny_model, tiny_tokenizer

from klent.models.load import LoadedModel
from klent.runs import references
from klent.runs.references import build_compared
from klent.training import kept_reference
from klent.training.kept_reference import KeptReference, identity, key_of, read_numbers


class Counted:
    """A reference whose numbers say which row was asked, and that counts."""

    def __init__(self):
        self.loaded = 0
        self.asked = 0

    def __call__(self):
        self.loaded += 1
        return self

    def logp(self, batch, rows=None):
        rows = range(len(batch)) if rows is None else rows
        self.asked += len(rows)
        grid = torch.zeros(batch.mask.shape)
        for row in rows:
            grid[row] = torch.where(batch.mask[row], -0.001 * batch.episodes[row].tokens.sum() - 1, 0.0)
        return grid


@pytest.fixture
def notes():
    return []


def opened(folder, notes):
    counted = Counted()
    return KeptReference(folder, counted, notes.append), counted


def test_each_completion_is_measured_once_and_found_by_the_next_run(tmp_path, notes):
    reference, counted = opened(tmp_path / "cache", notes)
    few, all_of_them = pairs(2), pairs(4)
    expected = Counted().logp(all_of_them)
    assert torch.equal(reference.logp(few), Counted().logp(few))
    assert torch.equal(reference.logp(all_of_them), expected)
    assert torch.equal(reference.logp(all_of_them), expected)
    assert (counted.loaded, counted.asked, reference.measured) == (1, 8, 8)
    again, not_needed = opened(tmp_path / "cache", notes)
    assert torch.equal(again.logp(all_of_them), expected)
    assert (not_needed.loaded, not_needed.asked, again.measured) == (0, 0, 0)
    assert notes == []


def test_rows_can_be_asked_alone(tmp_path, notes):
    reference, counted = opened(tmp_path / "cache", notes)
    made = pairs(4)
    found = reference.logp(made, [2, 5])
    assert torch.equal(found[[2, 5]], Counted().logp(made)[[2, 5]])
    assert counted.asked == 2
    assert not found[[0, 1, 3, 4, 6, 7]].any()


def spoil_bytes(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x10
    file.write_bytes(bytes(data))


DAMAGE = {
    "a bit": spoil_bytes,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "not ours": lambda file: save_file(load_file(file), file),
    "of another name": lambda file: os.replace(file, file.with_name("0" * 32 + ".safetensors")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_measured_again(name, tmp_path, notes):
    made = pairs(4)
    opened(tmp_path / "cache", notes)[0].logp(made)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    DAMAGE[name](file)
    reference, counted = opened(tmp_path / "cache", notes)
    assert torch.equal(reference.logp(made), Counted().logp(made))
    assert counted.asked == 8
    assert len(notes) == 1
    assert "damaged" in notes[0]
    (whole,) = (tmp_path / "cache").glob("*.safetensors")
    assert len(read_numbers(whole)) == 8


def test_many_small_files_become_one(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(kept_reference, "MERGE_ABOVE", 2)
    made = pairs(4)
    reference, _ = opened(tmp_path / "cache", notes)
    for first in (0, 2, 4, 6):
        reference.logp(made, [first, first + 1])
    assert len(list((tmp_path / "cache").iterdir())) == 4
    again, counted = opened(tmp_path / "cache", notes)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert torch.equal(again.logp(made), Counted().logp(made))
    assert counted.asked == 0


def test_a_disk_that_takes_nothing_costs_the_cache_and_not_the_run(tmp_path, notes):
    (tmp_path / "cache").write_text("a file stands where the folder should")
    reference, counted = opened(tmp_path / "cache", notes)
    made = pairs(4)
    assert torch.equal(reference.logp(made, [0, 1])[:2], Counted().logp(made)[:2])
    reference.logp(made)
    reference.logp(made)
    assert counted.asked == 8
    assert len(notes) == 1
    assert "KLENT_CACHE" in notes[0]


def test_a_key_is_of_tokens_and_their_places():
    one, other, *_ = pairs(4).episodes
    assert key_of(one) == key_of(pairs(4).episodes[0]) != key_of(other)
    one.prompt_ids = [*one.prompt_ids, int(one.tokens[0])]
    assert key_of(one) != key_of(pairs(4).episodes[0])


def test_an_identity_is_of_weights_and_settings_and_not_of_places(tmp_path):
    tiny_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    name = identity(tmp_path / "a", dtype="float32")
    assert identity(tmp_path / "b", dtype="float32") == name
    assert identity(tmp_path / "a", dtype="bfloat16") != name
    weights = next((tmp_path / "b").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert identity(tmp_path / "b", dtype="float32") != name


def test_numbers_of_other_versions_are_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KLENT_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder(tmp_path / "model")
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))

    def cache():
        _, kept = build_compared(
            name=str(folder),
            loaded=loaded,
            replayed=True,
            build=lambda: pytest.fail("nothing was asked"),
            measure=lambda *_: pytest.fail("nothing was asked"),
            wanted=(True, False),
            note=print,
        )
        return kept.folder

    before = cache()
    assert cache() == before
    for package in ("klent", "torch", "transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(
                references, "version", lambda name, own=package: version(name) + "x" * (name == own)
            )
            assert cache() != before
