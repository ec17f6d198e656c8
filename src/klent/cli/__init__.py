"""The command line: verbs that read their arguments, call one function, and print what it returns.

Nothing heavy is imported until a verb needs it: ``klent --help`` answers at once.
"""

import io
import sys
from typing import Annotated

import typer

import klent
from klent.cli import (
    audit,
    chat,
    collect,
    compare,
    data,
    evaluate,
    library,
    play,
    run,
    runs,
    studies,
    study,
    watch,
)
from klent.cli.common import Debug, PlainErrors, out
from klent.errors import ConfigError
from klent.kit.world import started
from klent.runs.process import prepare_process

app = typer.Typer(
    cls=PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        out.print(f"klent {klent.__version__}")
        raise typer.Exit


@app.callback(epilog="Start with `klent train quickstart`, and see `klent VERB --help` for examples.")
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Post-train language models with exact control of KL divergence and entropy."""
    verb = context.invoked_subcommand
    if started() > 1 and verb is not None and verb not in SHARED:
        raise ConfigError(
            f"{started()} processes were started for `klent {verb}`, which ranks cannot share: each would do all of "
            f"it. Start it once; torchrun is for {' and '.join(SHARED)}"
        )


SHARED = ("train", "resume")
"""What several ranks do together."""

for name, verb in (
    ("data", data.data),
    ("train", run.train),
    ("resume", run.resume),
    ("export", run.export),
    ("report", run.report),
    ("runs", runs.runs),
    ("watch", watch.watch),
    ("compare", compare.compare),
    ("study", study.study),
    ("label", study.label),
    ("eval", evaluate.evaluate),
    ("sample", evaluate.sample),
    ("chat", chat.chat),
    ("play", play.play),
    ("collect", collect.collect),
    ("select", studies.select),
    ("controls", studies.controls),
    ("audit", audit.audit),
    ("claims", audit.claims),
    ("doctor", library.doctor),
):
    app.command(name)(verb)
app.add_typer(library.recipes, name="recipes")
app.add_typer(library.models, name="models")


def main() -> None:
    """Entry point of the ``klent`` command."""
    prepare_process()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal's encoding lacks is no error
            stream.reconfigure(errors="backslashreplace")
    app()
