"""Optional organs of a run: what looks on and turns knobs between steps, each with a state of its own.

The loop holds a list of them and names none. A thermostat, the mixture's share, limits, trackers, findings:
each is an organ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from klent.streams.batch import Batch
from klent.tasks import Scores
from klent.training.update import UpdateResult


@dataclass
class StepRecord:
    """What a step did.

    Attributes:
        number: of the training step, from 1.
        batch: its episodes and their streams.
        scores: what the rewards said; None where nothing was scored.
        result: what the update did.
        row: its row of metrics.jsonl, as far as it is written.
    """

    number: int
    batch: Batch
    scores: Scores | None
    result: UpdateResult
    row: dict[str, float] = field(default_factory=dict)


class Organ:
    """Hooks that do nothing; an organ overrides those it needs.

    Attributes:
        name: under which a checkpoint holds its state; different for every organ of a run.
    """

    name: str = ""

    def begin(self) -> None:
        """Before the first step of this process, after a resumed run's state is back."""

    def before_step(self, number: int) -> None:
        """Before anything of training step ``number``, from 1, is sampled."""

    def after_rollout(self, batch: Batch) -> None:
        """The step's episodes are scored and on the grid; streams may be added."""

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """The optimizer has stepped; what is returned joins the step's row of metrics."""
        return {}

    def after_record(self, step: StepRecord) -> None:
        """The step's row is written; an error raised here loses nothing."""

    def close(self) -> None:
        """The run ends, well or not."""

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint must hold for the run to go on as if it had not stopped; JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take back what :meth:`state_dict` gave."""
