"""From a gradient to a statement: which candidates it is made of, with which coefficients."""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: relative error below which a gradient is what the statement says, for a loss computed in float64
EXACT = 1e-6
#: the same for a loss that computes in a smaller dtype
ROUNDED = 1e-4
#: largest number of candidates in a combination; a gradient that needs more is unknown
MOST = 4


@dataclass(frozen=True)
class Statement:
    """What an expected gradient equals.

    Attributes:
        follows: a candidate's name, ``combination``, ``zero`` or ``unknown``.
        coefficients: candidate -> weight with which the loss minimises it; negative is maximising.
        relative_error: norm of the unexplained part over the norm of the gradient; for ``zero`` the norm of
            the gradient over that of a single sample; for ``unknown`` what the nearest candidate leaves.
        prefixes: the policy whose prefixes token-by-token candidates run over, ``policy`` or ``behaviour``.
    """

    follows: str
    coefficients: dict[str, float] = field(default_factory=dict)
    relative_error: float = math.nan
    prefixes: str = "policy"


def fit(
    gradient: Tensor,
    scale: float,
    candidates: dict[str, Tensor],
    tolerance: float = EXACT,
    rare: Collection[str] = (),
) -> Statement:
    """Name a gradient: zero, one candidate, the fewest candidates that explain it, or unknown.

    Args:
        gradient: the expected gradient in every draw, joined, ``[M]``.
        scale: norm of a single sample's gradient (root mean square), which zero is measured against.
        candidates: name -> gradient of the candidate in the same draws, ``[M]``.
        tolerance: largest relative error of a statement.
        rare: candidates, without ``@behaviour``, of which a combination holds at most one, and which are not
            what an unknown gradient is nearest to.
    """
    norm = gradient.norm().item()
    if norm <= tolerance / 100 * scale:
        return Statement("zero", {}, norm / scale if scale else 0.0)
    if not candidates:
        return Statement("unknown", {}, 1.0)
    errors = _errors(gradient, candidates)
    best = min(errors, key=errors.__getitem__)
    if errors[best] <= tolerance:
        return _statement(gradient, candidates, [best])
    names = _fewest(gradient, candidates, tolerance, rare)
    if names:
        return _statement(gradient, candidates, names)
    usual = [error for name, error in errors.items() if name.removesuffix("@behaviour") not in rare]
    return Statement("unknown", {}, min(usual or errors.values()))


def cosines(gradient: Tensor, candidates: dict[str, Tensor]) -> dict[str, float]:
    """Cosine between the gradient and that of each candidate; NaN where one of the two is zero."""
    result: dict[str, float] = {}
    for name, candidate in candidates.items():
        norms = (gradient.norm() * candidate.norm()).item()
        result[name] = (gradient @ candidate).item() / norms if norms > 0 else math.nan
    return result


def distances(gradient: Tensor, candidates: dict[str, Tensor]) -> dict[str, float]:
    """Distance between the gradient and that of each candidate, relative to the latter; NaN where it is zero."""
    return {
        name: ((gradient - candidate).norm() / norm).item() if (norm := candidate.norm()) > 0 else math.nan
        for name, candidate in candidates.items()
    }


def _errors(gradient: Tensor, candidates: dict[str, Tensor]) -> dict[str, float]:
    """The share of the gradient that each candidate alone does not explain."""
    known = torch.stack(list(candidates.values()))
    weights = known @ gradient / known.square().sum(dim=1).clamp(min=1e-300)
    left = (gradient - weights[:, None] * known).norm(dim=1) / gradient.norm()
    return dict(zip(candidates, left.tolist(), strict=True))


def _fewest(
    gradient: Tensor, candidates: dict[str, Tensor], tolerance: float, rare: Collection[str]
) -> list[str]:
    """The smallest set of at most ``MOST`` candidates that explains the gradient; else an empty list.

    Sets without rare candidates are tried first, then those with one.
    """
    odd = [name for name in candidates if name.removesuffix("@behaviour") in rare]
    usual = {name: vector for name, vector in candidates.items() if name not in odd}
    found = _search(gradient, usual, tolerance)
    if not found and not _spanned(gradient, candidates, tolerance):
        return []
    for name in odd:
        found = found or _search(gradient, {**usual, name: candidates[name]}, tolerance, having=name)
    return found


def _search(
    gradient: Tensor, candidates: dict[str, Tensor], tolerance: float, having: str | None = None
) -> list[str]:
    """The smallest set of two to ``MOST`` candidates that explains the gradient.

    Every set is tried (with ``having`` in it). The span of all candidates together is small, so the search is
    done within it.
    """
    if not candidates:
        return []
    names = list(candidates)
    directions, inside = torch.linalg.qr(_basis(candidates))
    goal = directions.T @ gradient
    if (gradient - directions @ goal).norm() > tolerance * gradient.norm():
        return []
    for size in range(2, min(MOST, len(names)) + 1):
        sets = [
            chosen
            for chosen in itertools.combinations(range(len(names)), size)
            if having is None or names.index(having) in chosen
        ]
        columns = inside[:, torch.tensor(sets)].movedim(1, 0)
        weights = torch.linalg.lstsq(columns, goal.expand(len(sets), -1)[..., None]).solution
        residuals = (columns @ weights)[..., 0].sub(goal).norm(dim=1)
        fitting = (residuals <= tolerance * goal.norm()).nonzero()
        if len(fitting):
            return [names[index] for index in sets[int(fitting[0])]]
    return []


def _spanned(gradient: Tensor, candidates: dict[str, Tensor], tolerance: float) -> bool:
    """Whether all candidates together explain the gradient."""
    directions, _ = torch.linalg.qr(_basis(candidates))
    left = gradient - directions @ (directions.T @ gradient)
    return bool(left.norm() <= tolerance * gradient.norm())


def _basis(candidates: dict[str, Tensor]) -> Tensor:
    """The candidates as columns of length 1."""
    return torch.stack([vector / vector.norm().clamp(min=1e-300) for vector in candidates.values()], dim=1)


def _leftover(gradient: Tensor, candidates: dict[str, Tensor], names: list[str]) -> tuple[Tensor, float]:
    """Least-squares coefficients of ``names``, and the share of the gradient that they do not explain."""
    basis = torch.stack([candidates[name] for name in names], dim=1)
    solution = torch.linalg.lstsq(basis, gradient[:, None], driver="gelsd").solution[:, 0]
    return solution, ((gradient - basis @ solution).norm() / gradient.norm()).item()


def _statement(gradient: Tensor, candidates: dict[str, Tensor], names: list[str]) -> Statement:
    solution, error = _leftover(gradient, candidates, names)
    plain = [name.removesuffix("@behaviour") for name in names]
    if len(set(plain)) < len(plain):  # the same functional over both kinds of prefixes: keep the suffix
        plain = names
    met = any(name.endswith("@behaviour") or name == "expected_reward_token" for name in names)
    prefixes = "behaviour" if met else "policy"
    follows = plain[0] if len(plain) == 1 else "combination"
    return Statement(follows, dict(zip(plain, solution.tolist(), strict=True)), error, prefixes)
