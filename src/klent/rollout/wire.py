"""Episodes as bytes, between the processes that share a step: safetensors, with what is no tensor in its header."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from klent.streams.episode import Episode, MixtureTrace
from klent.streams.prompt import Prompt

_OWN = ("prompt",)  # the receiver has it


def pack(episodes: Sequence[Episode]) -> bytes:
    """Everything of these episodes but their prompts, bit for bit."""
    tensors: dict[str, Tensor] = {}
    plain: list[dict[str, object]] = []
    for place, episode in enumerate(episodes):
        plain.append({})
        for name, value in _values(episode).items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value.cpu().contiguous()
            elif isinstance(value, MixtureTrace):
                traced = {f"{place}.{name}.{part}": grid for part, grid in _values(value).items()}
                tensors |= {key: grid.cpu().contiguous() for key, grid in traced.items()}
            else:
                plain[-1][name] = value
    header = json.dumps(plain).encode()
    return len(header).to_bytes(8, "little") + header + save(tensors)


def unpack(said: bytes, prompts: Sequence[Prompt]) -> list[Episode]:
    """The episodes that :func:`pack` was given, answers to these prompts: one per episode."""
    end = 8 + int.from_bytes(said[:8], "little")
    tensors = load(said[end:])
    of_place: list[dict[str, Any]] = json.loads(said[8:end])
    for key, value in tensors.items():
        place, name, *part = key.split(".")
        own = of_place[int(place)]
        if part:
            own.setdefault(name, {})[part[0]] = value
        else:
            own[name] = value
    return [_episode(own, prompt) for own, prompt in zip(of_place, prompts, strict=True)]


def _values(whole: Episode | MixtureTrace) -> dict[str, Any]:
    return {f.name: getattr(whole, f.name) for f in fields(whole) if f.name not in _OWN}


def _episode(own: dict[str, Any], prompt: Prompt) -> Episode:
    traced = own.pop("mixture")
    episode = Episode(prompt, **own)
    mixture = None if traced is None else MixtureTrace(**traced)
    return replace(episode, rewards=tuple(own["rewards"]), mixture=mixture)
