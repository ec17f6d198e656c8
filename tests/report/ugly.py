"""Run folders that a report must survive, by name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fake_run import metrics, samples, write_lines, write_run

HOSTILE = [
    "<script>",
    "alert(1)",
    "</script>",
    " {{7*7}}",
    "{{1234*4321}}",
    "{% raw %}",
    "\n",
    "\u202eabc",
    "\t",
    "&amp;",
    ' "quoted"',
    "'",
    "</div>",
    "<img src=x onerror=alert(2)>",
    "]]>",
    "<!--",
    "\x00",
]


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def killed(folder: Path) -> Path:
    write_run(folder, 15, finished=False)
    rows = [metrics(step, 15, random.Random(step)) for step in range(1, 8)]
    write_lines(folder / "metrics.jsonl", rows)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "rew')
    return folder


def hostile(folder: Path) -> Path:
    """Everything that a model, a task or a user may have written tries to be markup."""
    write_run(
        folder,
        3,
        name="<b>run</b> & $x_1$",
        model="</title><script>alert(3)</script>",
        method="{{1234*4321}}",
    )
    rows = samples(1, 3, random.Random(0)) + samples(3, 3, random.Random(1))
    numbers = [random.Random(i).gauss(0, 1) for i in range(len(HOSTILE))]
    rows[0] |= {
        "tokens": HOSTILE,
        "completion": "".join(HOSTILE),
        "entropy": [abs(n) for n in numbers],
        "logp": [-abs(n) for n in numbers],
        "coefficient": numbers,
        "prompt": "<iframe src='https://example.org/'></iframe>\n{{7*7}}",
        "prompt_id": '"><script>alert(4)</script>',
        "advantage": 9.0,
        "finish": "<i>",
    }
    write_lines(folder / "samples.jsonl", rows)
    record = json.loads((folder / "run.json").read_text())
    record |= {"command": "klent train '<script>alert(5)</script>'", "device": "<u>gpu</u>"}
    (folder / "run.json").write_text(json.dumps(record))
    _rewrite(
        folder, lambda row: row.update({"reward/<script>alert(6)</script>": 0.5, 'objective/"><b>': 1.0})
    )
    return folder


def numberless(folder: Path) -> Path:
    write_run(folder, 4)
    keep = ("step",)
    return _rewrite(folder, lambda row: row.update({name: None for name in row if name not in keep}))


def constant(folder: Path) -> Path:
    write_run(folder, 6)
    return _rewrite(folder, lambda row: row.update({name: 0.0 for name in row if name != "step"}))


def wild(folder: Path) -> Path:
    """Values of every size and sign."""
    write_run(folder, 6)
    sizes = [-1e300, -3.0, 0.0, 1e-12, 1e9, 1e300]
    return _rewrite(
        folder, lambda row: row.update({name: sizes[row["step"] - 1] for name in row if name != "step"})
    )


def rowless(folder: Path) -> Path:
    write_run(folder, 15, finished=False)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    return folder


def empty_files(folder: Path) -> Path:
    write_run(folder, 2)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "config.yaml", "run.json"):
        (folder / name).write_text("")
    return folder


def odd_config(folder: Path) -> Path:
    """Keys that hold something else than what a recipe would."""
    write_run(folder, 2)
    odd = {
        "rollout": None,
        "optimizer": "adamw",
        "task": "own",
        "prompts_per_step": "8",
        "steps": None,
        "model": 3,
    }
    (folder / "config.yaml").write_text(json.dumps(odd))
    return folder


def supervised(folder: Path) -> Path:
    """Replayed data: no rewards, no sampler."""
    write_run(folder, 5, method="sft")
    (folder / "eval.jsonl").unlink()

    def strip(row: dict[str, Any]) -> None:
        for name in list(row):
            if name.startswith(("reward/", "group/", "policy/covariance", "policy/logp")):
                del row[name]

    return _rewrite(folder, strip)


def long(folder: Path) -> Path:
    return write_run(folder, 2400)


UGLY: dict[str, Callable[[Path], Path]] = {
    "killed": killed,
    "hostile": hostile,
    "numberless": numberless,
    "constant": constant,
    "wild": wild,
    "rowless": rowless,
    "empty_files": empty_files,
    "odd_config": odd_config,
    "supervised": supervised,
    "one_step": lambda folder: write_run(folder, 1),
    "two_steps": lambda folder: write_run(folder, 2),
}
