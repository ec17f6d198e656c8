"""The page of a run: everything read, drawn and diagnosed, in one HTML file that loads nothing."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from klent.io.files import write_atomic
from klent.kit.statistics import ends
from klent.kit.svg import Figure
from klent.kit.tables import Row, finite, step_of
from klent.kit.text import duration, fixed, number, share, signed
from klent.measure.findings import diagnose
from klent.measure.law import Fit, forecast, is_believed
from klent.report import calibration, certainty, entropy, figures, rlhf, surprise
from klent.report.browse import SAMPLES, Brief, Browser, browser, read_briefs, write_beside
from klent.report.curves import counted
from klent.report.facts import facts, law, problem_pairs
from klent.report.film import film
from klent.report.fit import fit_run, reward_entropy
from klent.report.foreign import read_any
from klent.report.glossary import describe
from klent.report.headline import headline, versions
from klent.report.live import NOT_LIVE, Live, hash_of
from klent.report.read import RunData
from klent.report.samples import choose

HERE = Path(__file__).parent
ROWS_SHOWN = 100
CELLS_SHOWN = 600
COVERS = {
    "zero_variance": "Groups",
    "truncation": "Length",
    "unscorable": "Unscorable",
    "nonfinite": "Skipped",
}
"""Signature -> the fact about the same numbers, which is not repeated."""


class Cells(NamedTuple):
    """The held-out problems: their number, what "more" means, (kind, label, amount), and each problem's kind."""

    n: int
    explanation: str
    counts: list[tuple[str, str, int]]
    kinds: list[str]
    noun: str = "problems"


class Phase(NamedTuple):
    """One part of the time strip."""

    label: str
    tone: str
    weight: str
    share: str
    seconds: str


class Numbers(NamedTuple):
    """The table of metrics: column names, (group, number of columns), cells, and a note."""

    names: list[str]
    groups: list[tuple[str, int]]
    rows: list[list[str]]
    note: str


def write_report(run: Path) -> Path:
    """Draw a run, finished or not, into ``report.html`` in its folder.

    Args:
        run: the folder ``runs/NAME``, or a log folder of TRL or verl.

    Returns:
        The path of the page. The same run folder always gives the same bytes.

    Raises:
        RunError: ``run`` is neither a run folder nor a log of TRL or verl.
    """
    data = read_any(Path(run))
    target = data.path / "report.html"
    briefs = read_briefs(data.path / SAMPLES)
    held = browser(data, diagnose(data.table), briefs)
    if held and held.tables:
        write_beside(data, briefs, held.parts)
    write_atomic(target, _html(data, held))
    return target


def page(run: RunData, live: Live = NOT_LIVE, briefs: Sequence[Brief] | None = None) -> str:
    """The HTML of a run. Everything that a model, a task or a recipe wrote is escaped.

    Args:
        run: what to draw.
        live: what makes the page follow the run, where it is served.
        briefs: the completions that it logged; None = they are read from the run's folder.
    """
    if briefs is None:
        briefs = read_briefs(run.path / SAMPLES)
    return _html(run, browser(run, diagnose(run.table), briefs, live=bool(live.script)), live)


def _html(run: RunData, held: Browser | None, live: Live = NOT_LIVE) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # our own SVG, CSS and script: the only text that is not escaped
    style = (HERE / "style.css").read_text("utf-8")
    script = "".join((HERE / name).read_text("utf-8") for name in ("script.js", "browse.js"))
    content = _content(run)
    content["browser"] = held
    return environment.get_template("template.html.j2").render(
        **content,
        sections=_sections(content),
        live=live,
        chart=chart,
        tip=tip,
        style=style,
        script=script,
        script_hash=hash_of(script),
    )


