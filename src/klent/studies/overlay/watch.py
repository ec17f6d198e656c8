"""The pages that follow runs: each run's report, and of several runs their curves over one another.

What draws is imported with the first drawing: whoever starts a run with ``--watch`` waits for the address.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from klent.errors import ConfigError, RunError
from klent.report.live import Live, LivePage
from klent.studies.overlay import STYLES

if TYPE_CHECKING:
    from klent.report.read import RunData


def live_pages(paths: Sequence[Path]) -> dict[str, LivePage]:
    """By the path that it is served under, ``/`` first. A run need not exist yet.

    Raises:
        ConfigError: more runs than can be told apart, or one twice.
    """
    if len(paths) > len(STYLES) or len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"name at most {len(STYLES)} runs, each once")
    if len(paths) == 1:
        return {"/": LivePage(paths, partial(_draw_report, paths[0]))}
    reports = {
        f"/{index}/": LivePage([path], partial(_draw_report, path)) for index, path in enumerate(paths, 1)
    }
    return {"/": LivePage(paths, partial(_draw_overlay, paths, list(reports))), **reports}


def _draw_report(path: Path, live: Live) -> str:
    from klent.report.page import page

    return page(_read(path), live)


def _draw_overlay(paths: Sequence[Path], links: Sequence[str], live: Live) -> str:
    from klent.studies.overlay.page import names_of, page

    runs = {name: _read(path, texts=False) for name, path in zip(names_of(paths), paths, strict=True)}
    return page(runs, links, live=live)


def _read(path: Path, *, texts: bool = True) -> "RunData":
    from klent.report.foreign import read_any
    from klent.report.read import RunData

    try:
        return read_any(path, texts=texts)
    except RunError:
        return RunData(path=path, notes=[f"There is no run in {path} yet; it is shown here when it begins."])
