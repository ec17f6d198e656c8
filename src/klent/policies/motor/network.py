"""The network of a Gaussian policy, and its folder: config.json and model.safetensors."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from klent.policies.vectors.gaussian import Gaussian
from klent.policies.vectors.network import linear, load_network, save_network

MODEL_TYPE = "klent_motor"
UNIT_STD = 1 / math.sqrt(2 * math.pi)  # of the Gaussian whose density at its mean is 1
_LEAST, _MOST = math.log(0.05), math.log(2.0)  # of a learnt standard deviation

Form = Literal["tanh", "gaussian"]


@dataclass(frozen=True)
class MotorConfig:
    """What config.json says.

    Attributes:
        observations: numbers of an observation, D.
        actions: numbers of an action, A.
        hidden: width of each hidden layer.
        layers: hidden layers.
        form: ``tanh``: a mean in [-1, 1] and a standard deviation that is given, as contrastive preference
            learning's code has it. ``gaussian``: a free mean, and a standard deviation learnt state by state, within
            [0.05, 2].
        std: of ``tanh``. With 1/√(2π) the log-density is -π‖a - mean‖², without a constant: that code's score, whose
            temperature ``alpha`` is π times klent's.
        dropout: share of each hidden layer, in training.
    """

    observations: int
    actions: int
    hidden: int = 512
    layers: int = 2
    form: Form = "tanh"
    std: float = UNIT_STD
    dropout: float = 0.0


class MotorNetwork(nn.Module):
    """Gives the Gaussian of a motor command in every state: the actor of a policy of vectors.

    A multi-layer perceptron with ReLUs. Observations are centred and scaled by what :meth:`scale_to` has seen.

    Args:
        config: its sizes.
        generator: of its initial weights; None = torch's own.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, config: MotorConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        outputs = config.actions * (2 if config.form == "gaussian" else 1)
        modules: list[nn.Module] = []
        for before, after in pairwise([config.observations, *[config.hidden] * config.layers]):
            modules += [linear(before, after, generator), nn.ReLU(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*modules, linear(config.hidden, outputs, generator))
        self.register_buffer("centre", torch.zeros(config.observations))
        self.register_buffer("scale", torch.ones(config.observations))

    def scale_to(self, observations: Tensor) -> None:
        """Centre and scale what is read by the means and standard deviations of these, ``[N, D]``."""
        std, mean = torch.std_mean(observations, dim=0, correction=0)
        self.centre.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-4, std, 1.0))  # a number that never changes says nothing

    def forward(self, states: Tensor, place: Tensor | None = None) -> Gaussian:
        """The distribution of the action in each state, ``[N, D]``; where in an episode it is plays no part."""
        seen = ((states - self.centre) / self.scale).clamp(-10, 10)
        out: Tensor = self.layers(seen)
        if self.config.form == "tanh":
            return Gaussian(out.tanh(), torch.full_like(out[:, :1], self.config.std))
        mean, raw = out.chunk(2, dim=-1)
        return Gaussian(mean, (_LEAST + (_MOST - _LEAST) * raw.sigmoid()).exp())


def save_motor(network: MotorNetwork, folder: Path) -> None:
    """Write its folder, whole or not at all; see :func:`klent.policies.vectors.network.save_network`."""
    save_network(network, asdict(network.config), MODEL_TYPE, folder)


def load_motor(folder: Path) -> MotorNetwork:
    """The network of a folder that :func:`save_motor` wrote.

    Raises:
        ModelError: it is not such a folder, or its weights do not fit its config.json.
    """
    remedy = "Name the final/ folder of a run of policy: {kind: gaussian}"
    return load_network(folder, MODEL_TYPE, _made_of, name="a motor policy", remedy=remedy)


def _made_of(values: dict[str, Any]) -> MotorNetwork:
    return MotorNetwork(MotorConfig(**values))
