"""Facts: what the updates did, one sentence per topic, each computed from the rows of the run."""

import math
from collections.abc import Callable
from typing import NamedTuple

from klent.kit.statistics import ends, mean, mean_and_margin
from klent.kit.tables import Row, Table, finite, step_of
from klent.kit.text import fixed, number, plural, share, signed, signed_fixed
from klent.measure.findings.reward import pushes_equal_groups
from klent.measure.law import Fit, is_refuted, latest_reward, no_ceiling, points
from klent.measure.score import (
    BY_PROBLEM,
    LABELS,
    Kind,
    is_judged,
    is_scored,
    score_of,
    temperatures_of,
)
from klent.report.read import RunData, is_idle


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
        lambda: _unscored(run),
        lambda: _heldout(run),
        lambda: _reward(run),
        lambda: _loss(run),
        lambda: _entropy(run),
        lambda: law(run, fit),
        lambda: _theorem(run),
        lambda: _idle(run),
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
    correct = row.get(BY_PROBLEM[kind])
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


def _unscored(run: RunData) -> Fact | None:
    """Evaluations of which every score failed: they measured nothing."""
    steps = [str(step_of(row)) for row in run.evals if is_judged(row) and not is_scored(row)]
    if not steps:
        return None
    text = (
        f"No held-out completion could be scored at step {', '.join(steps)}, so nothing was measured there."
    )
    return Fact("Held out", text, caution=True)


def _heldout(run: RunData) -> Fact | None:
    rows = run.heldout
    change = gain(run)
    if len(rows) < 2:
        return None
    before, after = (score_of(row, run.kind) for row in (rows[0], rows[-1]))
    if before is None or after is None:
        return None
    lead = {"accuracy": "Accuracy", "reward": "Held-out reward", "preference": "Held-out pairs"}[run.kind]
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
    if len(values) < 2 or run.rewarded:
        return None
    start, end, _ = ends(values)
    return Fact("Loss", f"The loss went from {number(start)} to {number(end)}.")


def _entropy(run: RunData) -> Fact | None:
    steps, values = run.series("policy/entropy")
    if len(values) < 2:
        return None
    start, end, _ = ends(values)
    if fixed(start, 3) == fixed(end, 3):
        return Fact("Entropy", f"Entropy stayed at {fixed(end)} nats per token.")
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
    last = latest_reward(run.rows) or 0.0
    fitted = f"The fit of reward against entropy (R² = {fixed(fit.r2)}, {fit.n} steps) predicts"
    ceiling = f"a ceiling of {fixed(fit.ceiling)} ± {number(fit.margin, 2)} at zero entropy"
    if why := no_ceiling(run.rows, fit):
        return Fact("Ceiling", f"R = −a exp(H) + b predicts no ceiling for this run: {why}.")
    if is_refuted(run.rows, fit):
        above = f"the last reward, {fixed(last)}, is already above it, so do not trust this ceiling"
        return Fact("Ceiling", f"{fitted} {ceiling}; {above}.", caution=True)
    if last >= fit.ceiling:
        return Fact("Ceiling", f"{fitted} {ceiling}, which the last reward, {fixed(last)}, has reached.")
    below = f"the last reward, {fixed(last)}, is {number(fit.ceiling - last, 2)} below it"
    return Fact("Ceiling", f"{fitted} {ceiling}; {below}.")


def _theorem(run: RunData) -> Fact | None:
    """Signs and sums over the steps whose update changed the policy: where nothing moved there is no sign."""
    measured = Table(run.rows).pairs("policy/entropy_delta", "policy/entropy_delta_predicted")
    changes = updates(run)
    if len(changes) < 2:
        return None
    idle = len(measured) - len(changes)
    same = _same_sign(changes)
    of = plural(len(changes), "step") + (f" with an update ({idle:,} had none)" if idle else "")
    text = (
        f"The covariance theorem predicted the sign of the entropy change in {same} of {of}. In total it "
        f"predicted {signed(sum(p for *_, p in changes))} nats per token; "
        f"{signed(sum(m for _, m, _ in changes))} were measured."
    )
    exact = updates(run, "policy/entropy_delta_exact")
    if len(exact) >= 2:
        total = signed(sum(p for *_, p in exact))
        text += (
            f" Each token's exact effect, with one step that all share, had the sign in {_same_sign(exact)} of "
            f"{plural(len(exact), 'step')} and predicted {total}."
        )
    return Fact("Theory", text)


def _same_sign(changes: list[tuple[float, ...]]) -> int:
    return sum(measured * predicted > 0 for _, measured, predicted in changes)


def updates(run: RunData, predicted: str = "policy/entropy_delta_predicted") -> list[tuple[float, ...]]:
    """Step, measured and predicted change of entropy, of the steps whose update changed the policy."""
    moved = Table([row for row in run.rows if not is_idle(row)])
    return [change for change in moved.pairs("policy/entropy_delta", predicted) if any(change[1:])]


def _idle(run: RunData) -> Fact | None:
    """Steps without an update, but for those that were skipped, of which there is a fact of its own."""
    idle = [row for row in run.rows if is_idle(row) and not finite(row.get("update/skipped"))]
    if not idle:
        return None
    steps = f"{len(idle):,} of {plural(len(run.rows), 'step')}"
    text = f"In {steps} no token had a coefficient, so nothing was updated."
    return Fact("No update", text, caution=len(idle) > 0.8 * len(run.rows))


def _kl(run: RunData) -> Fact | None:
    steps, values = Table([row for row in run.rows if not is_idle(row)]).series("kl/update")
    at, reference = run.series("kl/reference")
    when = "at the end" if at[-1:] == run.steps[-1:] else f"at step {at[-1:][0] if at else 0}"
    parts = []
    if values:
        largest = max(range(len(values)), key=values.__getitem__)
        parts.append(
            f"an update moved the policy by {number(mean(values), 2)} nats per token on average, by "
            f"{number(values[largest], 2)} at most (step {steps[largest]})"
        )
    if reference:
        parts.append(f"{when} it was {number(reference[-1], 2)} nats per token from the reference")
    _, sequence = run.series("kl/sequence")
    if sequence:
        parts.append(f"whole completions were last {number(sequence[-1], 2)} nats from the reference")
    text = "; ".join(parts)
    return Fact("Distance", text[0].upper() + text[1:] + ".") if text else None


def _groups(run: RunData) -> Fact | None:
    """Groups with equal rewards. A group with fewer than two scored completions is counted among them."""
    table = Table(
        [row for row in run.rows if "reward/mean" not in row or finite(row["reward/mean"]) is not None]
    )
    _, values = table.series("group/zero_variance")
    if not values or max(values) == 0:
        return None
    start, end, _ = ends(values)
    failed = max(run.series("reward/unscorable")[1], default=0.0) > 0
    text = f"In {share(mean(values))} of the groups all completions got the same reward"
    text += ", or fewer than two were scored" if failed else ""
    text += f" ({share(end)} at the end)" if len(values) > 1 and abs(end - start) > 0.05 else ""
    text += "; their tokens had a gradient all the same." if pushes_equal_groups(table) else ": no gradient."
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
    if len(bad) == len(values) and min(values) == 1:
        return Fact("Unscorable", "No completion was scored, so no reward was learned from.", caution=True)
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
    count = round(sum(values))
    noun = "update was" if count == 1 else "updates were"
    text = f"{count:,} {noun} skipped because the loss or the gradient was not finite: step {where}."
    return Fact("Skipped", text, caution=True)
