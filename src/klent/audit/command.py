"""``klent audit``: parse a target and its settings, certify it, print the certificate."""

import importlib
import json as json_format
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from klent.audit.call import LossFunction, LossProblem, wire
from klent.audit.certificate import Certificate, certify
from klent.audit.groups import certify_advantage
from klent.audit.match import Match
from klent.audit.peers import PEERS, PeerAudit, audit_peer
from klent.audit.reduction import NAMES, Reduce
from klent.audit.rewards import in_reward
from klent.audit.words import nearest, qualities, sentence, short, title
from klent.config.binding import resolve
from klent.config.layers import Layer
from klent.config.yaml_text import parse_yaml
from klent.errors import ConfigError
from klent.kit.terminal import SafeConsole
from klent.objectives.kinds import declaration

PICTURES = (".svg", ".png", ".pdf")
#: candidates whose cosine is printed, the nearest first; --json has all of them
SHOWN = 10
FORMS = (
    "a target is FILE.py:function, module:function, a function of klent.objectives, or a package: "
    + ", ".join(PEERS)
)


def audit_command(
    target: str, settings: list[str], json: bool, picture: Path | None, reduce: str | None = None
) -> int:
    """Certify a loss, or the losses of an installed package, and print the certificates.

    Args:
        target: ``path/to/file.py:function`` (the file is executed), ``module:function``, the name of a
            function of ``klent.objectives``, or a package: ``trl``, ``verl``.
        settings: ``key=value`` for the loss, or for the package's configuration; values are YAML.
        json: print one JSON object instead of tables.
        reduce: what the loss per token is averaged over: one of ``NAMES``; None is its sum over a completion.
        picture: file for a drawing of the gradient field on the 3-simplex; svg, png or pdf.

    Returns:
        Exit status: 0, or 1 if a loss could not be audited.

    Raises:
        ConfigError: the target, a setting or the picture's format cannot be used.
        KlentError: the package is not installed.
    """
    if picture is not None and picture.suffix.lower() not in PICTURES:
        raise ConfigError(f"--picture {picture}: the file name must end in {' or '.join(PICTURES)}")
    values = parse_settings(settings)
    over = _reduction(reduce, values)
    console = SafeConsole(highlight=False, markup=False)
    if target in PEERS:
        if picture is not None:
            raise ConfigError(
                f"--picture draws one loss, and {target} has several; name one, or leave --picture out"
            )
        if over is not None:
            raise ConfigError(
                f"--reduce is for one loss, and {target} has several, audited as sums over tokens; leave it out"
            )
        audit = audit_peer(target, values)
        print(json_format.dumps(audit.to_dict(), indent=2)) if json else show_peer(audit, console)
        return int(any(certificate.problem for certificate in audit.certificates))
    loss, as_reward = find_loss(target)
    known = declaration(loss)
    if known is not None and known.kind == "advantage":
        return _show_advantage(loss, values, json=json)
    certificate = certify(loss, reduce=over, **values)
    if json:
        print(json_format.dumps(certificate.to_dict(), indent=2))
    else:
        show(certificate, console, as_reward=as_reward)
    if picture is not None and certificate.problem is None:
        _draw(loss, values, certificate, picture)
        if not json:
            console.print(f"picture: {picture}")
    return int(certificate.problem is not None)


def parse_settings(settings: list[str]) -> dict[str, object]:
    """``key=value`` strings as a dict, values read as YAML 1.2.

    >>> parse_settings(["coef=1e-3", "divergence=forward"])
    {'coef': 0.001, 'divergence': 'forward'}
    """
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{setting}: a setting is written key=value")
        values[key] = parse_yaml(text, Layer({}, source=setting), (key,))
    return values


def _reduction(reduce: str | None, values: Mapping[str, object]) -> Reduce | None:
    if "reduce" in values:
        raise ConfigError(
            f"reduce={values['reduce']}: the reduction is an option: --reduce {values['reduce']}"
        )
    for name in NAMES:
        if reduce == name:
            return name
    if reduce is not None:
        raise ConfigError(f"--reduce {reduce}: a reduction is over {', '.join(NAMES)}")
    return None


def find_loss(target: str) -> tuple[LossFunction, bool]:
    """The function that a target names, and whether it is a reward (then its policy gradient loss)."""
    module, colon, name = target.rpartition(":")
    if ".py:" in target:
        return resolve(target), False
    if colon and module != "klent.objectives":
        return _imported(module, name), False
    try:
        function = resolve(name)
    except ConfigError as error:
        raise ConfigError(f"{error}; {FORMS}") from error
    if function.__name__ == "kl_in_reward":
        return in_reward(function), True
    return function, False


