"""The section `policy`: what is trained."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from klent.config.base import Decay, Positive, PositiveInt, Settings
from klent.streams.sets import OF_IMAGES

_HEAD_RATE = 1e-3  # of a score head where nothing else is said


class PolicySettings(Settings):
    """What every kind of policy says of itself; no key of a recipe."""

    scores: ClassVar[bool] = False  # whether it gives texts a score, and no action a probability
    language: ClassVar[bool] = True  # whether it reads and writes tokens of a vocabulary
    task: ClassVar[str] = "text"  # what it begins from, as `Task.begins`
    engine: ClassVar[str] = ""  # the rollout that it needs; empty = either of those for texts
    gives: ClassVar[frozenset[str]] = frozenset()  # streams of its passes; a language model's are not listed
    labelled: ClassVar[bool] = False  # whether its data say which policy recorded them

    def rates(self, lr: float) -> dict[str, float]:
        """Learning rates of parts with another one than `lr`, by what their parameters' names begin with."""
        return {}


class CausalSettings(PolicySettings):
    """A causal language model, which writes text."""

    kind: Literal["causal_lm"] = "causal_lm"
    """`causal_lm` writes text; `reward_model` gives each text one number, for loss: {bradley_terry: {}}; `denoiser`
    turns noise into an image step by step."""

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, value: object) -> object:
        """A config.yaml of when all kinds had the keys of all: one that says nothing is left out."""
        if isinstance(value, dict) and value.get("centre_on", ...) is None:
            return {key: item for key, item in value.items() if key != "centre_on"}
        return value


class RewardModelSettings(PolicySettings):
    """A reward model, which gives each text one number."""

    scores: ClassVar[bool] = True

    kind: Literal["reward_model"]
    """`reward_model` gives each text one number, for loss: {bradley_terry: {}}."""
    centre_on: str | None = None
    """Of a reward model: a file with `prompt` and `completion` whose mean score is set to 0 at the end, such as the
    SFT policy's answers; null = the held-out pairs."""
    head_lr: Positive | None = None
    """Of a reward model: the head's learning rate after warm-up; null = 1e-3, or optimizer.lr where that is larger. A
    new head starts at 0, and the layers learn what a text is worth only as far as the head lets them."""

    def rates(self, lr: float) -> dict[str, float]:
        """The head's."""
        return {"score.": self.head_lr or max(_HEAD_RATE, lr)}


class DenoiserSettings(PolicySettings):
    """A denoiser, whose actions are the steps from noise to an image."""

    language: ClassVar[bool] = False
    task: ClassVar[str] = "noise"
    engine: ClassVar[str] = "policy"
    gives: ClassVar[frozenset[str]] = frozenset({"logp", "entropy", "kl"}) | OF_IMAGES

    kind: Literal["denoiser"]
    """`denoiser` turns noise into an image, in `rollout.actions` steps."""
    sampler: Literal["ddpm", "ddim", "flow"] = "ddim"
    """`ddpm`: the posterior's mean with the forward process' variance; `ddim`: with `eta` times the posterior's
    standard deviation; `flow`: the stochastic equation of a straight flow, with `noise_level`."""
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of `ddim`: how much of the posterior's noise a step draws; 1 = all of it."""
    noise_level: Positive = 0.7
    """Of `flow`: a in the deviation a (t / (1 - t))^0.5 of its noise."""
    penalty: Literal["kl", "noise", "flow_grpo"] = "kl"
    """What terms read as `kl`: `kl`, the step's exact divergence from the reference (`update.kl`); `noise`, the mean
    squared difference of the predicted noise, as DPOK's released code; `flow_grpo`, the KL over coordinates times the
    step in time, as Flow-GRPO's."""

    @field_validator("eta")
    @classmethod
    def _random(cls, value: float) -> float:
        if value == 0:
            raise ValueError(
                "0 draws no noise, so a step has no density and nothing to learn from; set it above 0, such as 1"
            )
        return value


class GaussianSettings(PolicySettings):
    """A Gaussian policy, whose actions are motor commands of a robot."""

    language: ClassVar[bool] = False
    task: ClassVar[str] = "segments"
    engine: ClassVar[str] = "dataset"
    gives: ClassVar[frozenset[str]] = frozenset({"logp", "entropy", "kl"})
    labelled: ClassVar[bool] = True

    kind: Literal["gaussian"]
    """`gaussian` moves a robot; with `model: new` it is made from the seed, and else read from a run's final/."""
    form: Literal["tanh", "gaussian"] = "tanh"
    """`tanh`: a mean in [-1, 1] and a fixed standard deviation, as in CPL's code; `gaussian`: a free mean, and a
    standard deviation learnt state by state, as in PPL's paper."""
    std: Positive | None = None
    """Of `tanh`; null = 1/√(2π), whose log-density is -π‖a - mean‖², CPL's score times π."""
    hidden: PositiveInt = 512
    """Width of each hidden layer."""
    layers: PositiveInt = 2
    """Hidden layers."""
    dropout: Decay = 0.0
    """Share of each hidden layer that is left out in training; 0.25 in CPL's code."""

    @model_validator(mode="after")
    def _fixed(self) -> "GaussianSettings":
        if self.form == "gaussian" and self.std is not None:
            raise ValueError(
                "std is not used by form: gaussian, which learns it; remove it, or set form: tanh"
            )
        return self


#: the classes of the union, by tag
POLICIES: dict[str, type[Settings]] = {
    "causal_lm policy": CausalSettings,
    "reward_model policy": RewardModelSettings,
    "denoiser policy": DenoiserSettings,
    "gaussian policy": GaussianSettings,
}


def _tag(value: object) -> str | None:
    if isinstance(value, Settings):
        return next((tag for tag, section in POLICIES.items() if isinstance(value, section)), None)
    tag = f"{value.get('kind', 'causal_lm')} policy" if isinstance(value, dict) else ""
    return tag if tag in POLICIES else None


Policy = Annotated[
    Annotated[CausalSettings, Tag("causal_lm policy")]
    | Annotated[RewardModelSettings, Tag("reward_model policy")]
    | Annotated[DenoiserSettings, Tag("denoiser policy")]
    | Annotated[GaussianSettings, Tag("gaussian policy")],
    Discriminator(
        _tag,
        custom_error_type="policy_kind",
        custom_error_message="`kind` is causal_lm (writes text), reward_model (scores text), denoiser (turns noise "
        "into images) or gaussian (moves a robot)",
    ),
]
