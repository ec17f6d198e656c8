"""Whether a model can be sampled by a recorded step, tried on made-up tokens, and with which kernels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from klent.errors import first_line
from klent.models.exact import close
from klent.policies.causal_lm.model import CausalModel, attention_window
from klent.policies.causal_lm.probe import agrees, evaluating
from klent.rollout.decoding import made_up, read_alone, trial
from klent.rollout.fused import Fused, has_kernels
from klent.rollout.graph import GraphSampler, Reader
from klent.rollout.how import Draw, How
from klent.rollout.recorder import CudaRecorder, Recorder, as_it_is
from klent.rollout.static import StaticDecoder

Decoding = Literal["auto", "eager", "graph"]


def choose_sampler(
    model: CausalModel,
    *,
    pad: int,
    stop_ids: Sequence[int],
    decoding: Decoding,
    note: Callable[[str], None],
    how: How,
    beside: Reader | None = None,
    refusal: str | None = None,
) -> GraphSampler | None:
    """What draws on the device by itself; None where that is not asked for, or a model does not allow it.

    Args:
        model, pad, stop_ids: as of :class:`GraphSampler`.
        decoding: ``auto`` asks for it on a GPU.
        note: told why it cannot be had.
        how: what it will draw with, tried too.
        beside: a further model that the draw asks for, as of :class:`GraphSampler`.
        refusal: why it cannot be had, where that is known; nothing is tried then.
    """
    on_gpu = model.device.type == "cuda"
    if not (decoding == "graph" or (decoding == "auto" and on_gpu)):
        return None
    record: Recorder = CudaRecorder() if on_gpu else as_it_is
    fused, reason = _way(model, record) if refusal is None else (None, refusal)
    if reason is None and beside is not None:
        with beside.active():
            theirs, reason = _way(beside.model, record)
        beside = beside._replace(fused=theirs)
        if reason is not None:
            reason = f"of the model beside: {reason}"
    make = partial(GraphSampler, model, fused=fused, beside=beside)
    if reason is None and beside is not None and on_gpu:
        reason = _changed(model, partial(make, pad=0, stop_ids=()), record, how)
    if reason is None:
        return make(pad=pad, stop_ids=stop_ids, record=record)
    note(f"rollout.decoding: step by step from Python (slower, as exact), not one recorded step: {reason}")
    return None


def _way(model: CausalModel, record: Recorder) -> tuple[Fused | None, str | None]:
    """The kernels that a model is sampled with, and why it cannot be sampled; None where it can."""
    reason = None
    for fused in _ways(model):
        reason = graph_refusal(model, record, fused)
        if reason is None:
            return fused, None
    return None, reason


def _ways(model: CausalModel) -> Iterator[Fused | None]:
    if has_kernels(model.device):
        yield Fused(model)
    yield None


def graph_refusal(model: CausalModel, record: Recorder, fused: Fused | None = None) -> str | None:
    """Why a model cannot be sampled by a :class:`GraphSampler`; None where it can: tried on made-up tokens."""
    if attention_window(model) is not None:
        return "its attention has a window"
    decoder = partial(StaticDecoder, fused=fused)
    try:
        if not agrees(model, lambda: read_alone(model), partial(trial, decoder, model), rounding=3e-2):
            return "its attention or its cache does more than scores and a softmax over keys and values"
    except Exception as error:  # a compiler's errors are of no common type
        if fused is None:
            raise
        return f"klent's kernels do not run here ({first_line(error)})"
    make = partial(GraphSampler, model, pad=0, stop_ids=(), fused=fused)
    return None if record is as_it_is else _changed(model, make, record, Draw(1.0, 1.0, 0))


def _changed(model: CausalModel, make: Callable[..., GraphSampler], record: Recorder, how: How) -> str | None:
    """Why a recorded step cannot stand for the step as it is: tried on tokens behind made-up prompts."""
    prompts, _ = made_up(model)
    uniform, share = torch.linspace(0.1, 0.9, 4 * 6).view(4, 6), torch.full((4,), 0.5)

    def numbers(recorder: Recorder) -> Tensor:
        said = make(record=recorder)(
            prompts, group_size=2, uniform=uniform, rooms=[6] * 4, how=how, beside=prompts, share=share
        )
        return said.numbers

    try:
        with evaluating(model):
            usual, recorded = numbers(as_it_is), numbers(record)
    except Exception as error:  # a compiler's errors are of no common type
        return f"it cannot be recorded ({first_line(error)})"
    return None if close(usual, recorded, model.dtype) else "recorded, its numbers are others"
