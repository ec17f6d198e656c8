"""The section `precision`: which numbers hold the weights, and which the model computes in."""

from collections.abc import Mapping
from typing import Literal

from klent.config.base import Settings


class Precision(Settings):
    """Types of numbers. bfloat16 has 8 significant bits: enough to compute with, too few to add small steps to."""

    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that the optimizer moves; in bfloat16, steps below half a unit of it are rounded away."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that sampler, trainer and reference compute in; auto = bfloat16 on a GPU that has it, else `weights`."""


def renamed(values: Mapping[str, object]) -> dict[str, object]:
    """A run's recipe in the words of this version: ``dtype`` was the type of weights and arithmetic.

    >>> renamed({"model": "m", "dtype": "bfloat16"})
    {'model': 'm', 'precision': {'weights': 'bfloat16', 'compute': 'bfloat16'}}
    """
    others = {key: value for key, value in values.items() if key != "dtype"}
    if "dtype" in values:
        others["precision"] = {"weights": values["dtype"], "compute": values["dtype"]}
    return others
