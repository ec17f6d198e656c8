"""The arguments of a reward's call: what TRL passes, from prompts and completions."""

from collections.abc import Sequence
from typing import NamedTuple

from klent.config.rewards import Reward
from klent.streams.prompt import Prompt
from klent.tasks.process import CallFailed, Worker

ALWAYS = ("prompts", "completions", "finish", "completion_ids", "vectors")  # what every reward can ask for


class Sample(NamedTuple):
    """A prompt, its completion, how that ended, and its tokens where they are known.

    Where actions are vectors, ``vector`` is the last one in place of ``ids``: what a denoiser has made.
    """

    prompt: Prompt
    completion: str
    finish: str
    ids: Sequence[int] | None = None
    vector: Sequence[float] | None = None


def given(worker: Worker, reward: Reward, samples: Sequence[Sample]) -> dict[str, object]:
    """A call's arguments; tokens, which are many numbers, only where they are asked for by name."""
    arguments: dict[str, object] = {**arguments_of(samples), **reward.settings}
    known: dict[str, list[Sequence[float] | None]] = {
        "completion_ids": [sample.ids for sample in samples],
        "vectors": [sample.vector for sample in samples],
    }
    for name in set(worker.parameters()["named"]) & known.keys() - arguments.keys():
        numbers = [given for given in known[name] if given is not None]
        if len(numbers) < len(samples):
            kind = "texts" if any(sample.vector is None for sample in samples) else "vectors"
            raise CallFailed("raised", f"asks for {name}, and only {kind} were given to be scored")
        arguments[name] = list(map(list, numbers))
    return arguments


def arguments_of(samples: Sequence[Sample]) -> dict[str, object]:
    """What TRL passes: columns as lists, messages where the prompt is messages; and how completions ended."""
    prompts = [sample.prompt for sample in samples]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns = {
        name: [prompt.columns.get(name) for prompt in prompts]
        for name in names
        if name not in ("prompts", "completions", "prompt", "completion")
    }
    replies = [
        text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text, *_ in samples
    ]
    return {
        "prompts": [prompt.prompt for prompt in prompts],
        "completions": replies,
        "finish": [sample.finish for sample in samples],
        **columns,
    }
