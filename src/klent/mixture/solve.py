"""How much of the policy and how much of the target: one alpha per row, from a criterion for the mixture."""

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from klent.mixture.chernoff import chernoff_points
from klent.mixture.criteria import (
    CRITERIA,
    Criterion,
    equation,
    increasing_root,
    nearest_crossing,
    snr_maximum,
)
from klent.mixture.family import Family
from klent.mixture.geometric import check_pair, in_working_precision
from klent.objectives.checks import check_choice, check_floating, check_number

#: rows shorter than this are solved together; longer ones as many as fit in cache at a time
_LONG = 4096
_SWEEPS = 60
_RANGES = {"kl_budget": (0, math.inf, "()"), "entropy": (0, math.inf, "[)"), "ess": (0, 1, "(]")}


@dataclass(frozen=True)
class MixtureSolution:
    """One mixture per row, and how well it meets its criterion; ``[...]`` each except ``log_q``.

    Attributes:
        alpha: share of the policy, in [0, 1].
        log_q: log-probabilities of the mixture, nats, ``[..., V]``.
        kl_policy: KL(q ‖ policy), nats.
        kl_target: KL(q ‖ target), nats; inf where q is the policy and the target lacks some of its tokens.
        iterations: sweeps over the row, int64.
        converged: True where the criterion is met, bool.
        residual: by how much it is missed, nats (for ``snr`` the width in alpha of the last search interval or
            step).
    """

    alpha: Tensor
    log_q: Tensor
    kl_policy: Tensor
    kl_target: Tensor
    iterations: Tensor
    converged: Tensor
    residual: Tensor


def solve_alpha(
    logits_policy: Tensor,
    logits_target: Tensor,
    *,
    criterion: Criterion = "chernoff",
    value: float | None = None,
    reward: Tensor | None = None,
    tolerance: float | None = None,
    out: Tensor | None = None,
) -> MixtureSolution:
    r"""The geometric mixture q ∝ policy^alpha · target^(1 - alpha) that meets a criterion, row by row.

        chernoff    KL(q ‖ policy) = KL(q ‖ target)
        kl_budget   KL(q ‖ policy) = value
        entropy     H(q) = value
        ess         1 / Σ policy²/q = value
        snr         the largest Φ₁/√Φ₂ (see ``progress_terms``)

    With l = log target - log policy the first reads E_q[l] = 0, where log Σ policy^alpha·target^(1 - alpha)
    is smallest: q is the Chernoff point, and both KLs are the Chernoff information. dE_q[l]/dalpha =
    -Var_q(l) makes its root unique wherever l is not constant.

    Args:
        logits_policy: ``[..., V]``, any floating dtype; -inf is probability 0. A row needs a finite value,
            and no value may be nan or +inf.
        logits_target: the same for the target.
        criterion: what singles the mixture out.
        value: nats in (0, inf) for ``kl_budget``, nats in [0, inf) for ``entropy``, a fraction of the samples
            in (0, 1] for ``ess``; None for the others.
        reward: with ``snr``, r of each token, ``[..., V]``; None is log(target/policy).
        tolerance: largest residual in units of max(1, standard deviation of l at alpha 1/2), nats; None is
            1e-6, and 1e-10 for float64 inputs. On top comes what rounding changes.
        out: where ``log_q`` is written, ``[..., V]`` contiguous in its dtype; None is a new tensor.

    Returns:
        A ``MixtureSolution``, float32 (float64 for float64 inputs), without gradient.

    Raises:
        TypeError: a tensor is not floating point, or a number is not one.
        ValueError: shapes differ, ``criterion`` is unknown, or ``value`` is missing, superfluous or out of
            range.

    Note:
        *Where nothing solves*, ``converged`` is False and no number is nan. Tokens that only one of the two
        knows count for the criterion, but a mixture has none of them. ``chernoff`` and ``entropy`` then give
        the end (for entropy, the point of a grid) that misses least, in the limit from inside: the policy or
        the target on the tokens that both know. A ``kl_budget`` larger than needed gives that limit at
        alpha 0, and so does an ``ess`` that even the target exceeds; a smaller one than tokens unknown to the
        target allow, or an ``ess`` for a policy with such tokens, gives the policy itself. So do rows that
        share no token, with ``kl_target`` and ``residual`` inf. Equal rows give alpha 1/2 for ``chernoff``.

        *Several solutions.* The entropy need not be monotone in alpha: of its crossings the one nearest to
        the policy is taken, as far as a grid of 17 points can tell them apart.

        *snr.* With the default reward alpha was 1 in every pair of distributions that was tried.

        *Cost.* ``chernoff`` on float32 rows of 4096 tokens or more on a CPU takes the time of five to
        eight log-softmax passes. On a GPU where Triton is installed every criterion takes one kernel, unless
        the logits are float64; there logits below -1e30 count as -inf, and ``snr`` computes in float64 and
        looks for the root of a derivative in place of golden sections, with the same alpha but for rounding.
        Everything else is a plain iteration over all rows.

    Example:
        >>> import torch
        >>> from klent import mixture
        >>> policy, target = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.1, 0.4, 0.5]).log()
        >>> solution = mixture.solve_alpha(policy, target)
        >>> round(solution.alpha.item(), 3), solution.log_q.exp()
        (0.524, tensor([0.3596, 0.3611, 0.2793]))
        >>> round(solution.kl_policy.item(), 4), round(solution.kl_target.item(), 4)
        (0.2607, 0.2607)
        >>> round(mixture.solve_alpha(policy, target, criterion="kl_budget", value=0.1).alpha.item(), 3)
        0.702

    References:
        Chernoff, A Measure of Asymptotic Efficiency for Tests of a Hypothesis Based on the Sum of
        Observations, Annals of Mathematical Statistics 23, 1952. Nielsen, 2013 (see ``geometric_mixture``).
    """
    check_pair(logits_policy, logits_target)
    check_choice("criterion", criterion, CRITERIA)
    _check_value(criterion, value)
    _check_reward(criterion, reward, logits_policy)
    double = torch.float64 in (logits_policy.dtype, logits_target.dtype)
    dtype = torch.float64 if double else torch.float32
    if tolerance is None:
        tolerance = 1e-10 if double else 1e-6
    check_number("tolerance", tolerance, 0, 1, ends="()")
    shape, vocabulary = logits_policy.shape[:-1], logits_policy.shape[-1]
    with torch.no_grad():
        policy, target = (x.detach().reshape(-1, vocabulary) for x in (logits_policy, logits_target))
        log_q = _output(out, logits_policy, dtype)
        rows = policy, target, log_q.view(-1, vocabulary)
        r = None if reward is None else reward.detach().reshape(-1, vocabulary)
        if not double and _has_kernel(policy):
            from klent.mixture.triton import solve_on_chip

            numbers = solve_on_chip(*rows, criterion, value or 0.0, r, tolerance)
        elif not double and criterion == "chernoff" and not policy.is_cuda and vocabulary >= _LONG:
            numbers = _solve_in_cache(*rows, tolerance)
        else:
            numbers = _solve_plainly(*rows, criterion, value or 0.0, r, tolerance)
        alpha, kl_policy, kl_target, iterations, converged, residual = numbers.view(6, *shape).unbind()
        return MixtureSolution(
            alpha=alpha.to(dtype),
            log_q=log_q,
            kl_policy=kl_policy.to(dtype),
            kl_target=kl_target.to(dtype),
            iterations=iterations.long(),
            converged=converged.bool(),
            residual=residual.to(dtype),
        )


