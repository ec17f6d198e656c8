"""Whose weights a sampler has, if not the policy's: the older ones, the base model's, or rounded ones."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from klent.models.adapter import adapters_off
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import logits_alone
from klent.rollout.causes import EXPLAINED, Fault, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDED = 0.7  # two libraries round in different places: a copy in half precision leaves more of the gap
Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


def blame_weights(
    policy: CausalPolicy, scored: Reading, rows: Rows, anchor: Tensor | None, *, tolerance: float
) -> Fault | None:
    """The weights that give the engine's numbers; None where none of those that can be tried does.

    Args:
        policy: the trainer's.
        scored: the canary, as the engine scored it.
        rows: its prompts and tokens.
        anchor: the trainer's numbers at the last sync that arrived; None at the first.
        tolerance: nats of mean gap that rounding makes.
    """
    gap = float(scored.gap(scored.logp()).mean())
    for share, fault, expected in _tried(policy, rows, anchor, scored):
        if float(scored.gap(expected).mean()) < max(share * gap, min(tolerance, gap / 2)):
            return fault
    return None


def _tried(
    policy: CausalPolicy, rows: Rows, anchor: Tensor | None, scored: Reading
) -> Iterator[tuple[float, Fault, Tensor]]:
    """The share of the gap that each may leave, its name, and the numbers that it would give."""

    def numbers(model: "PreTrainedModel") -> Tensor:
        logits = torch.cat([logits_alone(model, *row) for row in rows])
        return scored._replace(logits=logits).logp()

    model = cast("PreTrainedModel", policy.model)
    if any(".lora_" in name for name in policy.trainable()):
        with adapters_off(model)():
            base = numbers(model)
        yield EXPLAINED, Fault("adapter missing", "its numbers are the base model's"), base
    if anchor is not None:
        said = "its numbers are those of the policy at an earlier sync"
        yield EXPLAINED, Fault("old weights", said), anchor
    for dtype in (torch.bfloat16, torch.float16):
        if model.dtype != dtype:
            said = f"its numbers are the policy's in {_name(dtype)}, and those of {_name(model.dtype)} are asked for"
            rounded = deepcopy(model)
            torch.nn.Module.to(rounded, dtype)  # transformers' own hides its types
            yield ROUNDED, Fault("wrong dtype", said), numbers(rounded)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
