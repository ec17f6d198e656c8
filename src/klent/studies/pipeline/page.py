"""The page of a study, ``study.html``, and the same numbers as CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import klent.report
from klent.io.files import read_jsonl, write_atomic
from klent.kit.statistics import mean, standard_error
from klent.kit.student import t_bound
from klent.kit.svg import canvas, colour, horizontal, render, unit
from klent.kit.text import duration, fixed, number
from klent.report.live import hash_of
from klent.runs.record import wall_seconds
from klent.studies import compare
from klent.studies.pipeline.judge import FILE
from klent.studies.pipeline.plan import StudyPlan, describe, state_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

HERE = Path(__file__).parent
PAGE, TABLE = "study.html", "study.csv"
BASE = "base"
Numbers = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Stage -> seed -> measure -> value."""

TITLES = {
    "reward": "reward",
    "kl_reverse": "KL from the base",
    "kl_forward": "KL to the base",
    "entropy": "entropy",
    "length": "tokens",
}
"""Of the judge's measures on problems; further rewards have their own names."""

_SIDES = ((7, 4), (7, -12), (-7, 4), (-7, -12))  # of a name from its point, in points

HIDDEN = ("unscorable", "nats_error")


class Cell(NamedTuple):
    """One number of a table: the mean over seeds, and its 95 % interval where there are several."""

    value: str
    spread: str = ""


class Panel(NamedTuple):
    """What one set of problems says: a table, and reward against KL."""

    name: str
    heads: list[str]
    rows: list[tuple[str, list[Cell]]]
    drawing: str


def write_page(plan: StudyPlan, *, command: str = "", failed: Mapping[str, str] | None = None) -> Path:
    """Write ``study.html`` and ``study.csv`` from what has been judged so far; the page's path."""
    numbers = collect(plan)
    write_atomic(plan.folder / TABLE, as_csv(numbers))
    target = plan.folder / PAGE
    write_atomic(target, page(plan, numbers, command, failed or {}))
    return target


def collect(plan: StudyPlan) -> Numbers:
    """What the judge has measured, the base first."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for block in plan.blocks:
        folders = {BASE: plan.folder / f"base-seed{block.seed}"} | {run.arm: run.folder for run in block.runs}
        for stage, folder in folders.items():
            if (folder / FILE).is_file():
                row = json.loads((folder / FILE).read_text(encoding="utf-8"))["row"]
                values = {name: math.nan if value is None else float(value) for name, value in row.items()}
                found.setdefault(stage, {})[block.seed] = values
    return found


def as_csv(numbers: Numbers) -> str:
    """One line per stage, seed and measure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("stage", "seed", "measure", "value"))
    for stage, seeds in numbers.items():
        for seed, row in seeds.items():
            writer.writerows((stage, seed, name, f"{value:.6g}") for name, value in row.items())
    return out.getvalue()


