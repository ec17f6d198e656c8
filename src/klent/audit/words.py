"""Certificates as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from klent.audit.candidates import MEANING, RARE
from klent.audit.fit import Statement

if TYPE_CHECKING:  # certificates print themselves in these words
    from klent.audit.certificate import Certificate
    from klent.audit.match import Match


def sentence(statement: Match | Statement) -> str:
    """What a statement says: ``minimises KL(policy ‖ reference), token by token``."""
    if statement.follows == "zero":
        return "nothing: the mean gradient is zero"
    if statement.follows == "unknown":
        return "none of the listed objectives"
    return "; ".join(_term(name, weight) for name, weight in statement.coefficients.items())


def short(statement: Match | Statement) -> str:
    """A statement in one cell of a table: ``0.3 reverse_kl_token - 0.1 entropy``."""
    if not statement.coefficients:
        return statement.follows
    text = ""
    for name, weight in statement.coefficients.items():
        size = "" if _number(abs(weight)) == "1" else f"{_number(abs(weight))} "
        sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
        text += f"{sign}{size}{name}"
    return text


def title(certificate: Certificate) -> str:
    """A loss with its settings, ``kl_in_loss(coef=1.0)``."""
    settings = ", ".join(f"{key}={value}" for key, value in certificate.settings.items())
    return f"{certificate.target}({settings})" if settings else certificate.target


def nearest(cosine: Mapping[str, float]) -> str:
    """The usual candidate with the largest absolute cosine, ``reverse_kl (cosine 0.981)``."""
    defined = {
        name: value
        for name, value in cosine.items()
        if not math.isnan(value) and name.removesuffix("@behaviour") not in RARE
    }
    if not defined:
        return "-"
    name = max(defined, key=lambda key: abs(defined[key]))
    return f"{name} (cosine {defined[name]:.3f})"


def describe(certificate: Certificate) -> str:
    """A certificate as plain text, one line per property."""
    lines = [f"certificate of {title(certificate)}"]
    if certificate.problem is not None:
        return "\n".join([*lines, f"  problem     {certificate.problem}"])
    for case, match in (("on-policy", certificate.on_policy), ("off-policy", certificate.off_policy)):
        lines.append(f"  {case:<11} {short(match)}: {sentence(match)}")
        detail = f"nearest: {nearest(match.cosine)}" if match.follows == "unknown" else ""
        error = f"relative error {match.relative_error:.1e}, variance {match.variance:.3g}"
        lines.append(f"  {'':<11} {'; '.join(part for part in (error, detail) if part)}")
        lines.append(f"  {'':<11} for one token: {short(match.one_position)}")
    lines += [f"  {name:<11} {value}" for name, value in qualities(certificate)]
    return "\n".join(
        [
            *lines,
            *(f"  note        {note}" for note in certificate.notes),
            *(f"  instead     {said}" for said in certificate.advice),
        ]
    )


def qualities(certificate: Certificate) -> list[tuple[str, str]]:
    """Further properties of a loss, as (name, in words)."""
    sensitivity = certificate.sensitivity
    if sensitivity is None:
        return []
    pull = "none of first order"
    if certificate.restoring_force:
        fading = certificate.stiffness < math.inf
        pull = (
            f"yes, {certificate.stiffness:.3g} times the KL's own" if fading else "yes, and it does not fade"
        )
    padding = {
        "ignored": "ignored",
        "nan": "ignored, but a NaN there reaches the gradient",
        "read": "READ: values off the mask change the gradient on it",
    }[sensitivity.padding]
    split = {"additive": "any", "dependent": "changes the gradient"}[sensitivity.split]
    rounding = f"float32 {_rounding(sensitivity.float32)}, bfloat16 {_rounding(sensitivity.bfloat16)}"
    return [
        ("pull to ref", pull),
        ("padding", padding),
        ("batch split", split),
        ("inputs", f"CHANGED: {', '.join(sensitivity.changed)}" if sensitivity.changed else "left alone"),
        ("rounding", rounding),
    ]


def _term(name: str, weight: float) -> str:
    verb = "minimises" if weight > 0 else "maximises"
    size = "" if _number(abs(weight)) == "1" else f"{_number(abs(weight))} × "
    return f"{verb} {size}{MEANING[name.removesuffix('@behaviour')]}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _rounding(error: float) -> str:
    return f"{error:.0e}" if not math.isnan(error) else "fails"
