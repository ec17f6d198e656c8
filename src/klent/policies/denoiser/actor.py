"""A denoiser as the actor of a policy: the state is the image so far, the action the next one."""

from torch import Tensor, nn

from klent.policies.denoiser.network import Denoiser
from klent.policies.denoiser.sampler import Steps
from klent.policies.vectors.gaussian import ActionDistribution, Gaussian
from klent.policies.vectors.policy import Compare


class DenoisingActor(nn.Module):
    """N(a_i x + b_i ε(c_i x, λ_i), s_i²) at step ``i`` of a sampler, which is the action's place in its episode.

    Args:
        net: predicts the noise.
        steps: the sampler.
    """

    log_snr: Tensor
    scale: Tensor
    time: Tensor
    a: Tensor
    b: Tensor
    std: Tensor

    def __init__(self, net: Denoiser, steps: Steps) -> None:
        super().__init__()
        self.net = net
        for name in ("log_snr", "scale", "time", "a", "b", "std"):
            self.register_buffer(name, getattr(steps, name), persistent=False)
        self.image_log_snr, self.image_scale = steps.image_log_snr, steps.image_scale

    @property
    def size(self) -> int:
        """Coordinates of an image."""
        return self.net.config.size

    @property
    def count(self) -> int:
        """Steps of an episode."""
        return len(self.std)

    def start(self, noise: Tensor) -> Tensor:
        """The states that sampling begins from, of standard normal ``noise`` ``[N, D]``."""
        return noise / self.scale[0]

    def forward(self, states: Tensor, place: Tensor) -> Gaussian:
        """The distribution of each step's result, of states ``[N, D]`` at steps ``[N]``."""
        mean = self.a[place, None] * states + self.b[place, None] * self.noise(states, place)
        return Gaussian(mean, self.std[place, None])

    def noise(self, states: Tensor, place: Tensor) -> Tensor:
        """The predicted noise ``[N, D]`` in states ``[N, D]`` at the beginning of steps ``[N]``."""
        predicted: Tensor = self.net(self.scale[place, None] * states, self.log_snr[place])
        return predicted

    @property
    def factor(self) -> Tensor:
        """``b²/(2 s²)`` of each step, ``[L]``: nats for a squared difference of the predicted noise."""
        return self.b.square() / (2 * self.std.square())


def noise_difference(actor: DenoisingActor) -> Compare:
    """``‖ε - ε_ref‖²/D`` of a step: what DPOK's released code penalises, which is no divergence.

    With equal means of all but the predicted noise, ``KL = b²/(2 s²)·‖ε - ε_ref‖²``: the factor that is left out
    differs from step to step.
    """

    def compare(policy: ActionDistribution, reference: ActionDistribution, place: Tensor) -> Tensor:
        assert isinstance(policy, Gaussian)
        kl = policy.kl(reference)  # type: ignore[arg-type]
        return kl / actor.factor[place] / policy.mean.shape[-1]

    return compare


def over_time(actor: DenoisingActor) -> Compare:
    """Flow-GRPO's penalty: the KL of a step, over the coordinates, times the step in time.

    Its code divides by 2σ², and the step's variance is σ²h.
    """

    def compare(policy: ActionDistribution, reference: ActionDistribution, place: Tensor) -> Tensor:
        return policy.kl(reference) * actor.time[place] / actor.size

    return compare
