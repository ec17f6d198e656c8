"""The first call of a reward, on the task's first problem: what is broken in it is found before anything else."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from klent.config.rewards import OPTIONS, SHIPPED, Reward
from klent.errors import ConfigError, DataError
from klent.kit.names import nearest
from klent.kit.text import plural
from klent.streams.prompt import Messages, Prompt, text_of
from klent.tasks.arguments import ALWAYS, Sample, arguments_of, given
from klent.tasks.process import CallFailed, Worker

STRANGER = "I do not know."
_ANSWERS = ("answer", "solution", "ground_truth", "target", "label", "completion")
_BROKEN = (
    "NameError",
    "UnboundLocalError",
    "ImportError",
    "ModuleNotFoundError",
)  # whatever the completion is

Call = Callable[[Prompt, list[str]], object]
"""Calls the reward with a prompt and completions of it, and returns what it returned."""


class Tried(NamedTuple):
    """What a reward did at its first call, in a sentence; ``doubt`` = the user should look at it."""

    text: str
    doubt: bool = False


def check_columns(reward: Reward, worker: Worker, prompt: Prompt) -> None:
    """Refuse a reward that asks for what the row does not have."""
    arguments = {**arguments_of([Sample(prompt, "", "stop")]), **reward.settings}
    columns = [name for name in arguments if name not in ALWAYS or name in prompt.columns]
    for name in worker.parameters()["required"]:
        if name == "trainer_state" and name not in arguments:
            raise ConfigError(
                f"reward {reward.fn}: asks for trainer_state, which klent does not have: a reward depends on "
                "prompt and completion alone, so that a resumed run gets the same. Remove it, or give it a default"
            )
        if name not in arguments and name not in ALWAYS:
            listed = ", ".join(columns) or "none"
            hint = f"; it gets {name}s, a list" if f"{name}s" in ALWAYS else nearest(name, columns)
            raise ConfigError(f"reward {reward.fn}: needs a column {name!r}{hint}; columns are: {listed}")


def first_call(reward: Reward, worker: Worker) -> Call:
    """Calls a reward with one prompt and completions of it; of a shipped one, which may load a model, in time."""
    limit = max(60.0, reward.timeout) if reward.fn in SHIPPED else reward.timeout

    def call(prompt: Prompt, completions: list[str]) -> object:
        size = prompt.columns.get("noise")  # of a denoiser: then an image of zeros stands in
        vector = [0.0] * size if isinstance(size, int) else None
        samples = [
            Sample(prompt, text, "stop", range(len(text)) if vector is None else None, vector)
            for text in completions
        ]
        return worker.call(given(worker, reward, samples), limit)

    return call


def check_settings(reward: Reward, worker: Worker) -> None:
    """Refuse a setting that the function does not take."""
    named = [name for name in worker.parameters()["named"] if name not in ("prompts", "completions")]
    for name in reward.settings:
        if name not in named:
            takes = f"it takes {', '.join(named)}" if named else "it takes none"
            option = f"; as an option of the reward, write {{fn: {reward.fn}, {name}: ...}}"
            hint = option if name in OPTIONS else nearest(name, named)
            raise ConfigError(f"reward {reward.fn}: no argument {name!r}{hint}; {takes}")


def try_reward(reward: Reward, prompt: Prompt, call: Call) -> Tried:
    """Call a reward once, on a real row with stand-ins for completions, and say what came.

    The stand-ins are the row's own answer, where it has one, and a sentence that answers nothing. A reward may
    fail on what no policy would write, so that most failures are told and not refused.

    Args:
        reward: which.
        prompt: the task's first.
        call: calls it; may raise CallFailed.

    Raises:
        ConfigError: it cannot score any completion of this task: it raises on a name that there is not,
            returns no list of numbers, or takes text for messages or messages for text.
        DataError: a shipped reward that cannot score this row.
    """
    answer = _answer(prompt.columns)
    standins = [*([answer] if answer else []), STRANGER]
    try:
        returned = call(prompt, standins)
    except CallFailed as error:
        return _failed(reward, prompt, call, standins, error)
    values = _values(returned)
    if values is None:
        what = "a list" if isinstance(returned, list) else type(returned).__name__
        raise ConfigError(
            f"reward {reward.fn}: returned {what}, not a list with a number for each completion: {returned!r:.80}"
        )
    if len(values) != len(standins):
        count = plural(len(standins), "completion")
        return Tried(f"reward {reward.fn}: returned {plural(len(values), 'value')} for {count}", doubt=True)
    if answer and reward.fn not in SHIPPED and (better := _reads_other(prompt, call, standins, values)):
        return Tried(f"reward {reward.fn}: {better}", doubt=True)
    said = [f"{_number(value)} for {_quoted(text)}" for value, text in zip(values, standins, strict=True)]
    said[0] += f", the answer of {prompt.id}" if answer else f" to {prompt.id}"
    return Tried(f"reward {reward.fn}: {'; '.join(said)}", all(v is None or math.isnan(v) for v in values))


def _failed(reward: Reward, prompt: Prompt, call: Call, standins: list[str], error: CallFailed) -> Tried:
    """A reward that brought no values: refused where it cannot bring any, else told."""
    if reward.fn in SHIPPED:
        raise DataError(f"reward {reward.fn}: {error} (at {prompt.id})") from None
    if error.error in _BROKEN:
        raise ConfigError(
            f"reward {reward.fn}: {error}, called with the first problem ({prompt.id})"
        ) from None
    if error.kind == "timeout":
        text = f"{error} on the first problem ({prompt.id}); raise its `timeout` if it needs the time"
        return Tried(f"reward {reward.fn}: {text}", doubt=True)
    if error.kind == "raised" and _values(_other_call(prompt, call, standins)) is not None:
        raise ConfigError(f"reward {reward.fn}: {error}. {_mismatch(prompt)}") from None
    return Tried(f"reward {reward.fn}: {_alone(prompt, call, standins, error)}", doubt=True)


def _alone(prompt: Prompt, call: Call, standins: list[str], error: CallFailed) -> str:
    """How a reward that fails on the stand-ins together fails on each alone, and what to do."""
    tried = {text: _failure(prompt, call, text) for text in standins}
    why: dict[str, list[str]] = {}  # an error -> the completions on which it raised
    for text, failure in tried.items():
        if failure is not None:
            why.setdefault(str(failure), []).append(f"on {_quoted(text)}")
    told = "; ".join(f"{failure} {' and '.join(where)}" for failure, where in why.items())
    if None not in tried.values():
        return (
            f"{told}: on every completion tried ({prompt.id}). What it fails on is unscorable, and a run in which "
            "nothing can be scored ends before it trains. Correct it, or return None where it cannot judge"
        )
    if told:
        return f"{told} ({prompt.id}), and such completions are unscorable. Return a number or None there"
    return (
        f"{error}, called with {plural(len(standins), 'completion')} at once ({prompt.id}), and not with each alone: "
        "it will be called once for each completion, which is slower. Correct it for several"
    )


def _failure(prompt: Prompt, call: Call, text: str) -> CallFailed | None:
    """How a reward fails on one completion alone; None where it does not."""
    try:
        call(prompt, [text])
    except CallFailed as error:
        return error
    return None


def _reads_other(prompt: Prompt, call: Call, standins: list[str], values: list[float | None]) -> str | None:
    """What to say of a reward that tells the row's own answer from none only if it is given the other form."""
    if values[0] != values[1]:
        return None
    other = _values(_other_call(prompt, call, standins))
    if other is None or len(other) != 2 or other[0] is None or other[1] is None or not other[0] > other[1]:
        return None
    given = f"{_number(values[0])} for the answer of {prompt.id} and for {_quoted(STRANGER)} alike, but"
    form = "messages" if isinstance(prompt.prompt, str) else "text"
    return f"{given} {_number(other[0])} and {_number(other[1])} if they are {form}. {_mismatch(prompt)}"


