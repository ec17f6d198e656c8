"""The page of an overlay: what the runs reached, in what their recipes differ, and their curves."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import klent.report
from klent.errors import ConfigError, RunError
from klent.io.files import write_atomic
from klent.report.foreign import read_any
from klent.report.headline import Stat, lede, results
from klent.report.live import NOT_LIVE, Live, hash_of
from klent.report.page import chart, tip
from klent.report.read import RunData, is_run
from klent.runs.listing import state_of
from klent.studies.compare.plan import flat
from klent.studies.overlay import STYLES
from klent.studies.overlay.figures import overlays

HERE = Path(__file__).parent
_COMPARED = ("task", "seed", "eval")  # settings that decide which problems are held out


class Row(NamedTuple):
    """A run in the table: its name, its page (empty = none), state, steps, result and entropy, and what it is."""

    name: str
    page: str
    state: str
    steps: str
    result: str
    entropy: str
    text: str
    role: str
    mark: str


def write_overlay(
    paths: Sequence[Path], target: Path, *, metrics: Sequence[str] = (), command: str = ""
) -> Path:
    """Draw runs over one another into one HTML file.

    Args:
        paths: run folders, or log folders of TRL or verl; finished or not.
        target: the file to write.
        metrics: more metrics to draw than the usual ones.
        command: the command line that repeats it, for the page.

    Raises:
        ConfigError: fewer than two runs, more than can be told apart, one twice, or a metric that no run has.
        RunError: a folder that is no run.
    """
    folders = [path.resolve() for path in paths]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise ConfigError("name two runs or more, each once: klent compare runs/one runs/other")
    if len(folders) > len(STYLES):
        raise ConfigError(
            f"{len(folders)} runs: at most {len(STYLES)} can be told apart in one figure. Name fewer"
        )
    runs = dict(zip(names_of(paths), map(_read, paths), strict=True))
    for metric in metrics:
        if not any(run.has(metric) for run in runs.values()):
            known = sorted({name for run in runs.values() for name in run.table.names()})
            raise ConfigError(f"--metric {metric}: none of these runs has it; they have {', '.join(known)}")
    links = [_link(run.path / "report.html", target) for run in runs.values()]
    write_atomic(target, page(runs, links, metrics, command))
    return target


def page(
    runs: Mapping[str, RunData],
    links: Sequence[str],
    metrics: Sequence[str] = (),
    command: str = "",
    live: Live = NOT_LIVE,
) -> str:
    """The HTML. Everything that a recipe or a command line wrote is escaped.

    Args:
        runs: by name.
        links: the page of each; empty where it has none.
        metrics, command: as of :func:`write_overlay`.
        live: what makes the page follow the runs, where it is served.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    report = Path(klent.report.__file__).parent
    environment = Environment(
        loader=FileSystemLoader([HERE, report]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # our own SVG, CSS and script: the only text that is not escaped
    comparison = (HERE.parent / "compare" / "compare.css").read_text("utf-8")
    script = (report / "script.js").read_text("utf-8")
    return environment.get_template("overlay.html.j2").render(
        title=" · ".join(runs),
        style=(report / "style.css").read_text("utf-8") + comparison,
        script=script,
        script_hash=hash_of(script),
        live=live,
        chart=chart,
        tip=tip,
        command=command,
        notes=notes(runs),
        rows=[
            _row(name, run, link, style)
            for (name, run), link, style in zip(runs.items(), links, STYLES, strict=False)
        ],
        names=list(runs),
        settings=differing(runs),
        figures=overlays(runs, metrics),
    )


def _read(path: Path) -> RunData:
    run = read_any(path, texts=False)
    if not run.rows and not run.evals:
        raise RunError(f"{path} has no step and no evaluation yet, so there is nothing to draw; leave it out")
    return run


def names_of(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, with as much of their paths as tells them apart."""
    depth = 1
    while len({path.resolve().parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.resolve().parts[-depth:]) for path in paths]


def notes(runs: Mapping[str, RunData]) -> list[str]:
    """What limits a comparison of these runs."""
    lines = [
        "One run of each is no evidence that a method is better: seeds differ as much. `klent compare RECIPE --over` "
        "trains several seeds and tests the difference."
    ]
    scored = [run for run in runs.values() if run.heldout]
    problems = {json.dumps([run.config.get(key) for key in _COMPARED], sort_keys=True) for run in scored}
    if len(problems) > 1:
        lines.append("Task, seed or evaluation differ, so held-out scores are not of the same problems.")
    steps = {
        json.dumps([run.config.get(key) for key in ("prompts_per_step", "group_size")])
        for run in runs.values()
    }
    if len(steps) > 1:
        lines.append("Steps are not of the same number of completions.")
    return lines + [f"{name}: {note}" for name, run in runs.items() for note in run.notes]


def _link(report: Path, target: Path) -> str:
    """The way from a page to a report; empty where there is none."""
    if not report.is_file():
        return ""
    return Path(os.path.relpath(report.resolve(), target.resolve().parent)).as_posix()


def _row(name: str, run: RunData, link: str, style: tuple[str, str]) -> Row:
    outcome, entropy = results(run)
    planned = run.config.get("steps")
    last = run.steps[-1] if run.rows else 0
    own = is_run(run.path)
    return Row(
        name=name,
        page=link,
        state=state_of(run) if own else "",
        steps=f"{last:,} of {planned:,}" if isinstance(planned, int) else f"{last:,}",
        result=_text(outcome),
        entropy=_text(entropy, label=False),
        text="".join(text for text, _ in lede(run)),
        role=style[0],
        mark=style[1],
    )


def _text(stat: Stat | None, *, label: bool = True) -> str:
    if stat is None:
        return "–"
    change = f"{stat.before} → {stat.value}" if stat.before else stat.value
    return f"{stat.label} {change}" if label else change


def differing(runs: Mapping[str, RunData]) -> list[tuple[str, list[str]]]:
    """Recipe keys whose values are not the same in all runs, with each run's value.

    >>> one, other = (RunData(Path(), config={"name": n, "optimizer": {"lr": lr}}) for n, lr in ("a1", "b2"))
    >>> differing({"a": one, "b": other})
    [('optimizer.lr', ['"1"', '"2"'])]
    """
    settings = {name: flat(run.config) if run.config else {} for name, run in runs.items()}
    keys = dict.fromkeys(key for values in settings.values() for key in values if key != "name")
    rows = [(key, [values.get(key, "–") for values in settings.values()]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
