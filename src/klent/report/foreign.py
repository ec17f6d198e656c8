"""Logs of other trainers as a run: TRL's trainer_state.json, verl's JSON Lines, TensorBoard's event files.

Their columns get klent's names where they mean the same, so that figures and findings read them as they read
klent's own; the rest is named in a note and left out.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klent.errors import RunError
from klent.kit.tables import finite
from klent.report.read import RunData

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

Rows = list[dict[str, Any]]


def read_foreign(path: Path) -> RunData | None:
    """A log folder of TRL or verl as a run; None where nothing in it is known.

    Args:
        path: a folder with ``trainer_state.json`` in it or in its ``checkpoint-N`` (the latest is read); with
            a JSON Lines file of verl's file logger; or with TensorBoard event files in it or below.

    Returns:
        The run, with one note that says where it was read from and one that names the columns left out.

    Raises:
        RunError: there is nothing but event files, and tensorboard is not installed; or a file is damaged.
    """
    for reader in (_trl, _verl, _events):
        found = reader(path)
        if found is not None:
            source, file, raw = found
            rows, strangers = _renamed(raw)
            notes = [f"Read from {source}: {file.relative_to(path)}."]
            if strangers:
                shown = ", ".join(strangers[:NAMED_AT_MOST])
                more = len(strangers) - NAMED_AT_MOST
                notes.append(f"Columns without a name here: {shown}{f' and {more} others' * (more > 0)}.")
            name = path.resolve().name
            return RunData(path, config={"name": name}, run={"source": source}, rows=rows, notes=notes)
    return None


def _renamed(raw: Rows) -> tuple[Rows, list[str]]:
    """Rows under klent's names, each step once and in order, and the columns that have no such name."""
    rows: dict[int, dict[str, Any]] = {}
    strangers: dict[str, None] = {}
    for line in raw:
        row = rows.setdefault(line["step"], {"step": line["step"]})
        for column, value in line.items():
            name = klent_name(column)
            if name is not None:
                row[name] = value
            elif column not in NOT_METRICS and finite(value) is not None:
                strangers[column] = None
    return [rows[step] for step in sorted(rows)], list(strangers)


def klent_name(column: str) -> str | None:
    """What klent calls a column of TRL or verl; None where it has no such metric.

    >>> klent_name("train/reward"), klent_name("rewards/format_reward/mean"), klent_name("actor/entropy")
    ('reward/mean', 'reward/format_reward', 'policy/entropy')
    >>> klent_name("critic/vf_loss") is None
    True
    """
    column = column.removeprefix("train/")
    part = re.fullmatch(r"rewards/(.+)/mean", column)
    return f"reward/{part[1]}" if part else TRL.get(column) or VERL.get(column)


def _trl(path: Path) -> tuple[str, Path, Rows] | None:
    """The ``log_history`` of the furthest trainer state, without the rows of evaluations and of the end."""
    states = [*path.glob("trainer_state.json"), *path.glob("checkpoint-*/trainer_state.json")]
    found: tuple[str, Path, Rows] | None = None
    for file in sorted(states):
        try:
            history = json.loads(file.read_text(encoding="utf-8")).get("log_history", [])
        except (ValueError, AttributeError) as error:
            raise RunError(f"{file} is damaged: {error}. Remove it, or name another folder.") from error
        rows = [row for row in history if isinstance(row, dict) and isinstance(row.get("step"), int)]
        rows = [row for row in rows if not any(n.startswith(("eval_", "train_")) for n in row)]
        if rows and (found is None or rows[-1]["step"] > found[2][-1]["step"]):
            found = "TRL's trainer state", file, rows
    return found


def _verl(path: Path) -> tuple[str, Path, Rows] | None:
    """The longest JSON Lines file of ``{"step": ..., "data": {...}}``; damaged lines are left out."""
    found: tuple[str, Path, Rows] | None = None
    for file in sorted(path.glob("*.jsonl")):
        rows = [row["data"] | {"step": row["step"]} for row in _lines(file)]
        if rows and (found is None or len(rows) > len(found[2])):
            found = "verl's file logger", file, rows
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with open(file, "rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not (isinstance(row, dict) and isinstance(row.get("data"), dict)):
                return  # some other file
            if isinstance(row.get("step"), int):
                yield row


def _events(path: Path) -> tuple[str, Path, Rows] | None:
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
    rows: dict[int, dict[str, Any]] = {}
    for tag in log.Tags()["scalars"]:
        for event in log.Scalars(tag):
            rows.setdefault(event.step, {"step": event.step})[tag] = event.value
    return ("TensorBoard's event files", files[-1], [rows[step] for step in sorted(rows)]) if rows else None
