"""What the update did, in plain sentences, each computed from the rows and silent where they are."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from klent.kit.statistics import ends, mean, mean_and_margin
from klent.kit.text import fixed, number, plural, share, signed, signed_fixed
from klent.measure.law import Fit, points
from klent.report.read import RunData, finite


class Finding(NamedTuple):
    """One sentence or two.

    Attributes:
        lead: what it is about, in a word or two.
        text: the finding.
        caution: whether a reader should do something about it.
    """

    lead: str
    text: str
    caution: bool = False


class Ends(NamedTuple):
    """Means over the first and the last steps of a series, ``each`` steps at either end."""

    start: float
    end: float
    each: int


def ends(values: Sequence[float]) -> Ends:
    """Start and end of a noisy series: means over its first and last tenth, of 1 to 20 steps.

    >>> ends([1.0, 2.0, 3.0])
    Ends(start=1.0, end=3.0, each=1)
    """
    each = max(1, min(20, len(values) // 10)) if values else 0
    return Ends(mean(values[:each]), mean(values[-each:]), each) if values else Ends(math.nan, math.nan, 0)


def findings(run: RunData, fit: Fit | None) -> list[Finding]:
    """Every finding the rows support, the outcome first and the doubts after it."""
    parts: list[Callable[[], Finding | None]] = [
        lambda: _accuracy(run),
        lambda: _reward(run),
        lambda: _loss(run),
        lambda: _entropy(run),
        lambda: law(run, fit),
        lambda: _theorem(run),
        lambda: _kl(run),
        lambda: _groups(run),
        lambda: _truncated(run),
        lambda: _unscorable(run),
        lambda: _skipped(run),
    ]
    return [found for part in parts if (found := part()) is not None]


def gain(run: RunData) -> tuple[float, float, int] | None:
    """Change of accuracy from the first to the last evaluation over the same problems.

    Returns:
        The mean difference, half the width of its 95% interval (normal, over problems), and their number;
        None without two evaluations of the same problems.
    """
    pairs = problem_pairs(run)
    if len(pairs) < 2:
        return None
    changes = [after - before for before, after in pairs]
    middle = mean(changes)
    variance = sum((change - middle) ** 2 for change in changes) / (len(changes) - 1)
    return middle, 1.96 * math.sqrt(variance / len(changes)), len(changes)


def problem_pairs(run: RunData) -> list[tuple[float, float]]:
    """Share of correct samples of each held-out problem, in the first and in the last evaluation."""
    rows = run.heldout
    if len(rows) < 2:
        return []
    before, after = (_by_problem(row) for row in (rows[0], rows[-1]))
    if len(before) != len(after):
        return []
    return [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]


def _by_problem(row: dict[str, Any]) -> list[float | None]:
    correct = row.get("correct")
    found: list[float | None] = []
    for samples in correct if isinstance(correct, list) else []:
        known = (
            [value for value in map(finite, samples) if value is not None]
            if isinstance(samples, list)
            else []
        )
        found.append(mean(known) if known else None)
    return found


def _accuracy(run: RunData) -> Finding | None:
    rows = run.heldout
    change = gain(run)
    if len(rows) < 2:
        return None
    before, after = (finite(row.get("accuracy")) for row in (rows[0], rows[-1]))
    if before is None or after is None:
        return None
    text = f"Held-out accuracy went from {fixed(before)} to {fixed(after)}."
    if change is None:
        return Finding("Accuracy", text)
    middle, half, n = change
    sure = abs(middle) > half
    change_text = f"{signed_fixed(middle)} ± {fixed(half)} (95% interval)"
    text += f" Over the same {plural(n, 'problem')} the change is {change_text}"
    return Finding(
        "Accuracy", text + ("." if sure else ": it may be chance."), caution=not sure or middle < 0
    )


def _reward(run: RunData) -> Finding | None:
    _, values = run.series("reward/mean")
    if len(values) < 2:
        return None
    start, end, each = ends(values)
    span = "the first step to the last" if each == 1 else f"the first {each} steps to the last {each}"
    return Finding("Reward", f"From {span} the mean reward went from {fixed(start)} to {fixed(end)}.")


def _loss(run: RunData) -> Finding | None:
    """Only without rewards: the value of a policy gradient's loss says nothing."""
    _, values = run.series("objective/loss")
    if len(values) < 2 or run.has("reward/mean"):
        return None
    start, end, _ = ends(values)
    return Finding("Loss", f"The loss went from {number(start)} to {number(end)}.")


def _entropy(run: RunData) -> Finding | None:
    steps, values = run.series("policy/entropy")
    if len(values) < 2:
        return None
    start, end, _ = ends(values)
    text = f"Entropy {'fell' if end < start else 'rose'} from {fixed(start)} to {fixed(end)} nats per token"
    if not end < start or start <= 0:
        return Finding("Entropy", text + ".")
    spent = 1 - end / start
    text += f": {share(spent)} of it is spent."
    if spent < 0.2:
        return Finding("Entropy", text)
    half = next(step for step, value in zip(steps, values, strict=True) if value <= (start + end) / 2)
    text += f" Half of the fall was over by step {half}."
    choices = f" In equally likely choices per token that is {number(math.exp(start), 2)} before, "
    return Finding("Entropy", text + choices + f"{number(math.exp(end), 2)} after.", caution=spent > 0.95)


