"""Any reasoning-gym generator as a task."""

import hashlib
from collections.abc import Callable, Sequence
from typing import cast

from klent.config import GymSettings
from klent.errors import ConfigError, DataError, TooLong
from klent.kit.text import plural
from klent.streams.prompt import Prompt
from klent.tasks.generator import BLOCK, Parameters, Source
from klent.tasks.pool import EnvironmentPool
from klent.tasks.process import CallFailed, Worker

_SECONDS = 120.0  # for one request; the slowest generators take about a second per problem
_AT_ONCE = 32
TRIED = 16  # training problems that are tried before a run starts
_ATTEMPTS = 1000  # draws for one position before the held-out problems are taken to be all there are


class GymTask:
    """Problems of a reasoning-gym generator, as many as are asked for, the held-out ones set apart.

    The held-out questions are drawn first, from a stream of their own. Position :math:`p` of training is
    problem :math:`p` of a second stream; where its question is a held-out one, of a third, and so on: a
    function of the position alone. Problems are generated in a separate process with a fixed hash seed, since
    some generators read the order of a set.

    Args:
        section: the generator, its parameters, the system message, and the positions to train on.
        seed: decides every problem, with the generator and its parameters.
        heldout: how many distinct questions to keep out of training.

    Raises:
        ConfigError: no such generator or parameter, or parameters that the generator refuses.
        DataError: reasoning-gym is missing, or the generator has too few distinct questions.
    """

    def __init__(self, section: GymSettings, *, seed: int = 0, heldout: int = 0) -> None:
        self.environments: EnvironmentPool | None = None
        self.name = section.gym
        self._config: Parameters = dict(section.config)
        self._seed = seed
        self._system = section.system
        self._only = section.only
        self._template = section.rendering
        self._worker = Worker("klent.tasks.generator:items")
        self._questions: set[str] = set()
        self._drop = section.too_long == "drop"
        self._check: Callable[[Prompt], None] | None = None
        self._dropped = 0
        self._heldout = self._draw_heldout(heldout)
        self._drawn = len(self._heldout)
        self.train(0)  # fails here, with its reason, where nothing is left to train on

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Try the held-out problems and the first ``TRIED`` of training before a run starts.

        With ``task.too_long=drop``, whatever does not fit is left out: of the held-out problems, and at any
        position of training, where another one is drawn. It stays a function of the position and the model.

        Args:
            train: raises :class:`klent.errors.TooLong` for a problem that training cannot take; None = none.
            heldout: the same for a held-out problem.

        Returns:
            How many of those tried were left out.

        Raises:
            TooLong: one does not fit, and is not to be dropped.
        """
        self._dropped = 0
        self._heldout = [prompt for prompt in self._heldout if self._fits(prompt, heldout)]
        self._check = train if self._drop else None
        for position in range(TRIED if train is not None else 0):
            prompt = self.train(position)
            if train is not None and not self._drop:
                train(prompt)
        return self._dropped

    def _fits(self, prompt: Prompt, check: Callable[[Prompt], None]) -> bool:
        try:
            check(prompt)
        except TooLong:
            if not self._drop:
                raise
            self._dropped += 1
            return False
        return True

    def train(self, position: int) -> Prompt:
        """The problem at a position; its question is not among the held-out ones.

        Raises:
            DataError: every draw for this position was a held-out question, or the generator failed.
        """
        if self._only is not None:
            position = self._only[position % len(self._only)]
        width = 1  # one draw is nearly always enough; after that, many are asked for at once
        attempt = 0
        while attempt < _ATTEMPTS:
            sources = [self._source(f"train/{attempt + i}", position) for i in range(width)]
            for source, problem in zip(sources, self._generate(sources), strict=True):
                if problem is not None and problem[0] not in self._questions:
                    prompt = self._prompt(f"{self.name}/{position}", source, problem)
                    if self._check is None or self._fits(prompt, self._check):
                        return prompt
            attempt, width = attempt + width, _AT_ONCE
        fitting = "question that fits the context" if self._dropped else "question"
        raise DataError(
            f"task.gym: {self.name} with these parameters has almost no {fitting} besides the "
            f"{len(self._questions)} held out; lower eval.problems or change task.config"
        )

    def heldout(self, count: int) -> list[Prompt]:
        """The first ``count`` held-out problems.

        Raises:
            DataError: more than were held out when the task was made.
        """
        if count > self._drawn:
            raise DataError(f"{self.name}: {plural(self._drawn, 'problem')} held out, not {count}")
        return self._heldout[:count]

    def close(self) -> None:
        """End the generator's process; it starts again when needed."""
        self._worker.close()

    def _draw_heldout(self, count: int) -> list[Prompt]:
        prompts: list[Prompt] = []
        position = since_new = 0
        while len(prompts) < count:
            sources = [self._source("heldout", position + i) for i in range(_AT_ONCE)]
            for source, problem in zip(sources, self._generate(sources), strict=True):
                since_new += 1
                if problem is not None and problem[0] not in self._questions and len(prompts) < count:
                    self._questions.add(problem[0])
                    prompts.append(self._prompt(f"{self.name}/heldout/{len(prompts)}", source, problem))
                    since_new = 0
            position += _AT_ONCE
            if since_new > 200 + 10 * len(prompts):
                raise DataError(
                    f"task.gym: {self.name} with these parameters has about {len(prompts)} distinct "
                    f"questions, and {count} were to be held out; lower eval.problems or widen task.config"
                )
        return prompts

    def _source(self, stream: str, position: int) -> Source:
        block, index = divmod(position, BLOCK)
        digest = hashlib.sha256(f"{self._seed}/{stream}/{block}".encode()).digest()
        # 31 bits: generators add the index and hand the sum to NumPy, which takes 32
        return {
            "name": self.name,
            "config": self._config,
            "seed": int.from_bytes(digest[:4]) >> 1,
            "index": index,
        }

    def _generate(self, sources: Sequence[Source]) -> list[list[str] | None]:
        arguments: dict[str, object] = {
            "name": self.name,
            "config": self._config,
            "seeds": [source["seed"] for source in sources],
            "indices": [source["index"] for source in sources],
        }
        try:
            return cast(list[list[str] | None], self._worker.call(arguments, _SECONDS))
        except CallFailed as error:
            if error.error == "ConfigError":
                raise ConfigError(str(error)) from None
            message = str(error) if error.error == "DataError" else f"task.gym: {self.name}: {error}"
            raise DataError(message) from None

    def _prompt(self, id: str, source: Source, problem: list[str]) -> Prompt:
        question, answer = problem
        messages = [{"role": "system", "content": self._system}] if self._system else []
        messages.append({"role": "user", "content": question})
        columns: dict[str, object] = {"question": question, "answer": answer, "gym": source}
        return Prompt(id, messages, columns, template=self._template)
