"""Checkpoints come back bit for bit, damaged ones are passed over, and a kill leaves a whole one."""

import builtins
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from klent.errors import CheckpointError
from klent.runs import checkpoint as module
from klent.runs.checkpoint import flatten_optimizer, load_newest, restore_optimizer, save_checkpoint


def quiet(line: str) -> None:
    raise AssertionError(f"nothing was damaged, yet: {line}")


def save(run: Path, step: int, **more: int) -> Path:
    tensors = {
        "model": {"w": torch.full((3, 4), float(step))},
        "optimizer": {"step.w": torch.tensor(float(step))},
    }
    return save_checkpoint(run, step, tensors=tensors, state={"step": step}, **more)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# --- what goes in comes out ------------------------------------------------------------------------


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    generator = torch.Generator().manual_seed(0)
    group = {f"t{i}": (torch.randn(3, 5, generator=generator) * 50).to(kind) for i, kind in enumerate(kinds)}
    group |= {
        "scalar": torch.tensor(7.25),
        "empty": torch.zeros(0, 4),
        "odd bytes": torch.arange(13, dtype=torch.uint8),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "strange": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "parameter": torch.nn.Parameter(torch.randn(4, generator=generator)),
    }
    state = {"step": 3, "lr": 0.1 + 0.2, "offsets": {"metrics.jsonl": 2**40}, "text": "é\n"}
    save_checkpoint(tmp_path, 3, tensors={"model": group, "rng": {"cpu": torch.get_rng_state()}}, state=state)
    back = load_newest(tmp_path, on_damage=quiet)
    assert back is not None
    assert (back.step, back.state, sorted(back.tensors)) == (3, state, ["model", "rng"])
    assert set(back.tensors["model"]) == set(group)
    for name, tensor in group.items():
        restored = back.tensors["model"][name]
        assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape), name
        assert (
            restored.reshape(-1)
            .view(torch.uint8)
            .equal(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        ), name


def test_newest_is_used_and_older_ones_are_removed(tmp_path: Path) -> None:
    assert load_newest(tmp_path, on_damage=quiet) is None
    for step in (5, 10, 999_999, 1_000_000):
        assert save(tmp_path, step).is_dir()
    assert names(tmp_path) == ["1000000", "999999"]
    back = load_newest(tmp_path, on_damage=quiet)
    assert back is not None
    assert back.step == 1_000_000
    assert back.tensors["model"]["w"].eq(1e6).all()


def test_keep_counts_the_new_one_and_must_be_positive(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["000003"]
    with pytest.raises(ValueError, match="keep"):
        save(tmp_path, 4, keep=0)


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, tensors={"model": {"w": torch.tensor([8.0])}}, state={"again": True})
    back = load_newest(tmp_path, on_damage=quiet)
    assert back is not None
    assert back.state == {"again": True}
    assert names(tmp_path) == ["000005"]


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 5)
    stale = tmp_path / "checkpoints" / ".000010.4242.tmp"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 10)
    assert names(tmp_path) == ["000005", "000010"]


# --- damage ----------------------------------------------------------------------------------------


def flip_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 40)


def edit_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_by_folder(folder: Path) -> None:
    size = (folder / "state.json").stat().st_size
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()
    manifest["files"]["state.json"]["bytes"] = (folder / "state.json").stat().st_size or size
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "model.safetensors has the wrong hash": flip_byte,
    "optimizer.safetensors has 40 bytes, but": cut_short,
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "state.json is missing": lambda folder: (folder / "state.json").unlink(),
    "state.json has 5 bytes, but": lambda folder: (folder / "state.json").write_text("{}   "),
    "state.json has the wrong hash": edit_manifest,
    "state.json cannot be read": replace_by_folder,
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json cannot be read": lambda folder: (folder / "manifest.json").write_text('{"step": 10, "fi'),
    "manifest.json cannot be read (list": lambda folder: (folder / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path: Path, problem: str) -> None:
    save(tmp_path, 10)
    DAMAGE[problem](save(tmp_path, 20))
    lines: list[str] = []
    back = load_newest(tmp_path, on_damage=lines.append)
    assert back is not None
    assert back.step == 10
    assert back.tensors["model"]["w"].eq(10).all()
    assert len(lines) == 1
    assert lines[0].startswith(f"checkpoints/000020 is damaged: {problem}")
    assert lines[0].endswith("; using checkpoints/000010")


