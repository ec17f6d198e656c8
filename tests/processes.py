"""klent in a process of its own that starts at once: forked off a server that has imported everything."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # threads are counted as torch is loaded
PRELOADED = [
    "processes",
    "klent.runs.train",
    "klent.kit.svg",
    "matplotlib.backends.backend_svg",
    "transformers.models.llama.modeling_llama",
]


def start(
    folder: Path, output: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """``klent ARGUMENTS`` in ``folder``; what it prints, also its errors, is appended to the file ``output``."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        CONTEXT.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    process = CONTEXT.Process(
        target=_klent, args=(str(folder), str(output), arguments, dict(environment or {}))
    )
    process.start()
    return process


def call(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """A function of a module of the tests in such a process, started at once."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 240) -> int | None:
    """The exit status once it has ended; None if it has not within ``seconds``."""
    process.join(seconds)
    return process.exitcode


def printed(process: BaseProcess, output: Path, seconds: float = 240) -> Iterator[str]:
    """The lines of ``output`` as they are written, until the process has ended."""
    deadline = time.monotonic() + seconds
    seen = 0
    while time.monotonic() < deadline:
        ended = not process.is_alive()
        lines = output.read_text().splitlines(keepends=True) if output.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        yield from whole[seen:]
        seen = len(whole)
        if ended:
            return
        time.sleep(0.01)


def _klent(folder: str, output: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["klent", *arguments]
    from klent.cli import main

    main()
