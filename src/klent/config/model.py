"""What a recipe holds: one class a section, each field with its meaning under it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from klent.config.base import (
    Choices,
    Count,
    Decay,
    NonNegative,
    Positive,
    PositiveInt,
    Settings,
    Terms,
    Words,
)
from klent.config.mixture import Mixture
from klent.config.rewards import Reward, parse_rewards


class Lora(Settings):
    """Train low-rank adapters (through peft) instead of every weight."""

    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input; anything above 0 makes log-probs noisy."""
    target_modules: str | Words = "all-linear"
    """Which layers get adapters: `all-linear`, or a list of module names."""


class GymSettings(Settings):
    """Problems made by a reasoning-gym generator."""

    gym: str
    """Name of the generator, e.g. `chain_sum`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The generator's own parameters."""
    only: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None
    """Train on these prompts alone, by the number in their id: `chain_sum/17` is 17; null = all."""
    system: str | None = None
    """System prompt put before every problem."""
    seed: Count | None = None
    """Decides the problems; null = the recipe's seed."""


class DataSettings(Settings):
    """Problems read from a file or a Hugging Face dataset."""

    data: str
    """A .jsonl or .parquet file, or a dataset id of the hub, with a column `prompt` (text or messages)."""
    split: str = "train"
    """Part of a dataset to train on; a file has none."""
    subset: str | None = None
    """Configuration of a dataset that has several."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    """Prompts kept out of training for evaluation: a fraction below 1, or how many; null = a tenth."""
    heldout_data: str | None = None
    """Another file or dataset to hold out instead."""
    heldout_split: str | None = None
    """Part of `heldout_data` (or of `data`) to hold out."""
    prompt_column: str = "prompt"
    """Column that holds the prompts."""
    only: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None
    """Train on these prompts alone, by the number in their id: `file.jsonl:12` is 12; null = all."""
    system: str | None = None
    """System prompt put before every problem."""
    seed: Count | None = None
    """Decides split and order; null = the recipe's seed."""


def _list_rewards(value: object) -> tuple[Reward, ...] | None:
    return None if value is None else parse_rewards(value)


class Reduce(Settings):
    """How per-token losses become one number: the only place that divides."""

    over: Literal["tokens", "sequences", "constant"] = "tokens"
    """Mean over all `tokens`, or over `sequences` of their means; or a sum divided by a `constant`."""
    denominator: Positive | None = None
    """With `constant`: what each completion adds to the divisor; null = rollout.max_tokens."""
    count: Literal["selected", "all"] | None = None
    """With `select.mask`: divide by the tokens `selected` (null means so too), or by `all`."""


