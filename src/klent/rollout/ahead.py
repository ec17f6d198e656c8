"""Sampling that runs ahead of training: a thread answers the prompts of later steps with weights of its own."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from klent.policies.policy import Policy
from klent.rollout.engine import SyncCertificate
from klent.rollout.source import TaskSource
from klent.rollout.wire import pack, unpack
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scores


class Ahead:
    """A :class:`klent.rollout.source.Source` and the engine behind it, ``staleness`` steps ahead of training.

    At the start of step n the engine takes over the weights that n - 1 steps have made, and the thread begins to
    sample step n + staleness with them, while step n is trained on what was sampled before. So from step
    staleness + 1 on, each step trains on completions of the policy as it was ``staleness`` steps ago, and the first
    ones on those of the policy at the start. Which weights sample what does not depend on how fast either is.

    A checkpoint holds what was sampled and not yet trained on.

    Args:
        source: of a task's prompts; its engine has weights of its own, which training does not touch.
        staleness: training steps, at least 1.
        last: the run's last step, beyond which nothing is sampled.
    """

    def __init__(self, source: TaskSource, *, staleness: int, last: int) -> None:
        self.source = source
        self.staleness = staleness
        self.last = last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._waiting: dict[int, Future[list[Episode]]] = {}

    @property
    def group_size(self) -> int:
        """Episodes per prompt."""
        return self.source.group_size

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Let the engine take over the policy's weights, once it has sampled what it was asked for before."""
        self._settle()
        return self.source.engine.sync(policy)

    def collect(self, step: int, version: int) -> list[Episode]:
        """The episodes of ``step``; those of the next steps are asked for, of the policy as it stands."""
        for number in range(step, min(step + self.staleness, self.last) + 1):
            if number not in self._waiting:
                self._waiting[number] = self._thread.submit(self.source.collect, number, version)
        return self._waiting.pop(step).result()

    def score(self, episodes: Sequence[Episode]) -> Scores | None:
        """Their rewards."""
        return self.source.score(episodes)

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """As of the engine, once it is free."""
        self._settle()
        return self.source.engine.generate(prompts, group_size=group_size, seed=seed)

    def check(self, prompt: Prompt) -> None:
        """As of the engine."""
        self.source.engine.check(prompt)

    def tensors(self) -> dict[str, Tensor]:
        """What was sampled and not trained on, as bytes by step; what is under way is waited for."""
        episodes = {number: future.result() for number, future in self._waiting.items()}
        packed = {str(number): bytearray(pack(of_step)) for number, of_step in episodes.items()}
        return {number: torch.frombuffer(data, dtype=torch.uint8) for number, data in packed.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what was sampled."""
        for key, packed in tensors.items():
            number = int(key)
            prompts = [prompt for prompt in self.source.prompts(number) for _ in range(self.group_size)]
            future: Future[list[Episode]] = Future()
            future.set_result(unpack(packed.numpy().tobytes(), prompts))
            self._waiting[number] = future

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _settle(self) -> None:
        for future in self._waiting.values():
            future.result()
