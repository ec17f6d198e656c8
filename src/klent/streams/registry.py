"""Every number that an objective may read, declared once: its shape, its unit, who makes it, and when.

An objective asks for numbers by the names of its parameters. Those names are the fields of
:class:`Streams`, so this file is the whole vocabulary: recipes are bound by it, batches hold it, the plan of a
step follows from it, and docs/notation.md is printed from it. A stream that a step does not have is None.
"""

# ruff: noqa: RUF009 - `_stream` makes a field of the dataclass

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Stream(NamedTuple):
    """What the registry says of a stream."""

    name: str
    shape: str
    """``[B, T]``, one number per action, or ``[B]``, one per completion."""
    unit: str
    meaning: str
    producer: str
    when: str


def _stream(shape: str, unit: str, meaning: str, *, producer: str, when: str) -> Tensor | None:
    """A field of :class:`Streams`, absent by default, with what the registry says of it."""
    described = {"shape": shape, "unit": unit, "meaning": meaning, "producer": producer, "when": when}
    made: Tensor | None = field(default=None, metadata=described)
    return made


@dataclass
class Streams:
    """The numbers of a step's completions; 0 off the mask, None where the step does not have them."""

    logp: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the action under the policy being trained, now; carries the gradient",
        producer="policy",
        when="in every forward pass of the update",
    )
    entropy: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "entropy of that policy's distribution at the action; carries the gradient",
        producer="policy",
        when="in every forward pass of the update",
    )
    divergence: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "divergence of that policy from its target at the action; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where the policy has a target",
    )
    kl: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "divergence from the reference that `update.kl` names, over the whole vocabulary; for a robot's policy: "
        "from the behaviour policy, as the loss's `label` says; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    distance: Tensor | None = _stream(
        "[B, T]",
        "`update.distance`",
        "distance from the policy at the start of the step, over the whole vocabulary; no gradient",
        producer="policy",
        when="in every forward pass of the update, where `update.distance` asks for it",
    )
    collision: Tensor | None = _stream(
        "[B, T]",
        "probability",
        "Σ p² over that policy's distribution at the action; no gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    collision_logp: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "Σ p² log p over the same distribution; no gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    value: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "the critic's estimate, before the action, of the reward still to come; carries the gradient",
        producer="critic",
        when="in every forward pass of the update, where a term reads it",
    )
    score: Tensor | None = _stream(
        "[B]",
        "reward",
        "the reward model's score of the text, read at its end; carries the gradient",
        producer="reward model",
        when="in every forward pass of the update, where a reward model is trained",
    )
    logp_dummy: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the dummy action, which occurs in no text, at the action's state; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    logp_mean: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "mean of the log-probabilities of the whole vocabulary at the action's state; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    logit: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "the action's logit, in methods whose logits are values of actions; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    logit_second: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "the action's value from a second head, in methods whose logits are values; carries the gradient",
        producer="critic",
        when="in every forward pass of the update, where a term reads it",
    )
    logp_observed: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of each token that the environment said between turns; carries the gradient",
        producer="policy",
        when="in every forward pass of the update, where a term reads it",
    )
    denoising: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "loss of denoising the episode's own image, noised again to the step's log-SNR: b²/(2s²)·‖ε - noise‖²; "
        "carries the gradient",
        producer="denoiser",
        when="in every forward pass of the update, where a term reads it",
    )
    denoising_kl: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "KL of the step there from that of the policy at the start of the step's update; carries the gradient",
        producer="denoiser",
        when="in every forward pass of the update, where a term reads it",
    )
    denoising_old: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "`denoising` at the start of the step's update; no gradient",
        producer="denoiser",
        when="measured before the update, where a term reads it",
    )
    denoising_data: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "`denoising` of an image of `task.images` instead of the episode's own; carries the gradient",
        producer="denoiser",
        when="in every forward pass of the update, where a term reads it",
    )
    weight: Tensor | None = _stream(
        "[B, T]",
        "probability",
        "how good the action is, in [0, 1]: the Bellman target of `bellman`; no gradient",
        producer="target network",
        when="before the update, if `bellman` learns values from logged play",
    )
    logit_target: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "`logit` under the target network of `bellman`; no gradient",
        producer="target network",
        when="before the update, where `bellman.target` is `value`",
    )
    logit_second_target: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "`logit_second` under the target network of `bellman`; no gradient",
        producer="target network",
        when="before the update, where `bellman.target` is `value`",
    )
    logp_old: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "`logp` at the start of the step's update",
        producer="policy",
        when="measured before the update, or taken from its only forward pass",
    )
    entropy_old: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "`entropy` at the start of the step's update",
        producer="policy",
        when="measured before the update, or taken from its only forward pass",
    )
    value_old: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "`value` at the start of the step's update; no gradient",
        producer="critic",
        when="measured before the update, where the advantage or a term reads it",
    )
    logp_gen: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the action under the distribution that it was drawn from",
        producer="engine",
        when="while sampling; absent where a data set is replayed",
    )
    entropy_gen: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "entropy of the distribution that the action was drawn from",
        producer="engine",
        when="while sampling; absent where a data set is replayed",
    )
    collision_gen: Tensor | None = _stream(
        "[B, T]",
        "probability",
        "`collision` of the distribution that the action was drawn from",
        producer="engine",
        when="while sampling; absent where a data set is replayed",
    )
    collision_logp_gen: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "`collision_logp` of the distribution that the action was drawn from",
        producer="engine",
        when="while sampling; absent where a data set is replayed",
    )
    logp_policy: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the action under the policy, where another distribution was sampled",
        producer="engine",
        when="while sampling from a mixture",
    )
    entropy_policy: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "entropy of the policy's distribution, where another distribution was sampled",
        producer="engine",
        when="while sampling from a mixture",
    )
    logp_target: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the action under the target of the mixture that was sampled",
        producer="engine",
        when="while sampling from a mixture",
    )
    reverse_kl: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "KL(policy ‖ target) at the action, over the whole vocabulary, when it was sampled; no gradient",
        producer="engine",
        when="while sampling from a mixture",
    )
    logp_ref: Tensor | None = _stream(
        "[B, T]",
        "nats",
        "log-probability of the action under the reference policy",
        producer="reference",
        when="measured before the update, where a term reads it",
    )
    advantage: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "how much better the action was than expected; 0 where the completion is unscorable",
        producer="objective",
        when="estimated before the update, where a term reads it",
    )
    returns: Tensor | None = _stream(
        "[B, T]",
        "reward",
        "what the critic is trained towards at the action: the estimated `advantage` plus `value_old`",
        producer="objective",
        when="estimated before the update, where the advantage is a critic's",
    )
    importance_weight: Tensor | None = _stream(
        "[B, T]",
        "ratio",
        "probability under the policy / under the sampled distribution, bounded; multiplies the terms of the loss",
        producer="mixture, or mismatch",
        when="after sampling from a mixture with `weights`, or with `rollout.mismatch`",
    )
    mask: Tensor | None = _stream(
        "[B, T]",
        "bool",
        "the actions that the loss sees: those of the policy, or those that `select.mask` chose",
        producer="batch",
        when="as the batch is made",
    )
    observed: Tensor | None = _stream(
        "[B, T]",
        "bool",
        "the tokens that the environment said between turns; never among `mask`",
        producer="batch",
        when="as the batch is made",
    )
    rewards: Tensor | None = _stream(
        "[B]",
        "reward",
        "reward of the completion; NaN where unscorable",
        producer="rewards",
        when="after sampling",
    )
    group: Tensor | None = _stream(
        "[B]",
        "index",
        "the prompt that the completion answers",
        producer="batch",
        when="as the batch is made",
    )
    preferred: Tensor | None = _stream(
        "[B]",
        "bool",
        "whether the completion is the better one of its pair",
        producer="engine",
        when="where the data are preferences, or `rollout.pairs` makes pairs of what was sampled",
    )
    pair_margin: Tensor | None = _stream(
        "[B]",
        "reward",
        "by how much the better one of its pair should win at least, beside a loss's own `margin`",
        producer="engine",
        when="where a reward model is trained",
    )
    choices: dict[str, Tensor] = field(default_factory=dict)
    """Actions that each selector chose, by the recipe's name for them, ``[B, T]`` bool."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Factors of a loss term per action, by the term's name in the recipe, ``[B, T]``."""

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These streams and choices by name.

        Raises:
            KeyError: one that this step does not have.
        """
        values = {name: self.get(name) for name in names}
        absent = sorted(name for name, value in values.items() if value is None)
        if absent:
            raise KeyError(f"this step has no {', '.join(absent)}")
        return {name: value for name, value in values.items() if value is not None}

    def get(self, name: str) -> Tensor | None:
        """A stream or a choice by name; None where the step does not have it."""
        if name in self.choices:
            return self.choices[name]
        value: Tensor | None = getattr(self, name) if name in REGISTRY else None
        return value

    def with_(self, **values: Tensor | None) -> Streams:
        """A copy in which these streams are set."""
        return replace(self, **values)  # type: ignore[arg-type]

    def or_else(self, **values: Tensor | None) -> Streams:
        """A copy in which those of these streams are set that the step does not have."""
        return self.with_(**{name: value for name, value in values.items() if getattr(self, name) is None})

    def choosing(self, choices: dict[str, Tensor]) -> Streams:
        """A copy with these choices beside those it has."""
        return replace(self, choices={**self.choices, **choices})

    def weighing(self, weights: dict[str, Tensor]) -> Streams:
        """A copy with these weights of loss terms beside those it has."""
        return replace(self, weights={**self.weights, **weights})

    def map(self, change: Callable[[Tensor], Tensor]) -> Streams:
        """Every stream, choice and weight that there is, changed."""
        present = {name: change(value) for name in REGISTRY if (value := getattr(self, name)) is not None}
        return Streams(
            **present,
            choices={name: change(value) for name, value in self.choices.items()},
            weights={name: change(value) for name, value in self.weights.items()},
        )

    def rows(self, index: Sequence[int]) -> Streams:
        """The streams of some episodes."""
        return self.map(lambda value: value[index])

    def to(self, device: torch.device) -> Streams:
        """The same on a device."""
        return self.map(lambda value: value.to(device))


REGISTRY: dict[str, Stream] = {f.name: Stream(f.name, **f.metadata) for f in fields(Streams) if f.metadata}
"""Every stream by name, in the order of :class:`Streams`."""
