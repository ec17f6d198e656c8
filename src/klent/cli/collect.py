"""``klent collect``: segments of a simulated robot, as data for offline learning."""

from pathlib import Path
from typing import Annotated

import typer

from klent.cli.common import Debug, err, out
from klent.errors import ConfigError


def collect(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=drawer-open segments=2500 ...", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a simulator.")] = 2,
    debug: Debug = False,
) -> None:
    """Record segments of a robot that noisy scripted policies move, labelled by regret, return and success.

    For the regret, the scripted policy finishes the episode from the segment's start and from its
    end. The mean and the standard deviation of every recorded action are kept. If interrupted, the same command
    continues. The number of workers does not change the result.

    ```
    klent collect data/drawer task=drawer-open segments=2500
    klent collect data/mixed task=door-open behaviours=[0.1,0.3,0.5,1.0,random] branches=8
    klent collect data/tiny task=reach segments=100 length=16
    ```
    """
    from klent.config.collection import read_collection
    from klent.kit.text import plural
    from klent.tasks.collect import collect as record

    section = read_collection(settings or [])
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder; name another")
    with err.status("starting") as status:
        recorded = record(
            folder,
            section,
            workers=workers,
            progress=lambda done, of: status.update(f"{done} of {of} segments"),
        )
    held = plural(section.segments, "segment")
    out.print(f"{folder}: {held} of {section.task}, {recorded} recorded now", soft_wrap=True)
