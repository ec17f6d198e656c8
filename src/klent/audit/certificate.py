"""Certificates: what a loss really minimises, found by listing all that can happen in a small world."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from klent.audit.call import Loss, LossProblem, wire
from klent.audit.candidates import candidate_gradients
from klent.audit.expectation import Expectation, expected_gradient
from klent.audit.fit import EXACT, ROUNDED, Statement, cosines, fit
from klent.audit.restoring import restoring_stiffness
from klent.audit.sensitivity import Sensitivity, sensitivity
from klent.audit.worlds import Scene, equal_lengths, far_apart, one_position, two_tokens, unequal_lengths

UNKNOWN = Statement("unknown")
#: relative error from which a statement is said not to hold far from the reference
FAR = 1e-3


@dataclass(frozen=True)
class Finding:
    """What the expected gradient of a loss is, for completions from one kind of policy.

    Attributes:
        follows: the candidate that the gradient equals on sequences, or ``combination``, ``zero``,
            ``unknown``.
        coefficients: candidate -> weight with which the loss minimises it; negative is maximising.
        relative_error: what that leaves unexplained, as a share of the gradient; for ``zero`` the gradient as
            a share of a single sample's; for ``unknown`` what the nearest candidate leaves.
        cosine: candidate -> cosine between its gradient and the loss's, on sequences. The suffix
            ``@behaviour`` says that prefixes are the behaviour policy's.
        variance: of one completion's gradient about its mean, summed over parameters, mean over worlds.
        prefixes: whose prefixes a candidate ``_token`` runs over, ``policy`` or ``behaviour``.
        one_position: the same statement where a completion is a single token.
        equal_lengths: the same statement where all completions are equally long.
        far_error: how wrong ``one_position`` is for policies that hardly agree, with log-ratios up to 40
            nats; large where the loss clips or clamps, inf where it overflows or raises, NaN where there is
            no statement.
    """

    follows: str = "unknown"
    coefficients: Mapping[str, float] = field(default_factory=dict)
    relative_error: float = math.nan
    cosine: Mapping[str, float] = field(default_factory=dict)
    variance: float = math.nan
    prefixes: str = "policy"
    one_position: Statement = UNKNOWN
    equal_lengths: Statement = UNKNOWN
    far_error: float = math.nan


@dataclass(frozen=True)
class Certificate:
    """What is known about a loss.

    Attributes:
        target: its name.
        settings: those it was audited with.
        reads: the streams that it takes.
        on_policy: for completions sampled from the policy itself (``logp_old == logp``).
        off_policy: for completions sampled from another policy, whose log-probabilities are ``logp_old``.
        restoring_force: whether, close to the reference, it pulls back with a force of first order.
        stiffness: that pull, in units of the KL's own; 0 without one, inf if it does not fade with distance.
        sensitivity: how it reacts to padding, to cutting a batch, to the dtype; None if it could not be
            called.
        completions: how many completions a call was given: ``any``, or ``2`` for a loss whose rows depend on
            each other. Then expectations are over all pairs, the smallest batch there is.
        problem: why there is no certificate, or None.
        notes: what a reader should know besides.
    """

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    on_policy: Finding = Finding()
    off_policy: Finding = Finding()
    restoring_force: bool = False
    stiffness: float = 0.0
    sensitivity: Sensitivity | None = None
    completions: str = "any"
    problem: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As nested dicts, lists, strings and numbers that JSON can hold; NaN and infinity become None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def __str__(self) -> str:
        from klent.audit.words import describe

        return describe(self)


def certify(loss: Callable[..., Any], /, **params: Any) -> Certificate:
    """Find out what a loss minimises, by exact enumeration.

        g = Σ over sequences y of  P(y)·∇ Σₜ loss(y)ₜ,   P the policy that samples

    In worlds small enough to list every sequence, the expected gradient of the loss is computed exactly and
    compared with the gradients of what it could have been meant to follow.

    Args:
        loss: takes any of ``logp``, ``logp_old``, ``logp_gen``, ``logp_ref``, ``advantage``, ``entropy``
            (``[B, T]`` float, nats; gradient flows to ``logp`` and ``entropy``) and ``mask`` (``[B, T]``
            bool) by these names. Four required arguments with names of their own are read as ``(logp,
            logp_old, logp_ref, mask)``. Returns a loss per token, ``[B, T]``, or a ``TokenLoss``.
        params: settings of the loss.

    Returns:
        A ``Certificate``. It speaks of these worlds: a branch that none of them takes is not seen. Log-ratios
        are up to 2 nats, as a run meets them, and in ``far_error`` up to 40.

    Note:
        *Errors.* Nothing that the loss does raises: what it raised, a NaN, a wrong shape, a scalar or a
        missing gradient are in ``Certificate.problem``.

        *Reward.* ``advantage`` is the completion's reward minus its mean, on each of its tokens.

        *Weights.* A coefficient of 1 minimises with weight 1: a policy gradient, which raises the expected
        reward, has ``{"expected_reward": -1.0}``, and an entropy bonus a negative ``entropy``.

    Example:
        >>> from klent import audit
        >>> def k3(logp, logp_ref, mask):
        ...     return (logp_ref - logp).exp() - 1 - (logp_ref - logp)
        >>> certificate = audit.certify(k3)
        >>> certificate.on_policy.follows, certificate.off_policy.follows, certificate.restoring_force
        ('forward_kl_token', 'unknown', True)

    References:
        Tang and Munos, On a Few Pitfalls in KL Divergence Gradient Estimation for RL, 2025, arXiv:2506.09477.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    try:
        wired = wire(loss, params)
    except LossProblem as problem:
        return Certificate(name, dict(params), problem=str(problem))
    return audit_loss(wired, name)


