"""Every completion that a run logged, to be searched in its page: texts and numbers, without tokens.

The page holds them all where they are few. Of a large run it holds those of some steps, evenly spread, and all are
beside it in the folder ``report``: in parts that the page reads when it is asked for them, and in tables of metrics
and completions. A part is a script, since a page that is a file may read nothing else.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from klent.io.files import write_atomic
from klent.kit.tables import Row, finite, step_of
from klent.measure.findings.finding import Finding
from klent.report.read import RunData

SAMPLES = "samples.jsonl"
BESIDE = "report"
"""Folder beside report.html for what does not fit into it."""

IN_PAGE = 400_000
"""Characters of completions, and of metrics, that report.html holds at most; half as many where it holds some."""

IN_PART = 1_000_000
"""Characters of completions that a part beside it holds, or a few more."""

ROW = 40
"""Characters of a completion's numbers, as JSON."""

ONLY = {"truncation": "length", "unscorable": "unscorable", "zero_variance": "equal"}
"""Signature -> which completions of its steps have the problem; of any other all of them do."""


class Brief(NamedTuple):
    """One completion in a few fields; ``entropy`` is the mean over its tokens, nats."""

    step: int
    prompt_id: str
    prompt: str
    completion: str
    reward: float | None
    advantage: float | None
    finish: str
    entropy: float | None


class Part(NamedTuple):
    """A file beside the page with completions ``first``, ``first + 1``, ..., those of some steps, counted from 0."""

    first: int
    first_step: int
    last_step: int
    text: str


class Browser(NamedTuple):
    """What the page's script reads, and what the page says about it.

    Attributes:
        data: completions and findings as JSON.
        metrics: metrics as JSON, for the download; empty where they are beside the page.
        shown: how many completions the data has.
        total: how many the run logged.
        parts: files with all of them; empty where the data has all, or nothing is beside the page.
        tables: addresses of tables beside the page, by name; empty where the page makes them itself.
    """

    data: str
    metrics: str
    shown: int
    total: int
    parts: Sequence[Part] = ()
    tables: Mapping[str, str] = {}