def optimal_sampling_distribution(
    pi_theta: Tensor, pi_t: Tensor, method: Literal["kl_symmetry", "snr"] = "kl_symmetry"
) -> tuple[Tensor, Tensor]:
    """The mixture of two probability tables by the name that its derivation gives it.

        kl_symmetry   KL(q* ‖ pi_theta) = KL(q* ‖ pi_t)
        snr           the largest signal-to-noise ratio of a small step

    A thin wrapper of :func:`solve_alpha`, which takes logits and reports whether there is a solution.

    Args:
        pi_theta: probabilities of the policy, ``[batch, vocab]``.
        pi_t: probabilities of the target, ``[batch, vocab]``.
        method: how alpha is chosen.

    Returns:
        Probabilities ``q_star`` ``[batch, vocab]`` and ``alpha_star`` ``[batch]``; nothing says whether the
        method's equation has a solution.

    Raises:
        TypeError: a table is not floating point.
        ValueError: shapes differ or ``method`` is unknown.

    Example:
        >>> import torch
        >>> from klent.mixture import optimal_sampling_distribution
        >>> optimal_sampling_distribution(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]]))
        (tensor([[0.5000, 0.5000]]), tensor([0.5000]))
    """
    check_floating("pi_theta", pi_theta)
    check_floating("pi_t", pi_t)
    check_choice("method", method, ("kl_symmetry", "snr"))
    criterion: Criterion = "chernoff" if method == "kl_symmetry" else "snr"
    solution = solve_alpha(pi_theta.log(), pi_t.log(), criterion=criterion)
    return solution.log_q.exp(), solution.alpha


