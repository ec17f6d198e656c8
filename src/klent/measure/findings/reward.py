"""Signatures of rewards and of what they do to the text: nothing to learn from, or the wrong thing learnt."""

import re

from klent.kit.tables import Table
from klent.kit.text import fixed, mean, number, share, signed_fixed
from klent.measure.findings.finding import Finding, beginning, latest, settled, stretch, trailing

FORM = re.compile(r"format|tags?\b|_tag|struct|style|xml|json|box|template", re.IGNORECASE)
"""What the name of a reward for the form of an answer has in it."""


def zero_variance(table: Table) -> Finding | None:
    """In more than four of five groups all completions earn the same."""
    steps, values = table.series("group/zero_variance")
    found = stretch(steps, [value > 0.8 for value in trailing(values)])
    if found is None or found[1] is not None:
        return None
    _, rewards = table.series("reward/mean")
    level = latest(rewards) if rewards else 0.5
    remedy = "Mix in problems of another difficulty, or make group_size larger."
    if level >= 0.8:
        remedy = "The problems are solved: take harder ones, or stop here."
    elif level <= 0.1:
        remedy = "The problems are too hard: take easier ones, make group_size larger, or reward parts."
    return Finding(
        "zero_variance",
        "Groups without a difference",
        *found,
        f"in {share(latest(values))} of the groups all completions earn the same (mean reward "
        f"{fixed(level)}), so that they teach nothing.",
        remedy,
        0.5 if level >= 0.8 else 0.65,
    )


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
        "Read rewards.log and the warnings of the console: mend what raises, or raise the timeout; what the "
        "policy learns from is a choice among the completions that the reward survives.",
        min(1.0, 0.5 + 0.5 * worst) * (1.0 if ended is None else 0.6),
    )


def length_gaming(table: Table) -> Finding | None:
    """Completions grow by half or more, and the reward does not."""
    known = table.pairs("completion/length", "reward/mean")
    if len(known) < 10:
        return None
    lengths, rewards = ([row[place] for row in known] for place in (1, 2))
    start, end = beginning(lengths), latest(lengths)
    middle = mean(rewards)
    noise = (mean([(value - middle) ** 2 for value in rewards])) ** 0.5
    _, spreads = table.series("reward/std")
    gain = latest(rewards) - beginning(rewards)
    if end < 1.5 * start or end - start < 8 or gain > 0.2 * max(mean(spreads) if spreads else 0.0, noise):
        return None
    steps = [int(row[0]) for row in known]
    found = stretch(steps, [value > 1.25 * start for value in trailing(lengths)])
    if found is None or found[1] is not None:
        return None
    return Finding(
        "length_gaming",
        "Length without reward",
        *found,
        f"completions grew from {number(start)} to {number(end)} tokens while the mean reward changed by "
        f"{signed_fixed(gain)}.",
        "Average the loss over tokens or a constant instead of sequences (reduce.over), which lets long "
        "wrong answers pay less; or reward brevity.",
        0.55,
    )


def truncation(table: Table) -> Finding | None:
    """A quarter of the completions end at the token limit."""
    steps, values = table.series("completion/truncated")
    found = stretch(steps, [value > 0.25 for value in trailing(values)], least=6)
    if found is None or found[1] is not None:
        return None
    return Finding(
        "truncation",
        "Answers are cut off",
        *found,
        f"{share(latest(values))} of the completions end at the token limit ({share(beginning(values))} at "
        "the start), mostly before their answer.",
        "Raise rollout.max_tokens; where the text goes on for ever, look for repetition and for a stop token "
        "that the template lacks.",
        min(0.85, 0.4 + 0.5 * latest(values)),
    )


def repetition(table: Table) -> Finding | None:
    """Completions repeat themselves, more than they did."""
    steps, values = table.series("completion/repetition")
    if not values:
        return None
    limit = max(0.25, 1.5 * settled(values))
    found = stretch(steps, [value > limit for value in trailing(values)])
    if found is None or found[1] is not None:
        return None
    return Finding(
        "repetition",
        "Text repeats itself",
        *found,
        f"{share(latest(values))} of the 4-grams of a completion stand earlier in it "
        f"({share(settled(values))} early on).",
        "Read the samples of the report. Where a reward pays for length or for single phrases, change it; "
        "otherwise the policy has degenerated: go back to a checkpoint and lower optimizer.lr.",
        min(0.9, 0.4 + latest(values)),
    )


def format_gaming(table: Table) -> Finding | None:
    """The part of the reward that pays for the form rises, and no other part does."""
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
    found = stretch(steps, [value >= half for value in trailing(values)])
    if found is None or found[1] is not None:
        return None
    return Finding(
        "format_gaming",
        "Form without substance",
        *found,
        f"{name} changed by {signed_fixed(gains[name])}, {best} by {signed_fixed(gains[best])}.",
        "Form is often learnt first. Where it stays so, pay for it only when the answer is right, or lower "
        "its weight.",
        0.5,
    )
