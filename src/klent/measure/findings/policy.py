"""Signatures of the policy's distribution: entropy, KL, clipping, weights, sampler against trainer."""

import math

from klent.kit.tables import Row, Table, finite
from klent.kit.text import fixed, number, share
from klent.measure.findings.finding import Finding, beginning, latest, replays, settled, stretch, trailing
from klent.measure.law import POINTS, forecast


def entropy_collapse(table: Table) -> Finding | None:
    """Half of the entropy is gone and the rest is about to go, or four fifths are gone."""
    steps, values = table.series("policy/entropy")
    if len(values) < POINTS or beginning(values) < 0.1 or replays(table):
        return None
    low = [value <= 0.5 * beginning(values) for value in trailing(values)]
    span, ahead = stretch(steps, low), forecast(table.rows)
    if span is None or span[1] is not None or ahead is None:
        return None
    if ahead.spent < 0.8 and ahead.floor_step is None:
        return None
    return Finding(
        "entropy_collapse",
        "Entropy collapse",
        *span,
        f"{ahead.sentence()}.",
        "Hold the entropy (a thermostat, an entropy bonus, a higher clip_high) or protect the tokens of "
        "largest covariance (Clip-Cov, KL-Cov). A lower optimizer.lr only delays the loss of entropy.",
        min(1.0, 0.5 + 0.4 * ahead.spent),
    )


def entropy_explosion(table: Table) -> Finding | None:
    """Entropy is at least 1.5 times that of the start, and at least half a nat more."""
    steps, values = table.series("policy/entropy")
    if len(values) < POINTS:
        return None
    start = beginning(values)
    span = stretch(steps, [value > max(1.5 * start, start + 0.5) for value in trailing(values)])
    if span is None:
        return None
    high = max(values)
    return Finding(
        "entropy_explosion",
        "Entropy explosion",
        *span,
        f"entropy rose from {fixed(start)} to {fixed(high)} nats per token, from "
        f"{number(math.exp(start), 2)} to {number(math.exp(high), 2)} equally likely choices.",
        "Lower the entropy bonus or the thermostat's target, then optimizer.lr. Read the samples: when the "
        "text degenerates, the reward follows.",
        0.8 if span[1] is None else 0.5,
    )


def kl_blowup(table: Table) -> Finding | None:
    """An update moves the policy far more than earlier ones, or it is nats away from its reference."""
    for name, what, floor, times in (
        ("kl/update", "an update moves the policy by up to", 0.3, 8.0),
        ("kl/reference", "the distance from the reference reaches", 1.0, 20.0),
    ):
        steps, values = table.series(name)
        if len(values) < POINTS:
            continue
        limit = min(max(floor, times * abs(settled(values))), 5 * floor)
        span = stretch(steps, [value > limit for value in trailing(values)], least=2)
        if span is None:
            continue
        return Finding(
            "kl_blowup",
            "KL blow-up",
            *span,
            f"{what} {number(max(values), 2)} nats per token, from {number(settled(values), 2)} early on.",
            "Lower optimizer.lr or the number of updates per batch, or add or increase a KL term to the "
            "reference. Thousands of nats at step 1 are a bug, such as dropout left on.",
            0.85 if span[1] is None else 0.5,
        )
    return None


def clip_saturation(table: Table) -> Finding | None:
    """More than a fifth of the tokens are clipped."""
    rows = [{"step": row["step"], "clip": _clipped(row)} for row in table.rows]
    steps, values = Table(rows).series("clip")
    span = stretch(steps, [value > 0.2 for value in trailing(values)])
    if span is None:
        return None
    return Finding(
        "clip_saturation",
        "Clip saturation",
        *span,
        f"up to {share(max(values))} of the tokens are clipped and give no gradient; a few % are normal.",
        "Take fewer or smaller steps per batch (update.epochs, update.minibatches, optimizer.lr). If the "
        "first step already clips, sampler and trainer disagree.",
        0.6 if span[1] is None else 0.35,
    )


def _clipped(row: Row) -> float | None:
    """Share of the tokens clipped on either side; None if it was not measured."""
    if (both := finite(row.get("objective/clip"))) is not None:
        return both
    sides = [finite(row.get(f"objective/clip_{side}")) for side in ("low", "high")]
    measured = [side for side in sides if side is not None]
    return sum(measured) if measured else None


def degenerate_weights(table: Table) -> Finding | None:
    """Effective sample size of a mixture's samples below a tenth of their number."""
    steps, values = table.series("mixture/ess")
    span = stretch(steps, [value < 0.1 for value in trailing(values)])
    if span is None:
        return None
    return Finding(
        "degenerate_weights",
        "Importance weights degenerate",
        *span,
        f"the effective sample size of the mixture falls to {share(min(values))} of the samples.",
        "Sample closer to the policy: a higher rollout.mixture.alpha, or {criterion: ess, value: 0.5}. "
        "Weights per token vary less than per sequence; bounds hide the problem and bias the step.",
        0.7 if span[1] is None else 0.4,
    )


def stale_prefixes(table: Table) -> Finding | None:
    """The prefix weights of a term about whole sequences have degenerated, or are bound to."""
    steps, values = table.series("sequence/ess")
    _, chi2 = table.series("sequence/chi2")
    _, length = table.series("completion/length")
    bound = [(1 + max(each, 0.0)) ** -min(tokens, 1e4) for each, tokens in zip(chi2, length, strict=False)]
    share_left = [min(pair) for pair in zip(values, bound, strict=False)]
    span = stretch(steps, [value < 0.1 for value in trailing(share_left)])
    if span is None:
        return None
    return Finding(
        "stale_prefixes",
        "Prefix weights degenerate",
        *span,
        f"the sampler is χ² = {number(max(chi2), 2)} per token away from the policy: over "
        f"{number(max(length), 3)} tokens an effective {share(min(share_left))} of the completions is left to "
        "sequence_kl or sequence_entropy.",
        "Take fewer or smaller optimizer steps per batch (update.epochs, update.minibatches, optimizer.lr), or "
        "set weight_max, which bounds the variance and leaves a bias; per token kl_in_loss is stable.",
        0.7 if span[1] is None else 0.4,
    )


def logp_mismatch(table: Table) -> Finding | None:
    """Sampler and trainer give the same token different probabilities under the same weights."""
    for name, limit, unit in (("policy/logp_mismatch", 0.05, "nats"), ("policy/prob_mismatch", 0.05, "")):
        steps, values = table.series(name)
        span = stretch(steps, [value > limit for value in trailing(values)])
        if span is None:
            continue
        return Finding(
            "logp_mismatch",
            "Sampler and trainer disagree",
            *span,
            f"on the same token by {number(latest(values), 2)} {unit}".rstrip()
            + f" on average ({number(settled(values), 2)} early on); bfloat16 rounding stays below 0.05.",
            "Compare temperature, chat template, precision and weights of the two. Truncated importance "
            "weights hide the mismatch and do not fix it.",
            0.8 if latest(values) > 4 * limit else 0.6,
        )
    return None
