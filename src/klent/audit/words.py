"""Certificates in words."""

import math
from collections.abc import Mapping

from klent.audit.candidates import MEANING
from klent.audit.certificate import Certificate, Finding
from klent.audit.fit import Statement


def sentence(known: Finding | Statement) -> str:
    """What a statement says: ``minimises KL(policy ‖ reference), token by token``."""
    if known.follows == "zero":
        return "nothing: the mean gradient is zero"
    if known.follows == "unknown":
        return "none of the listed objectives"
    return "; ".join(_term(name, weight) for name, weight in known.coefficients.items())


def short(known: Finding | Statement) -> str:
    """A statement in one cell of a table: ``0.3 reverse_kl_token - 0.1 entropy``."""
    if not known.coefficients:
        return known.follows
    text = ""
    for name, weight in known.coefficients.items():
        size = "" if _number(abs(weight)) == "1" else f"{_number(abs(weight))} "
        sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
        text += f"{sign}{size}{name}"
    return text


def title(certificate: Certificate) -> str:
    """A loss with its settings, ``kl_in_loss(coef=1.0)``."""
    settings = ", ".join(f"{key}={value}" for key, value in certificate.settings.items())
    return f"{certificate.target}({settings})" if settings else certificate.target


def nearest(cosine: Mapping[str, float]) -> str:
    """The candidate that points most nearly where the loss does, ``reverse_kl (cosine 0.981)``."""
    known = {name: value for name, value in cosine.items() if value == value}
    if not known:
        return "-"
    name = max(known, key=lambda key: abs(known[key]))
    return f"{name} (cosine {known[name]:.3f})"


def describe(certificate: Certificate) -> str:
    """A certificate as plain text, a line for each thing known."""
    lines = [f"certificate of {title(certificate)}"]
    if certificate.problem is not None:
        return "\n".join([*lines, f"  problem     {certificate.problem}"])
    for where, finding in (("on-policy", certificate.on_policy), ("off-policy", certificate.off_policy)):
        lines.append(f"  {where:<11} {short(finding)}: {sentence(finding)}")
        detail = f"nearest: {nearest(finding.cosine)}" if finding.follows == "unknown" else ""
        error = f"relative error {finding.relative_error:.1e}, variance {finding.variance:.3g}"
        lines.append(f"  {'':<11} {'; '.join(part for part in (error, detail) if part)}")
        lines.append(f"  {'':<11} for one token: {short(finding.one_position)}")
    lines += [f"  {name:<11} {value}" for name, value in qualities(certificate)]
    return "\n".join([*lines, *(f"  note        {note}" for note in certificate.notes)])


def qualities(certificate: Certificate) -> list[tuple[str, str]]:
    """What a loss does besides, as (what, in words)."""
    known = certificate.sensitivity
    if known is None:
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
    }[known.padding]
    split = {"additive": "any", "dependent": "changes the gradient"}[known.split]
    rounding = f"float32 {_rounding(known.float32)}, bfloat16 {_rounding(known.bfloat16)}"
    return [
        ("pull to ref", pull),
        ("padding", padding),
        ("batch split", split),
        ("inputs", f"CHANGED: {', '.join(known.changed)}" if known.changed else "left alone"),
        ("rounding", rounding),
    ]


def _term(name: str, weight: float) -> str:
    verb = "minimises" if weight > 0 else "maximises"
    size = "" if _number(abs(weight)) == "1" else f"{_number(abs(weight))} × "
    return f"{verb} {size}{MEANING[name.removesuffix('@behaviour')]}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _rounding(error: float) -> str:
    return f"{error:.0e}" if error == error else "fails"
