"""``klent audit`` and ``klent claims``: which objective a loss follows, which claims of the field hold."""

from pathlib import Path
from typing import Annotated

import typer

from klent.cli.common import Debug


def audit(
    target: Annotated[
        str,
        typer.Argument(
            help="FILE.py:function, module:function, a function of klent.objectives, or trl, or verl.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the loss: coef=0.1", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw its gradient on the 3-simplex: .svg, .png or .pdf.", show_default=False),
    ] = None,
    reduce: Annotated[
        str | None,
        typer.Option(
            help="Average over tokens, sequences or a constant. [default: the sum over a completion]",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Certify which divergence a loss follows.

    Small worlds are enumerated exactly, on-policy and off-policy; nothing is sampled or trained. Arguments
    may have the names that TRL and verl use.

    ```
    klent audit my_loss.py:loss beta=0.1
    klent audit klent.objectives:kl_in_loss coef=1 divergence=forward
    klent audit kl_in_reward coef=1 --reduce sequences
    klent audit group_advantage group_size=16
    klent audit trl
    ```
    """
    from klent.audit.command import audit_command

    raise typer.Exit(audit_command(target, settings or [], as_json, picture, reduce))


def claims(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Which claims; all of them by default.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Test statements of the field, each with its control.

    Every claim is a small experiment that runs now; the verdict is computed from its figures. docs/sources.md
    says who stated each claim.

    ```
    klent claims
    klent claims ID ...
    ```
    """
    from klent.claims.command import claims_command

    raise typer.Exit(claims_command(ids or [], as_json))
