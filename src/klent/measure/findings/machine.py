"""Signatures of the machinery: numbers that are none, and a run that gets slower."""

from klent.kit.tables import Table
from klent.kit.text import number, plural
from klent.measure.findings.finding import Finding, latest, median, settled, stretch, trailing


def nonfinite(table: Table) -> Finding | None:
    """A loss or a gradient that is no number."""
    skipped, flags = table.series("update/skipped")
    bad = {step for step, value in zip(skipped, flags, strict=True) if value > 0}
    bad |= set(table.nonfinite("grad/norm")) | set(table.nonfinite("objective/loss"))
    if not bad:
        return None
    steps = sorted(row["step"] for row in table.rows)
    first, last = min(bad), max(bad)
    ended = None if len(steps) - 1 - steps.index(last) < 3 else last
    return Finding(
        "nonfinite",
        "Gradients that are no numbers",
        first,
        ended,
        f"in {plural(len(bad), 'step')} of {len(steps)} the loss or the gradient was not finite"
        f"{f', for the last time at step {last}' if len(bad) > 1 else ''}.",
        "Such an update must be left out, as klent does. Look for exp of a log-ratio in the loss (a KL term, "
        "an unclipped ratio), for float16, and lower optimizer.lr.",
        (0.95 if len(bad) >= 3 else 0.7) * (1.0 if ended is None else 0.6),
    )


def throughput_decay(table: Table) -> Finding | None:
    """Tokens a second fall below 60% of what they were, by more than the work per step did."""
    for name, work, what in (
        ("tokens/rollout_per_second", "tokens/rollout", "sampled"),
        ("tokens/train_per_second", "tokens/train", "trained on"),
        ("tokens/per_second", "completion/length", "processed"),
    ):
        known = table.pairs(name, work) if table.series(work)[1] else [(*p, 1.0) for p in table.pairs(name)]
        if len(known) < 12:
            continue
        steps = [int(row[0]) for row in known]
        speeds, loads = (trailing([row[place] for row in known], 5) for place in (1, 2))
        usual, load = median(speeds[1:6]), median(loads[1:6])
        if usual <= 0 or load <= 0:
            continue
        slow = [v < 0.6 * usual * min(1.0, w / load) for v, w in zip(speeds, loads, strict=True)]
        found = stretch(steps, slow)
        if found is None or found[1] is not None:
            continue
        return Finding(
            "throughput_decay",
            "The run gets slower",
            *found,
            f"{number(latest(speeds))} tokens a second {what}, where there were {number(usual)} early on.",
            "See whether memory grows (memory/peak_gb), whether another process shares the machine, and "
            "whether one reward or one long completion holds up each step (time/...).",
            0.45,
        )
    steps, seconds = table.series("time/step")
    if len(seconds) < 12 or any(
        table.series(n)[1] for n in ("tokens/rollout_per_second", "tokens/per_second")
    ):
        return None
    lengths = table.series("completion/length")[1]
    growth = latest(lengths) / settled(lengths) if len(lengths) == len(seconds) and settled(lengths) else 1.0
    usual = settled(seconds)
    found = stretch(steps, [value > usual / 0.6 * max(1.0, growth) for value in trailing(seconds, 5)])
    if found is None or found[1] is not None:
        return None
    return Finding(
        "throughput_decay",
        "The run gets slower",
        *found,
        f"a step takes {number(latest(seconds))} s, where it took {number(usual)} s early on.",
        "See whether memory grows, whether another process shares the machine, and what each step waits for.",
        0.45,
    )