def audit_loss(loss: Loss, name: str) -> Certificate:
    """The certificate of a loss that has been matched with its arguments."""
    reads = tuple(sorted(loss.reads))
    where = ""
    try:
        reaction = sensitivity(loss, unequal_lengths()[0])
        if reaction.split == "dependent":
            loss = Loss(loss.function, loss.settings, loss.wiring, rows=2)
        where = " (on-policy)"
        on_policy = _finding(loss, off_policy=False)
        where = " (off-policy)"
        off_policy = _finding(loss, off_policy=True)
        where = " (close to the reference)"
        stiffness = restoring_stiffness(loss)
    except LossProblem as problem:
        return Certificate(name, dict(loss.settings), reads, problem=f"{problem}{where}")
    return Certificate(
        name,
        dict(loss.settings),
        reads,
        on_policy,
        off_policy,
        stiffness > 0,
        stiffness,
        reaction,
        "2" if loss.rows == 2 else "any",
        notes=_notes(loss, on_policy, off_policy, reaction),
    )


def _finding(loss: Loss, *, off_policy: bool) -> Finding:
    # pairs of completions are many: fewer and smaller worlds then, still more equations than candidates
    many = loss.rows is None
    equal = _witness(loss, equal_lengths() if many else two_tokens(), off_policy=off_policy)
    unequal = _witness(loss, unequal_lengths() if many else unequal_lengths()[:2], off_policy=off_policy)
    single = _Joined.of(_witness(loss, one_position(), off_policy=off_policy)).statement()
    joined = _Joined.of(equal + unequal)
    known = joined.statement()
    return Finding(
        known.follows,
        known.coefficients,
        known.relative_error,
        cosines(joined.gradient, joined.candidates),
        joined.variance,
        known.prefixes,
        one_position=single,
        equal_lengths=_Joined.of(equal).statement(),
        far_error=_far_error(loss, single, off_policy=off_policy),
    )


