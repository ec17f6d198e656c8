"""Samples for the page: a few prompts of an early, a middle and a late step, token by token."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from klent.kit.text import fixed, signed, signed_fixed
from klent.report.pixels import pixels
from klent.report.read import Sample, Stretch

PROMPTS_SHOWN = 4
COMPLETIONS_SHOWN = 4
TOKENS_SHOWN = 320
PROMPT_CHARACTERS = 1200
FORKS = 0.2  # of a step's tokens, those of highest entropy, as of the metrics `forks/...`

_SIDES = {True: 0, False: 1, None: 2}  # the better answer first

_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x00": "␀", "\x1b": "␛", "\u200b": "⟨zwsp⟩", "\xa0": "⍽"}


@dataclass(frozen=True)
class Token:
    """One token to be drawn.

    Attributes:
        text: the token with invisible characters made visible.
        breaks: number of line breaks after it.
        shade: its entropy over the largest on the page, in [0, 1].
        push: ``up``, ``down``, ``zero``, or empty if its mark is unknown: the coefficient, or of an answer of a
            pair what the token adds to the margin.
        size: its mark's size over the largest on the page, in [0, 1].
        chosen: whether a selector chose it.
        fork: whether it is the fork of its turn.
        value: where a critic's value lies between the lowest and the highest on the page, in [0, 1]; None without.
        tip: its numbers.
    """

    text: str
    breaks: int
    shade: float
    push: str
    size: float
    tip: str
    chosen: bool = False
    fork: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Part:
    """What one side wrote in a turn of an episode, and the turn's numbers; ``by`` is empty without turns.

    Where the policy was at a fork, the numbers say at which token, and how likely what it said was there.
    """

    tokens: list[Token]
    by: str = ""
    numbers: str = ""


@dataclass(frozen=True)
class Completion:
    """One completion to be drawn; ``hidden`` is the number of tokens left out at its end.

    Of a pair ``side`` says which answer it is, and ``score`` is the sum over its tokens, nats. ``image`` is a drawing
    of what a denoiser made, where its coordinates are a square of pixels.
    """

    parts: list[Part]
    hidden: int
    reward: str
    advantage: str
    push: str
    finish: str
    problem: str = ""
    side: str = ""
    score: str = ""
    image: str = ""

    @property
    def tokens(self) -> list[Token]:
        """Those of all parts."""
        return [token for part in self.parts for token in part.tokens]


@dataclass(frozen=True)
class Asked:
    """One prompt with some of its completions."""

    id: str
    prompt: str
    completions: list[Completion]


@dataclass(frozen=True)
class Stage:
    """One step; ``note`` says so if none of its prompts taught anything."""

    name: str
    step: int
    asked: list[Asked]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """The whole section; ``entropy`` (nats) and ``mark`` are the maxima of its two scales.

    ``values`` are the ends of a critic's scale, in units of reward; None where there are no values. ``pairs``: marks
    are what tokens add to the margin of their pair, nats, and not coefficients.
    """

    stages: list[Stage]
    entropy: float
    mark: float
    values: tuple[float, float] | None = None
    pairs: bool = False


class Scale(NamedTuple):
    """What one page's shades, marks and lines are held against; see :class:`Shown`.

    ``fork`` is the least entropy of a step's most uncertain tokens, nats, by step.
    """

    entropy: float
    mark: float
    values: tuple[float, float] | None
    fork: dict[int, float]


def choose(samples: list[Sample]) -> Shown:
    """Early, middle and late, each beginning with the prompts whose completions differ most in advantage.

    Shades and marks share one scale over the whole page, so that the first step can be compared with the
    last.
    """
    steps = sorted({sample.step for sample in samples})
    names = {1: ["the only step"], 2: ["early", "late"], 3: ["early", "middle", "late"]}.get(len(steps), [])
    chosen = {step: list(_chosen([s for s in samples if s.step == step])) for step in steps}
    shown = [sample for prompts in chosen.values() for group in prompts for sample in group]
    entropies = [v for s in shown for v in s.entropy[:TOKENS_SHOWN] if v is not None]
    sizes = [abs(v) for s in shown for v in s.marks[:TOKENS_SHOWN] if v is not None]
    values = [v for s in shown for v in s.value[:TOKENS_SHOWN] if v is not None]
    scale = Scale(
        max(entropies, default=0.0),
        max(sizes, default=0.0),
        (min(values), max(values)) if values else None,
        {step: _threshold(sample for sample in samples if sample.step == step) for step in steps},
    )
    drawn = {
        step: [
            Asked(group[0].prompt_id, _prompt(group[0].prompt), [_completion(s, scale) for s in group])
            for group in groups
        ]
        for step, groups in chosen.items()
    }
    stages = [
        Stage(name, step, drawn[step], _note(chosen[step])) for name, step in zip(names, steps, strict=True)
    ]
    ends = (scale.entropy, scale.mark, scale.values)
    return Shown(stages, *ends, pairs=any(sample.preferred is not None for sample in shown))


def _note(groups: list[list[Sample]]) -> str:
    """Of a step whose logged advantages are all 0."""
    advantages = [sample.advantage for group in groups for sample in group if sample.advantage is not None]
    return "every logged advantage is 0" if advantages and not any(advantages) else ""


def _chosen(samples: list[Sample]) -> Iterator[list[Sample]]:
    """Prompts of one step, the most instructive first; for each the best, the worst and some in between.

    Prompts of which every advantage is 0 are shown only where there are no others.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_id, []).append(sample)

    def spread(group: list[Sample]) -> float:
        advantages = [sample.advantage for sample in group if sample.advantage is not None]
        return max(advantages) - min(advantages) if advantages else 0.0

    taught = [group for group in groups.values() if is_instructive(group)]
    for group in sorted(taught or groups.values(), key=spread, reverse=True)[:PROMPTS_SHOWN]:
        ranked = sorted(
            _distinct(group), key=lambda sample: (_SIDES[sample.preferred], -(sample.advantage or 0.0))
        )
        last, room = len(ranked) - 1, min(COMPLETIONS_SHOWN, len(ranked))
        chosen = sorted({round(i * last / max(1, room - 1)) for i in range(room)})
        yield [ranked[index] for index in chosen]


