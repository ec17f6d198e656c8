"""The engine that replays segments of a robot: episodes whose states and actions are vectors."""

from collections.abc import Sequence

from klent.errors import DataError
from klent.policies.policy import Policy
from klent.rollout.engine import SyncCertificate
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.segments import Segments


class SegmentEngine:
    """An :class:`klent.rollout.engine.Engine` that replays the segments that a prompt names.

    Nothing is sampled, so episodes have no ``logp`` and no ``entropy``; the behaviour policy's density is with the
    segments.

    Args:
        segments: the collection.
    """

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.place_of = {number: place for place, number in enumerate(segments.numbers)}

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """Each segment of every prompt; of two, the first is the preferred one."""
        return [episode for prompt in prompts for episode in self._replay(prompt)]

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt whose segments the collection has not.

        Raises:
            DataError: one of them is not there.
        """
        missing = [number for number in prompt.columns["segments"] if number not in self.place_of]
        if missing:
            raise DataError(
                f"{prompt.id}: the collection has no segment {missing[0]}; record it again with klent collect"
            )

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Nothing to do: no weights are used."""
        return None

    def _replay(self, prompt: Prompt) -> list[Episode]:
        numbers: Sequence[int] = prompt.columns["segments"]
        made = []
        for rank, number in enumerate(numbers):
            place = self.place_of[number]
            episode = Episode.of_actions(
                Prompt(prompt.id, prompt.prompt, {"segment": number}),
                self.segments.observation[place],
                self.segments.action[place],
                text=f"segment {number}, return {float(self.segments.worth['return'][place]):.4g}",
            )
            episode.preferred = None if len(numbers) == 1 else rank == 0
            made.append(episode)
        return made