def _far_error(loss: Loss, known: Statement, *, off_policy: bool) -> float:
    """How wrong a statement about one token becomes far from the reference; inf if the loss fails there."""
    try:
        return _Joined.of(_witness(loss, far_apart(), off_policy=off_policy)).error_of(known)
    except LossProblem:
        return math.inf


Witness = tuple[Expectation, dict[str, torch.Tensor]]


def _witness(loss: Loss, scenes: Sequence[Scene], *, off_policy: bool) -> list[Witness]:
    """For each scene the loss's expected gradient, and the candidates' gradients."""
    scenes = scenes if off_policy else [scene.on_policy() for scene in scenes]
    return [(expected_gradient(loss, scene), candidate_gradients(scene, loss.reads)) for scene in scenes]


@dataclass(frozen=True)
class _Joined:
    """Gradients of several scenes, one after another, as one long vector; the candidates' likewise."""

    gradient: torch.Tensor
    candidates: dict[str, torch.Tensor]
    scale: float
    variance: float
    tolerance: float

    @classmethod
    def of(cls, witnesses: list[Witness]) -> "_Joined":
        found = [expectation for expectation, _ in witnesses]
        return cls(
            torch.cat([each.gradient for each in found]),
            {name: torch.cat([known[name] for _, known in witnesses]) for name in witnesses[0][1]},
            sum(each.scale**2 for each in found) ** 0.5,
            sum(each.variance for each in found) / len(found),
            EXACT if all(each.dtype == torch.float64 for each in found) else ROUNDED,
        )

    def statement(self) -> Statement:
        return fit(self.gradient, self.scale, self.candidates, self.tolerance)

    def error_of(self, known: Statement) -> float:
        """How far a statement made elsewhere is from the truth here, relative to the larger of the two."""
        if known.follows == "unknown":
            return math.nan
        claimed = sum(
            (weight * self.candidates[name] for name, weight in known.coefficients.items()),
            torch.zeros_like(self.gradient),
        )
        largest = max(self.gradient.norm().item(), claimed.norm().item(), self.tolerance / 100 * self.scale)
        return (self.gradient - claimed).norm().item() / largest if largest else 0.0


def _notes(loss: Loss, on_policy: Finding, off_policy: Finding, reaction: Sensitivity) -> tuple[str, ...]:
    notes = []
    if loss.by_position:
        notes.append(f"Its arguments were read by position: {', '.join(loss.wiring.values())}.")
    for where, finding in (("On-policy", on_policy), ("Off-policy", off_policy)):
        if finding.follows == "unknown" and finding.equal_lengths.follows != "unknown":
            notes.append(
                f"{where} a statement holds where completions are equally long and none where they are not, "
                "as with a mean over each completion's tokens."
            )
        elif finding.follows == "unknown" and finding.one_position.follows != "unknown":
            notes.append(f"{where} a statement holds for completions of one token and none for sequences.")
        if finding.far_error == math.inf:
            notes.append(
                f"{where} it cannot be evaluated for policies that hardly agree (log-ratios up to 40 nats): "
                "it overflows or raises."
            )
        elif finding.far_error > FAR:
            notes.append(
                f"{where} this fails for policies that hardly agree (log-ratios up to 40 nats), with a "
                f"relative error of {finding.far_error:.2g} for one token: something is clipped or clamped."
            )
        if finding.follows == "zero" and finding.variance > 0:
            notes.append(f"{where} it adds noise and no direction: its mean gradient is zero.")
        if finding.variance == finding.relative_error == 0:
            notes.append(f"{where} it does nothing: its gradient is zero at every sample.")
    if off_policy.prefixes == "behaviour":
        notes.append(
            "Off-policy the prefixes are those that the behaviour policy met: the ratio of the tokens before "
            "is missing, so the gradient is not that of anything between whole sequences."
        )
    if loss.rows == 2:
        notes.append(
            "A completion's gradient depends on the others in the call; expectations are over pairs of "
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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