def _content(run: RunData) -> dict[str, object]:
    """Everything that the template reads, except its completions and what is the same on every page."""
    fit = fit_run(run)
    ceiling = law(run, fit)
    ahead = forecast(run.rows, fit)
    drawn = (
        figures.reward,
        figures.loss,
        figures.heldout_loss,
        rlhf.preference,
        figures.entropy,
        figures.kl,
        rlhf.critic,
        figures.mixture,
    )
    curves = (f(run) for f in drawn)
    doubts = (f(run) for f in (figures.length, figures.gradient, figures.agreement))
    diagnosis = diagnose(run.table)
    covered = {COVERS[finding.name] for finding in diagnosis if finding.name in COVERS}
    window = ends([float(step) for step in run.steps]).window
    return {
        **headline(run),
        "diagnosis": diagnosis,
        "facts": [fact for fact in facts(run, fit) if fact.lead not in covered],
        "ends": "its first and last step" if window <= 1 else f"means over its first and last {window} steps",
        "curves": [figure for figure in (*curves, *doubts) if figure],
        "relation": reward_entropy(run, fit),
        "fit": fit_facts(run, fit) if fit else [],
        "law": ceiling.text if ceiling else "",
        "forecast": ahead.sentence() if ahead and ahead.spent > 0 else "",
        "entropy": entropy.figures(run),
        "ways": entropy.ways(run),
        "forks": entropy.fork_tables(run),
        "accuracy": figures.accuracy(run),
        "evaluation": _evaluation(run),
        "certainty": certainty.figures(run),
        "cells": _cells(run),
        "strip": _strip(run),
        "speeds": [figure for figure in (figures.time(run), figures.speed(run)) if figure],
        "token_facts": _token_facts(run),
        "replayed": surprise.replayed(run),
        "worst": surprise.worst(run),
        "full": f"{surprise.FULL:g}",
        "from_data": run.replayed,
        "rewarded": run.rewarded,
        "film": film(run),
        **_samples(run),
        "config_text": run.config_text,
        "table": _table(run),
        "terms": [(name, describe(name)) for name in ["step", *_names(run)]] if run.rows else [],
        "versions": versions(run),
    }


def _sections(content: Mapping[str, object]) -> list[tuple[str, str]]:
    """(id, title) of every section that the page has."""
    sections = [
        ("diagnosis", "Problems", "diagnosis"),
        ("findings", "What the updates did", "facts"),
        ("curves", "Curves", "curves"),
        ("law", "Reward against entropy", "relation"),
        ("entropy-section", "Where entropy goes", "entropy"),
        ("accuracy-section", "Before and after", "accuracy"),
        ("certainty-section", "Certainty and truth", "certainty"),
        ("time-section", "Time and tokens", "speeds"),
        ("surprise", "Held-out texts", "replayed"),
        ("film", "From noise to image", "film"),
        ("samples", "Samples", "stages"),
        ("browse", "Completions", "browser"),
    ]
    return [*((id, title) for id, title, name in sections if content[name]), ("numbers", "Numbers")]


def chart(figure: Figure) -> str:
    """What the script needs to show the values at a step."""
    values = [key.values for key in figure.keys]
    return json.dumps({"steps": figure.steps, "x": figure.x, "values": values}, separators=(",", ":"))


def tip(metric: str) -> str:
    """What a metric is, for who points at its name."""
    term = describe(metric)
    unit = f" ({term.unit})" if term.unit else ""
    return f"{metric}{unit}: {term.definition} {term.reading}".strip()


def fit_facts(run: RunData, fit: Fit) -> list[tuple[str, str]]:
    """The fit in numbers; a ceiling only where it is believed."""
    believed = is_believed(run.rows, fit)
    (aa, _), (_, bb) = fit.covariance
    return [
        ("a", f"{number(fit.a)} ± {number(2 * aa**0.5, 2)}"),
        ("b", f"{number(fit.b)} ± {number(2 * bb**0.5, 2)}"),
        ("R²", fixed(fit.r2)),
        ("ceiling, b − a", f"{fixed(fit.ceiling)} ± {number(fit.margin, 2)}" if believed else "–"),
        ("lowest entropy seen", f"{fixed(fit.lowest)} nats"),
        ("steps", f"{fit.n}"),
    ]


def _evaluation(run: RunData) -> list[tuple[str, str]]:
    """Before -> after of everything that an evaluation measured."""
    if not run.heldout:
        return []
    first, last = run.heldout[0], run.heldout[-1]

    def change(key: str, suffix: str = "") -> str:
        before, after = fixed(finite(first.get(key))), fixed(finite(last.get(key)))
        return (f"{before} → {after}" if last is not first else before) + suffix

    names = [
        name
        for name in last
        if re.fullmatch(r"pass@\d+", name)
        and finite(last[name]) is not None
        and _is_shown(int(name[5:]), last)
    ]
    rows = [(name, change(name)) for name in names]
    rows += (
        [("entropy of the answers", change("entropy", " nats per token"))]
        if finite(last.get("entropy")) is not None
        else []
    )
    rows += [("unscorable", change("unscorable"))] if finite(last.get("unscorable")) else []
    compared = {
        "accuracy": "pairs in the right order",
        "margin": "margin",
        "chosen": "better",
        "rejected": "worse",
    }
    rows += [
        (label, change(f"preference/{key}", "" if key == "accuracy" else " nats"))
        for key, label in compared.items()
        if finite(last.get(f"preference/{key}")) is not None
    ]
    return rows + certainty.before_after(run.heldout) + calibration.before_after(run.heldout)


