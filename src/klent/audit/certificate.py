"""Certificates: what a loss minimises, found by enumerating every completion of small worlds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from klent.audit.advice import advice
from klent.audit.call import Loss, LossFunction, LossProblem, wire
from klent.audit.candidates import RARE, candidate_gradients, concerned
from klent.audit.expectation import Expectation, expected_gradient
from klent.audit.fit import EXACT, ROUNDED, Statement, cosines, distances, fit
from klent.audit.flat import Flat, flat_intervals
from klent.audit.match import Match
from klent.audit.names import OF_REFERENCE
from klent.audit.notes import remarks, remarks_of_flat
from klent.audit.reduction import Reduce, Reduction, compare, reduced
from klent.audit.restoring import restoring_stiffness
from klent.audit.sensitivity import Sensitivity, sensitivity
from klent.audit.words import describe
from klent.audit.worlds import Scene, equal_lengths, far_apart, one_position, two_tokens, unequal_lengths
from klent.kit.threads import one_thread


@dataclass(frozen=True)
class Certificate:
    """What an audit found out about a loss.

    Attributes:
        target: name of the loss.
        settings: the settings that it was audited with.
        reads: the streams that it takes.
        on_policy: for completions sampled from the policy itself (``logp_old == logp``).
        off_policy: for completions sampled from another policy, whose log-probabilities are ``logp_old``.
        restoring_force: whether, close to the reference, it pulls back with a force of first order.
        stiffness: that pull relative to the KL's; 0 without a pull, inf if it does not fade with distance.
        sensitivity: how it reacts to padding, to splitting a batch, to the dtype; None if it could not be
            called.
        completions: number of completions per call: ``any``, or ``2`` for a loss whose rows depend on each
            other; expectations are then over all pairs, the smallest such batch.
        reduction: what the reduction that was asked for leaves of the gradient of the sum; None if none was.
        flat: intervals of log-ratios at which a token has no gradient, as behind a clamp.
        problem: why there is no certificate, or None.
        notes: further remarks for the reader.
        advice: what to write instead, if it does not follow what it looks like.
    """

    target: str
    settings: Mapping[str, object] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    on_policy: Match = field(default_factory=Match)
    off_policy: Match = field(default_factory=Match)
    restoring_force: bool = False
    stiffness: float = 0.0
    sensitivity: Sensitivity | None = None
    completions: str = "any"
    reduction: Reduction | None = None
    flat: tuple[Flat, ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As nested dicts, lists, strings and numbers that JSON can hold; NaN and infinity become None."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return describe(self)


def certify(loss: LossFunction, /, *, reduce: Reduce | None = None, **params: object) -> Certificate:
    """Find out what a loss minimises, by exact enumeration.

        g = Σ over sequences y of  P(y)·∇ Σₜ loss(y)ₜ,   P the policy that samples

    In worlds small enough to list every sequence, the expected gradient of the loss is computed exactly and
    compared with the gradients of candidate objectives: divergences, entropies, expected reward.

    Args:
        loss: takes any of ``logp``, ``logp_old``, ``logp_gen``, ``logp_ref``, ``advantage``, ``entropy``
            (``[B, T]`` float, nats; gradient flows to ``logp`` and ``entropy``) and ``mask`` (``[B, T]``
            bool) by these names, or by those of TRL and verl (``per_token_logps``, ``old_log_prob``,
            ``response_mask``, ...; a mask is then int64). Four required arguments that do not name streams
            are read as ``(logp, logp_old, logp_ref, mask)``. Returns a loss per token, ``[B, T]``, or a
            ``TokenLoss``.
        reduce: how the loss per token becomes a number. None is the sum over the tokens of a completion, which is
            ``constant`` up to the constant. ``sequences`` divides each completion by its own length. ``tokens``
            divides a batch by its number of tokens: certified is the limit of large batches, whose direction is
            that of the sum; ``Certificate.reduction.batches`` says what is left of that in a batch of 2, 16 or
            64. A function takes the loss ``[B, T]``, 0 off the mask, and the mask, and returns a scalar:
            certified is its gradient for two completions.
        params: settings of the loss.

    Returns:
        A ``Certificate``. It holds for these worlds: a branch that none of them takes is not seen. Log-ratios
        are up to 2 nats, as in a run, and up to 40 in ``far_error``.

    Note:
        *Errors.* An exception of the loss, a NaN, a wrong shape, a scalar or a missing gradient does not
        raise; ``Certificate.problem`` describes it.

        *Reward.* ``advantage`` is the reward of the completion minus its mean, on each of its tokens.

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
        reduced(wired, reduce)
    except LossProblem as problem:
        return Certificate(name, dict(params), problem=str(problem))
    return audit_loss(wired, name, reduce)


