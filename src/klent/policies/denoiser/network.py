"""The network of a denoiser, and its folder: config.json and model.safetensors."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klent.policies.vectors.network import linear, load_network, save_network

MODEL_TYPE = "klent_denoiser"
FREQUENCIES = 8


@dataclass(frozen=True)
class DenoiserConfig:
    """What config.json says.

    Attributes:
        size: coordinates of an image, D.
        hidden: width of each layer.
        layers: hidden layers.
        high, low: log-SNR of an image, and of the noise that sampling starts from.
        means: of a Gaussian mixture whose exact denoiser the network corrects, ``[K][D]``; empty = there is none.
        stds: standard deviation of each component, ``[K]``.
        weights: probability of each component, ``[K]``.
    """

    size: int
    hidden: int = 128
    layers: int = 3
    high: float = 8.0
    low: float = -8.0
    means: tuple[tuple[float, ...], ...] = ()
    stds: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.means) == len(self.stds) == len(self.weights):
            raise ValueError(
                f"a mixture of {len(self.means)} means, {len(self.stds)} stds and {len(self.weights)} weights"
            )


class Denoiser(nn.Module):
    """Predicts the noise in ``x = sqrt(ᾱ) x_0 + sqrt(1 - ᾱ) ε``, ``ᾱ = sigmoid(log-SNR)``.

    A multi-layer perceptron of the state and of sines of the log-SNR. Over a mixture it is added to the exact
    answer, and starts at 0: then the network as made is the mixture's own denoiser.

    Args:
        config: its sizes.
        generator: of its initial weights; None = torch's own.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __init__(self, config: DenoiserConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width = [config.size + 2 * FREQUENCIES, *[config.hidden] * config.layers, config.size]
        modules: list[nn.Module] = []
        for before, after in pairwise(width):
            modules += [linear(before, after, generator), nn.SiLU()]
        self.layers = nn.Sequential(*modules[:-1])
        for name in ("means", "stds", "weights"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)
        if config.means:
            last = modules[-2]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Predicted noise ``[N, D]`` of states ``[N, D]`` at log-SNRs ``[N]``."""
        angle = log_snr[:, None] / 4 * 2.0 ** torch.arange(FREQUENCIES, device=x.device).sub(2)
        predicted: Tensor = self.layers(torch.cat([x, angle.sin(), angle.cos()], dim=1))
        return predicted + self.exact(x, log_snr) if self.config.means else predicted

    def exact(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """The mixture's own ``E[ε | x]``, ``[N, D]``.

        At a log-SNR component k is N(sqrt(ᾱ) m_k, v_k), ``v_k = ᾱ s_k² + 1 - ᾱ``, and ``E[ε | x, k] = sqrt(1 - ᾱ)
        (x - sqrt(ᾱ) m_k) / v_k``.
        """
        signal, noise = torch.sigmoid(log_snr)[:, None], torch.sigmoid(-log_snr)[:, None]
        variance = signal * self.stds.square() + noise  # [N, K]
        away = x[:, None] - signal.sqrt()[:, None] * self.means  # [N, K, D]
        size = x.shape[1]
        fit = self.weights.log() - away.square().sum(-1) / (2 * variance) - size / 2 * variance.log()
        share = fit.softmax(dim=1) * (noise.sqrt() / variance)
        return (share[..., None] * away).sum(dim=1)


def save_denoiser(net: Denoiser, folder: Path) -> None:
    """Write its folder, whole or not at all; see :func:`klent.policies.vectors.network.save_network`."""
    save_network(net, asdict(net.config), MODEL_TYPE, folder)


def load_denoiser(folder: Path) -> Denoiser:
    """The network of a folder that :func:`save_denoiser` wrote.

    Raises:
        ModelError: it is not such a folder, or its weights do not fit its config.json.
    """
    remedy = "Make one with klent.policies.denoiser.network.save_denoiser"
    return load_network(folder, MODEL_TYPE, _made_of, name="a denoiser", remedy=remedy)


def _made_of(values: dict[str, Any]) -> Denoiser:
    """The network of a config.json, whose lists become tuples again."""
    values |= {name: tuple(values.get(name, ())) for name in ("stds", "weights")}
    values["means"] = tuple(map(tuple, values.get("means", ())))
    return Denoiser(DenoiserConfig(**values))
