"""An engine whose work is shared by ranks: each answers a part of the prompts, and all have all episodes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from klent.kit.world import World, shares
from klent.policies.policy import Policy
from klent.rollout.engine import Engine, SyncCertificate
from klent.rollout.wire import pack, unpack
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


class SharedEngine:
    """An :class:`klent.rollout.engine.Engine` over the engines of all ranks.

    A prompt is answered with the random numbers of its place among all prompts, so that the episodes are those of one
    process, whatever the number of ranks.

    Args:
        engine: this rank's own, with the weights that every rank has.
        world: the ranks; each calls :meth:`generate` with the same prompts.
        gathered: a context in which this rank has all weights; the ranks enter it together.
    """

    def __init__(
        self,
        engine: Engine,
        world: World,
        gathered: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.engine = engine
        self.world = world
        self.gathered = gathered

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` completions of every prompt, prompt by prompt, the same on every rank."""
        parts = shares([1.0] * len(prompts), self.world.size)
        asked = [
            replace(prompts[place], number=prompts[place].drawn_at(place)) for place in parts[self.world.rank]
        ]
        with self.gathered():
            mine = self.engine.generate(asked, group_size=group_size, seed=seed) if asked else []
        said = self.world.gather(pack(mine))
        answers: dict[int, list[Episode]] = {}
        for places, of_rank in zip(parts, said, strict=True):
            answering = [place for place in places for _ in range(group_size)]
            for place, episode in zip(
                answering, unpack(of_rank, [prompts[place] for place in answering]), strict=True
            ):
                answers.setdefault(place, []).append(episode)
        return [episode for place in range(len(prompts)) for episode in answers[place]]

    def check(self, prompt: Prompt) -> None:
        """As of this rank's own engine."""
        self.engine.check(prompt)

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """This rank's own engine takes over the weights."""
        return self.engine.sync(policy)