def is_instructive(group: Iterable[Sample]) -> bool:
    """Whether any completion of a prompt has an advantage that is known and not 0."""
    return any(sample.advantage or any(turn.advantage for turn in sample.turns) for sample in group)


def _distinct(group: list[Sample]) -> list[Sample]:
    """Completions with different texts; a group repeats itself when entropy is low."""
    return list({(sample.completion, *sample.tokens): sample for sample in group}.values())


def _completion(sample: Sample, scale: Scale) -> Completion:
    count = min(TOKENS_SHOWN, len(sample.tokens))
    return Completion(
        parts=list(_parts(sample, count, scale)),
        hidden=len(sample.tokens) - count,
        reward="unscorable" if sample.reward is None else fixed(sample.reward),
        advantage=signed_fixed(sample.advantage),
        push=_sign(sample.advantage),
        finish=sample.finish,
        problem=sample.problem,
        side={True: "better", False: "worse", None: ""}[sample.preferred],
        score=signed_fixed(sum(value for value in sample.score if value is not None)),
        image=pixels(sample.vector),
    )


def _parts(sample: Sample, count: int, scale: Scale) -> Iterator[Part]:
    """The first ``count`` tokens, cut where another side begins."""
    start = 0
    for turn in sample.turns:
        if turn.first < count:
            own = turn.by == "policy"
            fork = _fork(sample, turn, scale) if own else None
            tokens = [
                _token(sample, i, scale, own=own, fork=i == fork)
                for i in range(turn.first, min(turn.end, count))
            ]
            paid = "no reward" if turn.reward is None else f"reward {fixed(turn.reward)}"
            worth = "" if turn.advantage is None else f" · advantage {signed_fixed(turn.advantage)}"
            numbers = f"{paid}{worth}{_uncertain(sample, turn, scale)}" if own else ""
            yield Part(tokens, turn.by, numbers)
            start = min(turn.end, count)
    rest = [_token(sample, index, scale) for index in range(start, count)]
    if rest or not sample.tokens:
        yield Part(rest or [Token(visible(sample.completion), 0, 0.0, "", 0.0, "")])