def _is_shown(k: int, row: Row) -> bool:
    """Of many pass@k only the powers of two above 1, and the last."""
    return k > 1 and (k & (k - 1) == 0 or k == row.get("samples"))


def _cells(run: RunData) -> Cells | None:
    """Every held-out problem: solved more often than before, as often, less often, never."""
    pairs = problem_pairs(run)
    if not pairs:
        return None
    kinds = [
        "gained" if after > before else "lost" if after < before else "kept" if after > 0 else "never"
        for before, after in pairs
    ]
    labels = {
        "gained": "solved more often",
        "kept": "as often as before",
        "never": "neither before nor after",
        "lost": "less often",
    }
    if run.kind == "preference":
        labels = {
            "gained": "right now",
            "kept": "right as before",
            "never": "wrong as before",
            "lost": "wrong now",
        }
    if run.kind == "reward":
        labels = {"gained": "better", "kept": "as before", "never": "0 or less, as before", "lost": "worse"}
    began = "before training" if step_of(run.heldout[0]) == 0 else "at the first evaluation"
    return Cells(
        n=len(pairs),
        explanation=(
            {
                "accuracy": f"Solved more often: more of its samples are correct than {began}.",
                "reward": f"Better: the mean reward of its samples is higher than {began}.",
                "preference": f"Right now: the better answer of the pair scores higher, and did not {began}.",
            }[run.kind]
        ),
        counts=[(kind, label, kinds.count(kind)) for kind, label in labels.items()],
        kinds=sorted(kinds, key=list(labels).index) if len(kinds) <= CELLS_SHOWN else [],
        noun="pairs" if run.kind == "preference" else "problems",
    )


def _strip(run: RunData) -> list[Phase]:
    sums = {name: sum(values) for name, values in figures.time_parts(run).items()}
    total = sum(sums.values())
    return [
        Phase(
            label=name,
            tone=figures.TONES[name],
            weight=f"{seconds / total:.4f}",
            share=share(seconds / total),
            seconds=duration(seconds),
        )
        for name, seconds in sums.items()
    ]


def _token_facts(run: RunData) -> str:
    """Tokens and memory of the whole run, in one sentence."""
    sampled, trained, memory = (
        run.series(n)[1] for n in ("tokens/rollout", "tokens/train", "memory/peak_gb")
    )
    parts = [f"{sum(sampled):,.0f} tokens sampled"] if sampled else []
    parts += [f"{sum(trained):,.0f} tokens trained on, prompts included"] if trained else []
    parts += [f"peak memory {number(max(memory))} GB"] if memory else []
    return "; ".join(parts) + "." if parts else ""


def _samples(run: RunData) -> dict[str, object]:
    shown = choose(run.samples)
    return {
        "stages": shown.stages,
        "heat": fixed(shown.entropy, 1),
        "push": number(shown.mark, 2),
        "paired": shown.pairs,
        "values": [signed(value) for value in shown.values] if shown.values else [],
        "chosen": any(any(sample.chosen) for sample in run.samples),
        "turn_forks": any(
            t.fork for stage in shown.stages for one in stage.asked for c in one.completions for t in c.tokens
        ),
    }


def _names(run: RunData) -> list[str]:
    """Every metric of the run in order of appearance, families together."""
    names = list(dict.fromkeys(name for row in run.rows for name in row if name not in ("step", "split")))
    groups = list(dict.fromkeys(name.split("/")[0] for name in names))
    return sorted(names, key=lambda name: groups.index(name.split("/")[0]))


def _table(run: RunData) -> Numbers | None:
    if not run.rows:
        return None
    names = _names(run)
    stride = -(-len(run.rows) // ROWS_SHOWN)
    rows = [row for index, row in enumerate(run.rows) if index % stride == 0 or row is run.rows[-1]]
    groups: list[tuple[str, int]] = []
    for name in names:
        group = name.split("/")[0]
        groups[-1:] = (
            [(group, groups[-1][1] + 1)] if groups and groups[-1][0] == group else [*groups[-1:], (group, 1)]
        )
    note = counted(run) + (f", every {stride}th is shown" if stride > 1 else "")
    return Numbers(
        names=names,
        groups=groups,
        rows=[[str(step_of(row)), *(number(finite(row.get(name))) for name in names)] for row in rows],
        note=note if run.run.get("source") else f"{note}; all of them are in metrics.jsonl",
    )