class Target(Settings):
    """The entropy that a thermostat aims at, nats per token: a number, `fraction`, or a ramp."""

    value: Positive | None = None
    """The same at every step; `target: 0.5` is short for `target: {value: 0.5}`."""
    fraction: Positive | None = None
    """This share of the entropy at the first step."""
    start: Positive | None = None
    """A ramp: entropy to aim at in the first step ..."""
    end: Positive | None = None
    """... and from step `steps` on, in a straight line between them."""
    steps: PositiveInt | None = None
    """Length of the ramp, training steps."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) else value


class Thermostat(Settings):
    """Holds the policy's entropy at a target, from above and from below.

    What is left out of `gain` to `high` gets a default that depends on `steer`.
    """

    target: Target
    """Nats per token: a number, {fraction: of the first step's entropy} or {start:, end:, steps:}."""
    steer: Literal["bonus", "clip_high", "kl_cov_fraction", "temperature"] = "bonus"
    """What it turns: the coefficient of an exact entropy term, a loss's `clip_high`, or what is named."""
    gain: NonNegative | None = None
    """Answer to the present error, log(target / entropy)."""
    integral: NonNegative | None = None
    """Answer to each step's error that stays: it is what leaves no error in the end."""
    derivative: NonNegative | None = None
    """Answer to the change that an update brings: it brakes before the target is passed."""
    start: float | None = None
    """Value at the first step."""
    low: float | None = None
    """Smallest value; a negative bonus is entropy minimisation."""
    high: float | None = None
    """Largest value."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = {key: item for key, item in value.items() if item is not None}
        return STEERED.get(str(value.get("steer", "bonus")), {}) | given


#: the defaults of each `thermostat.steer`; a bonus is added to, the others are turned by a factor
STEERED: dict[str, dict[str, float]] = {
    "bonus": {"gain": 2.0, "integral": 0.05, "derivative": 2.0, "start": 0.0, "low": -0.5, "high": 1.0},
    "clip_high": {"gain": 1.0, "integral": 0.3, "derivative": 1.0, "start": 0.2, "low": 0.02, "high": 5.0},
    "kl_cov_fraction": {
        "gain": 2.0,
        "integral": 0.5,
        "derivative": 2.0,
        "start": 2e-3,
        "low": 2e-5,
        "high": 1.0,
    },
    "temperature": {"gain": 0.1, "integral": 0.1, "derivative": 0.0, "start": 1.0, "low": 0.3, "high": 3.0},
}


class TransformersRollout(Settings):
    """Completions sampled from the policy with transformers."""

    engine: Literal["transformers"] = "transformers"
    """Who makes the completions."""
    max_tokens: PositiveInt = 256
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probs and entropies are those of the distribution at this temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that hold this probability; 1 = all."""
    top_k: Count = 0
    """Sample among this many likeliest tokens; 0 = all."""
    stop: Words = ()
    """Texts that end a completion, beside the model's own end token."""
    mixture: Mixture | None = None
    """Sample between the policy and a target; evaluation samples from the policy all the same."""


class DatasetRollout(Settings):
    """Completions read from the data's `completion` column: supervised fine-tuning."""

    engine: Literal["dataset"]
    """Who makes the completions."""
    max_tokens: PositiveInt = 512
    """Longest completion, in tokens; a longer one is refused, not cut."""


class Optimizer(Settings):
    """AdamW."""

    lr: Positive = 1e-6
    """Learning rate after warm-up."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.95)
    """Decay of the gradient's mean and of its square."""
    eps: Positive = 1e-8
    """Added to the square root."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: stay, or fall to 0 at the last step."""
    max_grad_norm: Positive | None = 1.0
    """Gradients longer than this are scaled down to it; null = never."""


class Update(Settings):
    """How one step's completions are turned into optimizer steps."""

    epochs: PositiveInt = 1
    """Passes over a step's completions."""
    minibatches: PositiveInt = 1
    """Optimizer steps in one pass; it must divide prompts_per_step."""
    tokens_per_microbatch: PositiveInt = 4096
    """Tokens in one forward pass: memory against speed, the gradient is the same."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Put a group's completions behind one shared prompt in one row; `auto` = where the model allows it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    released_code: bool = False
    """Take One-shot EM's released positions: all but a completion's first, and some behind its end."""


class Checkpoint(Settings):
    """When the state is saved."""

    every: Count = 10
    """Steps between checkpoints; 0 = only at the end."""
    keep: PositiveInt = 2
    """How many of the newest are kept."""


class EarlyStop(Settings):
    """Ends a run whose evaluations, without a label, say that it gains no more; `final/` is the best one."""

    signal: Literal["kept", "agreement", "entropy"] = "kept"
    """Share of answers that the vote before training gave too, share that agree, or (falling) entropy."""
    patience: PositiveInt = 2
    """Stop after so many evaluations in a row without a better one."""
    margin: NonNegative = 0.0
    """A better one is better by more than this."""


class Eval(Settings):
    """Held-out problems, solved before and after training."""

    problems: PositiveInt = 64
    """How many held-out problems."""
    samples: PositiveInt = 2
    """Completions for each."""
    every: Count = 0
    """Steps between evaluations in the course of training; 0 = none."""
    reward: Annotated[tuple[Reward, ...], Field(strict=False)] | None = None
    """What tells right from wrong, where the recipe's own reward does not; null = the recipe's reward."""
    temperatures: Annotated[tuple[NonNegative, ...], Field(strict=False)] = ()
    """Measure accuracy at these sampling temperatures too; 0 = greedy."""
    same: str | None = None
    """Count a problem's answers that mean the same, as `empo` does: a vote's accuracy; null = do not."""
    logits: bool = False
    """Measure the skewness of the logits too, on the sampled answers."""
    early_stop: EarlyStop | None = None
    """End the run when a held-out signal that needs no label stops improving; null = run every step."""

    @field_validator("reward", mode="before")
    @classmethod
    def _list_rewards(cls, value: object) -> tuple[Reward, ...] | None:
        return _list_rewards(value)


class Limits(Settings):
    """When a run gives up rather than go on for nothing."""

    unscorable_steps: PositiveInt = 3
    """Steps in a row in which no completion could be scored."""
    nonfinite_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient was not finite."""


def _task_tag(value: Any) -> str | None:
    if isinstance(value, Settings):
        return "data task" if isinstance(value, DataSettings) else "gym task"
    if not isinstance(value, dict) or ("gym" in value) == ("data" in value):
        return None
    return "gym task" if "gym" in value else "data task"


def _rollout_tag(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"{value.engine} engine" if isinstance(value, TransformersRollout | DatasetRollout) else None
    engine = value.get("engine", "transformers")
    return f"{engine} engine" if engine in ("transformers", "dataset") else None


Task = Annotated[
    Annotated[GymSettings, Tag("gym task")] | Annotated[DataSettings, Tag("data task")],
    Discriminator(
        _task_tag,
        custom_error_type="task_kind",
        custom_error_message="name one source of problems: {gym: GENERATOR} or {data: FILE or dataset id}",
    ),
]
Rollout = Annotated[
    Annotated[TransformersRollout, Tag("transformers engine")]
    | Annotated[DatasetRollout, Tag("dataset engine")],
    Discriminator(
        _rollout_tag,
        custom_error_type="rollout_engine",
        custom_error_message="`engine` is transformers (sample) or dataset (replay completions)",
    ),
]

#: the classes behind each tag of a union
TAGS: dict[str, type[Settings]] = {
    "gym task": GymSettings,
    "data task": DataSettings,
    "transformers engine": TransformersRollout,
    "dataset engine": DatasetRollout,
}


class Recipe(Settings):
    """Everything that determines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder; the recipe file's name if left out."""
    model: str
    """An alias of `klent models ls`, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights and of the arithmetic."""
    trust_remote_code: bool = False
    """Allow the model folder's own Python code to run."""
    lora: Lora | None = None
    """Train low-rank adapters; null = all weights."""
    method: str | None = None
    """Preset that lies under this recipe: a file of recipes/methods/, or a path to one of your own."""
    task: Task
    """Where problems come from."""
    reward: Annotated[tuple[Reward, ...], Field(strict=False)] | None = None
    """A name, `path/to/file.py:function`, {name: weight or {setting: value}, ...}, or a list."""
    advantage: Terms | None = None
    """One estimator of klent.objectives, e.g. {group_advantage: {scale: std}}; null = the reward itself."""
    token_reward: Terms | None = None
    """Terms added to the reward of each token, e.g. {kl_in_reward: {coef: 0.05}}."""
    loss: Terms
    """Sum of these terms: functions of klent.objectives or `path/to/file.py:function`, with settings."""
    select: Choices | None = None
    """Choices of tokens by name, e.g. {dropped: {clip_cov_tokens: {}}}; `mask`: the loss sees these alone."""
    reduce: Reduce = Reduce()
    """How the loss is averaged."""
    thermostat: Thermostat | None = None
    """Holds the policy's entropy at a target; null = it goes where the loss takes it."""
    steps: PositiveInt
    """Training steps; each samples, scores and updates once."""
    seed: Count = 0
    """With the recipe it determines the run."""
    prompts_per_step: PositiveInt = 8
    """Prompts in each step."""
    group_size: PositiveInt = 8
    """Completions of each prompt."""
    rollout: Rollout = TransformersRollout()
    """How completions are made."""
    optimizer: Optimizer = Optimizer()
    """How weights move."""
    update: Update = Update()
    """How a step's completions are used."""
    reference: str | None = None
    """Model that log-probs are compared with; null = the policy as it was at the start."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is saved."""
    eval: Eval | None = Eval()
    """Accuracy on held-out problems; null = never."""
    limits: Limits = Limits()
    """When to give up."""
    track: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], Field(strict=False)] = ()
    """Trackers beside metrics.jsonl."""

    @field_validator("reward", mode="before")
    @classmethod
    def _list_rewards(cls, value: object) -> tuple[Reward, ...] | None:
        return _list_rewards(value)
