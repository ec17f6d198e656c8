"""The section `task`: where problems come from."""

from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from klent.config.base import Arguments, Count, PositiveInt, Settings

Numbers = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class GymSettings(Settings):
    """Problems made by a reasoning-gym generator."""

    generated: ClassVar[bool] = True  # as many problems as are asked for, without columns of their own

    gym: str
    """Name of the generator, e.g. `chain_sum`."""
    config: Arguments = Field(default_factory=dict)
    """The generator's own parameters."""
    only: Numbers | None = None
    """Train on these prompts only, by the number in their id: `chain_sum/17` is 17; null = all."""
    system: str | None = None
    """System prompt placed before every problem."""
    seed: Count | None = None
    """Decides the problems; null = the recipe's seed."""

    @property
    def source(self) -> str:
        """What a plan calls it: the generator's name."""
        return self.gym


class DataSettings(Settings):
    """Problems read from a file or a Hugging Face dataset."""

    generated: ClassVar[bool] = False

    data: str
    """A .jsonl or .parquet file, or a dataset id of the hub, with a column `prompt` (text or messages)."""
    split: str = "train"
    """Split of a dataset to train on; a file has none."""
    subset: str | None = None
    """Configuration of a dataset that has several."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = None
    """Prompts kept out of training for evaluation: a fraction below 1, or a count; null = a tenth."""
    heldout_data: str | None = None
    """Another file or dataset to hold out instead."""
    heldout_split: str | None = None
    """Split of `heldout_data` (or of `data`) to hold out."""
    prompt_column: str = "prompt"
    """Column that holds the prompts."""
    only: Numbers | None = None
    """Train on these prompts only, by the number in their id: `file.jsonl:12` is 12; null = all."""
    system: str | None = None
    """System prompt placed before every problem."""
    seed: Count | None = None
    """Decides the split and the order; null = the recipe's seed."""

    @property
    def source(self) -> str:
        """What a plan calls it: the file or dataset id."""
        return self.data


#: the classes of the union, by tag
TASKS: dict[str, type[Settings]] = {"gym task": GymSettings, "data task": DataSettings}


def _tag(value: object) -> str | None:
    if isinstance(value, Settings):
        return next((tag for tag, section in TASKS.items() if isinstance(value, section)), None)
    if not isinstance(value, dict) or ("gym" in value) == ("data" in value):
        return None
    return "gym task" if "gym" in value else "data task"


Task = Annotated[
    Annotated[GymSettings, Tag("gym task")] | Annotated[DataSettings, Tag("data task")],
    Discriminator(
        _tag,
        custom_error_type="task_kind",
        custom_error_message="name one source of problems: {gym: GENERATOR} or {data: FILE or dataset id}",
    ),
]
