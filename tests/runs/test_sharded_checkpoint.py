"""Groups of a checkpoint that ranks write as folders: read back, and refused where damaged. Ranks: test_ranks.py."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from klent.errors import CheckpointError
from klent.kit.world import OneProcess
from klent.runs import sharded_checkpoint as module
from klent.runs.checkpoint import load_newest, save_checkpoint
from klent.runs.sharded_checkpoint import read_parts, saved_tensors, whole_group, write_parts
from klent.runs.state import take_parts

GROUPS = {
    "model": {
        "w": torch.arange(6.0).view(3, 2),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "d": torch.tensor([1 / 3], dtype=torch.float64),
    },
    "optimizer": {"step.w": torch.tensor(4.0), "exp_avg.w": torch.full((3, 2), 0.25)},
}


def save(run: Path, step: int, groups=GROUPS) -> Path:
    parts = partial(write_parts, groups=groups, world=OneProcess())
    return save_checkpoint(run, step, tensors={"organ": {"x": torch.ones(2)}}, state={"a": 1}, parts=parts)


def same(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in wanted.items()
    )


def test_what_was_written_is_read_back_bit_for_bit(tmp_path):
    folder = save(tmp_path, 7)
    back = load_newest(tmp_path, on_damage=pytest.fail)
    assert back.tensors.keys() == {"organ", "model", "optimizer"}
    assert all(same(back.tensors[name], group) for name, group in GROUPS.items())
    (file,) = (folder / "model").iterdir()
    assert same(load_file(file), GROUPS["model"])  # plain safetensors, for any reader
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert f"model/{file.name}" in files
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_groups_may_be_left_out(tmp_path):
    save(tmp_path, 7)
    assert load_newest(tmp_path, on_damage=pytest.fail, without=("model", "optimizer")).tensors.keys() == {
        "organ"
    }


def test_files_of_several_ranks_are_put_together(tmp_path):
    """As two ranks of rows 0-1 and row 2 write them: what each holds, and where it begins."""
    (tmp_path / "model").mkdir()
    whole = GROUPS["model"]["w"]
    for rank, (first, rows) in enumerate(((0, whole[:2]), (2, whole[2:])), 1):
        said = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [first, 0]}})}
        save_file(
            {"w": rows.contiguous()}, tmp_path / "model" / f"shard-{rank:05d}.safetensors", metadata=said
        )
    assert same(whole_group(tmp_path, "model"), {"w": whole})
    assert saved_tensors(tmp_path, "model")["w"] == (torch.Size([3, 2]), torch.float32)


def test_one_group_of_a_checkpoint_of_one_process(tmp_path):
    folder = save_checkpoint(tmp_path, 1, tensors=GROUPS, state={})
    assert saved_tensors(folder, "optimizer").keys() == GROUPS["optimizer"].keys()
    into = {name: torch.zeros_like(value) for name, value in GROUPS["model"].items()}
    read_parts(folder, "model", into)
    assert same(into, GROUPS["model"])


def test_a_damaged_part_is_reported_and_the_one_before_is_used(tmp_path):
    save(tmp_path, 1)
    (file,) = (save(tmp_path, 2) / "model").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    lines = []
    assert load_newest(tmp_path, on_damage=lines.append).step == 1
    assert len(lines) == 1
    assert f"checkpoints/000002 is damaged: {file.name} has the wrong hash" in lines[0]


def test_ranks_that_write_elsewhere_are_found_out(tmp_path, monkeypatch):
    def lost(state, **how):
        usual({name: value for name, value in state.items() if name != "w"}, **how)

    usual = module.dcp.save
    monkeypatch.setattr(module.dcp, "save", lost)
    with pytest.raises(CheckpointError, match=r"does not see all of w.*file system that they share"):
        save(tmp_path, 1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_rank_that_cannot_write_says_why(tmp_path, monkeypatch):
    def full(self, plan, planner):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.dcp.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint.*rank 0.*No space left"):
        save(tmp_path, 1)


def test_another_model_is_refused_before_anything_is_taken(tmp_path):
    folder = save(tmp_path, 1)

    def parameters(**shapes):
        return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}

    with pytest.raises(CheckpointError, match=r"the checkpoint trains b, the model does not\. FIX"):
        take_parts(folder, parameters(w=(3, 2), d=(1,)), "FIX")
    other = parameters(w=(2, 3), b=(3,), d=(1,))
    with pytest.raises(CheckpointError, match=r"the shape of w is \[3, 2\], and this model's is \[2, 3\]"):
        take_parts(folder, other, "FIX")
    assert all(not value.any() for value in other.values())
    own = parameters(w=(3, 2), b=(3,), d=(1,))
    assert same(take_parts(folder, own, "FIX"), GROUPS["optimizer"])
    assert torch.equal(own["w"], GROUPS["model"]["w"])
