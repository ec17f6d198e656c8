"""Rewards of images: functions that a recipe names as ``rewards.py:NAME``. ``vectors`` holds one image each."""

import functools
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Images = Sequence[Sequence[float]]


def bump(vectors: Images, **columns: object) -> list[float]:
    """exp(-(x - 2)^2 / (2 0.5^2)) of the first coordinate: largest beside a mode of the mixture, not on it."""
    return [math.exp(-((x[0] - 2.0) ** 2) / 0.5) for x in vectors]


def corner(vectors: Images, **columns: object) -> list[float]:
    """exp(-|x - (2, 1.8)|^2 / (2 0.6^2)) of a point: largest beside a mode of the mixture in the plane."""
    return [math.exp(-((x[0] - 2.0) ** 2 + (x[1] - 1.8) ** 2) / 0.72) for x in vectors]


def ink(vectors: Images, **columns: object) -> list[float]:
    """Mean brightness, in [0, 1]; what lies outside of a pixel's range is cut."""
    return [sum(min(max((v + 1) / 2, 0.0), 1.0) for v in image) / len(image) for image in vectors]


def compressed(vectors: Images, **columns: object) -> list[float]:
    """Minus the bytes that zlib makes of an image of 17 grey levels, per pixel."""
    levels = [bytes(min(max(round((v + 1) * 8), 0), 16) for v in image) for image in vectors]
    return [-len(zlib.compress(image, 9)) / len(image) for image in levels]


def looks_like(vectors: Images, digit: int = 3, **columns: object) -> list[float]:
    """Log-probability of a digit under a logistic classifier of scikit-learn's digits, nats, at least -20."""
    return [max(float(row[digit]), -20.0) for row in classified(vectors)]


def classified(vectors: Images) -> np.ndarray:
    """Log-probabilities of the ten digits, ``[N, 10]``; what lies outside of a pixel's range is cut."""
    weight, bias = classifier()
    score = np.clip(np.asarray(vectors), -1.0, 1.0) @ weight.T + bias
    score -= score.max(axis=1, keepdims=True)
    return score - np.log(np.exp(score).sum(axis=1, keepdims=True))


@functools.cache
def classifier() -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[10, 64]`` and biases of the file that `digits.py classifier` writes."""
    stored = json.loads((Path(__file__).parent / "classifier.json").read_text())
    return np.array(stored["weight"]), np.array(stored["bias"])
