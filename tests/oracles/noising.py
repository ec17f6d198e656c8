"""DiffusionNFT's loss from its two implicit policies, vector by vector, with the derivative in the prediction."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def diffusion_nft(
    predicted: Array, old: Array, target: Array, advantage: float, beta: float, most: float
) -> tuple[float, Array]:
    """(loss, dloss/dpredicted) of one noised image, of arXiv:2509.16117's equation with the released code's scale."""
    right = 0.5 + 0.5 * min(max(advantage / most, -1.0), 1.0)
    positive = (1 - beta) * old + beta * predicted
    negative = (1 + beta) * old - beta * predicted
    loss = right * np.sum((positive - target) ** 2) + (1 - right) * np.sum((negative - target) ** 2)
    slope = 2 * beta * (right * (positive - target) - (1 - right) * (negative - target))
    return most / beta * float(loss), most / beta * slope
