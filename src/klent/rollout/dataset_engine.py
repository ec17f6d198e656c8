"""The engine of supervised fine-tuning: it brings the data's own completions instead of sampling some."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from klent.errors import DataError, ModelError, TooLong
from klent.kit.text import plural
from klent.models.chat import context_length, encode, render_messages, render_prompt, turn_end
from klent.models.load import LoadedModel
from klent.policies.policy import Policy
from klent.rollout.engine import SyncCertificate
from klent.streams.episode import Episode
from klent.streams.prompt import Messages, Prompt, text_of


class Piece(NamedTuple):
    """A stretch of the conversation: what the assistant wrote in a turn, or what was said between turns."""

    text: str
    acted: bool


class DatasetEngine:
    """An :class:`klent.rollout.engine.Engine` that replays the ``completion`` column, or both answers of pairs.

    Nothing was sampled, so episodes have no ``logp`` and no ``entropy``. A text is trained as it stands. A
    list of messages is rendered by the chat template behind the prompt: the assistant's turns, each with the
    token that ends it, are the actions, and everything between them is what an environment said. An answer that was
    cut where it was sampled, of which a column ``finish_chosen``, ``finish_rejected`` or ``finish_completion`` says
    ``length``, does not end: no such token follows it, and it is cut at ``max_tokens`` here, too.

    Args:
        loaded: the model whose tokenizer is used.
        max_tokens: a longer completion is refused, since training on half an answer teaches never to end one.
        columns: what is replayed for each prompt, in this order; ``chosen`` is the preferred one of a pair.
        margins: read a column ``margin`` of pairs; one that has none is 0.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_tokens: int,
        columns: Sequence[str] = ("completion",),
        margins: bool = False,
    ) -> None:
        self.loaded = loaded
        self.columns = tuple(columns)
        self.margins = margins
        self.max_tokens = max_tokens
        self.limit = context_length(loaded.model)
        eos = loaded.tokenizer.eos_token_id
        self.end = [eos] if eos in loaded.stop_ids else list(loaded.stop_ids[:1])
        turn = turn_end(loaded.tokenizer)
        self.turn_end = None if turn is None else str(loaded.tokenizer.convert_ids_to_tokens(turn))
        self.end_of_turn = self.end if turn is None else [turn]

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """Each completion of every prompt, followed by the token that ends it."""
        return [self._replay(prompt, column) for prompt in prompts for column in self.columns]

    def check(self, prompt: Prompt) -> None:
        """Refuse a row that cannot be replayed.

        Raises:
            DataError: a completion that is none, or a pair of equal ones; :class:`klent.errors.TooLong` where it
                does not fit.
        """
        answers = [self._replay(prompt, column).tokens.tolist() for column in self.columns]
        if len(answers) == 2 and answers[0] == answers[1]:
            raise DataError(
                f"{prompt.id}: `chosen` and `rejected` are the same answer, so neither is preferred. Remove that "
                "line."
            )

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Nothing to do: no weights are used."""
        return None

    def _replay(self, prompt: Prompt, column: str) -> Episode:
        completion = prompt.columns.get(column)
        try:
            opened, pieces = self._pieces(prompt, column, completion)
            prompt_ids = render_prompt(self.loaded.tokenizer, opened, prompt.template)
        except ModelError as error:
            raise DataError(f"{prompt.id}: {error}") from error
        end = self._end(opened)
        finish = _finish(prompt, column)
        stretches = []
        for piece in pieces:
            tokens = encode(self.loaded.tokenizer, piece.text)
            whole = piece.acted and (finish == "stop" or piece is not pieces[-1])
            stretches.append((ended(tokens, end) if whole else tokens, piece.acted))
        if finish == "length":
            before = sum(len(tokens) for tokens, _ in stretches[:-1])
            stretches[-1] = (stretches[-1][0][: max(1, self.max_tokens - before)], True)
        episode = self._episode(prompt, column, prompt_ids, stretches, pieces[-1].text)
        episode.finish = finish
        episode.preferred = None if len(self.columns) == 1 else column == "chosen"
        episode.margin = _margin(prompt) if self.margins else None
        return episode

    def _episode(
        self,
        prompt: Prompt,
        column: str,
        prompt_ids: list[int],
        stretches: Sequence[tuple[list[int], bool]],
        text: str,
    ) -> Episode:
        """The episode of these tokens: of each stretch, whether the policy is to write it."""
        ids: list[int] = []
        acted: list[bool] = []
        turn: list[int] = []
        number = 0
        for tokens, own in stretches:
            number += not own
            ids += tokens
            acted += [own] * len(tokens)
            turn += [number] * len(tokens)
        self._check_length(prompt, column, len(prompt_ids), len(ids))
        self.loaded.check_ids([*prompt_ids, *ids], f"{prompt.id} with its {column}")
        episode = Episode(prompt, prompt_ids, torch.tensor(ids), text, "stop")
        episode.acted, episode.turn = torch.tensor(acted), torch.tensor(turn)
        return episode

    def _end(self, opened: str | Messages) -> list[int]:
        """What ends an answer: a turn's end in a chat, rendered here or before; the text's end otherwise."""
        chat = not isinstance(opened, str) or (self.turn_end is not None and self.turn_end in opened)
        return self.end_of_turn if chat else self.end

    def _check_length(self, prompt: Prompt, column: str, before: int, count: int) -> None:
        if count > self.max_tokens:
            raise TooLong(
                f"the {column} of {prompt.id} has {count} tokens, more than rollout.max_tokens="
                f"{self.max_tokens}. Raise it, shorten or remove that line, or set task.too_long=drop."
            )
        if before + count > self.limit:
            raise TooLong(
                f"prompt and {column} of {prompt.id} have {before + count} tokens; the model's context is "
                f"{self.limit}. Shorten or remove that line, or set task.too_long=drop."
            )

    def _pieces(self, prompt: Prompt, column: str, completion: object) -> tuple[str | Messages, list[Piece]]:
        """The prompt up to the first answer, and what follows it."""
        if isinstance(completion, str):
            return prompt.prompt, [Piece(completion, True)]
        if not isinstance(completion, list) or not completion:
            raise DataError(f"{prompt.id} has no text in its `{column}` column; training on it needs one.")
        if completion[-1].get("role") != "assistant":
            raise DataError(
                f"{prompt.id}: the completion ends with a message of role {completion[-1].get('role')!r}: only "
                "an assistant's message can be trained. Remove it."
            )
        if isinstance(prompt.prompt, str):
            if len(completion) > 1:
                raise DataError(
                    f"{prompt.id}: the completion has {plural(len(completion), 'message')} behind a prompt of plain "
                    "text, which no chat template joins. Write the prompt as messages."
                )
            return prompt.prompt, [Piece(text_of(completion[0].get("content")), True)]
        return self._conversation(prompt, prompt.prompt, completion)

    def _conversation(
        self, prompt: Prompt, before: Messages, completion: Messages
    ) -> tuple[Messages, list[Piece]]:
        """What the chat template writes behind the prompt, cut where the assistant's turns begin and end."""
        first = next(i for i, message in enumerate(completion) if message.get("role") == "assistant")
        opened = [*before, *completion[:first]]
        answers = completion[first:]
        chat = [*opened, *answers]
        starts = [len(opened) + i for i, message in enumerate(answers) if message.get("role") == "assistant"]
        if opened and opened[-1].get("role") == "assistant":  # begun in the prompt, ended in the completion
            begun = text_of(opened[-1].get("content")) + text_of(answers[0].get("content"))
            chat = [*opened[:-1], {**opened[-1], **answers[0], "content": begun}, *answers[1:]]
            starts = [len(opened) - 1, *(start - 1 for start in starts[1:])]
        tokenizer, template = self.loaded.tokenizer, prompt.template
        self._check_turns(prompt, chat, starts)
        whole = render_messages(tokenizer, chat, template, whole=True)
        pieces: list[Piece] = []
        end = 0
        for number, start in enumerate(starts):
            head = render_messages(tokenizer, chat[:start] if number else opened, template)
            if not whole.startswith(head) or len(head) < end:
                raise DataError(
                    f"{prompt.id}: the chat template does not start the completion the way it starts an answer that "
                    f"is sampled ({head[-40:]!r}), so training and sampling would differ. Add the reasoning_content "
                    "that the template expects, set task.template (such as enable_thinking), or give the completion "
                    "as text."
                )
            if number:
                pieces.append(Piece(whole[end : len(head)], False))
            stop = -1 if self.turn_end is None else whole.find(self.turn_end, len(head))
            text = whole[len(head) : stop] if stop >= 0 else whole[len(head) :].rstrip()
            pieces.append(Piece(text, True))
            end = len(head) + len(text) + len(self.turn_end or "")
        return opened, pieces

    def _check_turns(self, prompt: Prompt, chat: Messages, starts: Sequence[int]) -> None:
        """Turns can be told apart only where a token of its own ends each, and no message holds it."""
        if self.turn_end is None and len(starts) > 1:
            raise DataError(
                f"{prompt.id}: the model's chat template does not end turns with a token of their own, so "
                f"{len(starts)} assistant turns cannot be told apart. Write one assistant turn per line."
            )
        for start in starts:
            said = [text_of(chat[start].get("content")), *map(str, chat[start].values())]
            if self.turn_end and any(self.turn_end in text for text in said):
                raise DataError(
                    f"{prompt.id}: a completion contains {self.turn_end!r}, which ends a turn. Remove it; the chat "
                    "template adds it."
                )


def ended(tokens: list[int], end: list[int]) -> list[int]:
    """An answer with the token that ends it, which the data may have written."""
    return tokens if tokens[-len(end) :] == end else tokens + end


def _finish(prompt: Prompt, column: str) -> Literal["stop", "length"]:
    """Whether the answer ended, or was cut where it was sampled."""
    given = prompt.columns.get(f"finish_{column}")
    if given in (None, "stop"):
        return "stop"
    if given == "length":
        return "length"
    raise DataError(f'{prompt.id}: `finish_{column}` is {given!r}; it must be "stop" or "length"')


def _margin(prompt: Prompt) -> float:
    """By how much the better answer of a pair should win.

    Raises:
        DataError: it is no number from 0 on.
    """
    value = prompt.columns.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(
            f"{prompt.id}: `margin` must be a number from 0 on, not {value!r}. Correct it, or rename the column"
        )
    return float(value)