def show(certificate: Certificate, console: Console, *, as_reward: bool = False) -> None:
    """Print a certificate as tables."""
    console.print(Text(title(certificate), style="bold"))
    if as_reward:
        console.print(
            "a reward: audited through the policy gradient of its undiscounted reward-to-go", style="dim"
        )
    if certificate.problem is not None:
        console.print(Text(f"no certificate: it {certificate.problem}", style="red"))
        return
    console.print(f"reads {', '.join(certificate.reads)}", style="dim")
    console.print()
    console.print(_matches(certificate))
    console.print()
    console.print(_cosines(certificate))
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in qualities(certificate):
        table.add_row(name, Text(value, style="red" if value.split(":")[0].isupper() else ""))
    console.print(table)
    for note in certificate.notes:
        console.print()
        console.print(Text(note, style="yellow"))
    for said in certificate.advice:
        console.print()
        console.print(Text(said, style="green"))


def show_peer(audit: PeerAudit, console: Console) -> None:
    """Print the certificates of a package, one line each."""
    console.print(Text(f"{audit.package} {audit.version}", style="bold"))
    table = _table("loss", "on-policy", "off-policy", "pull to ref")
    for certificate in audit.certificates:
        if certificate.problem is not None:
            table.add_row(title(certificate), Text(certificate.problem, style="red"), "", "")
            continue
        table.add_row(
            title(certificate),
            short(certificate.on_policy),
            _or_nearest(certificate.off_policy),
            "yes" if certificate.restoring_force else "-",
        )
    console.print(table)
    for certificate in audit.certificates:
        if certificate.notes:
            console.print()
            console.print(Text(title(certificate), style="bold"))
            for note in certificate.notes:
                console.print(f"  {note}")


def _show_advantage(estimator: LossFunction, values: Mapping[str, object], *, json: bool) -> int:
    """Print what an estimator of advantages makes of the reward."""
    try:
        certificate = certify_advantage(cast("Callable[..., Tensor]", estimator), **values)  # type: ignore[arg-type]
    except LossProblem as problem:
        print(json_format.dumps({"problem": str(problem)}) if json else f"no certificate: it {problem}")
        return 1
    print(json_format.dumps(certificate.to_dict(), indent=2) if json else certificate)
    return 0


def _matches(certificate: Certificate) -> Table:
    table = _table("", "follows", "which says that it", "relative error", "variance", "for one token")
    for case, match in (("on-policy", certificate.on_policy), ("off-policy", certificate.off_policy)):
        named = match.follows not in ("unknown", "zero")
        table.add_row(
            case,
            Text(short(match), style="green" if named else "yellow"),
            sentence(match),
            f"{match.relative_error:.1e}",
            f"{match.variance:.3g}",
            short(match.one_position),
        )
    return table


def _cosines(certificate: Certificate) -> Table:
    table = _table("cosine with the gradient of", "on-policy", "off-policy")
    for column in table.columns[1:]:
        column.justify = "right"
    on, off = certificate.on_policy.cosine, certificate.off_policy.cosine
    names = (*on, *(name for name in off if name not in on))
    for name in sorted(names, key=lambda name: -_closeness(name, on, off))[:SHOWN]:
        cosines = (side.get(name, math.nan) for side in (on, off))
        table.add_row(name, *("-" if math.isnan(cosine) else f"{cosine:.4f}" for cosine in cosines))
    return table


def _closeness(name: str, *sides: Mapping[str, float]) -> float:
    """The largest absolute cosine of a candidate, 0 where it is not defined."""
    cosines = [abs(side.get(name, math.nan)) for side in sides]
    return max((cosine for cosine in cosines if not math.isnan(cosine)), default=0.0)


def _or_nearest(match: Match) -> str:
    return f"unknown, near {nearest(match.cosine)}" if match.follows == "unknown" else short(match)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _imported(module: str, name: str) -> LossFunction:
    try:
        function: object = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{module}:{name}: {error}; {FORMS}") from error
    if not callable(function):
        raise ConfigError(f"{module}:{name} is not a function")
    return function


def _draw(loss: LossFunction, values: dict[str, object], certificate: Certificate, picture: Path) -> None:
    from klent.audit.picture import draw

    wired = wire(loss, values)
    rows = 2 if certificate.completions == "2" else None
    try:
        draw(replace(wired, rows=rows), certificate, picture)
    except LossProblem as problem:
        raise ConfigError(f"no picture: {certificate.target} {problem} somewhere on the simplex") from problem
