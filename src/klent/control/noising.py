"""The forward process of a step: its images are noised once, before the update."""

from klent.control.organ import Organ
from klent.kit.seeds import derive_seed
from klent.policies.denoiser.policy import DenoiserPolicy
from klent.streams.batch import Batch


class Noising(Organ):
    """Has a policy noise the images of every step, and fills the stream ``denoising_old``.

    The noise is that of the whole update, so that all of its passes and ranks see one loss.

    Args:
        policy: keeps the noised images.
        seed: of the run.
    """

    name = "noising"

    def __init__(self, policy: DenoiserPolicy, seed: int) -> None:
        self.policy = policy
        self.seed = seed
        self.number = 0

    def before_step(self, number: int) -> None:
        """The noise follows from the run's seed and the step's number."""
        self.number = number

    def after_rollout(self, batch: Batch) -> None:
        """Under the weights that the update begins with."""
        seed = derive_seed(self.seed, "noising", self.number)
        batch.streams.denoising_old = self.policy.noise_again(batch, seed=seed)