def page(plan: StudyPlan, numbers: Numbers, command: str, failed: Mapping[str, str]) -> str:
    """The HTML. Everything that a study or a command line wrote is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # our own SVG and CSS: the only text that is not escaped
    report = Path(klent.report.__file__).parent
    style = Path(compare.__file__).parent / "compare.css"
    script = (report / "script.js").read_text("utf-8")
    return environment.get_template("study.html.j2").render(
        name=plan.study.name,
        style=(report / "style.css").read_text("utf-8") + style.read_text("utf-8"),
        script=script,
        script_hash=hash_of(script),
        command=command,
        lines=describe(plan),
        notes=[f"{name} failed: {reason}" for name, reason in failed.items()],
        base=plan.study.base.strip("{}"),
        several=len(plan.blocks) > 1,
        panels=[*_problems(plan, numbers), *_of_models(plan, numbers)],
        runs=list(_runs(plan)),
    )


def _problems(plan: StudyPlan, numbers: Numbers) -> Iterator[Panel]:
    for index, name in enumerate(plan.blocks[0].judge.on):
        table = _table(numbers, f"{name}/")
        if table is not None:
            heads, rows = table
            yield Panel(name, heads, rows, _scatter(numbers, name, f"against-{index}"))


def _of_models(plan: StudyPlan, numbers: Numbers) -> Iterator[Panel]:
    """What is of the model and of no problems: texts and distance."""
    for prefix, title in (
        ("prose/", "English prose, nats per token"),
        *((f"{name}/", f"Texts {name}, nats per token") for name in plan.blocks[0].judge.texts),
        ("weights/", "Distance of the weights"),
    ):
        table = _table(numbers, prefix)
        if table is not None:
            yield Panel(title, *table, "")


def _table(numbers: Numbers, prefix: str) -> tuple[list[str], list[tuple[str, list[Cell]]]] | None:
    """The measures under a prefix; None where there is none."""
    names = list(
        dict.fromkeys(n for s in numbers.values() for row in s.values() for n in row if n.startswith(prefix))
    )
    names = [name for name in names if name.removeprefix(prefix) not in HIDDEN]
    if not names:
        return None
    heads = [TITLES.get(name.removeprefix(prefix), name.removeprefix(prefix)) for name in names]
    rows = [
        (stage, [_cell([row[name] for row in seeds.values() if name in row]) for name in names])
        for stage, seeds in numbers.items()
    ]
    return heads, rows


def _cell(values: Sequence[float]) -> Cell:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Cell("–")
    if len(known) < 2:
        return Cell(number(known[0]))
    half = t_bound(0.05, len(known) - 1) * standard_error(known)
    return Cell(number(mean(known)), f"{fixed(mean(known) - half, 3)} to {fixed(mean(known) + half, 3)}")


def _scatter(numbers: Numbers, name: str, drawing: str) -> str:
    """Reward against the exact KL from the base: a small dot per run, a large one at their mean."""
    points = {
        stage: [
            (row[f"{name}/kl_reverse"], row[f"{name}/reward"])
            for row in seeds.values()
            if math.isfinite(row.get(f"{name}/kl_reverse", math.nan)) and math.isfinite(row[f"{name}/reward"])
        ]
        for stage, seeds in numbers.items()
    }
    points = {stage: where for stage, where in points.items() if where}
    if len(points) < 2:
        return ""
    figure, (panel,) = canvas(width=640, height=280)
    for stage, where in points.items():
        role = "muted" if stage == BASE else "reward"
        x, y = [kl for kl, _ in where], [reward for _, reward in where]
        panel.plot(x, y, "o", color=colour(role), markersize=4, alpha=0.45, clip_on=False)
        panel.plot([mean(x)], [mean(y)], "o", color=colour(role), markersize=8, clip_on=False)
    panel.margins(x=0.12, y=0.12)
    unit(panel, "reward")
    horizontal(panel, "KL")
    middles = {
        stage: (mean([x for x, _ in where]), mean([y for _, y in where])) for stage, where in points.items()
    }
    name_points(panel, middles)
    return render(figure, drawing)


def name_points(panel: "Axes", points: Mapping[str, tuple[float, float]]) -> list["Text"]:
    """Write names beside their points, each on the first side where it covers no name before it."""
    written: list[Text] = []
    panel.get_xlim()  # settles the limits, and with them where the points are
    for name, where in points.items():
        for x, y in _SIDES:
            text = panel.annotate(
                name,
                where,
                (x, y),
                textcoords="offset points",
                horizontalalignment="left" if x > 0 else "right",
                color=colour("ink"),
                fontsize=10.5,
            )
            box = text.get_window_extent()
            if (x, y) == _SIDES[-1] or not any(box.overlaps(other.get_window_extent()) for other in written):
                written.append(text)
                break
            text.remove()
    return written


def _runs(plan: StudyPlan) -> Iterator[dict[str, str]]:
    """Every run with its state, what it says of itself, and its own page."""
    for block in plan.blocks:
        for run in block.runs:
            rows = (
                list(read_jsonl(run.folder / "eval.jsonl")) if (run.folder / "eval.jsonl").is_file() else []
            )
            last = rows[-1] if rows else {}
            key = next((k for k in ("accuracy", "reward", "preference/accuracy", "loss") if k in last), None)
            report = run.folder / "report.html"
            yield {
                "name": run.folder.name,
                "state": state_of(run),
                "says": f"{key} {fixed(float(str(last[key])), 3)}" if key else "",
                "took": duration(wall_seconds(run.folder)) if state_of(run) == "done" else "",
                "page": f"{run.folder.name}/report.html" if report.is_file() else "",
            }
