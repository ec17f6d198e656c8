"""The section `rollout.mixture`: sampling between the policy and a target."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from klent.config.base import Fraction, Positive, PositiveInt, Settings


class MixtureTarget(Settings):
    """What the policy is mixed with; `target: NAME` is short for `target: {model: NAME}`."""

    model: str = "reference"
    """`reference` (the recipe's, or the policy as it was at the start), `policy` as it is, or a model."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on that model."""
    prompt: str | None = None
    """The user's message it sees: `{prompt}` is the policy's, `{answer}` a column; null = the same."""
    system: str | None = None
    """Its system message; null = the same."""
    temperature: Positive | None = None
    """Divides its logits; null = rollout.temperature."""


class Alpha(Settings):
    """The policy's share in the mixture: a number, a ramp, each prompt's own, or solved for every token."""

    fixed: Fraction | None = None
    """The same for every token; `alpha: 0.5` is short for `alpha: {fixed: 0.5}`."""
    criterion: Literal["chernoff", "snr", "kl_budget", "entropy", "ess"] | None = None
    """What decides it, see klent.mixture.solve_alpha; `alpha: chernoff` is short for it."""
    value: Positive | None = None
    """What the criterion aims at: nats of `kl_budget` or `entropy`, the fraction of `ess`."""
    start: Fraction | None = None
    """A ramp, or a path that follows the policy: alpha in the first step ..."""
    end: Fraction | None = None
    """... of a ramp: from step `steps` on, in a straight line between them."""
    steps: PositiveInt | None = None
    """Length of the ramp, training steps."""
    until_reward: Positive | None = None
    """... of a path: 1 once the policy's own mean reward is this, in a straight line from reward 0."""
    column: str | None = None
    """The column of the data that holds each prompt's alpha."""


class Weights(Settings):
    """Importance weights policy/q on the loss of every token: they undo that another distribution sampled."""

    ratio: Literal["token", "sequence"] = "token"
    """By each token's own ratio (less noise; ignores how likely its prefix is) or its sequence's (exact)."""
    low: Fraction = 0.0
    """Smallest ratio."""
    high: Annotated[float, Field(ge=1)] | None = 2.0
    """Largest ratio; null = no bound."""
    outside: Literal["truncate", "drop"] = "truncate"
    """A ratio out of bounds is moved to the bound, or its token left out."""
    normalise: bool = True
    """Divide by the mean weight of the step: self-normalised importance sampling."""


class Distill(Settings):
    """The divergence from the target at every sampled token, over the whole vocabulary, added to the loss."""

    divergence: Literal["forward", "reverse"] = "reverse"
    """`forward`: KL(target ‖ policy), cover the target; `reverse`: KL(policy ‖ target), keep to it."""
    skew: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the first in the second: bounds the divergence by -log(skew)."""
    coef: Positive = 1.0
    """Loss per nat."""


class Mixture(Settings):
    """Completions from q ∝ policy^alpha · target^(1 - alpha), token by token."""

    target: MixtureTarget = MixtureTarget()
    """What it is mixed with."""
    alpha: Alpha = Alpha(criterion="chernoff")
    """Number, chernoff, {criterion:, value:}, {start:, end:, steps:}, {start:, until_reward:}, {column:}."""
    weights: Weights | None = Weights()
    """Corrects the loss for having sampled from q; null = learn from q's samples as they are."""
    distill: Distill | None = None
    """Add the divergence from the target to the loss, which may then be empty: `loss: {}`."""

    @field_validator("target", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("alpha", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"criterion": value}
        return {"fixed": value} if isinstance(value, int | float) else value
