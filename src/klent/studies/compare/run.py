"""One run after another; what is done is skipped, what was stopped goes on, and the page grows with them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from klent.errors import RunError
from klent.kit.text import duration
from klent.runs.console import TrainConsole
from klent.studies.compare.divergence import FILE, measure_divergence
from klent.studies.compare.page import write_page
from klent.studies.compare.plan import ComparisonPlan, PlannedRun


class Stopped(RunError):
    """Ctrl-C was pressed; what was reached is saved."""


class ShortConsole(TrainConsole):
    """A run in one line: its live line while it goes on, warnings, and nothing of its start and end."""

    def __init__(self, console: Console, label: str) -> None:
        super().__init__(console)
        self._label = label

    def start(self, recipe: Any, plan: Any = None, *, done: int = 0) -> None:
        self._steps, self._done, self._began = recipe.steps, done, time.monotonic()
        self._print(f"{self._label}: " + (f"goes on after step {done}" if done else f"{recipe.steps} steps"))
        if self.live:
            self._open_progress()

    def step(self, row: Mapping[str, Any]) -> None:
        self._done, self._last, self._phase = int(row["step"]), row, ""
        self._timed.append(float(row.get("time/step", 0.0)))
        self._update_live(redraw=True)

    def eval(self, row: Mapping[str, Any]) -> None:
        """Evaluations are told of at the end, and on the page."""

    def finish(
        self,
        run: Path,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        *,
        early: bool = False,
    ) -> None:
        self.close()
        if before and after:
            change = [f"{before[key]:.3f} → {after[key]:.3f}" for key in ("accuracy", "entropy")]
            took = duration(time.monotonic() - self._began)
            self._print(f"  pass@1 {change[0]}, entropy {change[1]} nats, {took}")


def run_comparison(plan: ComparisonPlan, *, command: str, console: Console) -> Path:
    """Train and measure every run that is not done yet, and write the page after each.

    A run that fails (its numbers blow up, its rewards cannot be had) is told of and left; the others go on.

    Args:
        plan: the runs.
        command: the command line that repeats or goes on with the comparison.
        console: where to say what happens.

    Returns:
        The page.

    Raises:
        Stopped: Ctrl-C; the step under way was finished and saved.
        RunError: one or more runs failed; the others are done and on the page.
    """
    failed: dict[str, str] = {}
    go_on = f"go on with: {command}"
    for number, run in enumerate(plan.runs, start=1):
        label = f"{number}/{len(plan.runs)} {run.folder.name}"
        try:
            if not _finish(run, label, command, console):
                write_page(plan, command=command, failed=failed)
                raise Stopped(f"stopped in {run.folder.name}; it is saved; {go_on}")
        except KeyboardInterrupt:
            raise Stopped(f"stopped at once in {run.folder.name}; {go_on}") from None
        except Stopped:
            raise
        except RunError as error:
            failed[run.folder.name] = str(error)
            console.print(Text(f"  {run.folder.name} failed: {error}", style="red"), soft_wrap=True)
        write_page(plan, command=command, failed=failed)
    page = write_page(plan, command=command, failed=failed)
    if failed:
        names = ", ".join(failed)
        raise RunError(f"{len(failed)} of {len(plan.runs)} runs failed ({names}); the others are in {page}")
    return page


def _finish(run: PlannedRun, label: str, command: str, console: Console) -> bool:
    """Bring one run to its end and measure it; False where Ctrl-C stopped it on the way."""
    if run.state == "done" and (run.folder / FILE).is_file():
        console.print(Text(f"{label}: done before", style="dim"))
        return True
    if run.state != "done":
        from klent.runs.train import train

        short = ShortConsole(console, label)
        train(run.recipe, run.folder, command=command, resume=run.state == "started", console=short)
        if run.state != "done":
            return False
    measure_divergence(run.recipe, run.folder)
    return True
