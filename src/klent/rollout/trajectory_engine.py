"""The engine of logged play: whole episodes of several turns, with what each turn earned."""

from klent.errors import DataError
from klent.rollout.dataset_engine import DatasetEngine, Piece
from klent.streams.episode import Episode
from klent.streams.prompt import Messages, Prompt, text_of


class TrajectoryEngine(DatasetEngine):
    """Replays the ``trajectory`` column of :class:`klent.tasks.trajectories.TrajectoryTask`.

    As of :class:`DatasetEngine`, but for two things. Behind an opening of plain text, what is said between turns is
    plain text too, right behind the token that ends the action. And an episode has the ``rewards`` of its turns.
    """

    def _replay(self, prompt: Prompt, column: str) -> Episode:
        episode = super()._replay(prompt, column)
        episode.rewards = tuple(prompt.columns["rewards"])
        if len(episode.rewards) != episode.turns:
            raise DataError(
                f"{prompt.id}: {len(episode.rewards)} rewards for {episode.turns} turns: an action tokenizes to "
                "nothing, or follows another without a word between them. Remove that line."
            )
        return episode

    def _pieces(self, prompt: Prompt, column: str, completion: object) -> tuple[str | Messages, list[Piece]]:
        if not isinstance(prompt.prompt, str) or not isinstance(completion, list):
            return super()._pieces(prompt, column, completion)
        pieces = [Piece(text_of(m.get("content")), m.get("role") == "assistant") for m in completion]
        return prompt.prompt, pieces