def law(run: RunData, fit: Fit | None) -> Finding | None:
    """What the fit of reward against entropy says, and whether to believe it."""
    if fit is None:
        few = len(points(run.rows)) < 4
        reason = "fewer than four steps have both" if few else "entropy did not move"
        text = f"No fit of reward against entropy: {reason}."
        return Finding("Ceiling", text) if points(run.rows) else None
    if fit.a <= 0:
        text = (
            f"Reward did not rise as entropy fell (a = {signed(fit.a)}), so R = −a exp(H) + b does not "
            "describe this run and no ceiling follows from it."
        )
        return Finding("Ceiling", text)
    if fit.poor:
        why = f"R² = {fixed(fit.r2)}, a = {number(fit.a)} ± {number(2 * fit.slope_error, 2)}"
        return Finding(
            "Ceiling", f"The fit of reward against entropy is poor ({why}): read no ceiling from it."
        )
    last, margin = ends(run.series("reward/mean")[1]).end, fit.margin
    text = (
        f"The fit of reward against entropy (R² = {fixed(fit.r2)}, {fit.n} steps) predicts a ceiling of "
        f"{fixed(fit.ceiling)} ± {number(margin, 2)} at zero entropy"
    )
    if last > fit.ceiling + margin:
        text += f"; the last reward, {fixed(last)}, is already above it, so do not trust this ceiling."
        return Finding("Ceiling", text, caution=True)
    if last >= fit.ceiling:
        return Finding("Ceiling", f"{text}, which the last reward, {fixed(last)}, has reached.")
    return Finding(
        "Ceiling", f"{text}; the last reward, {fixed(last)}, is {number(fit.ceiling - last, 2)} below it."
    )


def _theorem(run: RunData) -> Finding | None:
    pairs = [
        (measured, predicted)
        for row in run.rows
        if (measured := finite(row.get("policy/entropy_delta"))) is not None
        and (predicted := finite(row.get("policy/entropy_delta_predicted"))) is not None
    ]
    if len(pairs) < 2:
        return None
    same = sum(measured * predicted > 0 for measured, predicted in pairs)
    text = (
        f"The covariance theorem gave the sign of the entropy change in {same} of "
        f"{plural(len(pairs), 'step')}; in sum it predicted {signed(sum(p for _, p in pairs))} nats per "
        f"token, and {signed(sum(m for m, _ in pairs))} were measured."
    )
    return Finding("Theory", text)


def _kl(run: RunData) -> Finding | None:
    steps, values = run.series("kl/update")
    _, reference = run.series("kl/reference")
    parts = []
    if values:
        largest = max(range(len(values)), key=values.__getitem__)
        parts.append(
            f"an update moved the policy by {number(mean(values), 2)} nats per token on average, by "
            f"{number(values[largest], 2)} at most (step {steps[largest]})"
        )
    if reference:
        parts.append(f"at the end it stood {number(reference[-1], 2)} nats per token from the reference")
    text = "; ".join(parts)
    return Finding("Distance", text[0].upper() + text[1:] + ".") if text else None


def _groups(run: RunData) -> Finding | None:
    _, values = run.series("group/zero_variance")
    if not values or max(values) == 0:
        return None
    start, end, _ = ends(values)
    text = f"{share(mean(values))} of the groups taught nothing: all of their completions earned the same"
    text += f"; at the end it was {share(end)}." if len(values) > 1 and abs(end - start) > 0.05 else "."
    return Finding("Groups", text, caution=mean(values) > 0.8)


def _truncated(run: RunData) -> Finding | None:
    _, values = run.series("completion/truncated")
    if not values or max(values) < 0.02:
        return None
    start, end, _ = ends(values)
    text = f"{share(start)} of the completions hit the token limit"
    text += f" at the start, {share(end)} at the end." if len(values) > 1 else "."
    return Finding("Length", text, caution=end > 0.1)


def _unscorable(run: RunData) -> Finding | None:
    steps, values = run.series("reward/unscorable")
    bad = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
    if not bad:
        return None
    worst = max(bad, key=lambda pair: pair[1])
    text = (
        f"Some completions could not be scored in {len(bad)} of {plural(len(values), 'step')}, at most "
        f"{share(worst[1])} of them (step {worst[0]}). They were left out."
    )
    return Finding("Unscorable", text, caution=True)


def _skipped(run: RunData) -> Finding | None:
    steps, values = run.series("update/skipped")
    bad = [step for step, value in zip(steps, values, strict=True) if value > 0]
    if not bad:
        return None
    where = ", ".join(map(str, bad[:8])) + (" and others" if len(bad) > 8 else "")
    noun = "update was" if len(bad) == 1 else "updates were"
    text = f"{len(bad)} {noun} skipped because the loss or the gradient was not finite: step {where}."
    return Finding("Skipped", text, caution=True)
