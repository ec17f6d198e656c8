"""Record the segments of a robot, in several processes, shard by shard; what is written is not recorded again."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from klent.config.collection import CollectionSettings
from klent.errors import RunError
from klent.io.files import read_object, write_atomic
from klent.tasks.process import CallFailed, Worker

SETTINGS = "collection.json"
SHARDS = "shards"
_SECONDS = 600.0  # of a segment at most; one takes a tenth of a second

Progress = Callable[[int, int], None]
"""Told of (segments recorded, segments in all)."""


def collect(folder: Path, settings: CollectionSettings, *, workers: int, progress: Progress) -> int:
    """Record what is missing of a collection.

    Args:
        folder: made if it is not there. It holds ``collection.json``, and for each shard its arrays in
            ``shards/NUMBER.safetensors`` and a line for each segment in ``shards/NUMBER.jsonl``.
        settings: what to record. They decide every bit of it, whatever the number of workers.
        workers: processes, each with a simulator.
        progress: told after each shard.

    Returns:
        How many segments this call recorded.

    Raises:
        RunError: the folder holds a collection of other settings, or a shard could not be recorded.
    """
    wanted = json.loads(settings.model_dump_json())
    _claim(folder, wanted)
    shared = {key: wanted[key] for key in wanted if key not in ("segments", "shard")}
    todo: SimpleQueue[tuple[Path, int, int]] = SimpleQueue()
    recorded = 0
    for number, first in enumerate(range(0, settings.segments, settings.shard)):
        path, count = shard_path(folder, number), min(settings.shard, settings.segments - first)
        if path.with_suffix(".jsonl").exists():
            recorded += count
        else:
            todo.put((path, first, count))
    before = done = recorded
    failed: list[Path] = []

    def work(worker: Worker) -> None:
        nonlocal done
        while not failed:
            try:
                path, first, count = todo.get_nowait()
            except Empty:
                return
            arguments = {"path": str(path), "first": first, "count": count, **shared}
            try:
                worker.call(arguments, _SECONDS * count)
            except CallFailed as error:
                failed.append(path)  # the others finish their shards and stop
                raise RunError(f"{folder}: segments {first} to {first + count - 1}: {error}") from error
            done += count
            progress(done, settings.segments)

    processes = [Worker("klent.environments.robot.shard:record_shard") for _ in range(workers)]
    try:
        progress(done, settings.segments)
        with ThreadPoolExecutor(workers, thread_name_prefix="collect") as threads:
            list(threads.map(work, processes))
    finally:
        for process in processes:
            process.close()
    return done - before


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard's files are, without their suffixes."""
    return folder / SHARDS / f"{number:05d}"


def _claim(folder: Path, wanted: dict[str, object]) -> None:
    """Write down what the folder holds; one that holds something else is refused."""
    file = folder / SETTINGS
    if not file.exists():
        write_atomic(file, json.dumps(wanted, indent=1) + "\n")
        return
    held = read_object(file)
    changed = sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key))
    if changed:
        shown = ", ".join(f"{key}: {held.get(key)} there, {wanted.get(key)} asked for" for key in changed)
        raise RunError(
            f"{folder} holds another collection: {shown}. Name another folder, or ask for the same"
        )
