"""Trackers besides metrics.jsonl: each row goes to the trackers that a recipe names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
        names: of the trackers.
        run: the run folder; TensorBoard's files go into its ``tensorboard/``.
        title: of the run.
        recipe: its text, for the trackers that keep one.

    Raises:
        ConfigError: a tracker that is not installed.
    """

    def __init__(self, names: Sequence[str], run: Path, *, title: str, recipe: str) -> None:
        open_tracker: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: _tensorboard(run),
            "trackio": lambda: _trackio(title, recipe),
            "wandb": lambda: _wandb(run, title, recipe),
        }
        self.open = [open_tracker[name]() for name in names]

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


def _tensorboard(run: Path) -> _TensorBoard:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    return _TensorBoard(SummaryWriter(str(run / "tensorboard")))


def _trackio(title: str, recipe: str) -> _Module:
    try:
        import trackio
    except ImportError:
        raise _missing("trackio") from None
    trackio.init(project="klent", name=title, config={"recipe": recipe})
    return _Module(trackio)


def _wandb(run: Path, title: str, recipe: str) -> _Module:
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    wandb.init(project="klent", name=title, dir=str(run), config={"recipe": recipe})
    return _Module(wandb)


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"track: {name} is not installed. Run pip install 'klent[{name}]', or remove it from `track`."
    )
