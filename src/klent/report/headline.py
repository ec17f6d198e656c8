"""The top of the page: what ran, its results in large numbers, and the command that repeats it."""

from collections.abc import Mapping
from typing import NamedTuple

from klent.config.task import KEYS
from klent.kit.statistics import ends, mean
from klent.kit.tables import Table, finite, step_of
from klent.kit.text import count, duration, fixed, number, plural, share
from klent.measure.score import LABELS, is_judged, is_scored, loss_of, score_of, temperatures_of
from klent.report.certainty import stopped
from klent.report.curves import counted
from klent.report.facts import score_change
from klent.report.read import RunData, is_idle


class Stat(NamedTuple):
    """One large number; ``before`` is empty if it has no earlier value."""

    label: str
    before: str
    value: str
    sub: str


def headline(run: RunData) -> dict[str, object]:
    """Name, sentence, notes, large numbers and command."""
    stats = (_outcome(run), _loss(run), _entropy(run), _distance(run), _time(run))
    return {
        "name": str(run.config.get("name") or run.path.resolve().name),
        "lede": lede(run),
        "notes": [*_progress(run), *run.notes],
        "stats": [stat for stat in stats if stat is not None],
        "command": str(run.run.get("command") or ""),
    }


def results(run: RunData) -> tuple[Stat | None, Stat | None]:
    """What a run is judged by, its score, reward or loss, and its entropy, as at the top of its page."""
    return _outcome(run) or _loss(run), _entropy(run)


def lede(run: RunData) -> list[tuple[str, bool]]:
    """One sentence about what ran, in pieces of (text, whether it is bold)."""
    recipe = run.config
    if run.run.get("source"):
        steps = counted(run)
        return [("From ", False), (str(run.run["source"]), True), (f". {steps}.", False)]
    if not recipe.get("model"):
        return []
    parts = [(str(recipe["model"]), True)]
    size = finite(run.run.get("model_parameters"))
    parts += [(f" ({count(size)} parameters)", False)] if size else []
    task = recipe.get("task")
    source = next((task[key] for key in KEYS if task.get(key)), None) if isinstance(task, Mapping) else task
    parts += [(" on ", False), (str(source), True)] if source else []
    parts += [(" by ", False), (str(recipe["method"]), True)] if recipe.get("method") else []
    prompts, group = finite(recipe.get("prompts_per_step")), finite(recipe.get("group_size"))
    steps = f". {plural(len(run.rows), 'step')}"
    steps += f" of {prompts:.0f} prompts × {group:.0f} completions" if prompts and group else ""
    seed = f", seed {recipe['seed']}" if recipe.get("seed") is not None else ""
    device = f", on {run.run['device']}" if run.run.get("device") else ""
    return [*parts, (f"{steps}{seed}{device}.", False)]


def _progress(run: RunData) -> list[str]:
    """A note if the run has not finished, was stopped early, or kept earlier weights."""
    if run.run.get("source"):  # another trainer's log does not say whether it is complete
        return []
    planned = finite(run.config.get("steps"))
    last = run.steps[-1] if run.rows else 0
    done = f"step {last:,} of {planned:,.0f}" if planned else f"step {last:,}"
    if not run.run.get("finished"):
        return [f"This run has not finished: it was at {done} when this page was made."]
    if early := stopped(run):
        return early
    return [f"This run was stopped early, after {done}."] if planned and last < planned else []


def _outcome(run: RunData) -> Stat | None:
    if run.evals and is_judged(run.evals[-1]) and not is_scored(run.evals[-1]):
        problems = int(finite(run.evals[-1].get("problems")) or 0)
        return Stat(
            "Held-out reward", "", "not scored", f"no completion of {plural(problems, 'problem')} could be"
        )
    if run.heldout:
        return _heldout(run)
    if run.losses and not run.rewarded:
        return None  # the held-out loss follows, and says more than that of the training data
    name, label = ("reward/mean", "Mean reward") if run.rewarded else ("objective/loss", "Loss")
    _, values = run.series(name)
    if not values:
        return None
    start, end, _ = ends(values)
    return Stat(label, fixed(start) if len(values) > 1 else "", fixed(end), "on the training prompts")


