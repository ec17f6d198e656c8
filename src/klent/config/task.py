"""The section `task`: where problems come from."""

import datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator

from klent.config.base import Arguments, Count, Fraction, PositiveInt, Settings
from klent.config.rewards import LEAST_MEMORY, LONGEST_TIMEOUT
from klent.environments import find_environment
from klent.kit.text import plural

Numbers = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class TaskSettings(Settings):
    """What every kind of task says of itself; no key of a recipe."""

    pays: ClassVar[bool] = False  # whether it rewards what is done there, so that a recipe needs no `reward`
    paired: ClassVar[bool] = False  # two answers to each prompt, one of them better
    logged: ClassVar[bool] = False  # episodes that somebody else has played
    begins: ClassVar[str] = "text"  # what the policy begins from
    key: ClassVar[str] = ""  # the key that names the file; empty where none is read

    @property
    def extent(self) -> str:
        """What a plan says of an episode beside its tokens."""
        return ""

    def split_of(self, count: int) -> tuple[object, ...]:
        """The rows out of which problems are held out, and which; empty where those held out are others anyway.

        Args:
            count: how many are held out where the section does not say.
        """
        return ()


class Rendered(TaskSettings):
    """How the chat template renders the problems' messages."""

    template: Arguments = Field(default_factory=dict)
    """Arguments of the model's chat template, e.g. `{enable_thinking: false}`."""
    clock: Annotated[datetime.date, Field(strict=False)] | None = None
    """The day that a chat template takes for today; null = the day of the run's first start."""

    @property
    def rendering(self) -> dict[str, object]:
        """What a chat template is given beside the messages."""
        return {**self.template, **({"clock": self.clock.isoformat()} if self.clock else {})}

    def dated(self, clock: datetime.date | None) -> Self:
        """This section with the day that the template takes for today, where it names none."""
        return self if self.clock else self.model_copy(update={"clock": clock})


class GymSettings(Rendered):
    """Problems made by a reasoning-gym generator."""

    generated: ClassVar[bool] = True  # as many problems as are asked for, without columns of their own
    completions: ClassVar[tuple[str, ...]] = ()

    gym: str
    """Name of the generator, e.g. `chain_sum`."""
    config: Arguments = Field(default_factory=dict)
    """The generator's own parameters."""
    only: Numbers | None = None
    """Train on these prompts only, by the number in their id: `chain_sum/17` is 17; null = all."""
    system: str | None = None
    """System prompt placed before every problem."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What happens to problems that the model's context does not hold: an error, or another is drawn instead."""
    seed: Count | None = None
    """Decides the problems; null = the recipe's seed."""

    @property
    def source(self) -> str:
        """What a plan calls it: the generator's name."""
        return self.gym


class FileSettings(Rendered):
    """What is read from a file or a Hugging Face dataset."""

    generated: ClassVar[bool] = False
    completions: ClassVar[tuple[str, ...]] = ("completion",)  # columns that hold answers
    key: ClassVar[str] = "data"

    split: str = "train"
    """Split of a dataset to train on; a file has none."""
    subset: str | None = None
    """Configuration of a dataset that has several."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    """Prompts kept out of training for evaluation: a fraction below 1, or a count; null = as many as `eval.problems`,
    at most a tenth."""
    heldout_data: str | None = None
    """Another file or dataset to hold out instead."""
    heldout_split: str | None = None
    """Split of `heldout_data` (or of `data`) to hold out."""
    prompt_column: str = "prompt"
    """Column that holds the prompts."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns under the names that klent and rewards read, e.g. `{prompt: question, answer: answer}`."""
    only: Numbers | None = None
    """Train on these prompts only, by the number in their id: `file.jsonl:12` is 12; null = all."""
    system: str | None = None
    """System prompt placed before every problem."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What happens to prompts that the model's context does not hold: the run does not start, or goes without."""
    seed: Count | None = None
    """Decides the split and the order; null = the recipe's seed."""

    @property
    def source(self) -> str:
        """What a plan calls it: the file or dataset id."""
        return str(getattr(self, self.key))

    def split_of(self, count: int) -> tuple[object, ...]:
        """The rows out of which problems are held out, and which; the rows come first."""
        rows = (self.source, self.subset, self.split, self.prompt_column, *sorted(self.columns.items()))
        return rows, self.heldout or count, self.seed, self.heldout_data, self.heldout_split


class DataSettings(FileSettings):
    """Problems read from a file or a Hugging Face dataset."""

    data: str
    """A .jsonl, .csv or .parquet file, or a dataset id of the hub, with a column `prompt` (text or messages) or
    `messages` (a whole conversation)."""


