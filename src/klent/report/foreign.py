"""Logs of other trainers as a run: TRL's trainer_state.json, verl's JSON Lines, TensorBoard's event files.

Columns with the same meaning get klent's names, so figures and findings read them like klent's own; the
others are listed in a note and left out.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from klent.errors import RunError
from klent.kit.tables import Row, finite, step_of
from klent.report.read import RunData, is_run, read_run

TRL = {
    "loss": "objective/loss",
    "grad_norm": "grad/norm",
    "learning_rate": "optimizer/lr",
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "frac_reward_zero_std": "group/zero_variance",
    "entropy": "policy/entropy",
    "kl": "kl/reference",
    "clip_ratio/low_mean": "objective/clip_low",
    "clip_ratio/high_mean": "objective/clip_high",
    "clip_ratio/region_mean": "objective/clip",
    "cispo_clip_ratio": "objective/clip_high",
    "completions/mean_length": "completion/length",
    "completions/clipped_ratio": "completion/truncated",
    "sampling/sampling_logp_difference/mean": "policy/logp_mismatch",
    "step_time": "time/step",
}
"""TRL's GRPO and RLOO trainers -> klent."""

VERL = {
    "critic/score/mean": "reward/mean",
    "actor/entropy": "policy/entropy",
    "actor/entropy_loss": "policy/entropy",
    "actor/ppo_kl": "kl/update",
    "actor/kl_loss": "kl/reference",
    "actor/pg_loss": "objective/loss",
    "actor/pg_clipfrac": "objective/clip",
    "actor/pg_clipfrac_lower": "objective/clip_dual",
    "actor/grad_norm": "grad/norm",
    "actor/lr": "optimizer/lr",
    "response_length/mean": "completion/length",
    "response_length/clip_ratio": "completion/truncated",
    "training/rollout_probs_diff_mean": "policy/prob_mismatch",
    "timing_s/step": "time/step",
    "timing_s/gen": "time/rollout",
    "timing_s/reward": "time/score",
    "timing_s/update_actor": "time/train",
    "perf/throughput": "tokens/per_second",
    "perf/total_num_tokens": "tokens/train",
    "perf/max_memory_allocated_gb": "memory/peak_gb",
}
"""verl's PPO trainer -> klent."""

NOT_METRICS = {"step", "epoch", "training/global_step", "training/epoch", "num_tokens", "total_flos"}
NAMED_AT_MOST = 30


class Log(NamedTuple):
    """A log of another trainer: whose it is, the file, and its rows with the trainer's own column names."""

    source: str
    file: Path
    rows: Sequence[Row]


def read_any(path: Path, *, texts: bool = True) -> RunData:
    """A run folder, or else a log folder of TRL or verl.

    Raises:
        RunError: it is neither.
    """
    foreign = read_foreign(path) if path.is_dir() and not is_run(path) else None
    return foreign or read_run(path, texts=texts)


def read_foreign(path: Path) -> RunData | None:
    """A log folder of TRL or verl as a run; None if it contains no such log.

    Args:
        path: a folder with ``trainer_state.json`` in it or in its ``checkpoint-N`` (the latest is read); with
            a JSON Lines file of verl's file logger; or with TensorBoard event files in it or in a subfolder.

    Returns:
        The run, with one note on where it was read from and one that lists the columns left out.

    Raises:
        RunError: only event files are there and tensorboard is not installed, or a file is damaged.
    """
    for reader in (_trl, _verl, _events):
        log = reader(path)
        if log is not None:
            rows, unknown = _renamed(log.rows)
            notes = [f"Read from {log.source}: {log.file.relative_to(path)}."]
            if unknown:
                shown = ", ".join(unknown[:NAMED_AT_MOST])
                more = len(unknown) - NAMED_AT_MOST
                notes.append(f"Columns that klent does not know: {shown}{f' and {more} more' * (more > 0)}.")
            name = path.resolve().name
            return RunData(path, config={"name": name}, run={"source": log.source}, rows=rows, notes=notes)
    return None


def _renamed(raw: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows under klent's names, each step once and in order, and the columns without such a name."""
    rows: dict[int, dict[str, object]] = {}
    unknown: dict[str, None] = {}
    for line in raw:
        row = rows.setdefault(step_of(line), {"step": step_of(line)})
        for column, value in line.items():
            name = klent_name(column)
            if name is not None:
                row[name] = value
            elif column not in NOT_METRICS and finite(value) is not None:
                unknown[column] = None
    return [rows[step] for step in sorted(rows)], list(unknown)


def klent_name(column: str) -> str | None:
    """klent's name for a column of TRL or verl; None if it has no such metric.

    >>> klent_name("train/reward"), klent_name("rewards/format_reward/mean"), klent_name("actor/entropy")
    ('reward/mean', 'reward/format_reward', 'policy/entropy')
    >>> klent_name("critic/vf_loss") is None
    True
    """
    column = column.removeprefix("train/")
    part = re.fullmatch(r"rewards/(.+)/mean", column)
    return f"reward/{part[1]}" if part else TRL.get(column) or VERL.get(column)


def _trl(path: Path) -> Log | None:
    """The ``log_history`` of the latest trainer state, without the rows of evaluations and of the end."""
    states = [*path.glob("trainer_state.json"), *path.glob("checkpoint-*/trainer_state.json")]
    latest: Log | None = None
    for file in sorted(states):
        try:
            history = json.loads(file.read_text(encoding="utf-8")).get("log_history", [])
        except (ValueError, AttributeError) as error:
            raise RunError(f"{file} is damaged: {error}. Remove it, or choose another folder.") from error
        rows = [row for row in history if isinstance(row, dict) and isinstance(row.get("step"), int)]
        rows = [row for row in rows if not any(n.startswith(("eval_", "train_")) for n in row)]
        if rows and (latest is None or step_of(rows[-1]) > step_of(latest.rows[-1])):
            latest = Log("TRL's trainer state", file, rows)
    return latest


def _verl(path: Path) -> Log | None:
    """The longest JSON Lines file of ``{"step": ..., "data": {...}}``; damaged lines are left out."""
    longest: Log | None = None
    for file in sorted(path.glob("*.jsonl")):
        rows = list(_lines(file))
        if rows and (longest is None or len(rows) > len(longest.rows)):
            longest = Log("verl's file logger", file, rows)
    return longest


def _lines(file: Path) -> Iterator[Row]:
    with open(file, "rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not (isinstance(row, dict) and isinstance(row.get("data"), dict)):
                return  # not verl's
            if isinstance(row.get("step"), int):
                yield row["data"] | {"step": row["step"]}


def _events(path: Path) -> Log | None:
    """All scalars of the folder with the most TensorBoard events."""
    files = sorted(path.rglob("events.out.tfevents*"), key=lambda file: file.stat().st_size)
    if not files:
        return None
    try:
        from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
    except ImportError as error:
        raise RunError(f"{files[-1]} needs tensorboard to be read: pip install tensorboard") from error
    log = event_accumulator.EventAccumulator(str(files[-1].parent), size_guidance={"scalars": 0})
    log.Reload()
    rows: dict[int, dict[str, object]] = {}
    for tag in log.Tags()["scalars"]:
        for event in log.Scalars(tag) if tag not in NOT_METRICS else ():  # a tag may be called "step", too
            rows.setdefault(event.step, {"step": event.step})[tag] = event.value
    in_order = [rows[step] for step in sorted(rows)]
    return Log("TensorBoard's event files", files[-1], in_order) if rows else None
