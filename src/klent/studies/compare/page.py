"""The page of a comparison, ``compare.html``, and the same numbers as CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import klent.report
from klent.io.files import write_atomic
from klent.kit.statistics import mean
from klent.kit.student import t_bound
from klent.kit.text import duration, fixed, number, plural, signed_fixed
from klent.report.live import hash_of
from klent.studies.compare import figures
from klent.studies.compare.plan import ComparisonPlan, describe
from klent.studies.compare.results import MEAN, Results, RunResult, average, collect
from klent.studies.compare.statistics import LEVEL, Contrast

HERE = Path(__file__).parent
PAGE, TABLE, DATA = "compare.html", "compare.csv", "compare.json"


class Cell(NamedTuple):
    """One number of the table: the mean over seeds and, below it, the range; empty with one seed."""

    value: str
    spread: str = ""


class Finals(NamedTuple):
    """The table of final numbers."""

    heads: list[str]
    rows: list[list[Cell]]


class Question(NamedTuple):
    """One measure: its drawing with its id, and for each arm its name, its verdict and a sentence."""

    title: str
    id: str
    drawing: str
    verdicts: list[tuple[str, str, str]]


def write_page(plan: ComparisonPlan, *, command: str = "", failed: dict[str, str] | None = None) -> Path:
    """Write ``compare.html``, ``compare.csv`` and ``compare.json`` from the finished runs.

    Args:
        plan: the comparison.
        command: the command line that repeats it, for the page.
        failed: name of a run -> why it failed.

    Returns:
        The path of the page. The same runs always give the same bytes.
    """
    results = collect(plan, failed)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.folder / TABLE, as_csv(results))
    write_atomic(plan.folder / DATA, json.dumps(as_json(results), indent=2, allow_nan=False) + "\n")
    target = plan.folder / PAGE
    write_atomic(target, page(results, command))
    return target


def page(results: Results, command: str = "") -> str:
    """The HTML. Everything that a recipe or a command line wrote is escaped."""
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
    script = (report / "script.js").read_text("utf-8")
    plan = results.plan
    return environment.get_template("compare.html.j2").render(
        name=plan.name,
        style=(report / "style.css").read_text("utf-8") + (HERE / "compare.css").read_text("utf-8"),
        script=script,
        script_hash=hash_of(script),
        command=command,
        first=plan.arms[0].name,
        lede=lede(results),
        notes=notes(results),
        plan_lines=describe(plan),
        questions=[_question(results, measure) for measure in results.contrasts],
        resolution=resolution(results),
        table=table(results),
        families=[
            family for family in (figures.pass_family(results), *figures.curve_families(results)) if family
        ],
        runs=_run_rows(results),
        samples=results.samples,
        measure=_measures(results, [1])[0],
    )


def lede(results: Results) -> str:
    """What was compared, in a sentence."""
    plan, recipe = results.plan, results.plan.runs[0].recipe
    return (
        f"{plural(len(plan.arms), 'arm')} under {plural(len(plan.seeds), 'seed')}: {recipe.model}, "
        f"{plural(recipe.steps, 'step')} of {recipe.prompts_per_step} × {plural(recipe.group_size, 'completion')}. "
        f"{len(results.runs)} of {plural(len(plan.runs), 'run')} done."
    )


def notes(results: Results) -> list[str]:
    """Failures, missing runs and unequal arms: what limits every number below."""
    lines = [f"{name} failed: {reason}" for name, reason in results.failed.items()]
    waiting = [name for name in results.missing if name not in results.failed]
    if waiting:
        lines.append(f"Not done yet, and not counted: {', '.join(waiting)}.")
    for arm in results.twins:
        lines.append(
            f"{arm} gave exactly the same numbers as {results.plan.arms[0].name}: what it changes had no "
            "effect. (A clip on the ratio, for example, acts only if a step has several updates.)"
        )
    unscored = [run.name for run in results.runs if run.unscorable >= 1]
    if unscored:
        lines.append(
            f"No held-out completion of {', '.join(unscored)} could be scored; all are counted as wrong. "
            "Read rewards.log of the run."
        )
    elif results.runs and not any(run.after.any() or run.before.any() for run in results.runs):
        lines.append(
            "No held-out completion of any run has a reward of 1, which is what pass@k counts, so pass@k cannot "
            "tell the arms apart. Look at the reward's curves, or evaluate by a reward of 0 and 1 (eval.reward)."
        )
    unequal = [line for line in describe(results.plan) if line.startswith("the arms have different budgets")]
    return lines + [line.capitalize() + "." for line in unequal]


def sentence(item: Contrast, first: str, measure: str) -> str:
    """One comparison in words, with its limits."""
    if item.same:
        return f"Its runs are those of {first}, number by number, so there is no difference to estimate."
    change = f"{measure} {signed_fixed(item.difference, 3)} against {first}"
    runs = (
        f"these runs alone: {signed_fixed(item.runs_low, 3)} to {signed_fixed(item.runs_high, 3)}, "
        f"p {_p(item.runs_p)}"
    )
    if item.verdict == "one seed":
        return f"{change}; {runs}. One seed is no evidence about the method."
    interval = f"95% interval {signed_fixed(item.low, 3)} to {signed_fixed(item.high, 3)}"
    by_arm = " Its seeds differ more than those of the other arms, so its own variance is used." * item.own
    return f"{change}, {interval}, p {_p(item.p_holm)} after Holm ({runs}).{by_arm}"


def resolution(results: Results) -> str:
    """How large a difference would have to be for this comparison to detect it."""
    if not results.runs:
        return "No run is done yet."
    contrasts = [item for items in results.contrasts.values() for item in items]
    if not contrasts:
        return "There is nothing to compare the first arm with yet."
    if all(item.same for item in contrasts):
        return "Every arm's runs are the first arm's, number by number: there is nothing to compare."
    if all(math.isnan(item.p) for item in contrasts):
        return (
            "One seed is no evidence about the methods: another seed may reverse any of this. The thick bars "
            "describe these runs only. Add --seeds 3 or more; finished runs are kept."
        )
    parts = []
    for measure, items in results.contrasts.items():
        tested = sum(bool(item.df) for item in items)
        sizes = [_resolution(item, tested) for item in items if item.df and (tested == 1 or not item.own)]
        if sizes:
            parts.append(f"{fixed(max(sizes), 3)} in {measure}")
    smallest = f" Differences below about {' and '.join(parts)} are lost in the noise." if parts else ""
    seeds = max(item.seeds for item in contrasts)
    pooled = ", pooled over the arms" if any(item.df and not item.own for item in contrasts) else ""
    return (
        f"The noise of a whole training run is estimated from {plural(seeds, 'seed')}{pooled}."
        f"{smallest} “No difference” means that none was detected, not that there is none."
    )


def _resolution(item: Contrast, arms: int) -> float:
    """The smallest difference that would be significant at Holm's strictest level."""
    error = (item.high - item.low) / 2 / t_bound(LEVEL, item.df)
    return t_bound(LEVEL / arms, item.df) * error