class PairsSettings(FileSettings):
    """Preferences: two answers to each prompt, one of them better."""

    key: ClassVar[str] = "pairs"
    paired: ClassVar[bool] = True
    completions: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    pairs: str
    """A .jsonl, .csv or .parquet file, or a dataset id of the hub, with columns `chosen` and `rejected` (text or
    messages), and `prompt` unless both are conversations that begin alike."""


class Game(Settings):
    """An environment, and how an episode is played in it."""

    env: str
    """A name (maze, wordle, ...), `path/to/file.py:Class` or `package.module:Class`."""
    config: Arguments = Field(default_factory=dict)
    """Arguments of the class."""
    max_turns: PositiveInt = 8
    """An episode that is not over after so many turns is cut."""
    turn_tokens: PositiveInt | None = None
    """Longest turn, in tokens; rollout.max_tokens is for all turns of an episode together; null = only that."""
    timeout: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] = 10.0
    """Seconds allowed for each step of the environment."""
    workers: PositiveInt = 1
    """Processes that the environments of a step are spread over."""
    memory_gb: Annotated[float, Field(ge=LEAST_MEMORY)] | None = None
    """Limit of the memory of each of these processes; null = none."""

    @field_validator("env")
    @classmethod
    def _known(cls, value: str) -> str:
        find_environment(value)
        return value


class EnvironmentSettings(Game, Rendered):
    """Episodes of several turns, played in an environment."""

    pays: ClassVar[bool] = True
    completions: ClassVar[tuple[str, ...]] = ()
    heldout_data: ClassVar[None] = None

    rows: str | PositiveInt | None = None
    """What episodes begin from: the rows of a .jsonl, .csv or .parquet file, or so many seeds; null = new seeds."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    """Rows of the file kept out of training for evaluation: a fraction below 1, or a count; null = a tenth."""
    only: Numbers | None = None
    """Train on these starts only, by the number in their id: `maze/17` is 17; null = all."""
    discount: Fraction = 1.0
    """What a reward is worth one turn earlier."""
    credit: Literal["episode", "turn"] = "episode"
    """Whose advantage an action gets: of the episode's return, or of the rewards from its own turn on."""
    system: str | None = None
    """System prompt placed before every opening, which then is a message of the user."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What happens to openings that the model's context does not hold: the run does not start, or goes without."""
    seed: Count | None = None
    """Decides the starts; null = the recipe's seed."""

    @property
    def generated(self) -> bool:
        """Whether starts are seeds without columns of their own, as many as are asked for."""
        return not isinstance(self.rows, str)

    def split_of(self, count: int) -> tuple[object, ...]:
        """The rows out of which problems are held out, and which; empty where starts are seeds."""
        return () if self.generated else (self.rows, self.heldout or count, self.seed, None, None)

    @property
    def source(self) -> str:
        """What a plan calls it: the environment's name."""
        return self.env

    @property
    def extent(self) -> str:
        """What a plan says of an episode beside its tokens."""
        longest = f" of at most {plural(self.turn_tokens, 'token')}" if self.turn_tokens else ""
        return f", in at most {self.max_turns} turn{'s' * (self.max_turns > 1)}{longest}; credit by {self.credit}"


class TrajectorySettings(FileSettings):
    """Logged play: episodes of several turns, with what each turn earned."""

    key: ClassVar[str] = "trajectories"
    logged: ClassVar[bool] = True
    completions: ClassVar[tuple[str, ...]] = ("trajectory",)

    trajectories: str
    """A .jsonl, .csv or .parquet file, or a dataset id of the hub: lines of `klent play --record`, `messages` with
    `rewards`, one for each answer of the assistant, or logs of LMRL-Gym (Wordle, maze, questions, car dealer)."""
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on this share of the episodes, those with the largest returns; null = on all."""
    discount: Fraction = 1.0
    """What a reward is worth one turn earlier."""
    returns: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Least and most that can be earned from any turn on, for values in [0, 1]; null = of the episodes read."""

    @field_validator("returns")
    @classmethod
    def _in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(
                f"the first number, {value[0]:g}, is the least return and must be below the second, {value[1]:g}"
            )
        return value


