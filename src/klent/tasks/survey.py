"""What klent reads in a file, before anything is trained: columns, prompts, lengths, duplicates and refused rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from klent.config import FileSettings
from klent.errors import KlentError
from klent.models.chat import encode, render_messages, render_prompt
from klent.streams.prompt import Messages, Prompt
from klent.tasks.data import prompt_key
from klent.tasks.lines import Row
from klent.tasks.rows import PromptReader, open_prompt_rows
from klent.tasks.trajectories import Episodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 20  # refused rows and duplicates that are kept with their places
COUNTED = 2000  # rows whose tokens are counted: all of a small file, and as many spread over a large one


@dataclass
class Column:
    """A column over all rows.

    Attributes:
        filled: rows that have a value in it.
        kinds: what its values are, and how often: text, number, messages, ...
        longest: letters of its longest text.
        example: its first value.
    """

    filled: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    example: object = None

    def add(self, value: object) -> None:
        """One more row."""
        if value is None:
            return
        if not self.filled:
            self.example = value
        self.filled += 1
        self.kinds[kind_of(value)] += 1
        if isinstance(value, str):
            self.longest = max(self.longest, len(value))


class Lengths(NamedTuple):
    """Tokens of the rows that were counted; ``place`` is where the longest stands."""

    counted: int
    median: int
    most: int  # of 19 in 20
    longest: int
    place: str


@dataclass
class Survey:
    """What a file holds.

    Attributes:
        rows: in the file.
        columns: by name, with the names of ``task.columns``.
        refused: how many rows are no prompts.
        reasons: the first of them, each with its place.
        repeated: how many rows have the prompt of an earlier one.
        repeats: the first of them: place, place of the earlier one.
        first: the first prompts.
        prompt_tokens: None without a tokenizer, or where no row could be rendered.
        answer_tokens: of the columns that hold answers to train on (``completion``, ``chosen``, ``rejected``).
    """

    rows: int = 0
    columns: dict[str, Column] = field(default_factory=dict)
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    repeated: int = 0
    repeats: list[tuple[str, str]] = field(default_factory=list)
    first: list[Prompt] = field(default_factory=list)
    prompt_tokens: Lengths | None = None
    answer_tokens: dict[str, Lengths] = field(default_factory=dict)

    def refuse(self, reason: str) -> None:
        """One row that is no prompt."""
        self.refused += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(reason)


def survey(
    section: FileSettings,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    needed: Sequence[str] = (),
    first: int = 3,
    base: Path = Path("."),
) -> Survey:
    """Read a file as training would, and go on behind a row that is refused.

    Args:
        section: the file, and how to read it.
        tokenizer: renders prompts and counts their tokens; None = neither.
        needed: columns that every row must have.
        first: how many prompts to keep.
        base: folder from which a relative path is looked up.

    Raises:
        ConfigError, DataError: a file that is not there, or that cannot be read at all.
    """
    rows = open_prompt_rows(section.source, section.split, section, base, key=f"task.{section.key}")
    read = Episodes(rows) if section.logged else rows
    reading = _Reading(Survey(rows=len(rows)), PromptReader(section, needed), tokenizer, section.completions)
    stride = max(1, -(-len(rows) // COUNTED))
    for index in range(len(rows)):
        place = rows.place(index)
        try:
            _add_columns(reading.survey, rows[index])
            reading.add(read[index], place, first=first, counted=index % stride == 0)
        except KlentError as error:
            text = str(error)
            reading.survey.refuse(text if text.startswith(place) else f"{place}: {text}")
    return reading.end()


@dataclass
class _Reading:
    """A survey under way, with the places of the prompts and the tokens that it has seen."""

    survey: Survey
    reader: PromptReader
    tokenizer: "PreTrainedTokenizerBase | None"
    answers: Sequence[str]
    seen: dict[bytes, str] = field(default_factory=dict)
    tokens: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, row: Row, place: str, *, first: int, counted: bool) -> None:
        """One row; it is made into a prompt where it is kept or counted, and checked in any case."""
        earlier = self.seen.setdefault(prompt_key(self.reader.told_apart_by(row, place)), place)
        if earlier != place:
            self.survey.repeated += 1
            if len(self.survey.repeats) < SHOWN:
                self.survey.repeats.append((place, earlier))
        kept = len(self.survey.first) < first
        if not kept and (self.tokenizer is None or not counted):
            return
        prompt = self.reader.prompt(row, place)
        if self.tokenizer is not None:
            for name, count in _tokens(prompt, self.tokenizer, self.answers):
                self.tokens.setdefault(name, []).append((count, place))
        if kept:
            self.survey.first.append(prompt)

    def end(self) -> Survey:
        """The survey with the lengths of all."""
        lengths = {name: _lengths(counts) for name, counts in self.tokens.items()}
        self.survey.prompt_tokens = lengths.pop("prompt", None)
        self.survey.answer_tokens = lengths
        return self.survey


def _add_columns(result: Survey, row: Row) -> None:
    for name, value in row.items():
        result.columns.setdefault(name, Column()).add(value)


def _tokens(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", answers: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Tokens of the prompt as the model reads it, and of what answers it, without the token that ends an answer."""
    before = len(render_prompt(tokenizer, prompt.prompt, prompt.template))
    yield "prompt", before
    for name in answers:
        answer: str | Messages | None = prompt.columns.get(name)
        if isinstance(answer, str):
            yield name, len(encode(tokenizer, answer))
        elif answer is not None and not isinstance(prompt.prompt, str):
            chat = [*prompt.prompt, *answer]
            whole = render_messages(tokenizer, chat, prompt.template, whole=True)
            yield name, max(0, len(encode(tokenizer, whole)) - before)


def _lengths(counts: Sequence[tuple[int, str]]) -> Lengths:
    ordered = sorted(count for count, _ in counts)
    longest, place = max(counts, key=lambda one: one[0])
    return Lengths(len(ordered), ordered[len(ordered) // 2], ordered[len(ordered) * 19 // 20], longest, place)


def kind_of(value: object) -> str:
    """What a value is, in a word.

    >>> kind_of([{"from": "human", "value": "hi"}])
    'conversation'
    >>> kind_of("a"), kind_of(3), kind_of([{"role": "user", "content": "hi"}]), kind_of([1]), kind_of({})
    ('text', 'number', 'messages', 'list', 'object')
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        return "messages"
    if isinstance(value, list) and value and all(isinstance(item, dict) and "from" in item for item in value):
        return "conversation"
    names = {str: "text", bool: "yes or no", int: "number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
