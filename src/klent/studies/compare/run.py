"""Trains the runs of a comparison: finished ones are skipped, stopped ones resumed, the page updated."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from klent.errors import RunError
from klent.kit.tables import Row, finite, step_of
from klent.kit.text import duration, plural
from klent.measure.score import LABELS, is_judged, is_scored, kind_of, score_of
from klent.runs.console import TrainConsole
from klent.studies.compare.divergence import FILE, write_divergence
from klent.studies.compare.page import write_page
from klent.studies.compare.plan import ComparisonPlan, PlannedRun

SHARE = 20
"""The page is redrawn while runs finish in at most one part in 20 of the time."""


class Stopped(RunError):
    """Ctrl-C was pressed; progress is saved."""


class ShortConsole(TrainConsole):
    """A run in one line: a live line while it trains, warnings, and no start or end messages."""

    def __init__(self, console: Console, label: str) -> None:
        super().__init__(console)
        self._label = label

    def start(self, title: str, plan: Sequence[str], *, steps: int, done: int = 0) -> None:
        self._steps, self._done, self._began = steps, done, time.monotonic()
        self._print(
            f"{self._label}: " + (f"continues after step {done}" if done else f"{plural(steps, 'step')}")
        )
        if self.live:
            self._open_progress()

    def step(self, row: Row) -> None:
        self._done, self._last, self._phase = step_of(row), row, ""
        self._timed.append(finite(row.get("time/step")) or 0.0)
        self._update_live(redraw=True)

    def eval(self, row: Row) -> None:
        """Evaluations are reported at the end, and on the page."""

    def finish(
        self,
        run: Path,
        before: Row | None,
        after: Row | None,
        *,
        early: bool = False,
    ) -> None:
        self.close()
        if before and after:
            took = duration(time.monotonic() - self._began)
            self._print(f"  {', '.join([*changes(before, after), took])}")


def changes(before: Row, after: Row) -> list[str]:
    """What evaluations before and after a run have measured, each in a few words.

    >>> changes({"loss": 2.0}, {"loss": 1.5})
    ['loss 2.000 → 1.500 nats per token']
    """
    both = (before, after)
    said = []
    if any(map(is_judged, both)):
        kind = kind_of([row for row in both if is_scored(row)])
        name = "pass@1" if kind == "accuracy" else LABELS[kind]
        scores = [score_of(row, kind) for row in both]
        change = " → ".join("not scored" if score is None else f"{score.value:.3f}" for score in scores)
        said.append(f"{name} {change}")
    for key, unit in (("loss", "nats per token"), ("entropy", "nats")):
        values = [finite(row.get(key)) for row in both]
        if None not in values:
            said.append(f"{key} {' → '.join(f'{value:.3f}' for value in values)} {unit}")
    return said


class Redraw:
    """Writes the page when it is due: drawing reads every run, so it may take a twentieth of the time.

    Args:
        write: writes the page.
    """

    def __init__(self, write: Callable[[], Path]) -> None:
        self._write = write
        self._due = 0.0

    def now(self) -> Path:
        """Write the page."""
        began = time.monotonic()
        page = self._write()
        ended = time.monotonic()
        self._due = ended + (SHARE - 1) * (ended - began)
        return page

    def if_due(self) -> None:
        """Write the page if that keeps its share of the time."""
        if time.monotonic() >= self._due:
            self.now()


def run_comparison(plan: ComparisonPlan, *, command: str, console: Console) -> Path:
    """Train and measure every run that is not done yet; the page is written as they finish, and at the end.

    A run that fails (not finite, or no completion could be scored) is reported and skipped; the others go on.

    Args:
        plan: the runs.
        command: the command line that repeats or continues the comparison.
        console: receives progress messages.

    Returns:
        The page.

    Raises:
        Stopped: Ctrl-C; the current step was finished and saved.
        RunError: one or more runs failed; the others are done and on the page.
    """
    failed: dict[str, str] = {}
    go_on = f"continue with: {command}"
    redraw = Redraw(lambda: write_page(plan, command=command, failed=failed))
    for number, run in enumerate(plan.runs, start=1):
        label = f"{number}/{len(plan.runs)} {run.folder.name}"
        try:
            if not _finish(run, label, command, console):
                redraw.now()
                raise Stopped(f"stopped in {run.folder.name}; it is saved; {go_on}")
        except KeyboardInterrupt:
            raise Stopped(f"stopped at once in {run.folder.name}; {go_on}") from None
        except Stopped:
            raise
        except RunError as error:
            failed[run.folder.name] = str(error)
            console.print(Text(f"  {run.folder.name} failed: {error}", style="red"), soft_wrap=True)
        if number < len(plan.runs):
            redraw.if_due()
    page = redraw.now()
    if failed:
        names = ", ".join(failed)
        raise RunError(f"{len(failed)} of {len(plan.runs)} runs failed ({names}); the others are in {page}")
    return page


def _finish(run: PlannedRun, label: str, command: str, console: Console) -> bool:
    """Train one run to its end and measure it; False if Ctrl-C stopped it."""
    if run.state == "done" and (run.folder / FILE).is_file():
        console.print(Text(f"{label}: already complete", style="dim"))
        return True
    if run.state != "done":
        from klent.runs.train import train

        short = ShortConsole(console, label)
        train(run.recipe, run.folder, command=command, resume=run.state == "started", console=short)
        if run.state != "done":
            return False
    write_divergence(run.recipe, run.folder)
    return True
