"""The engine of supervised fine-tuning: it brings the data's own completions instead of sampling some."""

from collections.abc import Sequence

import torch

from klent.errors import DataError
from klent.models.chat import context_length, render_prompt
from klent.models.load import LoadedModel
from klent.policies.policy import Policy
from klent.rollout.engine import SyncCertificate
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


class DatasetEngine:
    """An :class:`klent.rollout.engine.Engine` that replays the ``completion`` column.

    Nothing was sampled, so episodes have no ``logp`` and no ``entropy``.

    Args:
        loaded: the model whose tokenizer is used.
        max_tokens: a longer completion is refused, since training on half an answer teaches never to end one.
    """

    def __init__(self, loaded: LoadedModel, *, max_tokens: int) -> None:
        self.loaded = loaded
        self.max_tokens = max_tokens
        self.limit = context_length(loaded.model)
        eos = loaded.tokenizer.eos_token_id
        self.end = [eos] if eos in loaded.stop_ids else list(loaded.stop_ids[:1])

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """The reference completion of every prompt, followed by the model's stop token."""
        return [self._replay(prompt) for prompt in prompts for _ in range(group_size)]

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Nothing to do: no weights are used."""
        return None

    def _replay(self, prompt: Prompt) -> Episode:
        text = _text(prompt)
        tokenizer = self.loaded.tokenizer
        prompt_ids = render_prompt(tokenizer, prompt.prompt)
        ids = [*tokenizer.encode(text, add_special_tokens=False), *self.end]
        if len(ids) > self.max_tokens:
            raise DataError(
                f"the completion of {prompt.id} has {len(ids)} tokens, more than rollout.max_tokens="
                f"{self.max_tokens}. Raise it, or shorten or remove that line."
            )
        if len(prompt_ids) + len(ids) > self.limit:
            raise DataError(
                f"prompt and completion of {prompt.id} have {len(prompt_ids) + len(ids)} tokens; the model's "
                f"context is {self.limit}. Shorten or remove that line."
            )
        self.loaded.check_ids([*prompt_ids, *ids], f"{prompt.id} with its completion")
        return Episode(prompt, prompt_ids, torch.tensor(ids), text, "stop")


def _text(prompt: Prompt) -> str:
    completion = prompt.columns.get("completion")
    if isinstance(completion, list):  # TRL's conversational form: one assistant message
        completion = completion[-1].get("content") if completion else None
    if not isinstance(completion, str):
        raise DataError(f"{prompt.id} has no text in its `completion` column; supervised training needs one.")
    return completion
