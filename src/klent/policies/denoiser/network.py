"""The network of a denoiser, and its folder: config.json and model.safetensors."""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from klent.errors import ModelError, first_line
from klent.io.folders import whole_folder

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


def linear(before: int, after: int, generator: torch.Generator | None) -> nn.Linear:
    """A layer whose weights come from the generator, uniform within 1/sqrt(inputs) as torch's own."""
    layer = nn.utils.skip_init(nn.Linear, before, after)
    bound = 1 / math.sqrt(before)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    made: nn.Linear = layer
    return made


def save_denoiser(net: Denoiser, folder: Path) -> None:
    """Write config.json and model.safetensors, whole or not at all.

    Raises:
        ModelError: the folder cannot be written.
    """
    try:
        with whole_folder(folder) as scratch:
            text = json.dumps({"model_type": MODEL_TYPE, **asdict(net.config)}, indent=2)
            (scratch / "config.json").write_text(text + "\n", encoding="utf-8")
            weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
            save_file(weights, scratch / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {first_line(error)}. No partial folder is left"
        ) from error


def load_denoiser(folder: Path) -> Denoiser:
    """The network of a folder that :func:`save_denoiser` wrote.

    Raises:
        ModelError: it is not such a folder, or its weights do not fit its config.json.
    """
    try:
        values = json.loads((folder / "config.json").read_bytes())
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise ModelError(
                f"{folder} is no denoiser: its config.json has model_type {kind!r}, expected {MODEL_TYPE!r}. Make "
                "one with klent.policies.denoiser.network.save_denoiser"
            )
        values |= {name: tuple(values.get(name, ())) for name in ("stds", "weights")}
        values["means"] = tuple(map(tuple, values.get("means", ())))
        net = Denoiser(DenoiserConfig(**values))
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, AttributeError) as error:
        raise ModelError(f"cannot load a denoiser from {folder}: {first_line(error)}") from error
    return net
