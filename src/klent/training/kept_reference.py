"""A reference for data that are replayed: each completion is measured once, and its numbers are kept on disk."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from klent.io.files import write_atomic
from klent.streams.batch import Batch
from klent.streams.episode import Episode
from klent.training.reference import Reference

FORMAT = "1"
MERGE_ABOVE = 64
"""With more files than this, a cache is written anew as one when it is opened."""

Numbers = dict[str, Tensor]
"""Key of a completion -> its log-probabilities, ``[L]``."""


class KeptReference:
    """Log-probabilities of completions under a reference that never changes, from a cache; else measured, and kept.

    A file of the cache holds what one step measured, whole or not at all, with a hash over all of it: a file
    that is damaged is measured again. Nothing in it can be stale: its folder is named by a hash of what the
    numbers depend on, and each number by a hash of the token ids.

    Args:
        folder: for the numbers of this reference alone, see :func:`identity`.
        load: gives the reference that measures; called when the first completion is not known.
        note: told in words where the cache is damaged or cannot be written; nothing else follows from it.

    Attributes:
        measured: completions that were measured, not found.
    """

    def __init__(self, folder: Path, load: Callable[[], Reference], note: Callable[[str], None]) -> None:
        self.folder = folder
        self.load = load
        self.note = note
        self.measured = 0
        self._known: Numbers = {}
        self._reference: Reference | None = None
        self._writes = True
        self._open()

    def logp(self, batch: Batch, rows: Sequence[int] | None = None) -> Tensor:
        """As of :class:`klent.training.reference.Reference`; only completions that are not known are measured."""
        keys = {row: key_of(batch.episodes[row]) for row in (range(len(batch)) if rows is None else rows)}
        unknown = {key: row for row, key in keys.items() if key not in self._known}
        if unknown:
            self._measure(batch, unknown)
        logp = torch.zeros(batch.mask.shape)
        for row, key in keys.items():
            values = self._known[key]
            logp[row, : len(values)] = values
        return logp

    def _measure(self, batch: Batch, unknown: Mapping[str, int]) -> None:
        """Measure the rows of what is not known, each once, and keep it."""
        if self._reference is None:
            with torch.random.fork_rng(devices=[]):  # loading draws numbers that a step's must not depend on
                self._reference = self.load()
        grid = self._reference.logp(batch, sorted(unknown.values()))
        new = {key: grid[row, : len(batch.episodes[row].tokens)].clone() for key, row in unknown.items()}
        self.measured += len(new)
        self._known |= new
        self._write(new)

    def _open(self) -> None:
        """Read every file of the cache; many small ones become one."""
        files = sorted(self.folder.glob("*.safetensors"))
        read = []
        for file in files:
            found = read_numbers(file)
            if found is None:
                self.note(f"{file} is damaged, so its reference log-probabilities are measured again")
                self._remove([file])
            else:
                self._known |= found
                read.append(file)
        if len(read) > MERGE_ABOVE and (merged := self._write(self._known)):
            self._remove(file for file in read if file != merged)

    def _write(self, numbers: Numbers) -> Path | None:
        """Put numbers into a file of their own; None where the disk does not take it."""
        if not self._writes:
            return None
        digest = _digest(numbers)
        path = self.folder / f"{digest}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save(numbers, metadata={"format": FORMAT, "digest": digest}))
        except OSError as error:
            self._writes = False
            self.note(
                f"reference log-probabilities are measured but not cached: {error}. Set KLENT_CACHE to a folder that "
                "can be written"
            )
            return None
        return path

    @staticmethod
    def _remove(files: Iterable[Path]) -> None:
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError:  # it is only not used
                continue


def read_numbers(file: Path) -> Numbers | None:
    """The numbers of a file of the cache; None where it is not exactly as it was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            numbers = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    whole = metadata.get("format") == FORMAT and metadata.get("digest") == _digest(numbers) == file.stem
    return numbers if whole else None


def key_of(episode: Episode) -> str:
    """The same for the same token ids in the same places, whatever text or file they are of."""
    digest = hashlib.blake2b(digest_size=16)
    tokens = episode.tokens.to(torch.int64).numpy()
    for part in (torch.tensor(episode.prompt_ids, dtype=torch.int64).numpy(), tokens, episode.acted.numpy()):
        digest.update(len(part).to_bytes(8, "little") + part.tobytes())
    return digest.hexdigest()


def identity(model: Path, **settings: object) -> str:
    """A name for a reference: a hash of every byte of its weights and configuration, and of the settings given."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for file in _weights(model):
        with open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"\0{file.name}\0{content}".encode())
    return digest.hexdigest()[:32]


def _weights(model: Path) -> Iterator[Path]:
    for name in sorted(os.listdir(model)):
        if name.endswith((".safetensors", ".bin", ".py")) or name in ("config.json", "adapter_config.json"):
            yield model / name


def _digest(numbers: Numbers) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(numbers):
        values = numbers[key]
        digest.update(f"{key}/{values.dtype}/{list(values.shape)}\0".encode() + values.numpy().tobytes())
    return digest.hexdigest()