def _mismatch(prompt: Prompt) -> str:
    if isinstance(prompt.prompt, str):
        return (
            "It is written for messages, completion[0]['content'], and this task's prompts are text, so that "
            "completions are text: read them as text, or make messages of the prompts: write each as "
            '[{"role": "user", "content": ...}], or set task.system'
        )
    return (
        "It is written for text, and this task's prompts are messages, so that each completion is a list of one "
        "message: read completion[0]['content'], or write each prompt as text"
    )


def _other_call(prompt: Prompt, call: Call, standins: list[str]) -> object:
    """What it returns where text stands for messages and messages for text; None where it fails too."""
    try:
        return call(Prompt(prompt.id, _other_form(prompt.prompt), prompt.columns), standins)
    except CallFailed:
        return None


def _other_form(prompt: str | Messages) -> str | Messages:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return text_of(prompt[-1]["content"])


def _answer(columns: Mapping[str, object]) -> str | None:
    """The row's own answer as text, where it has one."""
    for name in _ANSWERS:
        value = columns.get(name)
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value)
    return None


def _values(returned: object) -> list[float | None] | None:
    """A list of numbers and None; None for anything else."""
    if not isinstance(returned, list) or not all(v is None or isinstance(v, int | float) for v in returned):
        return None
    return [None if value is None else float(value) for value in returned]


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line if len(line) <= 40 else line[:39] + "…"}"'
