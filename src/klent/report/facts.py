"""Facts: what the updates did, one sentence per topic, each computed from the rows of the run."""

import math
from collections.abc import Callable
from typing import NamedTuple

from klent.kit.statistics import ends, mean, mean_and_margin
from klent.kit.tables import Row, Table, finite
from klent.kit.text import fixed, number, plural, share, signed, signed_fixed
from klent.measure.law import Fit, points
from klent.measure.score import LABELS, Kind, score_of, temperatures_of
from klent.report.read import RunData


class Fact(NamedTuple):
    """One or two sentences about a run.

    Attributes:
        lead: the topic, in a word or two.
        text: the sentences.
        caution: whether they need attention.
    """

    lead: str
    text: str
    caution: bool = False


def facts(run: RunData, fit: Fit | None) -> list[Fact]:
    """Every fact that the rows support: outcomes first, warnings last."""
    parts: list[Callable[[], Fact | None]] = [
        lambda: _heldout(run),
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
    return [fact for part in parts if (fact := part()) is not None]


def gain(run: RunData) -> tuple[float, float, int] | None:
    """Change of the score from the first to the last evaluation over the same problems.

    Returns:
        The mean difference, half the width of its 95% interval (normal, over problems), and their number;
        None without two evaluations of the same problems.
    """
    pairs = problem_pairs(run)
    if len(pairs) < 2:
        return None
    change, margin = mean_and_margin([after - before for before, after in pairs])
    return change, margin, len(pairs)


def problem_pairs(run: RunData) -> list[tuple[float, float]]:
    """Mean reward of each held-out problem's samples (the share that is correct), at first and at last."""
    rows = run.heldout
    if len(rows) < 2:
        return []
    before, after = (_by_problem(row, run.kind) for row in (rows[0], rows[-1]))
    if len(before) != len(after):
        return []
    return [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]


def _by_problem(row: Row, kind: Kind) -> list[float | None]:
    correct = row.get("correct" if kind == "accuracy" else "rewards")
    shares: list[float | None] = []
    for samples in correct if isinstance(correct, list) else []:
        outcomes = [finite(outcome) for outcome in samples] if isinstance(samples, list) else []
        measured = [outcome for outcome in outcomes if outcome is not None]
        shares.append(mean(measured) if measured else None)
    return shares


def score_change(run: RunData, at: str = "", arrow: str = " → ") -> str:
    """``0.44 → 0.75``: the first and the last evaluation's score at a temperature."""
    rows = (run.heldout[0], run.heldout[-1]) if len(run.heldout) > 1 else (run.heldout[-1],)
    scores = [score_of(row, run.kind, at) for row in rows]
    return arrow.join("–" if score is None else fixed(score.value) for score in scores)


def _heldout(run: RunData) -> Fact | None:
    rows = run.heldout
    change = gain(run)
    if len(rows) < 2:
        return None
    before, after = (score_of(row, run.kind) for row in (rows[0], rows[-1]))
    if before is None or after is None:
        return None
    lead = "Accuracy" if run.kind == "accuracy" else "Held-out reward"
    text = f"Held-out {LABELS[run.kind]} went from {fixed(before.value)} to {fixed(after.value)}"
    others = [
        f"{word} from {score_change(run, at, ' to ')}" for at, word in temperatures_of(rows[-1]).items() if at
    ]
    text += f" ({', '.join(others)})." if others else "."
    if change is None:
        return Fact(lead, text)
    gained, margin, n = change
    significant = abs(gained) > margin
    text += f" Over the same {plural(n, 'problem')} the change is {signed_fixed(gained)} ± {fixed(margin)} "
    text += "(95% interval)" + ("." if significant else ": it may be chance.")
    return Fact(lead, text, caution=not significant or gained < 0)


def _reward(run: RunData) -> Fact | None:
    _, values = run.series("reward/mean")
    if len(values) < 2:
        return None
    start, end, window = ends(values)
    span = "the first step to the last" if window == 1 else f"the first {window} steps to the last {window}"
    return Fact("Reward", f"From {span}, the mean reward went from {fixed(start)} to {fixed(end)}.")


def _loss(run: RunData) -> Fact | None:
    """Only without rewards: the value of a policy-gradient loss has no meaning."""
    _, values = run.series("objective/loss")
    if len(values) < 2 or run.has("reward/mean"):
        return None
    start, end, _ = ends(values)
    return Fact("Loss", f"The loss went from {number(start)} to {number(end)}.")


def _entropy(run: RunData) -> Fact | None:
    steps, values = run.series("policy/entropy")
    if len(values) < 2:
        return None
    start, end, _ = ends(values)
    text = f"Entropy {'fell' if end < start else 'rose'} from {fixed(start)} to {fixed(end)} nats per token"
    if not end < start or start <= 0:
        return Fact("Entropy", text + ".")
    spent = 1 - end / start
    text += f": {share(spent)} of it is spent."
    if spent < 0.2:
        return Fact("Entropy", text)
    half = next(step for step, value in zip(steps, values, strict=True) if value <= (start + end) / 2)
    text += f" Half of the fall was over by step {half}."
    choices = [number(math.exp(value), 2) for value in (start, end)]
    text += f" As equally likely choices per token: {choices[0]} before, {choices[1]} after."
    return Fact("Entropy", text, caution=spent > 0.95)


def law(run: RunData, fit: Fit | None) -> Fact | None:
    """What the fit of reward against entropy predicts, and whether to trust it."""
    if fit is None:
        few = len(points(run.rows)) < 4
        reason = "fewer than four steps have both" if few else "entropy did not move"
        text = f"No fit of reward against entropy: {reason}."
        return Fact("Ceiling", text) if points(run.rows) else None
    if fit.a <= 0:
        text = (
            f"Reward did not rise as entropy fell (a = {signed(fit.a)}), so R = −a exp(H) + b does not "
            "describe this run and predicts no ceiling."
        )
        return Fact("Ceiling", text)
    if fit.poor:
        why = f"R² = {fixed(fit.r2)}, a = {number(fit.a)} ± {number(2 * fit.slope_error, 2)}"
        return Fact("Ceiling", f"The fit of reward against entropy is poor ({why}): it predicts no ceiling.")
    last, margin = ends(run.series("reward/mean")[1]).end, fit.margin
    text = (
        f"The fit of reward against entropy (R² = {fixed(fit.r2)}, {fit.n} steps) predicts a ceiling of "
        f"{fixed(fit.ceiling)} ± {number(margin, 2)} at zero entropy"
    )
    if last > fit.ceiling + margin:
        text += f"; the last reward, {fixed(last)}, is already above it, so do not trust this ceiling."
        return Fact("Ceiling", text, caution=True)
    if last >= fit.ceiling:
        return Fact("Ceiling", f"{text}, which the last reward, {fixed(last)}, has reached.")
    return Fact(
        "Ceiling", f"{text}; the last reward, {fixed(last)}, is {number(fit.ceiling - last, 2)} below it."
    )


def _theorem(run: RunData) -> Fact | None:
    changes = Table(run.rows).pairs("policy/entropy_delta", "policy/entropy_delta_predicted")
    if len(changes) < 2:
        return None
    same = sum(measured * predicted > 0 for _, measured, predicted in changes)
    text = (
        f"The covariance theorem predicted the sign of the entropy change in {same} of "
        f"{plural(len(changes), 'step')}. In total it predicted {signed(sum(p for *_, p in changes))} nats "
        f"per token; {signed(sum(m for _, m, _ in changes))} were measured."
    )
    return Fact("Theory", text)


def _kl(run: RunData) -> Fact | None:
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
        parts.append(f"at the end it was {number(reference[-1], 2)} nats per token from the reference")
    text = "; ".join(parts)
    return Fact("Distance", text[0].upper() + text[1:] + ".") if text else None


def _groups(run: RunData) -> Fact | None:
    _, values = run.series("group/zero_variance")
    if not values or max(values) == 0:
        return None
    start, end, _ = ends(values)
    text = f"{share(mean(values))} of the groups gave no gradient: all their completions got the same reward"
    text += f"; at the end it was {share(end)}." if len(values) > 1 and abs(end - start) > 0.05 else "."
    return Fact("Groups", text, caution=mean(values) > 0.8)


def _truncated(run: RunData) -> Fact | None:
    _, values = run.series("completion/truncated")
    if not values or max(values) < 0.02:
        return None
    start, end, _ = ends(values)
    text = f"{share(start)} of the completions hit the token limit"
    text += f" at the start, {share(end)} at the end." if len(values) > 1 else "."
    return Fact("Length", text, caution=end > 0.1)


def _unscorable(run: RunData) -> Fact | None:
    steps, values = run.series("reward/unscorable")
    bad = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
    if not bad:
        return None
    worst = max(bad, key=lambda pair: pair[1])
    text = (
        f"Some completions could not be scored in {len(bad)} of {plural(len(values), 'step')}, at most "
        f"{share(worst[1])} of them (step {worst[0]}). They were left out."
    )
    return Fact("Unscorable", text, caution=True)


def _skipped(run: RunData) -> Fact | None:
    steps, values = run.series("update/skipped")
    bad = [step for step, value in zip(steps, values, strict=True) if value > 0]
    if not bad:
        return None
    where = ", ".join(map(str, bad[:8])) + (" and others" if len(bad) > 8 else "")
    noun = "update was" if len(bad) == 1 else "updates were"
    text = f"{len(bad)} {noun} skipped because the loss or the gradient was not finite: step {where}."
    return Fact("Skipped", text, caution=True)
