"""The policy of a robot whose training data say which policy recorded them."""

from collections.abc import Sequence

from torch import Tensor

from klent.policies.motor.labels import BehaviourKL
from klent.policies.motor.network import MotorNetwork
from klent.policies.vectors.gaussian import ActionDistribution, Gaussian
from klent.policies.vectors.policy import VectorPolicy
from klent.streams.episode import Episode


class MotorPolicy(VectorPolicy):
    """A :class:`klent.policies.vectors.policy.VectorPolicy` that is compared with the behaviour policy.

    Args:
        network: the actor.
        behaviour: gives the stream ``kl``; None where nothing reads it.
        budget: actions in a forward pass.
    """

    def __init__(
        self, network: MotorNetwork, *, behaviour: BehaviourKL | None = None, budget: int = 4096
    ) -> None:
        super().__init__(network, budget=budget)
        self.behaviour = behaviour

    def divergence(
        self, policy: ActionDistribution, episodes: Sequence[Episode], states: Tensor, place: Tensor
    ) -> Tensor | None:
        """What the label of the behaviour policy says, ``[N]``."""
        assert isinstance(policy, Gaussian)
        return None if self.behaviour is None else self.behaviour(self.actor, policy, episodes)
