"""Argument checks, called once at each public boundary.

Each message says which argument, what it is and what was expected. Only shapes, dtypes and Python numbers are
looked at: reading a tensor's values would make the host wait for the device.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor


def check_tokens(mask: Tensor, **values: Tensor) -> None:
    """``mask`` is bool ``[B, T]``; every other tensor is floating point and has its shape."""
    _check_grid("mask", mask, values)


def check_observed(observed: Tensor, **values: Tensor) -> None:
    """The same of the tokens that an environment said."""
    _check_grid("observed", observed, values)


def _check_grid(called: str, mask: Tensor, values: Mapping[str, Tensor]) -> None:
    _check_tensor(called, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{called} has dtype {mask.dtype}, expected torch.bool: write {called}.bool()")
    if mask.ndim != 2:
        raise ValueError(f"{called} has shape {list(mask.shape)}, expected [B, T]: a row per sequence")
    for name, value in values.items():
        check_floating(name, value)
        if value.shape != mask.shape:
            per_sequence = value.ndim == 1 and value.shape[0] == mask.shape[0]
            hint = f"; to repeat it along the tokens write {name}[:, None].expand({called}.shape)"
            raise ValueError(
                f"{name} has shape {list(value.shape)}, expected {list(mask.shape)} as {called} has"
                f"{hint if per_sequence else ''}"
            )


def check_chosen(mask: Tensor, **chosen: Tensor) -> None:
    """Every tensor is bool and has the shape of ``mask``: a selector's choice."""
    for name, value in chosen.items():
        _check_tensor(name, value)
        if value.dtype != torch.bool:
            raise TypeError(f"{name} has dtype {value.dtype}, expected torch.bool: what a selector returns")
        if value.shape != mask.shape:
            raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(mask.shape)} as mask has")


def check_groups(rewards: Tensor, group: Tensor) -> None:
    """``rewards`` is floating point ``[n]``; ``group`` holds one integer id for each."""
    check_floating("rewards", rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards has shape {list(rewards.shape)}, expected [n]: one number per completion")
    check_ids("group", group)
    if group.shape != rewards.shape:
        raise ValueError(
            f"group has shape {list(group.shape)}, expected {list(rewards.shape)} as rewards has"
        )


def check_ids(name: str, value: Tensor) -> None:
    """``value`` holds integers."""
    _check_tensor(name, value)
    if value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}, expected integers: one {name} id per completion")


def check_pairs(**values: Tensor) -> None:
    """All are floating point ``[B]``, of one length: one number per sequence."""
    check_same_shape(**values)
    for name, value in values.items():
        if value.ndim != 1:
            tokens = f": sum over the tokens first, torch.where(mask, {name}, 0).sum(1)"
            raise ValueError(
                f"{name} has shape {list(value.shape)}, expected [B], one number per pair"
                f"{tokens if value.ndim == 2 else ''}"
            )


def check_same_shape(**values: Tensor) -> None:
    """All are floating point and have the shape of the first."""
    first, *_ = values
    for name, value in values.items():
        check_floating(name, value)
        expected = values[first].shape
        if value.shape != expected:
            raise ValueError(
                f"{name} has shape {list(value.shape)}, expected {list(expected)} as {first} has"
            )


def check_broadcasts(**values: Tensor) -> None:
    """All are floating point and broadcast to the shape of the first, which has at least one axis."""
    first, *_ = values
    for name, value in values.items():
        check_floating(name, value)
        expected = values[first].shape
        if len(expected) == 0:
            raise ValueError(f"{first} has shape [], expected [..., D]: coordinates along the last axis")
        try:
            fits = torch.broadcast_shapes(value.shape, expected) == expected
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} has shape {list(value.shape)}, expected one that broadcasts to {list(expected)} as "
                f"{first} has"
            )


def check_floating(name: str, value: Tensor) -> None:
    """``value`` is a floating-point tensor."""
    _check_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}, expected floating point: write {name}.float()")


def check_number(name: str, value: float, low: float, high: float, *, ends: str = "[]") -> None:
    """``value`` is a Python number between ``low`` and ``high``; ``ends="(]"`` leaves out ``low`` itself."""
    expected = f"expected a number in {ends[0]}{low}, {high}{ends[1]}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, {expected}")
    high_enough = value >= low if ends[0] == "[" else value > low
    low_enough = value <= high if ends[1] == "]" else value < high
    if math.isnan(value) or not (high_enough and low_enough):
        raise ValueError(f"{name} is {value}, {expected}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected torch.Tensor")