class NoiseSettings(TaskSettings):
    """Noise that a denoiser turns into images: ever new draws, and others held out."""

    begins: ClassVar[str] = "noise"
    generated: ClassVar[bool] = True
    completions: ClassVar[tuple[str, ...]] = ()
    clock: ClassVar[None] = None
    only: ClassVar[None] = None
    too_long: ClassVar[Literal["refuse"]] = "refuse"
    heldout_data: ClassVar[None] = None
    seed: ClassVar[None] = None

    noise: PositiveInt
    """Coordinates of an image, drawn from the recipe's seed."""
    images: str | None = None
    """A NumPy file (.npy) of images, one per row, for a term that denoises data (`denoising`)."""

    @property
    def source(self) -> str:
        """What a plan calls it."""
        return f"noise of {self.noise} coordinates"

    def dated(self, clock: datetime.date | None) -> Self:
        """Noise reads the same on every day."""
        return self


class SegmentSettings(TaskSettings):
    """Segments that `klent collect` has recorded of a robot: imitated one by one, or compared two by two."""

    begins: ClassVar[str] = "segments"
    generated: ClassVar[bool] = False
    clock: ClassVar[None] = None
    only: ClassVar[None] = None
    too_long: ClassVar[Literal["refuse"]] = "refuse"
    heldout_data: ClassVar[None] = None
    seed: ClassVar[None] = None

    segments: str
    """Folder of the collection."""
    by: Literal["regret", "return", "success"] = "regret"
    """What a segment is preferred, or kept, for: little regret, a large return, or success."""
    compare: Literal["all"] | PositiveInt | None = None
    """Pairs to learn from: `all` = every segment is ranked, and each pair is a new one ("dense"); a number = so many
    pairs, again and again ("sparse"); null = none, segments are imitated."""
    keep: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Use only this share of the segments, the best ones; null = all."""
    workers: PositiveInt = 2
    """Processes with a simulator, for the episodes of `eval`."""

    @property
    def paired(self) -> bool:  # type: ignore[override]
        """Whether two segments are compared."""
        return self.compare is not None

    @property
    def completions(self) -> tuple[str, ...]:
        """What a prompt names: a segment, or two."""
        return ("chosen", "rejected") if self.paired else ("segment",)

    @property
    def source(self) -> str:
        """What a plan calls it."""
        return f"segments of {self.segments}"

    def dated(self, clock: datetime.date | None) -> Self:
        """Segments read the same on every day."""
        return self


class PlaySettings(Game):
    """The game in which a policy is judged that learns from logged play; it begins, and reads, as `task` says."""

    rows: str | None = None
    """What held-out episodes begin from: the rows of a .jsonl, .csv or .parquet file; null = held-out seeds."""

    def as_task(self, task: GymSettings | FileSettings | EnvironmentSettings) -> EnvironmentSettings:
        """The starts as a task, with the template, the system prompt and the seed of the task that is trained on."""
        return EnvironmentSettings(
            **{name: getattr(self, name) for name in type(self).model_fields},
            template=task.template,
            clock=task.clock,
            system=task.system,
            too_long=task.too_long,
            seed=task.seed,
        )


#: the classes of the union, by tag
TASKS: dict[str, type[Settings]] = {
    "gym task": GymSettings,
    "data task": DataSettings,
    "pairs task": PairsSettings,
    "environment task": EnvironmentSettings,
    "trajectories task": TrajectorySettings,
    "noise task": NoiseSettings,
    "segments task": SegmentSettings,
}
#: the key that tells each of them
KEYS = {
    "gym": "gym task",
    "data": "data task",
    "pairs": "pairs task",
    "env": "environment task",
    "trajectories": "trajectories task",
    "noise": "noise task",
    "segments": "segments task",
}


def _tag(value: object) -> str | None:
    if isinstance(value, Settings):
        return next((tag for tag, section in TASKS.items() if isinstance(value, section)), None)
    tags = [tag for key, tag in KEYS.items() if isinstance(value, dict) and key in value]
    return tags[0] if len(tags) == 1 else None


Task = Annotated[
    Annotated[GymSettings, Tag("gym task")]
    | Annotated[DataSettings, Tag("data task")]
    | Annotated[PairsSettings, Tag("pairs task")]
    | Annotated[EnvironmentSettings, Tag("environment task")]
    | Annotated[TrajectorySettings, Tag("trajectories task")]
    | Annotated[NoiseSettings, Tag("noise task")]
    | Annotated[SegmentSettings, Tag("segments task")],
    Discriminator(
        _tag,
        custom_error_type="task_kind",
        custom_error_message="name one source: {gym: GENERATOR}, {data: FILE or dataset id}, "
        "{env: NAME or path/to/file.py:Class}, {pairs: FILE} of preferences, {trajectories: FILE} of logged play, or "
        "{noise: COORDINATES} for a denoiser, {segments: FOLDER} for a robot",
    ),
]
