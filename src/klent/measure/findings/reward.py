"""Signatures of rewards and of the text: nothing to learn from, failing rewards, reward hacking."""

import re

from klent.kit.statistics import mean
from klent.kit.tables import Table
from klent.kit.text import fixed, number, share, signed_fixed
from klent.measure.findings.finding import Finding, beginning, latest, settled, stretch, trailing

FORM = re.compile(r"format|tags?\b|_tag|struct|style|xml|json|box|template", re.IGNORECASE)
"""Matches the names of rewards for the format of an answer."""


def zero_variance(table: Table) -> Finding | None:
    """In more than four of five groups all completions get the same reward."""
    steps, values, rewards = _equal_groups(table)
    span = stretch(steps, [value > 0.8 for value in trailing(values)])
    if span is None or span[1] is not None:
        return None
    level = latest(rewards) if rewards else None
    remedy = "Mix in problems of another difficulty, or raise group_size."
    if level is not None and level >= 0.8:
        remedy = "The problems are solved: use harder ones, or stop here."
    elif level is not None and level <= 0.1:
        remedy = "The problems are too hard: use easier ones, raise group_size, or give partial rewards."
    shown = "" if level is None else f" (mean {fixed(level)})"
    effect = "so these groups give no gradient."
    if pushes_equal_groups(table):
        effect = "so nothing in these groups tells good from bad; their tokens are pushed all the same."
    return Finding(
        "zero_variance",
        "Groups with equal rewards",
        *span,
        f"in {share(latest(values))} of the groups all completions get the same reward{shown}, {effect}",
        remedy,
        0.5 if level is not None and level >= 0.8 else 0.65,
    )


def pushes_equal_groups(table: Table) -> bool:
    """Whether groups with equal rewards have a gradient: a loss without a baseline, or another term of it.

    Without one, about as many tokens have coefficient 0 as such groups hold.
    """
    pairs = table.pairs("group/zero_variance", "objective/zero_fraction")
    return bool(pairs) and mean([zero for *_, zero in pairs]) < 0.5 * mean([equal for _, equal, _ in pairs])


def _equal_groups(table: Table) -> tuple[list[int], list[float], list[float]]:
    """Steps, shares of groups with equal rewards, and mean rewards; no means in a log that never has any.

    A group of which fewer than two completions were scored counts as equal in the metric. Failing rewards
    are a finding of their own, so a step counts here by what they cannot explain, and not where nothing was
    scored.
    """
    name = "group/zero_variance"
    if "reward/mean" not in table.names():
        steps, values = table.series(name)
        return steps, values, []
    failed = dict(zip(*table.series("reward/unscorable"), strict=True))
    scored = [(int(step), value, reward) for step, value, reward in table.pairs(name, "reward/mean")]
    steps = [step for step, _, _ in scored]
    values = [max(0.0, value - failed.get(step, 0.0)) for step, value, _ in scored]
    return steps, values, [reward for _, _, reward in scored]


def unscorable(table: Table) -> Finding | None:
    """Rewards that fail."""
    steps, values = table.series("reward/unscorable")
    bad = [step for step, value in zip(steps, values, strict=True) if value >= 0.05]
    if len(bad) < 2 and max(values, default=0.0) < 0.5:
        return None
    worst = max(values)
    ended = None if len(steps) - 1 - steps.index(bad[-1]) < 3 else bad[-1]
    return Finding(
        "unscorable",
        "Rewards fail",
        bad[0],
        ended,
        f"up to {share(worst)} of the completions of a step could not be scored, in {len(bad)} of "
        f"{len(values)} steps at least 5%.",
        "Read rewards.log and the console warnings: fix what raises, or increase the timeout. Until then the "
        "policy learns only from completions that the reward can score.",
        min(1.0, 0.5 + 0.5 * worst) * (1.0 if ended is None else 0.6),
    )


