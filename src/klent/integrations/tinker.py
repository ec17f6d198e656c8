"""klent's objective as a custom loss of Tinker: log-probabilities in, coefficients out.

``forward_backward_custom`` gives a loss the log-probability of every target token and sends ``dloss/dlogp`` back,
which is all that most of klent's objectives need. Nothing of Tinker is imported here.

>>> from klent.integrations.tinker import custom_loss                     # doctest: +SKIP
>>> loss = custom_loss({"method": "dapo"}, group_size=8)                  # doctest: +SKIP
>>> client.forward_backward_custom(data, loss)                            # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from klent.errors import ConfigError, DataError
from klent.integrations.sections import objective_of
from klent.streams.batch import Batch
from klent.streams.registry import Streams

GIVEN = frozenset({"logp", "logp_old", "logp_gen", "logp_ref", "advantage", "mask", "rewards", "group"})
"""The streams that a datum can hold."""


class Datum(Protocol):
    """What is read of one of Tinker's."""

    @property
    def loss_fn_inputs(self) -> Mapping[str, Any]:
        """``mask`` and ``logprobs`` of each target token, ``reward`` and ``group``; and see :func:`custom_loss`."""
        ...


CustomLoss = Callable[[Sequence[Datum], Sequence[Tensor]], tuple[Tensor, dict[str, float]]]


def custom_loss(
    objective: str | Mapping[str, Any], *, group_size: int, max_tokens: int = 1024, seed: int = 0
) -> CustomLoss:
    """A loss for ``forward_backward_custom``, over the data of one optimizer step.

    A datum's ``loss_fn_inputs`` are, of each target token, ``mask`` (or ``weights``; not 0 where the policy chose
    it), ``logprobs`` of the sampler in nats, and ``logp_ref`` where a term reads the reference; and ``reward`` and
    ``group``, one number each, or ``advantages`` of each token in their place.

    Args:
        objective: a method of klent, or sections of a recipe: ``method``, ``loss``, ``advantage``, ``token_reward``,
            ``select``, ``weigh``, ``reduce``.
        group_size: completions per prompt.
        max_tokens: what ``reduce.over: constant`` divides by, unless it says otherwise.
        seed: of selectors that draw.

    Returns:
        (data, log-probabilities) -> the loss of the step, nats, and metrics under ``klent/``.

    Raises:
        ConfigError: the objective has a fault, or needs more than log-probabilities, such as entropy.
    """
    part = objective_of(
        objective, group_size=group_size, max_tokens=max_tokens, optimizer_steps=1, host="Tinker"
    )
    readers = part.objective.all_terms
    if others := sorted({stream for term in readers for stream in term.required} - GIVEN):
        raise ConfigError(
            f"objective reads {', '.join(others)}, and Tinker gives log-probabilities alone. Use `klent train` for it"
        )

    def loss(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        logp = pad_sequence(list(logprobs), batch_first=True)
        streams = _streams(data, [len(row) for row in logprobs])
        mask, rewards, group = streams.mask, streams.rewards, streams.group
        assert mask is not None
        group = torch.arange(len(mask)) if group is None else group
        batch = Batch([], group, torch.arange(len(mask)), mask, streams)
        if part.advantages and streams.advantage is None:
            if rewards is None:
                raise DataError(
                    "a term reads the advantage: give each datum `reward` and `group`, or `advantages`"
                )
            part.objective.estimate_advantage(batch)
        if part.objective.selection.functions:
            rows = list(range(len(mask)))
            batch = part.objective.selection.choose(batch, rows, None, seed=seed)
        outcome = part.objective.token_loss(batch.streams.with_(logp=logp))
        counted = part.counted(mask, batch.streams.choices)
        total: Tensor = part.reduction(
            outcome.loss, counted, part.divisor(counted) or 1.0
        )  # 0: nothing counted
        means = {f"klent/{name}": float(t / n) for name, (t, n) in outcome.metrics.items() if float(n)}
        return total, means

    return loss


def _streams(data: Sequence[Datum], lengths: Sequence[int]) -> Streams:
    """What the data hold, on one grid."""

    def grid(*names: str) -> Tensor | None:
        rows = [_first(datum.loss_fn_inputs, names) for datum in data]
        known = [row for row in rows if row is not None]
        if not known:
            return None
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row is None or len(row) != length:
                size = "no" if row is None else str(len(row))
                raise DataError(
                    f"datum {place} has {size} values of `{names[0]}`, and {length} target tokens"
                )
        return pad_sequence(known, batch_first=True)

    mask = grid("mask", "weights")
    sampled = grid("logprobs")
    width = max(lengths)
    whole = torch.stack([torch.arange(width) < length for length in lengths])
    return Streams(
        mask=whole if mask is None else mask != 0,
        logp_old=sampled,
        logp_gen=sampled,
        logp_ref=grid("logp_ref"),
        advantage=grid("advantages"),
        rewards=_numbers(data, "reward"),
        group=None if (group := _numbers(data, "group")) is None else group.long(),
    )


def _first(inputs: Mapping[str, Any], names: Sequence[str]) -> Tensor | None:
    given = next((inputs[name] for name in names if name in inputs), None)
    return None if given is None else _tensor(given).reshape(-1)


def _numbers(data: Sequence[Datum], name: str) -> Tensor | None:
    """One number of each datum; None where none has it."""
    values = [_first(datum.loss_fn_inputs, [name]) for datum in data]
    known = [value for value in values if value is not None and len(value) == 1]
    if known and len(known) < len(data):
        raise DataError(
            f"give `{name}` to every datum, as one number, or to none; {len(data) - len(known)} of {len(data)} lack "
            "it"
        )
    return torch.cat(known).float() if known else None


def _tensor(value: Any) -> Tensor:
    """A tensor of what a datum holds: one of Tinker's, of torch's, or numbers."""
    return value.to_torch() if hasattr(value, "to_torch") else torch.as_tensor(value)