def _heldout(run: RunData) -> Stat:
    """The score before and after, its interval, and below it the same at the other temperatures."""
    first, last = run.heldout[0], run.heldout[-1]
    after = score_of(last, run.kind)
    assert after is not None  # RunData.heldout has no other rows
    problems, samples = (int(finite(last.get(key)) or 0) for key in ("problems", "samples"))
    parts = [f"95%: {fixed(after.low)} to {fixed(after.high)}"] if after.interval else []
    parts.append(
        plural(problems, "pair") if run.kind == "preference" else f"{plural(problems, 'problem')} × {samples}"
    )
    words = temperatures_of(last)
    parts += [words[""]] if len(words) > 1 else []
    parts += ["before training"] if step_of(last) == 0 else []
    parts += [f"{word}: {score_change(run, at)}" for at, word in words.items() if at]
    label = f"Held-out {LABELS[run.kind]}"
    before = score_of(first, run.kind) if last is not first else None
    return Stat(label, fixed(before.value) if before else "", fixed(after.value), "; ".join(parts))


def _loss(run: RunData) -> Stat | None:
    """The loss of held-out completions, before and after."""
    if not run.losses:
        return None
    first, last = run.losses[0], run.losses[-1]
    before, after = loss_of(first), loss_of(last)
    assert after is not None  # RunData.losses has no other rows
    interval = f"95%: {fixed(after.low)} to {fixed(after.high)}; " if after.interval else ""
    completions = plural(int(finite(last.get("loss_completions")) or 0), "completion")
    sub = f"nats per token; {interval}perplexity {number(finite(last.get('perplexity')))}; {completions}"
    earlier = fixed(before.value) if before and last is not first else ""
    return Stat("Held-out loss", earlier, fixed(after.value), sub)


def _entropy(run: RunData) -> Stat | None:
    _, values = run.series("policy/entropy")
    if not values:
        return None
    start, end, _ = ends(values)
    if len(values) == 1:
        return Stat("Policy entropy", "", fixed(end), "nats per token")
    spent = f", {share(1 - end / start)} spent" if end < start and start > 0 else ""
    return Stat("Policy entropy", fixed(start), fixed(end), f"nats per token{spent}")


def _distance(run: RunData) -> Stat | None:
    at, reference = run.series("kl/reference")
    if reference:
        when = "the last step" if at[-1] == run.steps[-1] else f"step {at[-1]:,}"
        return Stat("KL from reference", "", number(reference[-1], 2), f"nats per token, at {when}")
    _, sequence = run.series("kl/sequence")
    if sequence:
        return Stat("KL from reference", "", number(sequence[-1], 2), "nats per completion, last measured")
    moved = [row for row in run.rows if not is_idle(row)]
    _, update = Table(moved).series("kl/update")
    if not update:
        return None
    over = "all steps" if len(moved) == len(run.rows) else plural(len(update), "update")
    return Stat("KL of an update", "", number(mean(update), 2), f"nats per token, mean over {over}")


def _time(run: RunData) -> Stat | None:
    at, steps = run.series("time/step")
    wall = finite(run.run.get("wall_seconds")) if run.run.get("finished") else None
    if wall is None and not steps:
        return None
    if wall is None and len(steps) < max(at):  # some steps are not logged, so their sum is no total
        return Stat(
            "Time of a step", "", duration(mean(steps)), f"mean over {plural(len(steps), 'logged step')}"
        )
    sub = f"{duration(mean(steps))} per step" if steps else ""
    return Stat("Wall time" if wall is not None else "Time in steps", "", duration(wall or sum(steps)), sub)


def versions(run: RunData) -> list[tuple[str, str]]:
    """What run.json says about software, machine and time."""
    names = ("klent", "python", "torch", "transformers", "device", "started", "continued", "finished")
    facts = [(name, str(run.run[name])) for name in names if run.run.get(name)]
    size = finite(run.run.get("model_parameters"))
    return facts + ([("parameters", f"{size:,.0f}")] if size else [])