def _solve_in_cache(policy: Tensor, target: Tensor, log_q: Tensor, tolerance: float) -> Tensor:
    """All rows through :func:`chernoff_points`; rows that it is not sure of are solved plainly."""
    policy, target = in_working_precision(policy, target)
    points = chernoff_points(policy, target, log_q, tolerance)
    table = [(1 - p.s, max(-p.log_z, 0), max(-p.log_z, 0), p.sweeps, p.sure, p.residual) for p in points]
    numbers = torch.tensor(table, dtype=torch.float64).view(-1, 6).T
    unsure = [i for i, at in enumerate(points) if not at.sure]
    if unsure:
        index = torch.tensor(unsure)
        again = log_q[index]
        numbers[:, index] = _solve_plainly(
            policy[index], target[index], again, "chernoff", 0.0, None, tolerance
        )
        log_q[index] = again
    return numbers


def _solve_plainly(
    policy: Tensor,
    target: Tensor,
    log_q: Tensor,
    criterion: Criterion,
    value: float,
    reward: Tensor | None,
    tolerance: float,
) -> Tensor:
    """Chunks of rows through :class:`Family`; any criterion, dtype and device."""
    numbers = torch.empty(6, len(policy), dtype=torch.float64, device=policy.device)
    size = max(1, 2**22 // policy.shape[1])
    for start in range(0, len(policy), size):
        part = slice(start, start + size)
        r = None if reward is None else reward[part]
        family = Family(policy[part], target[part])
        log_q[part], numbers[:, part] = _solve_family(family, criterion, value, r, tolerance)
    return numbers


def _solve_family(
    family: Family, criterion: Criterion, value: float, reward: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    middle = torch.full_like(family.base[:, 0], 0.5, dtype=torch.float64)
    allowed = _allowed(family, middle, tolerance)
    if criterion == "snr":
        root = snr_maximum(family, reward)
        allowed = torch.ones_like(allowed)
    elif criterion == "entropy":
        root = nearest_crossing(equation(family, criterion, value), middle, allowed, _SWEEPS)
    else:
        root = increasing_root(equation(family, criterion, value), middle, allowed, _SWEEPS)
    s, residual = root.s, root.residual
    itself = ~family.shared  # rows whose answer is the policy, whatever it shares with the target
    if criterion in ("kl_budget", "ess"):
        itself = itself | ((s == 0) & ~family.covered)
        if criterion == "ess":
            itself = itself | ~family.covered
    s = torch.where(itself, 0.0, s)
    at = family.sweep(s)
    log_q = torch.where(itself.unsqueeze(-1), family.log_policy, family.log_q(s))
    kl_policy = torch.where(itself, 0.0, s * at.mean - at.log_z)
    beyond = torch.where(family.covered, -at.log_z - (1 - s) * at.mean, math.inf)
    kl_target = torch.where(itself, beyond, -(1 - s) * at.mean - at.log_z)
    residual = torch.where(family.shared, residual, math.inf)
    if criterion == "ess":
        residual = torch.where(family.covered, residual, math.inf)
    converged = (residual <= allowed) & ~(itself & (criterion != "snr"))
    numbers = [1 - s, kl_policy.clamp_min(0), kl_target.clamp_min(0), root.iterations, converged, residual]
    return log_q, torch.stack([number.double() for number in numbers])


def _allowed(family: Family, s: Tensor, tolerance: float) -> Tensor:
    """Nats: the tolerance in units of l's spread, and what rounding of alpha and of a sum amounts to."""
    at = family.sweep(s)
    size = (at.variance + at.mean.square()).sqrt()
    rounding = torch.finfo(family.base.dtype).eps * (at.variance + 8 * size)
    return tolerance * at.variance.sqrt().clamp_min(1) + rounding


def _has_kernel(logits: Tensor) -> bool:
    """On a GPU, where Triton is installed."""
    return logits.is_cuda and importlib.util.find_spec("triton") is not None


def _output(out: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    if out is None:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    same = out.shape == like.shape and out.dtype == dtype and out.device == like.device
    if not same or not out.is_contiguous():
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}, expected a contiguous {dtype} "
            f"{list(like.shape)} on {like.device}"
        )
    return out


def _check_value(criterion: str, value: float | None) -> None:
    if criterion not in _RANGES:
        if value is not None:
            raise ValueError(f"value is {value}, but criterion {criterion!r} takes none")
        return
    low, high, ends = _RANGES[criterion]
    if value is None:
        raise ValueError(f"criterion {criterion!r} needs a value in {ends[0]}{low}, {high}{ends[1]}")
    check_number("value", value, low, high, ends=ends)


def _check_reward(criterion: str, reward: Tensor | None, like: Tensor) -> None:
    if reward is None:
        return
    if criterion != "snr":
        raise ValueError(f"reward is given, but criterion {criterion!r} does not look at rewards")
    check_floating("reward", reward)
    if reward.shape != like.shape:
        raise ValueError(f"reward has shape {list(reward.shape)}, expected {list(like.shape)} as the logits")
