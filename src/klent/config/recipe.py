"""A whole recipe: every section, each key with its meaning under it."""

import datetime
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from klent.config.base import Choices, Count, PositiveInt, Settings, Terms
from klent.config.evaluation import Eval, Limits, Rewards, list_rewards
from klent.config.policy import POLICIES, CausalSettings, Policy
from klent.config.precision import Precision
from klent.config.rollout import ROLLOUTS, DatasetRollout, PolicyRollout, Rollout, TransformersRollout
from klent.config.task import TASKS, EnvironmentSettings, NoiseSettings, SegmentSettings, Task
from klent.config.thermostat import Thermostat
from klent.config.training import AdaptiveKL, Bellman, Checkpoint, Critic, Lora, Optimizer, Reduce, Update
from klent.errors import ConfigError

#: the classes behind each tag of a union
TAGS: dict[str, type[Settings]] = {**TASKS, **ROLLOUTS, **POLICIES}


class Recipe(Settings):
    """Everything that determines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """Name of the run and of its folder; by default the recipe file's name."""
    model: str
    """An alias of `klent models ls`, a local folder, or a hub id."""
    device: str = "auto"
    """Where it runs: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    precision: Precision = Precision()
    """Which numbers hold the weights, and which the model computes in."""
    attention: Literal["auto", "sdpa", "eager", "flash", "flex"] = "auto"
    """auto = sdpa where it gives the numbers of an eager pass, else eager. flash and flex are held against it."""
    trust_remote_code: bool = False
    """Allow the model folder's own Python code to run."""
    lora: Lora | None = None
    """Train low-rank adapters; null = all weights."""
    method: str | None = None
    """Preset below this recipe: a name from recipes/methods/, or the path of your own."""
    policy: Policy = CausalSettings()
    """What is trained: a model that writes, one that scores, or one that turns noise into images."""
    task: Task
    """Where problems come from."""
    reward: Rewards | None = None
    """A name, `path/to/file.py:function`, {name: weight or {setting: value}, ...}, or a list."""
    advantage: Terms | None = None
    """One estimator of klent.objectives, e.g. {group_advantage: {scale: std}}; null = the reward itself."""
    token_reward: Terms | None = None
    """Terms added to the reward of each token, e.g. {kl_in_reward: {coef: 0.05}}."""
    loss: Terms
    """Sum of these terms: functions of klent.objectives or `path/to/file.py:function`, with settings."""
    select: Choices | None = None
    """Choices of tokens by name, e.g. {dropped: {clip_cov_tokens: {}}}; the loss is limited to `mask`."""
    weigh: Choices | None = None
    """Weights by the term of the loss that they multiply, e.g. {ppo_clip: {steer_weight: {}}}."""
    reduce: Reduce = Reduce()
    """How the loss is averaged."""
    thermostat: Thermostat | None = None
    """Holds the policy's entropy at a target; null = entropy is left to the loss."""
    steps: PositiveInt
    """Training steps; each samples, scores and updates once."""
    seed: Count = 0
    """With the recipe it determines the run."""
    prompts_per_step: PositiveInt = 8
    """Prompts per step."""
    group_size: PositiveInt = 8
    """Completions per prompt."""
    rollout: Rollout = TransformersRollout()
    """How completions are made."""
    optimizer: Optimizer = Optimizer()
    """How weights move."""
    update: Update = Update()
    """How a step's completions are used."""
    critic: Critic | None = None
    """Expects the reward still to come, for advantage: {gae: {}} and loss: {value: {}}; null = there is none."""
    adaptive_kl: AdaptiveKL | None = None
    """Turns the coefficient of the term that holds the policy to its reference; null = it stays."""
    bellman: Bellman | None = None
    """Values learnt from task.trajectories, for loss: {weighted_cross_entropy: {}}; null = there are none."""
    reference: str | None = None
    """Model that log-probs are compared with, the data's in `bellman`; null = the policy as it was at the start."""
    distributed: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """auto = the ranks that torchrun started, each with all weights; ddp insists on several, fsdp shards the weights
    over them, none insists on one."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is saved."""
    eval: Eval | None = Eval()
    """Reward (accuracy, where it is 0 or 1) on held-out problems; null = never."""
    limits: Limits = Limits()
    """When to abort a failing run."""
    track: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], Field(strict=False)] = ()
    """Trackers besides metrics.jsonl."""

    @field_validator("reward", mode="before")
    @classmethod
    def _list_rewards(cls, value: object) -> object:
        return list_rewards(value)

    @field_validator("device")
    @classmethod
    def _named_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"should be auto, cpu, cuda or cuda:N; got {value!r}")
        return value

    @property
    def judged(self) -> bool:
        """Whether an evaluation has held-out problems answered, which something has to judge."""
        if self.eval is None or self.policy.scores:
            return False
        rewarded = self.reward is not None or self.eval.reward is not None
        return rewarded or self.task.pays or self.eval.play is not None

    @property
    def game(self) -> EnvironmentSettings | None:
        """The game that held-out episodes are played in; None where problems are answered once."""
        play = None if self.eval is None else self.eval.play
        if play is not None and not isinstance(self.task, NoiseSettings | SegmentSettings):
            return play.as_task(self.task)
        return self.task if isinstance(self.task, EnvironmentSettings) else None

    @property
    def text_rollout(self) -> TransformersRollout | DatasetRollout:
        """How texts are made or read.

        Raises:
            ConfigError: the policy has none.
        """
        if isinstance(self.rollout, PolicyRollout):
            raise ConfigError(
                f"{self.name} trains a {self.policy.kind}, which reads and writes no text. `klent eval`, `export`, "
                "`compare` and `report` take its runs"
            )
        if self.distributed == "fsdp" and not isinstance(self.rollout, DatasetRollout):
            return self.rollout.model_copy(update={"decoding": "eager"})  # weights lie elsewhere in each step
        return self.rollout

    def dated(self, clock: datetime.date | None) -> Self:
        """The recipe with the day that chat templates take for today, where it names none."""
        return self.model_copy(update={"task": self.task.dated(clock)})
