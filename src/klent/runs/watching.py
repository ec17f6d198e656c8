"""A run's page beside the run: a process that serves it, and ends with the run."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def watched(
    run: Path, *, on: bool, say: Callable[[str], None], warn: Callable[[str], None]
) -> Iterator[None]:
    """A process beside this one that serves the run's page, and ends soon after the run does, however that ends.

    Args:
        run: the run's folder, which may not exist yet.
        on: False = nothing is served.
        say: told the address, in one line.
        warn: told that nothing is served, where that is so.
    """
    if not on:
        yield
        return
    command = [sys.executable, "-m", "klent", "watch", str(run), "--until-input-ends"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the run
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line:
            say(line.rstrip())
        else:
            warn(f"no page is served: `{shlex.join(command)}` ended. The run goes on")
        yield
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
