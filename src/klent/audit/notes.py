"""Remarks of a certificate that its numbers do not make by themselves."""

import math
from collections.abc import Sequence

from klent.audit.call import Loss
from klent.audit.fit import EXACT, ROUNDED
from klent.audit.flat import Flat
from klent.audit.match import Match
from klent.audit.reduction import Reduction
from klent.audit.sensitivity import Sensitivity

#: relative error from which a statement is said not to hold far from the reference
FAR = 1e-3


def remarks(
    loss: Loss, on_policy: Match, off_policy: Match, reaction: Sensitivity, reduction: Reduction | None
) -> tuple[str, ...]:
    """What there is to say of a certificate, a sentence or two each."""
    notes = []
    if loss.by_position:
        notes.append(f"Its arguments were read by position: {', '.join(loss.wiring.values())}.")
    if loss.aliases:
        read = ", ".join(f"{parameter} as {stream}" for parameter, stream in loss.aliases.items())
        notes.append(f"Its arguments were read by their names in other libraries: {read}.")
    for case, match in (("On-policy", on_policy), ("Off-policy", off_policy)):
        notes += _notes_of_match(case, match)
    if off_policy.prefixes == "behaviour":
        notes.append(
            "Off-policy the prefixes are those that the behaviour policy met: the ratio of the tokens before "
            "is missing, so the gradient is not that of anything between whole sequences."
        )
    notes += _notes_of_reduction(reduction)
    if loss.rows == 2 and loss.by_row:
        notes.append(
            "The gradient of a completion depends on the others in the call; expectations are over pairs of "
            "completions."
        )
    if reaction.random:
        notes.append(
            "Two calls on the same numbers differ; expectations are over completions, for one state of "
            "torch's generator."
        )
    if reaction.dtype:
        notes.append(
            f"It computes in {reaction.dtype}, so statements hold to {ROUNDED:g} instead of {EXACT:g}."
        )
    return tuple(notes)


def _notes_of_match(case: str, match: Match) -> list[str]:
    notes = []
    if match.follows == "unknown" and match.equal_lengths.follows != "unknown":
        notes.append(
            f"{case} a statement holds where completions are equally long and none where they are not, "
            "as with a mean over the tokens of each completion."
        )
    elif match.follows == "unknown" and match.one_position.follows != "unknown":
        notes.append(f"{case} a statement holds for completions of one token and none for sequences.")
    if match.far_error == math.inf:
        notes.append(
            f"{case} it cannot be evaluated for policies that hardly agree (log-ratios up to 40 nats): "
            "it overflows or raises."
        )
    elif match.far_error > FAR:
        notes.append(
            f"{case} this fails for policies that hardly agree (log-ratios up to 40 nats), with a "
            f"relative error of {match.far_error:.2g} for one token: something is clipped or clamped."
        )
    if match.follows == "zero" and match.variance > 0:
        notes.append(f"{case} it adds noise and no direction: its mean gradient is zero.")
    if match.variance == match.relative_error == 0:
        notes.append(f"{case} it does nothing: its gradient is zero at every sample.")
    return notes


def _notes_of_reduction(reduction: Reduction | None) -> list[str]:
    if reduction is None or reduction.over == "constant":
        return []
    if reduction.over == "tokens":
        said = ", ".join(f"{share:.2g} for {size}" for size, share in reduction.batches.items())
        finite = (
            f" (share of the gradient that is no multiple of it, by completions in a batch: {said})"
            if said
            else ""
        )
        return [
            "Certified is the mean over the tokens of large batches: the sum over tokens, divided by their mean "
            f"number. A batch is divided by the number of tokens that it happens to have, which bends it{finite}."
        ]
    shares = [reduction.unexplained[case] for case in ("on_policy", "off_policy")]
    if reduction.over != "sequences":
        return [f"Certified is the gradient of {reduction.over} of two completions."]
    if max(shares) <= EXACT:
        return []
    return [
        f"The mean over sequences divides each completion by its own length: {shares[0]:.2g} of the gradient "
        f"on-policy and {shares[1]:.2g} off-policy is no multiple of that of the sum over tokens, where completions "
        "stop at different lengths. Only a constant divisor (reduce.over: constant) keeps what the sum follows."
    ]


def remarks_of_flat(intervals: Sequence[Flat]) -> list[str]:
    """Where a token has no gradient, a sentence for each ratio."""
    said = []
    for one in intervals:
        whose = {0.0: "", 1.0: " and its advantage positive", -1.0: " and its advantage negative"}[
            one.advantage
        ]
        said.append(
            f"Flat, as if clamped: a token has no gradient where logp - {one.other} is {_between(one)}{whose}. That "
            f"is {one.share:.2g} of such tokens in the small worlds off-policy, {one.far_share:.2g} where policies "
            "hardly agree."
        )
    return said


def _between(interval: Flat) -> str:
    if interval.low == -math.inf:
        return f"below {interval.high:.4g}"
    if interval.high == math.inf:
        return f"above {interval.low:.4g}"
    return f"between {interval.low:.4g} and {interval.high:.4g}"