def audit_loss(loss: Loss, name: str, reduce: Reduce | None = None) -> Certificate:
    """The certificate of a loss that has been matched with its arguments."""
    with one_thread():
        return _audit(loss, name, reduce)


def _audit(loss: Loss, name: str, reduce: Reduce | None) -> Certificate:
    reads = tuple(sorted(loss.reads))
    case = ""
    try:
        reaction = sensitivity(loss, unequal_lengths()[0])
        if reaction.split == "dependent":
            loss = replace(loss, rows=2)
        flat = flat_intervals(loss)
        difference = compare(loss, reduce)
        loss = reduced(loss, reduce)
        case = " (on-policy)"
        on_policy = _match(loss, off_policy=False)
        case = " (off-policy)"
        off_policy = _match(loss, off_policy=True)
        case = " (close to the reference)"
        stiffness = restoring_stiffness(loss)
    except LossProblem as problem:
        return Certificate(name, dict(loss.settings), reads, problem=f"{problem}{case}")
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
        difference,
        flat,
        notes=(*remarks(loss, on_policy, off_policy, reaction, difference), *remarks_of_flat(flat)),
        advice=advice(
            on_policy,
            off_policy,
            difference,
            penalises="advantage" not in loss.reads and not loss.reads.isdisjoint(OF_REFERENCE),
        ),
    )


def _match(loss: Loss, *, off_policy: bool) -> Match:
    # pairs of completions are many: then fewer and smaller worlds, still more equations than candidates
    singles = loss.rows is None
    equal = _witness(loss, equal_lengths() if singles else two_tokens(), off_policy=off_policy)
    unequal = _witness(loss, unequal_lengths() if singles else unequal_lengths()[:2], off_policy=off_policy)
    single = _Joined.of(_witness(loss, one_position(), off_policy=off_policy)).statement()
    joined = _Joined.of(equal + unequal)
    statement = joined.statement()
    return Match(
        statement.follows,
        statement.coefficients,
        statement.relative_error,
        cosines(joined.gradient, joined.candidates),
        distances(joined.gradient, joined.candidates),
        joined.variance,
        statement.prefixes,
        one_position=single,
        equal_lengths=_Joined.of(equal).statement(),
        far_error=_far_error(loss, single, off_policy=off_policy),
    )


def _far_error(loss: Loss, statement: Statement, *, off_policy: bool) -> float:
    """Error of a statement about one token far from the reference; inf if the loss fails there."""
    try:
        return _Joined.of(_witness(loss, far_apart(), off_policy=off_policy)).error_of(statement)
    except LossProblem:
        return math.inf


Witness = tuple[Expectation, dict[str, torch.Tensor]]


def _witness(loss: Loss, scenes: Sequence[Scene], *, off_policy: bool) -> list[Witness]:
    """For each scene the loss's expected gradient, and the candidates' gradients."""
    scenes = scenes if off_policy else [scene.on_policy() for scene in scenes]
    return [
        (expected_gradient(loss, scene), candidate_gradients(scene, concerned(loss.reads)))
        for scene in scenes
    ]


@dataclass(frozen=True)
class _Joined:
    """Gradients of several scenes, concatenated; those of the candidates likewise."""

    gradient: torch.Tensor
    candidates: dict[str, torch.Tensor]
    scale: float
    variance: float
    tolerance: float

    @classmethod
    def of(cls, witnesses: list[Witness]) -> "_Joined":
        expectations = [expectation for expectation, _ in witnesses]
        return cls(
            torch.cat([e.gradient for e in expectations]),
            {name: torch.cat([gradients[name] for _, gradients in witnesses]) for name in witnesses[0][1]},
            sum(e.scale**2 for e in expectations) ** 0.5,
            sum(e.variance for e in expectations) / len(expectations),
            EXACT if all(e.dtype == torch.float64 for e in expectations) else ROUNDED,
        )

    def statement(self) -> Statement:
        return fit(self.gradient, self.scale, self.candidates, self.tolerance, RARE)

    def error_of(self, statement: Statement) -> float:
        """Distance of a statement made in other scenes from this gradient, relative to the larger one."""
        if statement.follows == "unknown":
            return math.nan
        claimed = sum(
            (weight * self.candidates[name] for name, weight in statement.coefficients.items()),
            torch.zeros_like(self.gradient),
        )
        largest = max(self.gradient.norm().item(), claimed.norm().item(), self.tolerance / 100 * self.scale)
        return (self.gradient - claimed).norm().item() / largest if largest else 0.0


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
