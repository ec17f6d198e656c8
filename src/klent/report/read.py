"""Run folder -> RunData: everything that the report draws, tolerant of damage.

A report is needed most when a run went wrong, so a killed, unfinished or empty run is read too: what is
missing or damaged is left out and listed in ``RunData.notes``. Only a folder that is not a run is refused.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from klent.config.layers import Layer
from klent.config.yaml_text import parse_yaml
from klent.errors import RunError
from klent.kit.tables import Row, Table, finite, step_of
from klent.measure.score import Kind, is_scored, kind_of, loss_of
from klent.report.frames import frames_of, vector_of

SAMPLES_PER_STEP = 64
"""Most completions read per step; a step may have thousands, and the page shows a few."""

MOVED = (
    "kl/update",
    "policy/entropy_delta",
    "policy/entropy_delta_predicted",
    "policy/entropy_delta_exact",
)
"""What a step measures of its update; all are 0 where there was none."""

ROUNDING = 1e-6
"""KL divergence, nats per token, that is rounding where an update was skipped."""

_STEP = re.compile(rb'"step"\s*:\s*(\d+)')
_TAUGHT = re.compile(rb'"advantage"\s*:\s*-?(?!0(?:\.0*)?\s*[,}])\d')
"""An advantage that is not 0; inside a JSON string its quotes would be escaped."""


@dataclass(frozen=True)
class Sample:
    """One completion with the numbers of the policy and the objective for each of its tokens.

    Attributes:
        step: the step that trained on it, from 1.
        prompt_id: the task's id of the prompt.
        prompt: as shown to the policy.
        completion: its answer.
        reward: the weighted sum of the rewards; None if unscorable.
        advantage: the estimator's value; None if unknown.
        finish: ``stop`` or ``length``; empty if unknown.
        tokens: the pieces of text, in order.
        entropy: nats, of the distribution that each token was drawn from; None where unknown.
        logp: nats, of each token in that distribution.
        coefficient: ``-dL/dlogp`` of each token; positive means pushed up.
        chosen: whether a selector of the recipe chose each token; empty without a selector.
        turns: who wrote which tokens of an episode in an environment; empty where there is none.
        problem: why the environment failed; empty where it did not.
        preferred: whether it is the better answer of its pair; None where it is in none.
        score: what each token adds to the answer's score, nats; None where unknown.
        value: what a critic expected before each token, in units of reward; empty without a critic.
        vector: the last action, where actions are vectors, such as a denoiser's image; else empty.
        film: what it was on the way, as (the step's place from 0, state before that step); else empty.
    """

    step: int
    prompt_id: str
    prompt: str
    completion: str
    reward: float | None
    advantage: float | None
    finish: str
    tokens: list[str]
    entropy: list[float | None]
    logp: list[float | None]
    coefficient: list[float | None]
    chosen: list[bool] = field(default_factory=list)
    turns: list["Stretch"] = field(default_factory=list)
    problem: str = ""
    preferred: bool | None = None
    score: list[float | None] = field(default_factory=list)
    value: list[float | None] = field(default_factory=list)
    vector: list[float] = field(default_factory=list)
    film: list[tuple[int, list[float]]] = field(default_factory=list)

    @property
    def marks(self) -> list[float | None]:
        """What is drawn of each token: what it adds to the margin of its pair, else its coefficient."""
        if self.preferred is None:
            return self.coefficient
        return [None if value is None else value if self.preferred else -value for value in self.score]


@dataclass(frozen=True)
class Stretch:
    """Tokens ``[first, end)`` of an episode that one side wrote; the turn's numbers are None where unknown."""

    by: str
    first: int
    end: int
    reward: float | None = None
    advantage: float | None = None


@dataclass(frozen=True)
class RunData:
    """A run, finished or not.

    Attributes:
        path: the run folder.
        config: the resolved recipe; empty if it could not be read.
        config_text: the same as written.
        run: ``run.json``: versions, command, times; empty if it could not be read.
        rows: one row per step, in order, each step once.
        evals: one row per evaluation, in order of its step.
        samples: completions of the first, a middle and the last step that has any, of those with an advantage
            other than 0 if there are such.
        forks: for each step the tokens of highest entropy.
        notes: what was missing or damaged, one sentence each.
    """

    path: Path
    config: Mapping[str, object] = field(default_factory=dict)
    config_text: str = ""
    run: Mapping[str, object] = field(default_factory=dict)
    rows: Sequence[Row] = field(default_factory=list)
    evals: Sequence[Row] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    forks: Sequence[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def table(self) -> Table:
        """The rows as columns."""
        return Table(self.rows)

    @property
    def steps(self) -> list[int]:
        """The step of every row."""
        return [step_of(row) for row in self.rows]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, without the steps where it is absent or not finite."""
        return self.table.series(name)

    def has(self, name: str) -> bool:
        """Whether a metric has at least one finite value."""
        return self.table.has(name)

    @property
    def rewarded(self) -> bool:
        """Whether completions were to be scored, also where every score failed."""
        return any(name.startswith("reward/") for row in self.rows for name in row)

    @property
    def heldout(self) -> list[Row]:
        """Evaluations of one split that could be scored, from before training to the last."""
        split = self.evals[0].get("split") if self.evals else None
        return [row for row in self.evals if row.get("split") == split and is_scored(row)]

    @property
    def losses(self) -> list[Row]:
        """Evaluations that measured the loss of held-out completions, from before training to the last."""
        return [row for row in self.evals if loss_of(row) is not None]

    @property
    def replayed(self) -> bool:
        """Whether completions are those of a data set, and not sampled."""
        return self.setting("rollout", "engine") == "dataset"

    @property
    def kind(self) -> Kind:
        """What the evaluations are read by: the accuracy, or the mean reward where rewards are graded."""
        return kind_of(self.heldout)

    def setting(self, *keys: str) -> object:
        """A value of the recipe by its path, None if there is none."""
        value: object = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def is_idle(row: Row) -> bool:
    """Whether a step left the policy as it was: no token had a coefficient, or every update was skipped.

    Skipped updates leave rounding behind, because the same weights are read in other rows.

    >>> is_idle({"step": 1, "kl/update": 0.0, "policy/entropy_delta": 0.0}), is_idle({"step": 1})
    (True, False)
    """
    moved = [v for name in MOVED if (v := finite(row.get(name))) is not None]
    if finite(row.get("update/skipped")):
        kl = finite(row.get("kl/update"))
        return kl is None or abs(kl) < ROUNDING
    return bool(moved) and not any(moved) and not (finite(row.get("grad/norm")) or 0.0) > 0


def is_run(path: Path) -> bool:
    """Whether klent wrote the folder."""
    return any((path / name).exists() for name in ("config.yaml", "run.json", "metrics.jsonl"))


def read_run(path: Path, *, texts: bool = True) -> RunData:
    """Read a run folder, finished or not.

    Args:
        path: the folder ``runs/NAME``.
        texts: False = the numbers alone, without samples and fork tokens.

    Returns:
        What could be read; ``notes`` lists what could not. Of ``samples.jsonl`` only the first, a middle and
        the last step are kept, and the file is never held as a whole.

    Raises:
        RunError: there is no such folder, or nothing in it was written by a run.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder. `klent train RECIPE` makes one under runs/.")
    if not is_run(path):
        raise RunError(
            f"{path} is not a run: it has none of config.yaml, run.json and metrics.jsonl, and no log of TRL "
            "or verl. Give the run's own folder, such as runs/quickstart."
        )
    notes: list[str] = []
    config_text = _text(path / "config.yaml", notes)
    return RunData(
        path=path,
        config=_mapping(config_text, "config.yaml", notes),
        config_text=config_text,
        run=_mapping(_text(path / "run.json", notes), "run.json", notes),
        rows=_rows(path / "metrics.jsonl", notes),
        evals=_rows(path / "eval.jsonl", notes),
        samples=_samples(path / "samples.jsonl", notes) if texts else [],
        forks=_rows(path / "forks.jsonl", notes) if texts else [],
        notes=notes,
    )


def _text(path: Path, notes: list[str]) -> str:
    if not path.exists():
        notes.append(f"{path.name} is missing.")
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _mapping(text: str, name: str, notes: list[str]) -> Row:
    """A YAML or JSON mapping; JSON has its own reader, which is stricter and faster than YAML's."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text) if name.endswith(".json") else parse_yaml(text, Layer({}, source=name))
    except (ValueError, RecursionError):
        notes.append(f"{name} could not be read: it is incomplete.")
        return {}
    return value if isinstance(value, dict) else {}


def _rows(path: Path, notes: list[str]) -> list[Row]:
    """Rows in order of their step. Of a step written twice, as after a resume, the last row counts."""
    if not path.exists():
        if path.name == "metrics.jsonl":
            notes.append(f"{path.name} is missing: no step was finished.")
        return []
    rows: dict[tuple[int, str], Row] = {}
    damaged = 0
    with open(path, "rb") as file:
        for line in file:
            row = _object(line)
            if row is None:
                damaged += bool(line.strip())
            else:
                rows[step_of(row), str(row.get("split", ""))] = row
    if damaged:
        notes.append(f"{path.name}: skipped {damaged} damaged line{'s' * (damaged > 1)}.")
    return [rows[key] for key in sorted(rows)]


def _object(line: bytes) -> Row | None:
    """One JSON Lines row that has a whole-number step, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) else None


def _samples(path: Path, notes: list[str]) -> list[Sample]:
    """Completions of three steps. The file may be huge, so the first pass only records offsets.

    Steps with an advantage other than 0 are taken before others: the rest taught nothing.
    """
    if not path.exists():
        return []
    offsets: dict[int, list[int]] = {}
    taught: set[int] = set()
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            # klent writes "step" first; if it is elsewhere, the whole row is parsed.
            match = _STEP.search(line, 0, 64)
            row = None if match else _object(line)
            step = int(match[1]) if match else step_of(row) if row else None
            if step is not None and line.endswith(b"\n"):
                offsets.setdefault(step, []).append(offset)
                if step not in taught and _TAUGHT.search(line):
                    taught.add(step)
            offset += len(line)
        chosen = early_middle_late(sorted(taught or offsets))
        samples = [sample for step in chosen for sample in _samples_at(file, offsets[step])]
    if offsets and not samples:
        notes.append(f"{path.name}: no completion in it could be read.")
    return samples


def _samples_at(file: BinaryIO, offsets: list[int]) -> Iterator[Sample]:
    """Up to ``SAMPLES_PER_STEP`` rows spread evenly over a step, so that they cover several prompts."""
    seen: set[bytes] = set()
    stride = max(1, math.ceil(len(offsets) / SAMPLES_PER_STEP)) if len(offsets) > 4 * SAMPLES_PER_STEP else 1
    for offset in offsets[::stride][:SAMPLES_PER_STEP]:
        file.seek(offset)
        line = file.readline()
        row = _object(line)
        if row is None or line in seen:  # a resumed run may have written a row twice
            continue
        seen.add(line)
        yield _sample(row)


def _sample(row: Row) -> Sample:
    tokens = [str(token) for token in _list(row.get("tokens"))]

    def numbers(key: str) -> list[float | None]:
        values = [finite(value) for value in _list(row.get(key))][: len(tokens)]
        return values + [None] * (len(tokens) - len(values))

    prompt = row.get("prompt", "")
    return Sample(
        step=step_of(row),
        prompt_id=str(row.get("prompt_id", "")),
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        completion=str(row.get("completion", "")),
        reward=finite(row.get("reward")),
        advantage=finite(row.get("advantage")),
        finish=str(row.get("finish") or ""),
        tokens=tokens,
        entropy=numbers("entropy"),
        logp=numbers("logp"),
        coefficient=numbers("coefficient"),
        chosen=_chosen(row.get("chosen"), len(tokens)),
        turns=list(_stretches(row.get("turns"), len(tokens))),
        problem=str(row.get("problem") or ""),
        preferred=preferred if isinstance(preferred := row.get("preferred"), bool) else None,
        score=numbers("score"),
        value=numbers("value") if "value" in row else [],
        vector=vector_of(row.get("vector")),
        film=list(frames_of(row.get("film"), len(tokens))),
    )


def _stretches(turns: object, count: int) -> Iterator[Stretch]:
    """The stretches of an episode, in order and without a gap; nothing from the first that is damaged."""
    start = 0
    for turn in _list(turns):
        span = _list(turn.get("tokens")) if isinstance(turn, Mapping) else []
        end = span[1] if len(span) == 2 and span[0] == start else None
        if not isinstance(turn, Mapping) or not isinstance(end, int) or not start < end <= count:
            return
        yield Stretch(
            str(turn.get("by", "")), start, end, finite(turn.get("reward")), finite(turn.get("advantage"))
        )
        start = end


def _chosen(selected: object, count: int) -> list[bool]:
    """Whether any selector chose each token, from the positions that each selector lists."""
    if not isinstance(selected, Mapping):
        return []
    positions = {index for chosen in selected.values() for index in _list(chosen) if isinstance(index, int)}
    return [index in positions for index in range(count)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def early_middle_late(steps: list[int]) -> list[int]:
    """The first, the middle and the last of some steps; fewer where there are fewer.

    >>> early_middle_late([1, 2, 3, 4, 5]), early_middle_late([1, 9]), early_middle_late([])
    ([1, 3, 5], [1, 9], [])
    """
    if not steps:
        return []
    return sorted({steps[0], steps[len(steps) // 2] if len(steps) > 2 else steps[0], steps[-1]})
