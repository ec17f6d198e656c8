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
        arrived: share of the last update's change in log-probability that the engine shows; None at the first sync,
            and where rounding hides the change: then it is taken since the last sync that showed.
        gap_max: the largest ``|logp_engine - logp_trainer|``, nats.
    """

    gap: float
    arrived: float | None
    gap_max: float

    def metrics(self) -> dict[str, float]:
        """``sync/...``, without what is not known."""
        return {f"sync/{name}": value for name, value in self._asdict().items() if value is not None}


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
        """Take over the policy's weights, and prove it: a :class:`SyncCertificate`.

        None where the engine samples with the very tensors that are trained: the same memory cannot hold older
        weights, another type or a missing adapter, and there is nothing to compare that is not itself.

        Raises:
            SyncError: the engine samples from something else (:mod:`klent.rollout.certificate`).
        """
        ...
