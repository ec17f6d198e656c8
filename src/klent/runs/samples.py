"""Rows of samples.jsonl: completions, with the sampler's entropy and the update's coefficient per token."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from klent.report.pixels import is_drawn
from klent.streams.batch import Batch
from klent.streams.episode import Episode
from klent.streams.prompt import text_of

FRAMES, FEWEST = 24, 6  # of a film, at most and at least
NUMBERS = 8192  # of a film, where FEWEST allows it


class Decoder(Protocol):
    """What an action is called: a tokenizer, or what stands for one."""

    def decode(self, token_ids: list[int]) -> str | list[str]:
        """The text of these tokens; a list only of tokenizers that are asked for several texts."""
        ...


class Places:
    """Names actions that are vectors by their places in the episode, from 1."""

    def decode(self, token_ids: list[int]) -> str:
        """``1``, ``2``, ..., each with a space behind it.

        >>> Places().decode([0, 1])
        '1 2 '
        """
        return "".join(f"{place + 1} " for place in token_ids)


def sample_rows(
    step: int,
    batch: Batch,
    coefficient: Tensor | None,
    tokenizer: Decoder,
    *,
    chosen: Mapping[str, Tensor] | None = None,
    logp: Tensor | None = None,
    prompts: int = 2,
    completions: int = 4,
) -> list[dict[str, object]]:
    """The first few completions of the first few prompts of a step.

    Args:
        step: the training step.
        batch: its completions.
        coefficient: ``c_t`` times the step's token count, ``[B, T]``; above 0 the token was pushed up; None where no
            token was pushed by itself.
        tokenizer: turns ids into the text pieces that are shown.
        chosen: what each selector chose, bool ``[B, T]``; a row gets the positions of its chosen tokens.
        logp: under the policy before its optimizer step, ``[B, T]``; with it an answer of a pair gets, per token,
            what it adds to its score: ``logp`` less the reference's where the step has that.
        prompts: how many prompts.
        completions: how many completions per prompt.
    """
    rows: list[dict[str, object]] = []
    for group in batch.group.unique()[:prompts]:
        for shown, b in enumerate((batch.group == group).nonzero()[:completions, 0].tolist()):
            rollout = batch.episodes[b]
            count = len(rollout.tokens)
            reward = math.nan if batch.reward is None else float(batch.reward[b])
            rows.append(
                {
                    "step": step,
                    "prompt_id": rollout.prompt.id,
                    "prompt": _shown(rollout),
                    "completion": rollout.text,
                    "reward": reward if reward == reward else None,
                    "advantage": _first(batch.streams.advantage, b),
                    "finish": rollout.finish,
                    "tokens": [tokenizer.decode([token]) for token in rollout.tokens.tolist()],
                    "entropy": _rounded(rollout.entropy, count),
                    "logp": _rounded(rollout.logp, count),
                    "coefficient": _rounded(None if coefficient is None else coefficient[b, :count], count),
                }
                | _turns(rollout, None if batch.streams.advantage is None else batch.streams.advantage[b])
                | _positions(chosen, b)
                | _of_pair(batch, b, logp)
                | _values(batch, b, count)
                | _vector(rollout)
                | _film(rollout, first=not shown)
            )
    return rows


def _of_pair(batch: Batch, row: int, logp: Tensor | None) -> dict[str, object]:
    """Which answer of its pair a completion is, and what each of its tokens adds to its score."""
    preferred, acted = batch.streams.preferred, batch.episodes[row].acted
    if preferred is None or logp is None or not bool(batch.trained[row].any()):
        return {}
    start, count = batch.streams.logp_ref, len(acted)
    added = logp[row, :count] if start is None else logp[row, :count] - start[row, :count]
    return {"preferred": bool(preferred[row]), "score": _rounded(torch.where(acted, added, 0.0), count)}


def _shown(rollout: Episode) -> str:
    prompt = rollout.prompt.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {text_of(message.get('content'))}" for message in prompt)


def _turns(episode: Episode, advantage: Tensor | None) -> dict[str, object]:
    """Who wrote which tokens, ``[first, end)``, with each turn's numbers; only of episodes in an environment."""
    if not episode.rewards:
        return {}
    turns: list[dict[str, object]] = []
    start = 0
    changes = (episode.acted[1:] != episode.acted[:-1]) | (episode.turn[1:] != episode.turn[:-1])
    for end in [*(changes.nonzero()[:, 0] + 1).tolist(), len(episode.tokens)]:
        acted, number = bool(episode.acted[start]), int(episode.turn[start])
        turn: dict[str, object] = {"by": "policy" if acted else "environment", "tokens": [start, end]}
        if acted:
            reward = episode.rewards[number]
            turn["reward"] = reward if reward == reward else None
            turn["advantage"] = None if advantage is None else round(float(advantage[start]), 5)
        turns.append(turn)
        start = end
    problem = {"problem": episode.problem} if episode.problem else {}
    return {"turns": turns, **problem}


def _positions(chosen: Mapping[str, Tensor] | None, row: int) -> dict[str, object]:
    if not chosen:
        return {}
    return {"chosen": {name: value[row].nonzero()[:, 0].tolist() for name, value in chosen.items()}}


def _values(batch: Batch, row: int, count: int) -> dict[str, object]:
    """What a critic expected before each token, where there is one."""
    values = batch.streams.value_old
    return {} if values is None else {"value": _rounded(values[row, :count], count)}


def _vector(rollout: Episode) -> dict[str, object]:
    """The last action, where actions are vectors: what a denoiser made."""
    if rollout.actions is None:
        return {}
    return {"vector": [round(value, 4) for value in rollout.actions[-1].tolist()]}


def _film(rollout: Episode, *, first: bool) -> dict[str, object]:
    """What the first image of a prompt was on the way, at some places, where it can be drawn."""
    states = rollout.states
    if not first or states is None or rollout.actions is None or not is_drawn(states.shape[1]):
        return {}
    if states.shape != rollout.actions.shape:
        return {}
    most = min(len(states), FRAMES, max(FEWEST, NUMBERS // states.shape[1]))
    places = torch.linspace(0, len(states) - 1, most).round().long().unique().tolist()
    return {"film": [[place, [round(value, 2) for value in states[place].tolist()]] for place in places]}


def _rounded(values: Tensor | None, count: int) -> list[float | None]:
    """One number per token; None for completions that were not sampled."""
    return [None] * count if values is None else [round(value, 5) for value in values.tolist()]


def _first(values: Tensor | None, row: int) -> float | None:
    return None if values is None else round(float(values[row, 0]), 5)