def test_when_all_are_damaged_each_is_reported(tmp_path: Path) -> None:
    for step in (10, 20):
        flip_byte(save(tmp_path, step))
    lines: list[str] = []
    assert load_newest(tmp_path, on_damage=lines.append) is None
    assert [line[:18] for line in lines] == ["checkpoints/000020", "checkpoints/000010"]
    assert all(line.endswith("; no intact checkpoint is left") for line in lines)


def test_a_damaged_one_from_the_future_goes_with_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 10)
    flip_byte(save(tmp_path, 20))
    save(tmp_path, 12)
    assert names(tmp_path) == ["000010", "000012"]


# --- no space --------------------------------------------------------------------------------------


def assert_only_step_10_is_there(run: Path) -> None:
    assert names(run) == ["000010"]
    back = load_newest(run, on_damage=quiet)
    assert back is not None
    assert back.tensors["model"]["w"].eq(10).all()


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 10)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000_000))
    big = {"model": {"w": torch.zeros(1).expand(400_000_000)}}
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 20, tensors=big, state={})
    message = str(caught.value)
    assert "No space left on device" in message
    assert "needs 1.60 GB and 0.30 GB is free" in message
    assert str(tmp_path / "checkpoints" / "000020") in message
    assert "checkpoints/000010 is untouched" in message
    assert f"klent resume {tmp_path}" in message
    assert_only_step_10_is_there(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
@pytest.mark.parametrize(
    "full_at", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch, full_at: str) -> None:
    save(tmp_path, 10)

    def open_on_full_disk(path, mode="r"):
        return builtins.open("/dev/full" if Path(path).name == full_at and mode == "wb" else path, mode)

    def save_on_full_disk(tensors, path):
        save_file(tensors, path)
        if path.name == full_at:
            path.write_bytes(path.read_bytes()[:100])
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "open", open_on_full_disk, raising=False)
    monkeypatch.setattr(module, "save_file", save_on_full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 20)
    assert_only_step_10_is_there(tmp_path)


def test_a_failing_sync_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    save(tmp_path, 10)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path, 20)
    assert_only_step_10_is_there(tmp_path)


def test_the_first_checkpoint_says_that_there_is_no_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(CheckpointError, match=r"no earlier one.*starts over"):
        save(tmp_path, 1)


# --- kill -9 ---------------------------------------------------------------------------------------