def _question(results: Results, measure: str) -> Question:
    items = results.contrasts[measure]
    first = results.plan.arms[0].name
    titles = {"pass@1": "One answer: pass@1", MEAN: "Mean reward"}
    return Question(
        title=titles.get(measure, f"Several tries: {measure}"),
        id=figures.forest_name(measure),
        drawing=figures.forest(items, first, measure) if items else "",
        verdicts=[(item.arm, item.verdict, sentence(item, first, measure)) for item in items],
    )


def table(results: Results) -> Finals:
    """Final numbers: the mean over seeds with their range."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < results.samples] + [results.samples]
    measures = _measures(results, list(dict.fromkeys([1, *ks])))
    heads = ["arm", "seeds", *measures, "entropy", "KL to base", "time"]
    rows: list[list[Cell]] = []
    if results.runs:
        runs = results.of(results.arms[0])
        cells = [_cell([average(run.score_before(measure)) for run in runs]) for measure in measures]
        entropy = _cell([run.entropy_before for run in runs])
        rows.append([Cell("base model"), Cell(""), *cells, entropy, Cell("0"), Cell("")])
    for arm in results.arms:
        runs = results.of(arm)
        kl = [run.kl for run in runs if not math.isnan(run.kl)]
        rows.append(
            [
                Cell(arm),
                Cell(str(len(runs))),
                *(_cell([average(run.score(measure)) for run in runs]) for measure in measures),
                _cell([run.entropy for run in runs]),
                _cell(kl) if kl else Cell("–"),
                Cell(duration(mean([run.seconds for run in runs]))),
            ]
        )
    return Finals(heads, rows)


def _measures(results: Results, ks: Sequence[int]) -> list[str]:
    """The columns of numbers: pass@k where outcomes are right or wrong, else the mean reward."""
    return [MEAN] if results.kind == "reward" else [f"pass@{k}" for k in ks]


def _cell(values: Sequence[float]) -> Cell:
    known = [value for value in values if not math.isnan(value)]
    ends = [fixed(end, 3) for end in (min(known), max(known))] if len(known) > 1 else []
    spread = "" if not ends else "all equal" if ends[0] == ends[1] else " to ".join(ends)
    return Cell(fixed(mean(known), 3), spread)


def _run_rows(results: Results) -> list[dict[str, str]]:
    """Every run of the plan with its state; a finished one has a page of its own."""
    done = {run.name: run for run in results.runs}
    rows = []
    for planned in results.plan.runs:
        name = planned.folder.name
        state = "failed" if name in results.failed else planned.state
        value = fixed(average(done[name].score(_measures(results, [1])[0])), 3) if name in done else "–"
        page_of_run = f"{name}/report.html" if (planned.folder / "report.html").is_file() else ""
        rows.append({"name": name, "state": state, "value": value, "page": page_of_run})
    return rows


def as_csv(results: Results) -> str:
    """One line per finished run; the last columns are of its base model, before training."""
    out = io.StringIO()
    measures = _measures(results, range(1, results.samples + 1))
    names = ["arm", "seed", *measures, "entropy", "kl_base", "seconds"]
    names += [f"base_{measure}" for measure in (*measures, "entropy")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for run in results.runs:
        scores = [f"{average(run.score(measure)):.6f}" for measure in measures]
        before = [average(run.score_before(measure)) for measure in measures]
        rest = [run.entropy, run.kl, *before, run.entropy_before]
        entropy, kl, *base = ("" if math.isnan(value) else f"{value:.6f}" for value in rest)
        writer.writerow([run.arm, run.seed, *scores, entropy, kl, f"{run.seconds:.2f}", *base])
    return out.getvalue()


def as_json(results: Results) -> dict[str, object]:
    """Everything on the page, for programs."""
    return {
        "name": results.plan.name,
        "first": results.plan.arms[0].name,
        "arms": [arm.name for arm in results.plan.arms],
        "seeds": list(results.plan.seeds),
        "runs": [_run_json(run, results) for run in results.runs],
        "comparisons": {
            measure: [
                {key: _none(value) for key, value in vars(item).items()} | {"verdict": item.verdict}
                for item in items
            ]
            for measure, items in results.contrasts.items()
        },
        "same_as_first": results.twins,
        "missing": results.missing,
        "failed": results.failed,
    }


def _run_json(run: RunResult, results: Results) -> dict[str, object]:
    measures = _measures(results, range(1, results.samples + 1))
    after = {name.removeprefix("pass@"): _none(average(run.score(name))) for name in measures}
    before = {name.removeprefix("pass@"): _none(average(run.score_before(name))) for name in measures}
    graded = results.kind == "reward"
    return {
        "arm": run.arm,
        "seed": run.seed,
        **(
            {"reward": after[MEAN], "base_reward": before[MEAN]}
            if graded
            else {"pass": after, "base_pass": before}
        ),
        "entropy": _none(run.entropy),
        "base_entropy": _none(run.entropy_before),
        "kl_base": _none(run.kl),
        "seconds": run.seconds,
        "curves": {
            name: {str(step): value for step, value in curve.items()} for name, curve in run.curves.items()
        },
    }


def _none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else number(value, 2)
