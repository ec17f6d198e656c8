"""Where a step's episodes come from: prompts of a task that an engine answers, scored in one go."""

from collections.abc import Sequence
from typing import Protocol

from klent.kit.seeds import derive_seed
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scores, Task
from klent.tasks.returns import Judge


class Source(Protocol):
    """Gives the episodes of a step, as a function of the step's number and the weights alone."""

    @property
    def group_size(self) -> int:
        """Episodes per prompt, which stand together."""
        ...

    def collect(self, step: int, version: int) -> list[Episode]:
        """The episodes of training step ``step``, from 1; the policy has taken ``version`` optimizer steps by now."""
        ...

    def score(self, episodes: Sequence[Episode]) -> Scores | None:
        """Their rewards; None where nothing rewards them."""
        ...


class TaskSource:
    """Each prompt of a task, answered ``group_size`` times; the opening of an environment is played to its end.

    Args:
        task: gives the prompts, by position.
        engine: answers them.
        scorer: rewards the answers; None where the objective needs no reward.
        prompts_per_step: how many prompts.
        group_size: answers to each.
        seed: of the run.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        scorer: Judge | None,
        *,
        prompts_per_step: int,
        group_size: int,
        seed: int,
    ) -> None:
        self.task = task
        self.engine = engine
        self.scorer = scorer
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.seed = seed

    def collect(self, step: int, version: int) -> list[Episode]:
        """The next prompts of the task, answered by the policy as it stands."""
        seed = derive_seed(self.seed, "rollout", step)
        episodes = self.engine.generate(self.prompts(step), group_size=self.group_size, seed=seed)
        for episode in episodes:
            episode.policy_version = version
        return episodes

    def prompts(self, step: int) -> list[Prompt]:
        """The prompts of training step ``step``, from 1."""
        first = (step - 1) * self.prompts_per_step
        return [self.task.train(first + i) for i in range(self.prompts_per_step)]

    def score(self, episodes: Sequence[Episode]) -> Scores | None:
        """What the rewards say."""
        if self.scorer is None:
            return None
        return self.scorer.score_episodes(episodes)
