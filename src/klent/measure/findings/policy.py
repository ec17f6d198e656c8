"""Signatures of the policy's distribution: entropy, KL, clipping, and whether sampler and trainer agree."""

import math

from klent.kit.tables import Table
from klent.kit.text import fixed, number, share
from klent.measure.findings.finding import Finding, beginning, latest, settled, stretch, trailing
from klent.measure.law import POINTS, forecast


def entropy_collapse(table: Table) -> Finding | None:
    """Half of the entropy is gone and the rest is on its way, or four fifths are gone."""
    steps, values = table.series("policy/entropy")
    if len(values) < POINTS or beginning(values) < 0.1:
        return None
    low = [value <= 0.5 * beginning(values) for value in trailing(values)]
    found, ahead = stretch(steps, low), forecast(table.rows)
    if found is None or found[1] is not None or ahead is None:
        return None
    if ahead.spent < 0.8 and ahead.floor_step is None:
        return None
    return Finding(
        "entropy_collapse",
        "Entropy collapse",
        *found,
        f"{ahead.words()}.",
        "Hold the entropy (a thermostat, an entropy bonus, a higher clip_high) or spare the tokens of "
        "largest covariance (Clip-Cov, KL-Cov); a lower optimizer.lr spends it later, not less.",
        min(1.0, 0.5 + 0.4 * ahead.spent),
    )


def entropy_explosion(table: Table) -> Finding | None:
    """Entropy is half as much again as at the start, and at least half a nat more."""
    steps, values = table.series("policy/entropy")
    if len(values) < POINTS:
        return None
    start = beginning(values)
    found = stretch(steps, [value > max(1.5 * start, start + 0.5) for value in trailing(values)])
    if found is None:
        return None
    high = max(values)
    return Finding(
        "entropy_explosion",
        "Entropy explosion",
        *found,
        f"entropy rose from {fixed(start)} to {fixed(high)} nats per token, from "
        f"{number(math.exp(start), 2)} to {number(math.exp(high), 2)} equally likely choices.",
        "Lower the entropy bonus or the thermostat's target, then optimizer.lr; look at the samples: text "
        "that falls apart is followed by a reward that does.",
        0.8 if found[1] is None else 0.5,
    )


def kl_blowup(table: Table) -> Finding | None:
    """An update moves the policy far more than updates did, or it is nats away from its reference."""
    for name, what, floor, times in (
        ("kl/update", "an update moves the policy by", 0.3, 8.0),
        ("kl/reference", "the policy stands from the reference by", 1.0, 20.0),
    ):
        steps, values = table.series(name)
        if len(values) < POINTS:
            continue
        limit = min(max(floor, times * abs(settled(values))), 5 * floor)
        found = stretch(steps, [value > limit for value in trailing(values)], least=2)
        if found is None:
            continue
        return Finding(
            "kl_blowup",
            "KL blow-up",
            *found,
            f"{what} {number(max(values), 2)} nats per token at most, {number(settled(values), 2)} early on.",
            "Lower optimizer.lr or the number of updates on one batch; a KL term to the reference holds it, "
            "a larger one harder. Thousands of nats at step 1 are an error, such as dropout.",
            0.85 if found[1] is None else 0.5,
        )
    return None


def clip_saturation(table: Table) -> Finding | None:
    """More than a fifth of the tokens are clipped."""
    rows = []
    for row in table.rows:
        parts = [row.get(f"objective/clip_{side}") for side in ("low", "high")]
        whole = row.get("objective/clip")
        known = [part for part in parts if isinstance(part, int | float)]
        rows.append({"step": row["step"], "clip": whole if whole is not None or not known else sum(known)})
    steps, values = Table(rows).series("clip")
    found = stretch(steps, [value > 0.2 for value in trailing(values)])
    if found is None:
        return None
    return Finding(
        "clip_saturation",
        "Clip saturation",
        *found,
        f"up to {share(max(values))} of the tokens are clipped and give no gradient, where a few percent "
        "are usual.",
        "Take fewer or smaller steps on one batch (update.epochs, update.minibatches, optimizer.lr); where "
        "even the first step clips, sampler and trainer disagree.",
        0.6 if found[1] is None else 0.35,
    )


def degenerate_weights(table: Table) -> Finding | None:
    """Samples of a mixture that stand for less than a tenth of their number."""
    steps, values = table.series("mixture/ess")
    found = stretch(steps, [value < 0.1 for value in trailing(values)])
    if found is None:
        return None
    return Finding(
        "degenerate_weights",
        "Importance weights degenerate",
        *found,
        f"the samples of the mixture are worth {share(min(values))} of their number at worst.",
        "Sample nearer to the policy: a higher rollout.mixture.alpha, or {criterion: ess, value: 0.5}; "
        "weights by token spread less than by sequence; bounds hide it and bias the step.",
        0.7 if found[1] is None else 0.4,
    )


def logp_mismatch(table: Table) -> Finding | None:
    """Sampler and trainer give the same token different probabilities under the same weights."""
    for name, limit, unit in (("policy/logp_mismatch", 0.05, "nats"), ("policy/prob_mismatch", 0.05, "")):
        steps, values = table.series(name)
        found = stretch(steps, [value > limit for value in trailing(values)])
        if found is None:
            continue
        return Finding(
            "logp_mismatch",
            "Sampler and trainer disagree",
            *found,
            f"on the same token by {number(latest(values), 2)} {unit}".rstrip()
            + f" on average ({number(settled(values), 2)} early on); rounding in bfloat16 gives below 0.05.",
            "Compare temperature, chat template, precision and weights of the two; importance weights that "
            "are cut off hide it and do not mend it.",
            0.8 if latest(values) > 4 * limit else 0.6,
        )
    return None
