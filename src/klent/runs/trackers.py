"""Trackers besides metrics.jsonl: each row goes to the trackers that a recipe names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from klent.config import Recipe, dump_recipe
from klent.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = Mapping[str, object]


class Tracker(Protocol):
    """Takes rows of metrics.jsonl."""

    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """TensorBoard, trackio and wandb behind one ``log``.

    Args:
        recipe: its ``track`` names the trackers.
        run: the run folder; TensorBoard's files go into its ``tensorboard/``.

    Raises:
        ConfigError: a tracker that is not installed.
    """

    def __init__(self, recipe: Recipe, run: Path) -> None:
        open_tracker: dict[str, Callable[[Recipe, Path], Tracker]] = {
            "tensorboard": _tensorboard,
            "trackio": _trackio,
            "wandb": _wandb,
        }
        self.open = [open_tracker[name](recipe, run) for name in recipe.track]

    def log(self, row: Row) -> None:
        """One row of metrics."""
        for tracker in self.open:
            tracker.log(row)

    def close(self) -> None:
        """Flush and close all of them."""
        for tracker in self.open:
            tracker.close()


class _TensorBoard:
    def __init__(self, writer: "SummaryWriter") -> None:
        self.writer = writer

    def log(self, row: Row) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class _Logger(Protocol):
    """What trackio and wandb have in common."""

    def log(self, data: dict[str, object], *, step: object) -> object: ...

    def finish(self) -> object: ...


class _Module:
    def __init__(self, module: _Logger) -> None:
        self.module = module

    def log(self, row: Row) -> None:
        self.module.log(dict(row), step=row["step"])

    def close(self) -> None:
        self.module.finish()


def _tensorboard(recipe: Recipe, run: Path) -> _TensorBoard:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    return _TensorBoard(SummaryWriter(str(run / "tensorboard")))


def _trackio(recipe: Recipe, run: Path) -> _Module:
    try:
        import trackio
    except ImportError:
        raise _missing("trackio") from None
    trackio.init(project="klent", name=recipe.name, config={"recipe": dump_recipe(recipe)})
    return _Module(trackio)


def _wandb(recipe: Recipe, run: Path) -> _Module:
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    wandb.init(project="klent", name=recipe.name, dir=str(run), config={"recipe": dump_recipe(recipe)})
    return _Module(wandb)


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"track: {name} is not installed. Run pip install 'klent[{name}]', or remove it from `track`."
    )
