"""What a run shows while it trains: a live line in a terminal, one plain line per step in a log."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from klent.kit.terminal import SafeConsole, discard, visible
from klent.kit.text import plural
from klent.measure.score import LABELS, is_judged, is_scored, kind_of, loss_of, score_of, temperatures_of

Row = Mapping[str, object]  # of metrics.jsonl or eval.jsonl

# heading, width, metrics (the first that the row has is shown), format
COLUMNS = (
    ("reward", 8, ("reward/mean",), "{:.3f}"),
    ("entropy", 8, ("policy/entropy",), "{:.3f}"),
    ("KL", 9, ("kl/reference", "kl/update"), "{:.2g}"),
    ("length", 7, ("completion/length",), "{:.1f}"),
    ("|grad|", 8, ("grad/norm",), "{:.3g}"),
    ("tokens/s", 9, ("tokens/rollout_per_second",), "{:.0f}"),
    ("pairs", 8, ("preference/accuracy",), "{:.3f}"),
    ("margin", 9, ("preference/margin",), "{:.3g}"),
)
_OF_PAIRS = ("pairs", "margin")  # shown only where the step has them


class TrainConsole:
    """Prints a run. The training loop calls its methods in the order of their definition.

    In a terminal, a live line at the bottom shows step, phase, reward, entropy, KL, speed and time left, and
    every finished step adds a row to the table above it. In a log file or a pipe, each step is one plain line
    of ``name=value``. What models and rewards wrote is made visible, see :func:`klent.kit.terminal.visible`.

    A display that fails (its reader went away, the log's disk is full) falls silent: it ends no training.

    Args:
        console: where to print; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or SafeConsole(highlight=False, markup=False)
        self.live = self.console.is_terminal and not self.console.quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._steps = 0
        self._done = 0
        self._phase = ""
        self._last: Row = {}
        self._began = time.monotonic()
        self._timed: list[float] = []
        self._shown = list(COLUMNS)
        self.stopped_by: int | None = None  # the signal that ended the run before its last step

    def start(self, title: str, plan: Sequence[str], *, steps: int, done: int = 0) -> None:
        """Print what is about to run.

        Args:
            title: of the run, as `klent.runs.plan.title_of` gives it.
            plan: lines to show, as of `klent.runs.plan.describe_plan`.
            steps: training steps in all.
            done: steps done before, if the run is resumed.
        """
        self._steps, self._done, self._began = steps, done, time.monotonic()
        over = "; all are done, and steps=+20 would add 20" if done >= steps else ""
        lines = [*plan, *([f"resuming after step {done}{over}"] if done else [])]
        if self.live:
            text = Text(visible("\n".join(lines)))
            self._print(Panel(text, title=Text(visible(title)), title_align="left", border_style="dim"))
            self._open_progress()
        else:
            self._print(title)
            for line in lines:
                self._print(f"  {line}")

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """What the current step is doing: ``rollout``, ``score`` or ``train``, and its progress."""
        changed = self._phase.split(" ")[0] != name
        self._phase = f"{name} {done}/{total}" if total else name
        self._update_live(redraw=changed)

    def step(self, row: Row) -> None:
        """One finished step: a row of metrics.jsonl."""
        self.finished(row)
        if self.live:
            if len(self._timed) == 1:
                self._shown = [
                    c for c in COLUMNS if c[0] not in _OF_PAIRS or _number(row, c[2][0]) is not None
                ]
                head = f"{'step':>9}" + "".join(f"{name:>{width}}" for name, width, *_ in self._shown)
                self._print(head + f"{'time':>8}", style="bold")
            cells = "".join(f"{cell(row, keys, form):>{width}}" for _, width, keys, form in self._shown)
            position = f"{self._done}/{self._steps}"
            self._print(f"{position:>9}{cells}{clock(self._timed[-1]):>8}")
        else:
            self._print(self.line(row))
        self._update_live(redraw=True)

    def finished(self, row: Row) -> None:
        """Remember a finished step, for the time that is left."""
        self._done, self._last, self._phase = int(_number(row, "step") or 0), row, ""
        self._timed.append(_number(row, "time/step") or 0.0)

    def line(self, row: Row) -> str:
        """A step as one plain line of ``name=value``."""
        metrics = [(key, form) for _, _, keys, form in COLUMNS for key in keys]
        pairs = [f"{key}={form.format(row[key])}" for key, form in metrics if _number(row, key) is not None]
        pairs += [f"time/step={self._timed[-1]:.1f}s", f"left={clock(self.seconds_left())}"]
        return f"step {self._done}/{self._steps} {' '.join(pairs)}"

    def eval(self, row: Row) -> None:
        """One evaluation: a row of eval.jsonl."""
        when = "before training" if row["step"] == 0 else f"after step {row['step']}"
        took = f", {row['seconds']:.0f} s" if "seconds" in row else ""
        kind = kind_of([row])
        name, noun = LABELS[kind], "pairs" if kind == "preference" else "problems"
        if loss := loss_of(row):
            self._print(
                f"held-out loss {when}: {loss} nats per token, perplexity {row['perplexity']:.3g}, on "
                f"{plural(int(str(row['loss_completions'])), 'completion')}{'' if is_judged(row) else took}",
                style="bold",
            )
        if not is_judged(row):
            return
        self._print(f"held-out {name} {when}: {scores(row)} on {row['problems']} {noun}{took}", style="bold")
        if (error := _number(row, "calibration/error")) is not None:
            self._print(
                f"  calibration error {error:.3f}, log-loss {cell(row, ('calibration/log_loss',), '{:.3f}')}"
            )
        for text in unscored(row):
            self.warn(text)

    def warn(self, text: str) -> None:
        """Something that the user should know, but that does not stop the run."""
        self._print(f"warning: {text}", style="yellow")

    def stopping(self) -> None:
        """The first Ctrl-C."""
        step = min(self._done + 1, self._steps)
        self._print(f"finishing step {step}, saving, then stopping; press again to stop now", style="yellow")

    def close(self) -> None:
        """Remove the live line; safe to call more than once, and after an error."""
        progress, self._progress = self._progress, None
        if progress is not None:
            with self._showing():
                progress.stop()

    def finish(
        self,
        run: Path,
        before: Row | None,
        after: Row | None,
        *,
        early: bool = False,
    ) -> None:
        """The end: the held-out score before and after, and the report; ``early`` if ``eval.early_stop`` ended it."""
        self.close()
        self._print("")
        tables = (_score_table, _loss_table) if before and after else ()
        for table in filter(None, (make(before or {}, after or {}) for make in tables)):
            self._print(table)
            self._print("")
        took = clock(time.monotonic() - self._began)
        if early and after:
            self._print(f"stopped early after step {self._done} of {self._steps}, {took}")
            self._print(f"model:  {run / 'final'}, from step {after['step']}")
        elif self._done < self._steps:
            self._print(f"stopped after step {self._done} of {self._steps}; continue: klent resume {run}")
            self._print("the run is not finished; every step done is saved, and it can be resumed")
        else:
            self._print(f"{plural(self._steps, 'step')}, {took}")
            self._print(f"model:  {run / 'final'}")
        self._print(f"report: {run / 'report.html'}", style="bold")

    def seconds_left(self) -> float:
        """Expected time of the remaining steps, from the latest ten; NaN before the first."""
        recent = self._timed[-10:]
        return sum(recent) / len(recent) * (self._steps - self._done) if recent else math.nan

    def _open_progress(self) -> None:
        columns = (
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
        )
        self._progress = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
        self._task = self._progress.add_task("", total=self._steps, completed=self._done, what="", numbers="")
        with self._showing():
            self._progress.start()
        self._update_live(redraw=True)

    def _update_live(self, *, redraw: bool) -> None:
        """Set the live line; it is drawn four times a second, or at once with ``redraw``."""
        if self._progress is None:
            return
        names = (("reward", 0), ("entropy", 1), ("KL", 2), ("tok/s", 5))
        metrics = [f"{name} {cell(self._last, *COLUMNS[index][2:])}" for name, index in names]
        elapsed = clock(time.monotonic() - self._began)
        numbers = " · ".join(
            [*(metrics if self._last else []), f"{elapsed} elapsed", f"{clock(self.seconds_left())} left"]
        )
        what = f"step {min(self._done + 1, self._steps)}/{self._steps} {self._phase}".rstrip()
        with self._showing():
            self._progress.update(
                self._task, completed=self._done, what=what, numbers=numbers, refresh=redraw
            )

    def _print(self, shown: RenderableType, style: str = "") -> None:
        text = isinstance(shown, str)
        with self._showing():
            line = Text(visible(shown), style=style) if isinstance(shown, str) else shown
            self.console.print(line, soft_wrap=text)

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Whatever keeps the display from being shown ends it, and nothing else."""
        try:
            yield
        except (OSError, SystemExit):  # a plain console of rich turns a broken pipe into SystemExit
            self.console.quiet = True
            discard(self.console.file)
            self.close()


class QuietConsole(TrainConsole):
    """Prints nothing and keeps its rows and warnings, for tests and for use from Python."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.rows: list[Row] = []
        self.evals: list[Row] = []
        self.warnings: list[str] = []

    def step(self, row: Row) -> None:
        self.rows.append(row)
        super().step(row)

    def eval(self, row: Row) -> None:
        self.evals.append(row)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def scores(row: Row) -> str:
    """``0.210 (95% interval 0.152 to 0.281)`` of an evaluation, at every temperature that it was measured at."""
    kind, words = kind_of([row]), temperatures_of(row)
    found = {word: score_of(row, kind, at) for at, word in words.items()}
    if not any(found.values()):
        return "no completion could be scored"
    several = len(words) > 1
    return ", ".join(
        f"{score or 'not scored'}{f' {word}' if several else ''}" for word, score in found.items()
    )


def unscored(row: Row) -> list[str]:
    """Why completions of an evaluation were unscorable, each reason once."""
    why = row.get("unscorable_why")
    reasons = why.items() if isinstance(why, Mapping) else []
    return [f"held out, {plural(count, 'completion')} unscorable: {reason}" for reason, count in reasons]


def _loss_table(before: Row, after: Row) -> Table | None:
    """The loss of held-out completions before and after."""
    found = {"before": loss_of(before), "after": loss_of(after)}
    if not all(found.values()):
        return None
    table = Table(title="held-out loss", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("", "nats per token", "95% interval", "perplexity"):
        table.add_column(column, justify="right" if column else "left")
    for (name, loss), row in zip(found.items(), (before, after), strict=True):
        if loss is not None:
            cells = (f"{loss.value:.3f}", loss.interval or "-", cell(row, ("perplexity",), "{:.3g}"))
            table.add_row(name, *cells)
    return table


def _score_table(before: Row, after: Row) -> Table | None:
    """Before and after, at every temperature that both were measured at."""
    if not (is_judged(before) or is_judged(after)):
        return None
    kind = kind_of([row for row in (before, after) if is_scored(row)])
    table = Table(
        title=f"held-out {LABELS[kind]}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for column in ("", LABELS[kind], "95% interval", "entropy, nats"):
        table.add_column(column, justify="right" if column else "left")
    words = temperatures_of(after)
    for at, word in words.items():
        for name, row in (("before", before), ("after", after)):
            score = score_of(row, kind, at)
            entropy = "" if at else cell(row, ("entropy",), "{:.3f}")
            value = "not scored" if score is None else f"{score.value:.3f}"
            table.add_row(
                f"{name}, {word}" if len(words) > 1 else name,
                value,
                (score.interval if score else "") or "-",
                entropy,
            )
    return table


def _number(row: Row, key: str) -> float | None:
    """A finite number of a row, or None."""
    value = row.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def cell(row: Row, keys: tuple[str, ...], form: str) -> str:
    return next((form.format(row[key]) for key in keys if _number(row, key) is not None), "-")


def clock(seconds: float) -> str:
    """``1:02:03``, ``4:20`` or ``12.3s``."""
    if math.isnan(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
