"""Sections about the update: adapters, reduction, optimizer, and how a step's completions are used."""

from typing import Annotated, Literal

from pydantic import Field

from klent.config.base import Count, Decay, Fraction, Names, NonNegative, Positive, PositiveInt, Settings


class Lora(Settings):
    """Train low-rank adapters (through peft) instead of every weight."""

    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input; anything above 0 makes log-probs noisy."""
    target_modules: str | Names = "all-linear"
    """Which layers get adapters: `all-linear`, or a list of module names."""


class Reduce(Settings):
    """How per-token losses become one number: the only place that divides."""

    over: Literal["tokens", "sequences", "constant", "pairs"] = "tokens"
    """Mean over `tokens`, or `sequences` of their token means; or a sum divided by a `constant` or the `pairs`."""
    denominator: Positive | None = None
    """With `constant`: what each completion adds to the divisor; null = rollout.max_tokens."""
    count: Literal["selected", "all"] | None = None
    """With `select.mask`: divide by the number of `selected` tokens, or of `all`; null = selected."""


class Optimizer(Settings):
    """AdamW."""

    lr: Positive = 1e-6
    """Learning rate after warm-up."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.95)
    """Decay rates of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the square root in the denominator."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices only."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay constant, or decay to 0 at the last step."""
    max_grad_norm: Positive | None = 1.0
    """Gradients with a larger norm are scaled down to it; null = never."""


class ExactKL(Settings):
    """Which divergence from the reference the stream `kl` is, over the whole vocabulary."""

    divergence: Literal["reverse", "forward", "jeffreys"] = "reverse"
    """`reverse`: KL(policy ‖ reference); `forward`: KL(reference ‖ policy); `jeffreys`: their sum."""
    skew: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the first distribution in the second: bounds the divergence by -log(skew)."""


class Update(Settings):
    """How one step's completions are turned into optimizer steps."""

    epochs: PositiveInt = 1
    """Passes over a step's completions."""
    minibatches: PositiveInt = 1
    """Optimizer steps per pass; it must divide prompts_per_step."""
    tokens_per_microbatch: PositiveInt = 4096
    """Tokens per forward pass: trades memory for speed, the gradient is the same."""
    distance: Literal["tv", "kl"] | None = None
    """What terms read as `distance` from the policy as it sampled: `tv`, `kl` KL(then ‖ now), or null = nothing."""
    packing: Literal["auto", "on", "off", "full"] = "auto"
    """Share a group's prompt in a row: `auto` = where the model allows it; `full`: also join prompts, unpadded."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    keep_logits: Literal["auto"] | Count = "auto"
    """MB of logits that the forward pass leaves to the backward pass, which else computes them again; `auto` = a 64th
    of the memory, 0 with gradient_checkpointing. A pass that also computes the exact KL (`kl`) leaves none."""
    kl: ExactKL = ExactKL()
    """The divergence that terms reading `kl` (sequence_kl, token_kl) penalise."""
    released_code: bool = False
    """Use the token positions of One-shot EM's released code: skip the first, add some past the end."""


class Critic(Settings):
    """What expects the reward still to come at each token: a head on the policy's layers, or on layers of its own."""

    trunk: Literal["own", "shared"] = "own"
    """`own`: a second model; `shared`: the policy's layers, which the value loss then moves too."""
    model: str | None = None
    """Where an own trunk starts, such as a reward model's folder; null = the policy as it was at the start."""
    lr: Positive | None = None
    """Its learning rate after warm-up; null = optimizer.lr."""


class AdaptiveKL(Settings):
    """Turns the coefficient of the KL to the reference until the KL of completions is at a target."""

    target: Positive
    """KL(policy ‖ reference) of a whole completion to aim at, nats."""
    horizon: PositiveInt = 10_000
    """Completions over which an error of 20 % or more turns the coefficient by 20 %."""


class Bellman(Settings):
    """Values learnt from logged play: what terms that read `weight` are told of each action."""

    target: Literal["bellman", "value", "returns", "constant"] = "bellman"
    """`bellman`: the turn's reward and the best supported ratio that follows, p(a)/reference(a), p the target
    network; `value`: the turn's reward and the critic's value of what follows; `returns`: what was earned from the
    turn on; `constant`: `weight`, the same for every action."""
    weight: Annotated[float, Field(gt=0, le=1)] | None = None
    """What `target: constant` gives every action; the mean of another run is `bellman/target` of its metrics."""
    rate: Fraction = 0.005
    """Share of the policy's weights that joins the target network after each step; 1 = it is the policy itself."""
    min_behaviour: Decay = 0.01
    """Actions less likely than this under the reference, the model of the data, are not among what can follow, and
    are never played."""
    beta: NonNegative = 8.0
    """How far the player tilts the reference towards what is valuable; 0 = it plays the reference itself."""
    form: Literal["ratio", "probability", "logit"] = "ratio"
    """The player: reference(a) exp(beta p(a)/reference(a)), or Q-SFT's paper's, reference(a) exp(beta p(a)); where
    logits are values (`target: value`), reference(a) exp(beta logit(a))."""


class Checkpoint(Settings):
    """When the state is saved."""

    every: Count = 10
    """Steps between checkpoints; 0 = only at the end."""
    keep: PositiveInt = 2
    """How many of the newest are kept."""
