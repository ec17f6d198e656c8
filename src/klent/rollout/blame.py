"""Whose weights a sampler has, if not the policy's: the older ones, the base model's, or rounded ones."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from klent.models.adapter import adapters_off
from klent.models.device import type_name
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import logits_alone
from klent.rollout.causes import EXPLAINED, Fault, Reading, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIKE = 2.5  # gaps that differ by no more than this factor may be of one kind of rounding
Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


def blame_weights(
    policy: CausalPolicy,
    scored: Reading,
    rows: Rows,
    anchor: Tensor | None = None,
    *,
    taken: Sampler,
    tolerance: float,
) -> Fault | None:
    """The weights that give the engine's numbers; None where none of those that can be tried does.

    Args:
        policy: the trainer's.
        scored: the canary, as the engine scored it.
        rows: its prompts and tokens.
        anchor: the trainer's numbers at the last sync that arrived; None at the first.
        taken: how the rows were sampled, or scored.
        tolerance: nats of mean gap that rounding makes.
    """
    right = scored.logp(*taken)
    gap = float(scored.gap(right).mean())
    for fault, expected in _older(policy, rows, anchor, scored, taken):
        if float(scored.gap(expected).mean()) < max(EXPLAINED * gap, min(tolerance, gap / 2)):
            return fault
    for name, expected in _rounded(policy, rows, scored, taken):
        made = float((expected - right).abs().mean())
        if made / ALIKE < gap < made * ALIKE:
            said = f"its numbers are as far from the policy's as those of a copy in {name}, {made:.2g} nats"
            return Fault("wrong dtype", said)
    return None


def _older(
    policy: CausalPolicy, rows: Rows, anchor: Tensor | None, scored: Reading, taken: Sampler
) -> Iterator[tuple[Fault, Tensor]]:
    """Weights that the policy had, and the numbers that they give."""
    model = cast("PreTrainedModel", policy.model)
    if any(".lora_" in name for name in policy.trainable()):
        with adapters_off(model)():
            base = _numbers(model, rows, scored, taken)
        yield Fault("adapter missing", "its numbers are the base model's"), base
    if anchor is not None:
        yield Fault("old weights", "its numbers are those of the policy at an earlier sync"), anchor


def _rounded(
    policy: CausalPolicy, rows: Rows, scored: Reading, taken: Sampler
) -> Iterator[tuple[str, Tensor]]:
    """The policy in a smaller type.

    Two libraries round in different places, so that the numbers of one say little of the other's: SmolLM2 in
    bfloat16 is 0.037 nats from float32 in transformers and 0.033 in vLLM, with a correlation of 0.3.
    """
    model = cast("PreTrainedModel", policy.model)
    for dtype in (torch.bfloat16, torch.float16):
        if model.dtype == torch.float32:
            rounded = deepcopy(model)
            torch.nn.Module.to(rounded, dtype)  # transformers' own hides its types
            yield type_name(dtype), _numbers(rounded, rows, scored, taken)


def _numbers(model: "PreTrainedModel", rows: Rows, scored: Reading, taken: Sampler) -> Tensor:
    logits = torch.cat([logits_alone(model, *row) for row in rows])
    return scored._replace(logits=logits).logp(*taken)
