"""When a run that no longer learns stops: nothing could be scored, or nothing was finite, for too long."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from klent.config import Limits
from klent.control.organ import Organ, StepRecord
from klent.errors import RunError
from klent.kit.text import plural


def saved_state(checkpoints: Sequence[str]) -> str:
    """What a run that stopped has kept, in a sentence; ``checkpoints`` are names, oldest first."""
    newest = f"The newest checkpoint is checkpoints/{checkpoints[-1]}." if checkpoints else None
    return newest or "There is no checkpoint yet."


class Guard(Organ):
    """Counts failed steps in a row, says why completions were unscorable, and stops a run that goes nowhere.

    Args:
        limits: the recipe's section.
        run: the run folder, for the message.
        checkpoints: names of the checkpoints that there are, oldest first.
        warn: told of each new reason for an unscorable completion, once.
    """

    name = "limits"

    def __init__(
        self,
        limits: Limits,
        run: Path,
        checkpoints: Callable[[], list[str]],
        warn: Callable[[str], None],
    ) -> None:
        self.limits = limits
        self.run = run
        self.checkpoints = checkpoints
        self.warn = warn
        self.reasons: set[str] = set()
        self.noted: set[str] = set()
        self.unscorable = 0
        self.nonfinite = 0

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """Say each new reason for an unscorable completion, and each new note of the rewards, once."""
        for note in step.scores.notes if step.scores else ():
            if note not in self.noted:
                self.noted.add(note)
                self.warn(note)
        for problem, count in (step.scores.problems if step.scores else {}).items():
            if problem not in self.reasons:
                self.reasons.add(problem)
                self.warn(f"{count} of {plural(len(step.batch), 'completion')} unscorable: {problem}")
        return {}

    def after_record(self, step: StepRecord) -> None:
        """Stop a run that goes nowhere; its last checkpoint is from before it did.

        Raises:
            RunError: as many failed steps in a row as the limits allow.
        """
        row = step.row
        self.unscorable = self.unscorable + 1 if row.get("reward/unscorable") == 1.0 else 0
        self.nonfinite = self.nonfinite + 1 if row["update/skipped"] else 0
        saved = saved_state(self.checkpoints())
        if self.unscorable >= self.limits.unscorable_steps:
            reasons = "; ".join(sorted(self.reasons)) or "the rewards returned nothing"
            raise RunError(
                f"no completion could be scored for {plural(self.unscorable, 'step')} in a row (step {step.number}): "
                f"{reasons}. Fix the reward, then `klent resume {self.run}`. {saved}"
            )
        if self.nonfinite >= self.limits.nonfinite_steps:
            raise RunError(
                f"loss or gradient was not finite for {plural(self.nonfinite, 'step')} in a row (step "
                f"{step.number}). Those updates were skipped. Lower optimizer.lr, or inspect the loss. {saved}"
            )

    def state_dict(self) -> dict[str, object]:
        """Both counts."""
        return {"unscorable": self.unscorable, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Both counts."""
        self.unscorable = int(str(state["unscorable"]))
        self.nonfinite = int(str(state["nonfinite"]))
