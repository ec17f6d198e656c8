"""A run in a notebook: one output that is drawn again after each step, with a bar and the last steps."""

import html
import sys
from collections.abc import Sequence

from klent.kit.terminal import SafeConsole
from klent.runs.console import COLUMNS, Row, TrainConsole, cell, clock

ROWS = 8
"""Steps that are shown, the latest."""


def in_notebook() -> bool:
    """Whether this process shows its output in a notebook; IPython is not imported for the question."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class NotebookConsole(TrainConsole):
    """Prints a run in a notebook. What is no step is a plain line, as in a log."""

    def __init__(self) -> None:
        # Kernels set FORCE_COLOR, from which rich would take their output for a terminal's.
        super().__init__(
            SafeConsole(highlight=False, markup=False, force_jupyter=False, force_terminal=False, width=110)
        )
        self._rows: list[Row] = []
        self._shown_as: str | None = None  # the output's id, once there is one

    def step(self, row: Row) -> None:
        """Draw the output again, with one more step."""
        self.finished(row)
        self._rows = [*self._rows[1 - ROWS :], row]
        self._display({"text/html": self.drawn(), "text/plain": self.line(row)})

    def drawn(self) -> str:
        """The bar and the table, as HTML."""
        left = f", {clock(self.seconds_left())} left" if self._done < self._steps else ""
        bar = f'<progress value="{self._done}" max="{self._steps}"></progress>'
        columns = [c for c in COLUMNS if any(cell(row, c[2], c[3]) != "-" for row in self._rows)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("step", *(c[0] for c in columns), "time"))
        body = "".join(f"<tr>{self._cells(row, columns)}</tr>" for row in self._rows)
        return f"<p>{bar} step {self._done} of {self._steps}{left}</p><table><tr>{head}</tr>{body}</table>"

    def _cells(self, row: Row, columns: Sequence[tuple[str, int, tuple[str, ...], str]]) -> str:
        values = [str(row["step"]), *(cell(row, keys, form) for _, _, keys, form in columns)]
        return "".join(
            f"<td>{html.escape(value)}</td>" for value in (*values, cell(row, ("time/step",), "{:.1f} s"))
        )

    def _display(self, output: dict[str, str]) -> None:
        from IPython.display import display, update_display

        if self._shown_as is None:
            self._shown_as = display(output, raw=True, display_id=True).display_id
        else:
            update_display(output, raw=True, display_id=self._shown_as)
