"""``klent watch``: the report of a run, in a browser, while the run goes on."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klent.cli.common import Debug, Runs, err, out, run_or_log

if TYPE_CHECKING:
    from klent.report.live import Server

_MODEST = 10  # of 19 steps of priority: on a full machine the run comes first, and the page still comes
GRACE = 8.0  # seconds in which pages that are open get the last state of a run that ended


def watch(
    names: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Runs, or log folders of TRL or verl.", show_default=False),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 = any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    with_parent: Annotated[bool, typer.Option("--until-input-ends", hidden=True)] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Serve a page that follows a run: its report, drawn again after new steps. Ctrl-C ends the page, not the run.

    For several runs it shows their curves in one set of plots, with links to the page of each. Only this machine can
    open the page, and nothing can be changed through it. It only reads the run's files, so it does not disturb the
    run. It is drawn at low priority, only while a browser shows it, and a large page at most a fifth of the time.

    From another machine: ssh -L 8000:127.0.0.1:8000 HOST, and here --port 8000.

    ```
    klent watch runs/quickstart
    klent watch one two --port 8000 --open
    klent train quickstart --watch
    ```
    """
    from klent.report.live import Server
    from klent.studies.overlay.watch import live_pages

    folders = list(names) if with_parent else [run_or_log(name, runs) for name in names]
    with contextlib.suppress(OSError, AttributeError):  # not everywhere, and never worth an error
        os.nice(_MODEST)
    with Server(live_pages(folders), port) as server:
        print(f"watch: {server.address}", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(server.address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            if with_parent:
                _wait_for_parent(server)
            else:
                threading.Event().wait()
        except KeyboardInterrupt:
            out.print("no longer served")
        finally:
            server.shutdown()


def _wait_for_parent(server: "Server") -> None:
    """Until standard input ends, as it does with the process that holds it; and a little longer if pages are open."""
    sys.stdin.read()
    end = time.monotonic() + GRACE
    asked = server.last_asked
    while asked is not None and time.monotonic() < end:
        time.sleep(0.2)


def watched(run: Path, *, on: bool) -> contextlib.AbstractContextManager[None]:
    """The run's page, served beside the run; its address is printed."""
    from klent.runs.watching import watched as watched_run

    return watched_run(
        run,
        on=on,
        say=lambda line: out.print(line, style="bold", soft_wrap=True),
        warn=lambda line: err.print(f"warning: {line}", soft_wrap=True),
    )
