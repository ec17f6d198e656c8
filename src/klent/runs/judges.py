"""The reward models that a recipe's rewards name, in this process or in one of their own."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from klent.config import Recipe, Reward
from klent.errors import ConfigError, first_line
from klent.models.locate import locate_model
from klent.policies.causal_lm.judge import RewardJudge, Text
from klent.runs.device import placement
from klent.tasks.arguments import Sample
from klent.tasks.first_call import Tried
from klent.tasks.judge import Judge, OpenJudge
from klent.tasks.process import CallFailed, Worker

TARGET = "klent.policies.causal_lm.judge:judge_in_process"
LOADING = 600.0  # seconds for the first call of a process, which loads the model


def open_judges(recipe: Recipe, *, sampler: str | None = None, log: Path | None = None) -> OpenJudge:
    """How the reward models of a recipe are opened.

    Args:
        recipe: precision, attention, and what the policy is.
        sampler: the model that samples; None = the recipe's.
        log: file that receives what a process prints; None = standard error.
    """
    place = placement(recipe.device, recipe.precision)
    options: dict[str, str | int | bool | None] = {
        "sampler": sampler or recipe.model,
        "device": place["device"],
        "dtype": place["dtype"],
        "trust_remote_code": recipe.trust_remote_code,
        "attention": recipe.attention,
        "tokens_per_microbatch": recipe.update.tokens_per_microbatch,
    }

    def open_judge(reward: Reward) -> Judge:
        folder = str(reward.model_folder)
        if reward.process:
            return ProcessJudge(reward, folder, options, log)
        return LocalJudge(folder, lambda: RewardJudge.load(folder, **options))  # type: ignore[arg-type]

    return open_judge


class LocalJudge:
    """A reward model in this process, on the device of training.

    Args:
        folder: of the reward model, for messages.
        load: loads it.
    """

    def __init__(self, folder: str, load: Callable[[], RewardJudge]) -> None:
        self.folder = folder
        self.load = load
        self.judge: RewardJudge | None = None

    def begin(self) -> Tried:
        """Load the model, or refuse it."""
        self.judge = self.judge or self.load()
        return _said(self.folder, self.judge.reads_ids)

    def score(self, samples: Sequence[Sample]) -> list[tuple[float, str]]:
        """The score of each sample."""
        self.judge = self.judge or self.load()
        return self.judge.score([Text(s.prompt, s.completion, s.finish == "stop", s.ids) for s in samples])

    def close(self) -> None:
        """Forget the model."""
        self.judge = None


class ProcessJudge:
    """A reward model in a process of its own, which ends with this one.

    Args:
        reward: its section: ``timeout`` for each completion, ``memory_gb``.
        folder: of the reward model.
        options: of :meth:`klent.policies.causal_lm.judge.RewardJudge.load`.
        log: receives what the process prints.
    """

    def __init__(
        self, reward: Reward, folder: str, options: dict[str, str | int | bool | None], log: Path | None
    ) -> None:
        self.reward = reward
        self.folder = folder
        self.options = options
        self.worker = Worker(TARGET, log, None, reward.memory_gb)
        self.loaded = False  # once it was, the worker knows what loading it anew takes

    def begin(self) -> Tried:
        """Start the process and load the model there.

        Raises:
            ConfigError: it cannot be loaded.
        """
        locate_model(self.folder)
        try:
            answer = self._call([])
        except CallFailed as error:
            raise ConfigError(f"reward {self.folder}: {error}") from None
        return _said(self.folder, bool(answer["reads_ids"]))

    def score(self, samples: Sequence[Sample]) -> list[tuple[float, str]]:
        """The score of each sample; none of any where the call fails."""
        try:
            answer = self._call(samples)
        except CallFailed as error:
            return [(math.nan, first_line(error))] * len(samples)
        verdicts = cast("list[tuple[float | None, str]]", answer["verdicts"])
        return [(math.nan if value is None else value, why) for value, why in verdicts]

    def _call(self, samples: Sequence[Sample]) -> dict[str, object]:
        limit = self.reward.timeout * len(samples) + (0.0 if self.loaded else LOADING)
        arguments: dict[str, object] = {
            "prompts": [s.prompt.prompt for s in samples],
            "texts": [s.completion for s in samples],
            "templates": [dict(s.prompt.template) for s in samples],
            "ended": [s.finish == "stop" for s in samples],
            "ids": [None if s.ids is None else list(s.ids) for s in samples],
            "folder": self.folder,
            "options": self.options,
        }
        answer = self.worker.call(arguments, limit)
        if not isinstance(answer, dict):
            raise CallFailed("raised", f"returned {type(answer).__name__}")
        self.loaded = True
        return answer

    def close(self) -> None:
        """End the process."""
        self.worker.retire()


def _said(folder: str, reads_ids: bool) -> Tried:
    if reads_ids:
        return Tried(f"reward model {folder}: scores the sampled tokens as they are")
    return Tried(
        f"reward model {folder}: has another tokenizer than the policy, so that texts are tokenised anew, prompts "
        "through its own chat template",
        doubt=True,
    )
