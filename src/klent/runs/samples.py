"""Rows of samples.jsonl: completions, with the sampler's entropy and the update's coefficient per token."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from klent.streams.batch import Batch
from klent.streams.episode import Episode
from klent.streams.prompt import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sample_rows(
    step: int,
    batch: Batch,
    coefficient: Tensor | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    chosen: Mapping[str, Tensor] | None = None,
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
        prompts: how many prompts.
        completions: how many completions per prompt.
    """
    rows: list[dict[str, object]] = []
    for group in batch.group.unique()[:prompts]:
        for b in (batch.group == group).nonzero()[:completions, 0].tolist():
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
                | _positions(chosen, b)
            )
    return rows


def _shown(rollout: Episode) -> str:
    prompt = rollout.prompt.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {text_of(message.get('content'))}" for message in prompt)


def _positions(chosen: Mapping[str, Tensor] | None, row: int) -> dict[str, object]:
    if not chosen:
        return {}
    return {"chosen": {name: value[row].nonzero()[:, 0].tolist() for name, value in chosen.items()}}


def _rounded(values: Tensor | None, count: int) -> list[float | None]:
    """One number per token; None for completions that were not sampled."""
    return [None] * count if values is None else [round(value, 5) for value in values.tolist()]


def _first(values: Tensor | None, row: int) -> float | None:
    return None if values is None else round(float(values[row, 0]), 5)