def _fork(sample: Sample, turn: Stretch, scale: Scale) -> int | None:
    """Where a turn of the policy was most uncertain, if that is among its step's most uncertain tokens."""
    known = {i: value for i in range(turn.first, turn.end) if (value := sample.entropy[i]) is not None}
    place = max(known, key=lambda i: known[i], default=None)
    return place if place is not None and known[place] >= scale.fork[sample.step] else None


def _threshold(samples: Iterable[Sample]) -> float:
    """The least entropy among the most uncertain tokens that the policy wrote in episodes, nats; inf without any."""
    entropies = [
        value
        for sample in samples
        for turn in sample.turns
        if turn.by == "policy"
        for value in sample.entropy[turn.first : turn.end]
        if value is not None
    ]
    largest = sorted(entropies, reverse=True)[: math.ceil(FORKS * len(entropies))]
    return max(largest[-1], 1e-3) if largest else math.inf


def _uncertain(sample: Sample, turn: Stretch, scale: Scale) -> str:
    """A turn's mean entropy, and its fork."""
    known = [value for value in sample.entropy[turn.first : turn.end] if value is not None]
    if not known:
        return ""
    text = f" · {fixed(sum(known) / len(known))} nats per token"
    if (fork := _fork(sample, turn, scale)) is None:
        return text
    logp = sample.logp[fork]
    said = "" if logp is None else f", said with {fixed(math.exp(min(logp, 0.0)))}"
    return (
        f"{text} · fork at “{visible(sample.tokens[fork]).strip()}”: {fixed(sample.entropy[fork])} nats{said}"
    )


def _token(sample: Sample, index: int, scale: Scale, *, own: bool = True, fork: bool = False) -> Token:
    """A token; what an environment wrote has no numbers."""
    if not own:
        text = sample.tokens[index]
        return Token(visible(text), text.count("\n"), 0.0, "", 0.0, "")
    high, push, values, _ = scale
    text, entropy = sample.tokens[index], sample.entropy[index]
    logp, coefficient = sample.logp[index], sample.coefficient[index]
    mark = sample.marks[index]
    numbers = f"entropy {fixed(entropy)} · logp {fixed(logp)} · coefficient {signed(coefficient)}"
    value = sample.value[index] if sample.value else None
    numbers += "" if value is None else f" · value {signed(value)}"
    if sample.preferred is not None:
        numbers = f"margin {signed(mark)} nats · {numbers}"
    return Token(
        text=visible(text),
        breaks=text.count("\n"),
        shade=entropy / high if entropy is not None and high > 0 else 0.0,
        push=_sign(mark),
        size=abs(mark) / push if mark is not None and push > 0 else 0.0,
        tip=numbers,
        chosen=bool(sample.chosen) and sample.chosen[index],
        fork=fork,
        value=None if value is None or values is None else _place(value, values),
    )


def _place(value: float, ends: tuple[float, float]) -> float:
    """Where a number lies between two, from 0 to 1; in the middle where they are equal."""
    low, high = ends
    return (value - low) / (high - low) if high > low else 0.5


def _sign(value: float | None) -> str:
    if value is None:
        return ""
    return "up" if value > 0 else "down" if value < 0 else "zero"


def _prompt(text: str) -> str:
    return text if len(text) <= PROMPT_CHARACTERS else text[:PROMPT_CHARACTERS] + " […]"


def visible(text: str) -> str:
    """Text with invisible characters made visible; spaces stay spaces, since shades and marks show them.

    >>> visible("a\\tb\\n"), visible("\\x07"), visible("")
    ('a⇥b⏎', '⟨U+0007⟩', '∅')
    """
    if not text:
        return "∅"
    return "".join(
        _VISIBLE.get(c) or (c if c.isprintable() or c == " " else f"⟨U+{ord(c):04X}⟩") for c in text
    )
