"""The section `rollout.mixture`: sampling between the policy and a target."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from klent.config.base import Fraction, NonNegative, Positive, PositiveInt, Settings


class MixtureTarget(Settings):
    """What the policy is mixed with; `target: NAME` is short for `target: {model: NAME}`."""

    model: str = "reference"
    """`reference` (the recipe's, or the policy as it was at the start), the current `policy`, or a model."""
    adapter: str | None = None
    """Folder of a LoRA adapter to put on that model."""
    prompt: str | None = None
    """Its user message: `{prompt}` is the policy's, `{answer}` a column of the data; null = the same."""
    system: str | None = None
    """Its system message; null = the same."""
    temperature: Positive | None = None
    """Divides its logits; null = rollout.temperature."""


class Alpha(Settings):
    """Weight of the policy in the mixture: a number, a ramp, one value per prompt, or solved per token."""

    fixed: Fraction | None = None
    """The same for every token; `alpha: 0.5` is short for `alpha: {fixed: 0.5}`."""
    criterion: Literal["chernoff", "snr", "kl_budget", "entropy", "ess"] | None = None
    """Solves it per token, see klent.mixture.solve_alpha; `alpha: chernoff` is short for this."""
    value: Positive | None = None
    """What the criterion aims at: nats for `kl_budget` and `entropy`, a fraction for `ess`."""
    start: Fraction | None = None
    """First step of a linear ramp, or of a path that follows the policy's reward."""
    end: Fraction | None = None
    """End of a ramp: alpha from step `steps` on."""
    steps: PositiveInt | None = None
    """Length of the ramp, training steps."""
    until_reward: Positive | None = None
    """End of a path: alpha is 1 once the policy's mean reward reaches this, and linear in it before."""
    column: str | None = None
    """The column of the data that holds each prompt's alpha."""


class Weights(Settings):
    """Importance weights policy/q on the loss of every token: they correct for sampling from q."""

    ratio: Literal["token", "sequence"] = "token"
    """Per `token` (less variance; ignores the prefix's ratio) or per `sequence` (exact)."""
    low: Fraction = 0.0
    """Smallest ratio."""
    high: Annotated[float, Field(ge=1)] | None = 2.0
    """Largest ratio; null = no bound."""
    outside: Literal["truncate", "drop"] = "truncate"
    """A ratio out of bounds is moved to the bound, or its token is left out of the loss."""
    normalise: bool = True
    """Divide by the mean weight of the step: self-normalised importance sampling."""


class Distill(Settings):
    """The divergence from the target at every sampled token, over the whole vocabulary, added to the loss."""

    divergence: Literal["forward", "reverse", "jeffreys"] = "reverse"
    """KL(target ‖ policy), mass-covering; `reverse`: KL(policy ‖ target), mode-seeking; or their sum."""
    skew: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the first distribution in the second: bounds the divergence by -log(skew)."""
    forward_above: NonNegative | None = None
    """Beside `reverse`, add the forward KL where the target's entropy exceeds this, nats; null = nowhere."""
    coef: Positive = 1.0
    """Loss per nat."""


class MixtureSettings(Settings):
    """Completions from q ∝ policy^alpha · target^(1 - alpha), token by token."""

    target: MixtureTarget = MixtureTarget()
    """What the policy is mixed with."""
    alpha: Alpha = Alpha(criterion="chernoff")
    """Number, chernoff, {criterion:, value:}, {start:, end:, steps:}, {start:, until_reward:}, {column:}."""
    weights: Weights | None = Weights()
    """Corrects the loss for sampling from q; null = learn from q's samples as they are."""
    distill: Distill | None = None
    """Add the divergence from the target to the loss, which may then be empty: `loss: {}`."""

    @field_validator("target", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("alpha", mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, str):
            return {"criterion": value}
        return {"fixed": value} if isinstance(value, int | float) else value
