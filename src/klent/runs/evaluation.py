"""The held-out evaluations of a run: before, in its course, after; and when they end it early."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from klent.config import EarlyStop
from klent.control.early_stop import best_row, is_over
from klent.errors import RunError
from klent.io.files import append_line, read_steps
from klent.kit.text import plural
from klent.measure.score import is_judged, is_scored
from klent.runs.folder import RunFolder

EvalRow = dict[str, object]

Exam = Callable[[int, Sequence[str | None] | None], EvalRow]
"""Measures the policy as it stands: (step, the vote before training or None) -> a row, or a part of one."""


class Evaluations:
    """Rows of eval.jsonl, one per step that is evaluated.

    Args:
        folder: the run's.
        exams: what an evaluation measures, such as answers to held-out problems, or held-out pairs; their rows
            are joined. Empty where the recipe has no evaluation.
        every: steps between two, 0 = none in the course of training.
        early_stop: ends the run by a signal of the evaluations.
        keep_best: saves the policy as it stands as the best so far.
        show: shows a row.
    """

    name = "evaluations"

    def __init__(
        self,
        folder: RunFolder,
        exams: Sequence[Exam],
        *,
        every: int,
        early_stop: EarlyStop | None,
        keep_best: Callable[[], None],
        show: Callable[[EvalRow], None],
    ) -> None:
        self.folder = folder
        self.exams = list(exams)
        self.every = every
        self.early_stop = early_stop
        self.keep_best = keep_best
        self.show = show
        self.over = False

    @property
    def rows(self) -> list[EvalRow]:
        """Every row so far; the recorder says where one is damaged."""
        return list(read_steps(self.folder.eval, on_damage=lambda line: None))

    def at(self, step: int) -> None:
        """Evaluate after ``step``, unless that row is there already.

        Raises:
            RunError: before training, and nothing could be scored.
        """
        rows = self.rows
        if not self.exams or any(row["step"] == step for row in rows):
            return
        votes = [row.get("vote") for row in rows if row["step"] == 0]
        parts = [exam(step, votes[0] if votes else None) for exam in self.exams]  # type: ignore[arg-type]
        row = {name: value for part in parts for name, value in part.items()}
        row["seconds"] = sum(float(str(part["seconds"])) for part in parts)
        if step == 0 and is_judged(row) and not is_scored(row):
            raise RunError(unscored(row, self.folder.path))
        append_line(self.folder.eval, row)
        self.show(row)
        if self.early_stop is not None:
            rows = self.rows
            stop = self.early_stop
            self.over = is_over(rows, stop.signal, stop.margin, stop.patience)
            if self.best(step) == step:
                self.keep_best()

    def if_due(self, step: int) -> None:
        """Evaluate in the course of training."""
        if self.every and step % self.every == 0:
            self.at(step)

    def best(self, last: int) -> int:
        """The step whose weights ``final/`` holds: of the best evaluation where the run stops early."""
        rows = self.rows
        if self.early_stop is None or not rows:
            return last
        return int(str(best_row(rows, self.early_stop.signal, self.early_stop.margin)["step"]))

    def row_of(self, step: int) -> EvalRow | None:
        """The row of a step."""
        return {row["step"]: row for row in self.rows}.get(step)

    def state_dict(self) -> dict[str, object]:
        """Whether the evaluations have ended the run."""
        return {"over": self.over}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Whether the evaluations have ended the run."""
        self.over = bool(state["over"]) and self.early_stop is not None


def unscored(row: EvalRow, run: Path) -> str:
    """Why a run whose first evaluation could not be scored does not begin."""
    why = row.get("unscorable_why")
    reasons = "; ".join(why) if isinstance(why, dict) and why else "the rewards returned nothing"
    return (
        f"no completion of the {plural(int(str(row['problems'])), 'held-out problem')} could be scored: {reasons}. "
        f"Fix the reward, then `klent resume {run}`; or measure nothing held out: eval=null"
    )