def length_gaming(table: Table) -> Finding | None:
    """Completions grow by half or more, and the reward does not rise."""
    triples = table.pairs("completion/length", "reward/mean")
    if len(triples) < 10:
        return None
    lengths, rewards = ([triple[column] for triple in triples] for column in (1, 2))
    start, end = beginning(lengths), latest(lengths)
    middle = mean(rewards)
    noise = (mean([(value - middle) ** 2 for value in rewards])) ** 0.5
    _, spreads = table.series("reward/std")
    gain = latest(rewards) - beginning(rewards)
    if end < 1.5 * start or end - start < 8 or gain > 0.2 * max(mean(spreads) if spreads else 0.0, noise):
        return None
    steps = [int(triple[0]) for triple in triples]
    span = stretch(steps, [value > 1.25 * start for value in trailing(lengths)])
    if span is None or span[1] is not None:
        return None
    return Finding(
        "length_gaming",
        "Length without reward",
        *span,
        f"completions grew from {number(start)} to {number(end)} tokens while the mean reward changed by "
        f"{signed_fixed(gain)}.",
        "Average the loss over tokens or a constant instead of sequences (reduce.over): averaging over "
        "sequences penalizes long wrong answers less. Or reward brevity.",
        0.55,
    )


def truncation(table: Table) -> Finding | None:
    """A quarter of the completions end at the token limit."""
    steps, values = table.series("completion/truncated")
    span = stretch(steps, [value > 0.25 for value in trailing(values)], least=6)
    if span is None or span[1] is not None:
        return None
    return Finding(
        "truncation",
        "Answers are cut off",
        *span,
        f"{share(latest(values))} of the completions end at the token limit ({share(beginning(values))} at "
        "the start), mostly before their answer.",
        "Raise rollout.max_tokens. If the text never ends, look for repetition and for a stop token missing "
        "from the template.",
        min(0.85, 0.4 + 0.5 * latest(values)),
    )


def repetition(table: Table) -> Finding | None:
    """Completions repeat themselves more than early in the run."""
    steps, values = table.series("completion/repetition")
    if not values:
        return None
    limit = max(0.25, 1.5 * settled(values))
    span = stretch(steps, [value > limit for value in trailing(values)])
    if span is None or span[1] is not None:
        return None
    return Finding(
        "repetition",
        "Text repeats itself",
        *span,
        f"{share(latest(values))} of a completion's 4-grams occur earlier in it "
        f"({share(settled(values))} early on).",
        "Read the samples in the report. If a reward pays for length or for single phrases, change it; "
        "otherwise the policy has degenerated: go back to a checkpoint and lower optimizer.lr.",
        min(0.9, 0.4 + latest(values)),
    )


def format_gaming(table: Table) -> Finding | None:
    """The part of the reward for the format rises, and no other part does."""
    parts = [name for name in table.names() if name.startswith("reward/")]
    parts = [name for name in parts if name not in ("reward/mean", "reward/std", "reward/unscorable")]
    series = {name: table.series(name) for name in parts}
    gains = {n: latest(v) - beginning(v) for n, (_, v) in series.items() if len(v) >= 10}
    form = [name for name in gains if FORM.search(name)]
    other = [name for name in gains if name not in form]
    if not form or not other:
        return None
    name, best = max(form, key=gains.__getitem__), max(other, key=gains.__getitem__)
    if gains[name] < 0.15 or gains[best] > 0.2 * gains[name]:
        return None
    steps, values = series[name]
    half = beginning(values) + gains[name] / 2
    span = stretch(steps, [value >= half for value in trailing(values)])
    if span is None or span[1] is not None:
        return None
    return Finding(
        "format_gaming",
        "Format without substance",
        *span,
        f"{name} changed by {signed_fixed(gains[name])}, {best} by {signed_fixed(gains[best])}.",
        "Format is often learned first. If it stays so, reward it only when the answer is right, or lower "
        "its weight.",
        0.5,
    )