def browser(
    run: RunData,
    findings: Sequence[Finding],
    briefs: Sequence[Brief],
    *,
    live: bool = False,
) -> Browser | None:
    """What report.html holds of a run's completions; None where none were logged.

    Args:
        run: the run.
        findings: its problems, to filter by.
        briefs: every completion that it logged.
        live: whether the page is served, so that nothing is beside it.
    """
    if not briefs:
        return None
    held: Sequence[int] = range(len(briefs))
    if _size(briefs) > IN_PAGE:
        held = thinned(briefs, IN_PAGE // 2)
    metrics = _metrics(run)
    part, long = len(held) < len(briefs), len(metrics) > IN_PAGE
    tables = {name: f"{BESIDE}/{name}.csv" for name in ("metrics", "samples") if (part or long) and not live}
    parts = list(_parts(briefs)) if part and not live else []
    data = _rows([briefs[index] for index in held])
    data["findings"] = [[f.title, f.onset, f.until, ONLY.get(f.name, "")] for f in findings]
    if parts:
        data["numbers"] = list(held)
        data["parts"] = [
            [_file(place), part.first, part.first_step, part.last_step, len(part.text.encode())]
            for place, part in enumerate(parts)
        ]
    return Browser(
        data=_script_json(data),
        metrics="" if long or tables else metrics,
        shown=len(held),
        total=len(briefs),
        parts=parts,
        tables=tables,
    )


def read_briefs(path: Path) -> list[Brief]:
    """The completions of a file in order of their step.

    Damaged lines are passed over, and of lines that a resumed run wrote twice one is read.
    """
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        return sorted(_briefs(file), key=lambda brief: brief.step)


def _briefs(lines: Iterable[bytes]) -> Iterator[Brief]:
    seen: set[int] = set()
    for line in lines:
        key = hash(line)
        if line.endswith(b"\n") and key not in seen and (brief := _brief(line)) is not None:
            seen.add(key)
            yield brief


def _size(briefs: Sequence[Brief]) -> int:
    """Characters that completions take; a prompt counts once."""
    return sum(len(brief.completion) + ROW for brief in briefs) + sum(map(len, {b.prompt for b in briefs}))


def thinned(briefs: Sequence[Brief], most: int) -> Sequence[int]:
    """Indices of the completions of so many steps, evenly spread, that their texts stay below ``most`` characters."""
    size = _size(briefs)
    if size <= most:
        return range(len(briefs))
    steps = sorted({brief.step for brief in briefs})
    count = max(1, len(steps) * most // size)
    kept = {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}
    return [index for index, brief in enumerate(briefs) if brief.step in kept]


def _parts(briefs: Sequence[Brief]) -> Iterator[Part]:
    """All completions, in files of about ``IN_PART`` characters."""
    start = size = 0
    for index, brief in enumerate(briefs, 1):
        size += len(brief.prompt) + len(brief.completion) + ROW
        if size < IN_PART and index < len(briefs):
            continue
        held = briefs[start:index]
        text = f"klentPart({start},{_script_json(_rows(held))});\n"
        yield Part(start, held[0].step, held[-1].step, text)
        start, size = index, 0


def _file(place: int) -> str:
    """Address of a part."""
    return f"{BESIDE}/samples-{place + 1:04}.js"


def _brief(line: bytes) -> Brief | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    prompt, entropy = row.get("prompt", ""), row.get("entropy")
    values = [v for one in entropy if (v := finite(one)) is not None] if isinstance(entropy, list) else []
    return Brief(
        step=step,
        prompt_id=str(row.get("prompt_id", "")),
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        completion=str(row.get("completion", "")),
        reward=_rounded(row.get("reward")),
        advantage=_rounded(row.get("advantage")),
        finish=str(row.get("finish") or ""),
        entropy=_rounded(sum(values) / len(values)) if values else None,
    )


def _rounded(value: object) -> float | None:
    number = finite(value)
    return None if number is None else float(f"{number:.5g}")


def _rows(briefs: Sequence[Brief]) -> dict[str, object]:
    """Prompts once each, and completions as lists."""
    prompts = list(dict.fromkeys((brief.prompt_id, brief.prompt) for brief in briefs))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    return {
        "prompts": prompts,
        "rows": [
            [
                b.step,
                place[b.prompt_id, b.prompt],
                b.completion,
                b.reward,
                b.advantage,
                b.finish,
                b.entropy,
            ]
            for b in briefs
        ],
    }


def _script_json(value: object) -> str:
    """JSON that no HTML parser takes for markup, and in which nothing is invisible; it is data, and is not run."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub(r"[^ -~]", lambda m: m[0] if m[0].isprintable() else json.dumps(m[0])[1:-1], text)


def _metrics(run: RunData) -> str:
    names = metric_names(run.rows)
    rows = [[step_of(row), *(_rounded(row.get(name)) for name in names)] for row in run.rows]
    return _script_json([["step", *names], *rows])


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Every metric in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "split")))


def write_beside(run: RunData, briefs: Sequence[Brief], parts: Sequence[Part]) -> None:
    """Write what does not fit into report.html: parts with every completion, and the two tables.

    Args:
        run: the run.
        briefs: its completions.
        parts: of :func:`browser`; those of an earlier report are removed.
    """
    folder = run.path / BESIDE
    folder.mkdir(exist_ok=True)
    for place, part in enumerate(parts):
        write_atomic(run.path / _file(place), part.text)
    kept = {run.path / _file(place) for place in range(len(parts))}
    for file in {*folder.glob("samples-*.js"), folder / "samples.html"} - kept:
        file.unlink(missing_ok=True)
    names = metric_names(run.rows)
    write_atomic(folder / "samples.csv", _table(Brief._fields, briefs))
    metrics = ([step_of(row), *(row.get(name) for name in names)] for row in run.rows)
    write_atomic(folder / "metrics.csv", _table(("step", *names), metrics))


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()
