"""The target of a mixture: a second distribution over the same tokens, and the prompt that it sees."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from klent.errors import DataError, ModelError
from klent.models.chat import render_prompt
from klent.models.load import LoadedModel
from klent.streams.prompt import Messages, Prompt, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Target:
    """What is mixed with the policy.

    Attributes:
        loaded: its model and tokenizer; the policy's own for the same model behind another prompt.
        prompt: the user's message that it sees instead: text in which ``{prompt}`` stands for the policy's
            and ``{COLUMN}`` for a column of the data; None = the policy's.
        system: its system message; None = the policy's.
        temperature: divides its logits.
        active: a context in which ``loaded.model`` stands for the target, such as one that switches an
            adapter off.
    """

    loaded: LoadedModel
    prompt: str | None = None
    system: str | None = None
    temperature: float = 1.0
    active: Callable[[], AbstractContextManager[Any]] = nullcontext

    def encode(self, prompt: Prompt, policy: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids that the target sees; a target without a chat template gets the policy's."""
        tokenizer = self.loaded.tokenizer if self.loaded.tokenizer.chat_template else policy
        return render_prompt(tokenizer, self.question(prompt), prompt.template)

    def question(self, prompt: Prompt) -> str | Messages:
        """The policy's question with what the target is told beside it."""
        if isinstance(prompt.prompt, str):
            if self.system is not None:
                raise DataError(
                    f"prompt {prompt.id} is plain text and has no system message to replace; put the text "
                    "into the target's prompt, or write the data's prompts as messages"
                )
            return self._filled(prompt, prompt.prompt)
        messages = [dict(message) for message in prompt.prompt]
        if self.system is not None:
            messages = [m for m in messages if m["role"] != "system"]
            messages.insert(0, {"role": "system", "content": self.system})
        place = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
        if place is None:
            raise DataError(
                f"prompt {prompt.id} has no user message for the target's prompt to replace; add one"
            )
        if self.prompt is not None:
            messages[place]["content"] = self._filled(prompt, text_of(messages[place]["content"]))
        return messages

    def _filled(self, prompt: Prompt, text: str) -> str:
        if self.prompt is None:
            return text

        def column(found: re.Match[str]) -> str:
            name = found[1]
            if name == "prompt":
                return text
            if name not in prompt.columns:
                there = ", ".join(["prompt", *prompt.columns])
                raise DataError(
                    f"the target's prompt uses {{{name}}}, a column that prompt {prompt.id} lacks; it has {there}"
                )
            return str(prompt.columns[name])

        return re.sub(r"\{(\w+)\}", column, self.prompt)


def check_tokenizers(policy: "PreTrainedTokenizerBase", target: "PreTrainedTokenizerBase") -> None:
    """Refuse a target whose token ids do not mean what the policy's mean.

    Raises:
        ModelError: with the first token that differs.
    """
    ours, theirs = policy.get_vocab(), target.get_vocab()
    if ours == theirs:
        return
    token, number = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))

    def said(vocabulary: dict[str, int]) -> str:
        return (
            f"has no token {token!r}" if token not in vocabulary else f"has {token!r} as {vocabulary[token]}"
        )

    raise ModelError(
        f"the tokenizers differ, so that policy and target have no tokens to mix: of {len(ours)} and "
        f"{len(theirs)} tokens the first to differ is {number}; the policy {said(ours)}, the target "
        f"{said(theirs)}. Take a target of the policy's family, or the policy behind another prompt"
    )
