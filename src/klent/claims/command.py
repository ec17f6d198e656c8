"""``klent claims``: the ledger on the command line."""

import json

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from klent.claims import CLAIMS, SUBJECTS, Claim, Verdict
from klent.errors import ConfigError
from klent.kit.names import closest
from klent.kit.terminal import SafeConsole

_COLOURS = {"holds": "green", "holds when": "yellow", "refuted": "red"}


def claims_command(ids: list[str], as_json: bool) -> int:
    """Run the experiments of claims and print their verdicts.

    Args:
        ids: which claims, shown with every figure; an empty list is all of them, as a table by subject.
        as_json: print one JSON list instead.

    Returns:
        Exit status, 0: a refuted claim is a result, not a failure.

    Raises:
        ConfigError: an id is unknown; the message names the nearest.
    """
    claims = [_find(name) for name in ids] or list(CLAIMS)
    results = _run(claims)
    if as_json:
        print(
            json.dumps([claim.to_dict(verdict) for claim, verdict in results], indent=2, ensure_ascii=False)
        )
        return 0
    console = SafeConsole(highlight=False, markup=False)
    if ids:
        for claim, verdict in results:
            _show(claim, verdict, console)
    else:
        for subject, title in SUBJECTS.items():
            console.print(title, style="bold")
            console.print(_table([result for result in results if result[0].subject == subject]))
        console.print(
            "klent claims ID shows the experiment, the control and every figure of one claim", style="dim"
        )
    return 0


def _find(name: str) -> Claim:
    by_id = {claim.id: claim for claim in CLAIMS}
    if name not in by_id:
        nearest = closest(name, by_id, cutoff=0.0)
        raise ConfigError(f"{name}: no such claim; the nearest is {nearest}. All: {', '.join(by_id)}")
    return by_id[name]


def _run(claims: list[Claim]) -> list[tuple[Claim, Verdict]]:
    """Every verdict, with a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(claims))
        for claim in claims:
            progress.update(task, description=claim.id)
            results.append((claim, claim.verdict()))
            progress.advance(task)
    return results


def _table(results: list[tuple[Claim, Verdict]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 1, 0))
    table.add_column("claim", no_wrap=True, width=max(len(claim.id) for claim in CLAIMS))
    table.add_column("verdict", no_wrap=True, width=max(map(len, _COLOURS)))
    table.add_column("statement", ratio=2)
    table.add_column("what the figures say", ratio=3)
    for claim, verdict in results:
        table.add_row(claim.id, _word(verdict), claim.statement, verdict.reason)
    return table


def _show(claim: Claim, verdict: Verdict, console: Console) -> None:
    console.print(Text.assemble((claim.id, "bold"), "  ", _word(verdict)))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name in ("statement", "source", "experiment", "control"):
        table.add_row(name, getattr(claim, name))
    table.add_row(verdict.word, verdict.reason)
    if claim.real_runs is not None:
        table.add_row("real runs", str(claim.real_runs))
    console.print(table)
    console.print()
    figures = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    for name, figure in verdict.figures.items():
        figures.add_row(name, str(figure))
    console.print(figures)
    console.print()


def _word(verdict: Verdict) -> Text:
    return Text(verdict.word, style=_COLOURS[verdict.word])
