"""Held-out completions token by token, each with its loss, before and after training; and the worst tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from klent.kit.statistics import mean
from klent.kit.tables import Row, finite, step_of
from klent.kit.text import fixed
from klent.report.read import RunData
from klent.report.samples import PROMPT_CHARACTERS, Token, visible

FULL = 8.0  # nats: a token with this loss or a larger one has the full shade, on every page
BEFORE_CHARACTERS = 24


class Reading(NamedTuple):
    """A completion as one evaluation read it: when, its mean loss, its tokens."""

    when: str
    loss: str
    tokens: list[Token]


class Replayed(NamedTuple):
    """A held-out prompt with its completion, read at the first and the last evaluation."""

    id: str
    prompt: str
    readings: list[Reading]
    hidden: int


class Worst(NamedTuple):
    """A token with a large loss: its row of the data, what stands before it, the token, its loss in nats."""

    id: str
    before: str
    token: str
    loss: str


def replayed(run: RunData) -> list[Replayed]:
    """The held-out completions that were written down, before and after."""
    rows = _ends(run)
    found = []
    for number, text in enumerate(_mappings(rows[-1].get("loss_texts")) if rows else []):
        same = [(row, _same(row, number, text)) for row in rows]
        known = [(row, other) for row, other in same if other is not None]
        earlier = _numbers(known[0][1]) if len(known) > 1 else []
        prompt = str(text.get("prompt", ""))
        cut = prompt if len(prompt) <= PROMPT_CHARACTERS else prompt[:PROMPT_CHARACTERS] + " […]"
        readings = [_reading(row, other, earlier if row is rows[-1] else []) for row, other in known]
        found.append(
            Replayed(str(text.get("prompt_id", "")), cut, readings, int(finite(text.get("hidden")) or 0))
        )
    return found


def worst(run: RunData) -> list[tuple[str, list[Worst]]]:
    """The worst tokens of all held-out completions, at the first and the last evaluation."""
    return [
        (_when(row), [_worst(one) for one in tokens])
        for row in _ends(run)
        if (tokens := _mappings(row.get("loss_worst")))
    ]


def _ends(run: RunData) -> list[Row]:
    return [run.losses[0], *([run.losses[-1]] if len(run.losses) > 1 else [])] if run.losses else []


def _when(row: Row) -> str:
    return "before training" if step_of(row) == 0 else f"after step {step_of(row)}"


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _same(row: Row, number: int, text: Mapping[str, object]) -> Mapping[str, object] | None:
    """The same completion in another evaluation."""
    texts = _mappings(row.get("loss_texts"))
    other = texts[number] if number < len(texts) else {}
    return other if other.get("tokens") == text.get("tokens") else None


def _numbers(text: Mapping[str, object]) -> list[float | None]:
    losses = text.get("loss")
    return [finite(value) for value in losses] if isinstance(losses, list) else []


def _reading(row: Row, text: Mapping[str, object], earlier: Sequence[float | None]) -> Reading:
    losses, tokens = _numbers(text), text.get("tokens")
    known = [loss for loss in losses if loss is not None]
    drawn = [
        _token(str(token), loss, earlier[index] if index < len(earlier) else None)
        for index, (token, loss) in enumerate(
            zip(tokens if isinstance(tokens, list) else [], losses, strict=False)
        )
    ]
    return Reading(_when(row), fixed(mean(known)) if known else "–", drawn)


def _token(text: str, loss: float | None, earlier: float | None) -> Token:
    if loss is None:
        tip, shade = "said between turns: not trained, not measured", 0.0
    else:
        change = "" if earlier is None else f" · before training {fixed(earlier)}"
        tip, shade = f"loss {fixed(loss)} nats{change}", min(1.0, max(0.0, loss / FULL))
    return Token(visible(text), text.count("\n"), shade, "said" if loss is None else "", 0.0, tip)


def _worst(one: Mapping[str, object]) -> Worst:
    before = visible(str(one.get("before", "")))[-BEFORE_CHARACTERS:] if one.get("before") else ""
    token = visible(str(one.get("token", "")))[:BEFORE_CHARACTERS]
    return Worst(str(one.get("prompt_id", "")), before, token, fixed(finite(one.get("loss"))))