KILL_AT_EVERY_STEP = textwrap.dedent(
    """
    import os, shutil, signal, sys
    from pathlib import Path
    import torch
    from klent.io.folders import sweep
    from klent.runs.checkpoint import load_newest, save_checkpoint

    torch.set_num_threads(1)
    scene, before, step = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])

    def save(run, step):
        model, optimizer = {"w": torch.full((64,), float(step))}, {"m": torch.full((9,), -float(step))}
        save_checkpoint(run, step, tensors={"model": model, "optimizer": optimizer}, state={"step": step})

    def killed_at(run, count):
        '''Save in a child that dies at its count-th touch of the disk; False if it lived to the end.'''
        child = os.fork()
        if child == 0:
            seen = 0
            def hook(event, arguments):
                nonlocal seen
                if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}:
                    seen += 1
                    if seen > count:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)
            try:
                save(run, step)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def damaged(line):
        sys.exit(f"kill {count}: {line}")

    results, count = [], 0
    while True:
        run = scene / str(count)
        for earlier in before:
            save(run, int(earlier))
        killed = killed_at(run, count)
        sweep(run / "checkpoints")
        back = load_newest(run, on_damage=damaged)
        want = float(back.step)
        assert back.tensors["model"]["w"].eq(want).all() and back.tensors["optimizer"]["m"].eq(-want).all()
        assert back.state == {"step": back.step}
        assert not list((run / "checkpoints").glob(".*")), list((run / "checkpoints").glob(".*"))
        save(run, step + 1)  # and the run can go on
        results.append(back.step)
        if not killed:
            break
        count += 1
    print(count, *results)
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize(
    ("before", "step"), [("1,2", 3), ("3", 3)], ids=["a new step", "the only step again"]
)
def test_kill_at_every_touch_of_the_disk_leaves_a_whole_checkpoint(
    tmp_path: Path, before: str, step: int
) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL_AT_EVERY_STEP)
    command = [sys.executable, str(script), str(tmp_path / "runs"), before, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills, *steps = (int(number) for number in done.stdout.split())
    assert kills >= 15  # a folder, four files and their syncs, two renames at least
    assert steps[0] == int(before.split(",")[-1])
    assert steps[-1] == step
    assert steps == sorted(steps)  # once the new one is there, it stays


# --- the optimizer ---------------------------------------------------------------------------------


def adamw(seed: int) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        "layer.weight": torch.nn.Parameter(torch.randn(4, 3, generator=generator)),
        "layer.bias": torch.nn.Parameter(torch.randn(4, generator=generator)),
        "untouched": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }
    groups = [
        {"params": [parameters["layer.bias"]]},
        {"params": [parameters["layer.weight"], parameters["untouched"]]},
    ]
    return parameters, torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), weight_decay=0.01)


def step_on(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss = parameters["layer.weight"].pow(3).sum() + parameters["layer.bias"].sin().sum()
        loss.backward()
        optimizer.step()


def test_a_restored_adamw_goes_on_bit_for_bit(tmp_path: Path) -> None:
    parameters, optimizer = adamw(0)
    step_on(parameters, optimizer, 3)
    table = flatten_optimizer(optimizer, parameters)
    assert sorted(table) == sorted(
        f"{key}.{name}"
        for key in ("exp_avg", "exp_avg_sq", "step")
        for name in ("layer.weight", "layer.bias")
    )
    save_checkpoint(tmp_path, 3, tensors={"model": parameters, "optimizer": table}, state={})

    back = load_newest(tmp_path, on_damage=quiet)
    assert back is not None
    again, restored = adamw(1)
    step_on(again, restored, 1)  # a state to be replaced
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(back.tensors["model"][name])
    restore_optimizer(restored, again, back.tensors["optimizer"])
    assert restored.state[again["layer.bias"]]["step"] == 3
    step_on(parameters, optimizer, 2)
    step_on(again, restored, 2)
    for name in parameters:
        assert torch.equal(parameters[name], again[name]), name
    for name, value in flatten_optimizer(optimizer, parameters).items():
        assert torch.equal(value, flatten_optimizer(restored, again)[name]), name


def test_restoring_copies_and_keeps_the_settings() -> None:
    parameters, optimizer = adamw(0)
    step_on(parameters, optimizer, 1)
    table = {name: value.clone() for name, value in flatten_optimizer(optimizer, parameters).items()}
    original = {name: value.clone() for name, value in table.items()}
    again, restored = adamw(0)
    restored.param_groups[0]["lr"] = 0.5
    restore_optimizer(restored, again, table)
    step_on(again, restored, 1)
    assert restored.param_groups[0]["lr"] == 0.5
    assert all(torch.equal(table[name], original[name]) for name in table)


def test_state_of_another_model_is_refused() -> None:
    parameters, optimizer = adamw(0)
    with pytest.raises(CheckpointError, match=r"'other\.bias', which this model does not have"):
        restore_optimizer(optimizer, parameters, {"exp_avg.other.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"layer\.bias has shape \[5\].*\[4\]"):
        restore_optimizer(optimizer, parameters, {"exp_avg.layer.bias": torch.zeros(5)})


def test_a_checkpoint_can_be_read_without_klent(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    shutil.copytree(folder, tmp_path / "copy")
    assert load_file(tmp_path / "copy" / "model.safetensors")["w"].eq(7).all()
    assert json.loads((tmp_path / "copy" / "state.json").read_text()) == {"step": 7}
