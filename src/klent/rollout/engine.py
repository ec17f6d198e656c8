"""What an engine is: it samples episodes with a policy's weights, and says whether it has the newest."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from klent.policies.policy import Policy
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


class SyncCertificate(NamedTuple):
    """Evidence that an engine samples from the policy that the trainer holds.

    Attributes:
        gap: mean ``|logp_engine - logp_trainer|`` on a canary batch, nats.
        arrived: share of the last update's change in log-probability that the engine shows.
    """

    gap: float
    arrived: float


class Engine(Protocol):
    """Anything that can sample a group of completions for each prompt."""

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` completions of every prompt, prompt by prompt.

        The result depends on the weights, the prompts and ``seed`` alone: not on the batch size, and not on
        what was generated before.
        """
        ...

    def check(self, prompt: Prompt) -> None:
        """Raise before training starts what :meth:`generate` would raise for this prompt later."""
        ...

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Take over the policy's weights; None where the engine samples with the very same tensors."""
        ...
