"""The engine of logged play: whole episodes of several turns, with what each turn earned."""

from collections.abc import Iterator
from typing import cast

from klent.errors import DataError, ModelError
from klent.kit.text import plural
from klent.models.chat import encode, render_messages
from klent.models.spoken import opening_ids, reply_ids
from klent.rollout.dataset_engine import DatasetEngine, ended
from klent.streams.episode import Episode
from klent.streams.prompt import Messages, Prompt, text_of


class TrajectoryEngine(DatasetEngine):
    """Replays the ``trajectory`` column of :class:`klent.tasks.trajectories.TrajectoryTask`.

    The tokens are those that the same episode has in :class:`klent.rollout.play.PlayEngine`. What the environment
    said is text, whatever names of control tokens it holds. An action is what the policy would write: a control
    token that its text names, such as ``<think>``, is one. And an episode has the ``rewards`` of its turns.
    """

    def _replay(self, prompt: Prompt, column: str) -> Episode:
        rewards = tuple(prompt.columns["rewards"])
        opened, messages = prompt.prompt, cast(Messages, prompt.columns[column])
        tokenizer, template = self.loaded.tokenizer, prompt.template
        stretches: list[tuple[list[int], bool]] = []
        text = ""
        try:
            turns = list(_turns(messages))
            prompt_ids = opening_ids(tokenizer, opened, template)
            for heard, action in turns:
                if stretches:
                    stretches.append((reply_ids(tokenizer, opened, heard, template, ended=True), False))
                text = self._written(opened, action, prompt)
                stretches.append((self._action(opened, text), True))
        except (DataError, ModelError) as error:
            raise DataError(f"{prompt.id}: {error}") from error
        episode = self._episode(prompt, column, prompt_ids, stretches, text)
        episode.rewards = rewards
        if len(rewards) != episode.turns:
            raise DataError(
                f"{prompt.id}: {plural(len(rewards), 'reward')} for {plural(episode.turns, 'turn')}. Remove that "
                "line."
            )
        return episode

    def _written(self, opened: str | Messages, action: dict[str, object], prompt: Prompt) -> str:
        """An action's text: its content, or what the chat template makes of calls, reasoning and the like."""
        content = text_of(action.get("content"))
        if isinstance(opened, str):
            return content
        begun = opened[-1] if opened[-1].get("role") == "assistant" else None
        answer = {**(begun or {}), **action, "content": text_of((begun or {}).get("content")) + content}
        chat = [*(opened[:-1] if begun else opened), answer]
        head = render_messages(self.loaded.tokenizer, opened, prompt.template)
        whole = render_messages(self.loaded.tokenizer, chat, prompt.template, whole=True)
        if not whole.startswith(head):
            raise DataError(
                "the chat template does not start this action the way it starts an answer that is sampled "
                f"({head[-40:]!r}), so training and sampling would differ. Write all that the policy would write "
                "there, or set task.template (such as enable_thinking)"
            )
        if not any(value for name, value in action.items() if name not in ("role", "name", "content")):
            return content
        rest = whole[len(head) :]
        return rest.rstrip() if self.turn_end is None else rest.partition(self.turn_end)[0]

    def _action(self, opened: str | Messages, text: str) -> list[int]:
        """An action's tokens, with the one that ends it and no other that would."""
        tokenizer = self.loaded.tokenizer
        tokens = ended(encode(tokenizer, text), self.end if isinstance(opened, str) else self.end_of_turn)
        for token in tokens[:-1]:
            if token in self.loaded.stop_ids:
                name = str(tokenizer.convert_ids_to_tokens(token))
                raise DataError(f"an action contains {name!r}, which ends a turn. Remove it, or that line")
        return tokens


def _turns(messages: Messages) -> Iterator[tuple[Messages, dict[str, object]]]:
    """Each action, and what was said before it.

    Raises:
        DataError: an action right behind another.
    """
    heard: Messages = []
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            heard.append(message)
            continue
        if number and not heard:
            raise DataError(
                "an action directly follows another, with nothing from the environment between them. Remove that line"
            )
        yield heard, message
        heard = []
