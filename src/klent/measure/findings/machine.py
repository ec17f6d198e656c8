"""Signatures of the machinery: loss or gradient not finite, and a run that gets slower."""

from klent.kit.statistics import median
from klent.kit.tables import Table, step_of
from klent.kit.text import number, plural
from klent.measure.findings.finding import Finding, latest, replays, settled, stretch, trailing


def nonfinite(table: Table) -> Finding | None:
    """A loss or a gradient that is not finite."""
    skipped, flags = table.series("update/skipped")
    bad = {step for step, value in zip(skipped, flags, strict=True) if value > 0}
    bad |= set(table.nonfinite("grad/norm")) | set(table.nonfinite("objective/loss"))
    if not bad:
        return None
    steps = sorted(map(step_of, table.rows))
    first, last = min(bad), max(bad)
    ended = None if len(steps) - 1 - steps.index(last) < 3 else last
    return Finding(
        "nonfinite",
        "Loss or gradient not finite",
        first,
        ended,
        f"in {plural(len(bad), 'step')} of {len(steps)} the loss or the gradient was not finite"
        f"{f', most recently at step {last}' if len(bad) > 1 else ''}.",
        "Such updates must be skipped, as klent does. Look for exp of a log-ratio in the loss (a KL term, "
        "an unclipped ratio) or float16, and lower optimizer.lr.",
        (0.95 if len(bad) >= 3 else 0.7) * (1.0 if ended is None else 0.6),
    )


def throughput_decay(table: Table) -> Finding | None:
    """Tokens per second fall below 60% of their normal level, by more than the work per step did."""
    for name, work, what in (
        ("tokens/rollout_per_second", "tokens/rollout", "sampled"),
        ("tokens/train_per_second", "tokens/train", "trained on"),
        ("tokens/per_second", "completion/length", "processed"),
    ):
        if what == "sampled" and replays(table):
            continue
        triples = table.pairs(name, work) if table.has(work) else [(*p, 1.0) for p in table.pairs(name)]
        if len(triples) < 12:
            continue
        steps = [int(triple[0]) for triple in triples]
        speeds, loads = (trailing([triple[column] for triple in triples], 5) for column in (1, 2))
        usual, load = median(speeds[1:6]), median(loads[1:6])
        if usual <= 0 or load <= 0:
            continue
        slow = [v < 0.6 * usual * min(1.0, w / load) for v, w in zip(speeds, loads, strict=True)]
        span = stretch(steps, slow)
        if span is None or span[1] is not None:
            continue
        return Finding(
            "throughput_decay",
            "The run gets slower",
            *span,
            f"{number(latest(speeds))} tokens per second {what}, down from {number(usual)} early on.",
            "Check whether memory grows (memory/peak_gb), whether another process shares the machine, and "
            "whether one reward or one long completion delays each step (time/...).",
            0.45,
        )
    return _slower_steps(table)


def _slower_steps(table: Table) -> Finding | None:
    """The same from seconds per step, for a log that counts no tokens."""
    steps, seconds = table.series("time/step")
    if len(seconds) < 12 or table.has("tokens/rollout_per_second") or table.has("tokens/per_second"):
        return None
    lengths = table.series("completion/length")[1]
    growth = latest(lengths) / settled(lengths) if len(lengths) == len(seconds) and settled(lengths) else 1.0
    usual = settled(seconds)
    span = stretch(steps, [value > usual / 0.6 * max(1.0, growth) for value in trailing(seconds, 5)])
    if span is None or span[1] is not None:
        return None
    return Finding(
        "throughput_decay",
        "The run gets slower",
        *span,
        f"a step takes {number(latest(seconds))} s, up from {number(usual)} s early on.",
        "Check whether memory grows, whether another process shares the machine, and what steps wait for.",
        0.45,
    )
