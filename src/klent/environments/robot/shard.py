"""A part of a collection: some segments in two files, of which the second says that both are whole.

Runs in a process of its own (:class:`klent.tasks.process.Worker`); arguments and answer are JSON.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from klent.environments.robot import make_simulator
from klent.environments.robot.behaviour import Behaviour, BehaviourName
from klent.environments.robot.segments import Segment, arrays_of, record_segment
from klent.environments.robot.simulator import Simulator
from klent.io.files import write_atomic
from klent.kit.seeds import derive_seed

_simulators: dict[str, Simulator] = {}


def record_shard(
    path: str,
    first: int,
    count: int,
    task: str,
    behaviours: Sequence[BehaviourName],
    length: int,
    branches: int,
    continuations: int,
    seed: int,
) -> dict[str, float]:
    """Record segments ``first`` to ``first + count - 1`` of a collection, and write them.

    A segment is a function of the collection's settings, its seed and its number, whoever records it.

    Args:
        path: of the files, without their suffixes.
        first: number of the first segment.
        count: how many.
        task: as of :func:`klent.environments.robot.make_simulator`.
        behaviours: of which each segment's is drawn, all alike.
        length, branches, continuations: as of :func:`klent.environments.robot.segments.record_segment`.
        seed: of the collection.

    Returns:
        ``seconds`` that it took.
    """
    begun = time.perf_counter()
    simulator = _simulators.setdefault(task, make_simulator(task))
    segments, rows = [], []
    for number in range(first, first + count):
        chosen = np.random.default_rng(derive_seed(seed, "behaviour", number)).integers(len(behaviours))
        behaviour = behaviours[int(chosen)]
        segment = record_segment(
            simulator,
            Behaviour.named(behaviour),
            derive_seed(seed, "segment", number),
            length=length,
            branches=branches,
            continuations=continuations,
        )
        segments.append(segment)
        rows.append(_row(number, task, behaviour, segment))
    write_atomic(Path(f"{path}.safetensors"), save(arrays_of(segments)))
    write_atomic(Path(f"{path}.jsonl"), "".join(f"{json.dumps(row)}\n" for row in rows))
    return {"seconds": time.perf_counter() - begun}


def _row(number: int, task: str, behaviour: BehaviourName, segment: Segment) -> dict[str, object]:
    """What a line says of a segment; its arrays stand in the other file, in the same order."""
    return {
        "segment": number,
        "task": task,
        "behaviour": behaviour,
        "std": segment.std,
        "start": segment.start,
        "return": segment.earned,
        "success": segment.success,
        "regret": segment.regret,
    }
