"""Where KL(q ‖ policy) = KL(q ‖ target)."""

import math

import torch
from torch import Tensor

from klent import mixture as M
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import CHERNOFF, OPTIMAL_SAMPLING
from klent.claims.worlds.simplex import random_logits
from klent.kit.grid import grid_optimum

_WORLDS, _ACTIONS = 500, 6


def measure() -> dict[str, Figure]:
    policy, target = (2 * random_logits(seed, _WORLDS, _ACTIONS) for seed in range(2))
    full = M.solve_alpha(policy, target)
    alphas = torch.linspace(0, 1, 1001, dtype=torch.float64)
    log_z = torch.stack([_log_z(policy, target, alpha) for alpha in alphas])
    least = [grid_optimum(alphas.tolist(), world, best="least") for world in log_z.T.tolist()]
    holed_policy, holed_target = policy.clone(), target.clone()
    holed_policy[:, 0], holed_target[:, 1] = -math.inf, -math.inf
    partial = M.solve_alpha(holed_policy, holed_target)
    expected = _condition(holed_policy, holed_target)
    apart = M.solve_alpha(torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]]))
    return {
        "share with a solution, full support": _share(full.converged),
        "largest number of sign changes of KL(q ‖ policy) - KL(q ‖ target)": Figure(
            _sign_changes(policy, target)
        ),
        "largest distance from the least Σ policy^alpha·target^(1-alpha) on a grid of 0.001": Figure(
            (full.alpha - alphas[least]).abs().max().item()
        ),
        "largest |common KL + log Z|": Figure(
            (full.kl_policy + _log_z(policy, target, full.alpha.unsqueeze(-1))).abs().max().item()
        ),
        "share with a solution, each lacks a token of the other": _share(partial.converged),
        "share where its condition predicts the outcome": _share(partial.converged == expected),
        "share with a solution, no common token (control)": _share(apart.converged),
        "spread of KL(q ‖ policy) - KL(q ‖ target) over alpha, equal distributions": Figure(_spread(policy)),
    }


def _log_z(policy: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    """log Σ policy^alpha·target^(1 - alpha); its minimum over alpha is minus the Chernoff information."""
    return (alpha * policy.log_softmax(-1) + (1 - alpha) * target.log_softmax(-1)).logsumexp(-1)


def _gap(policy: Tensor, target: Tensor, alpha: float) -> Tensor:
    q = M.geometric_mixture(policy, target, alpha)
    return (q.exp() * (target.log_softmax(-1) - policy.log_softmax(-1))).sum(-1)


def _sign_changes(policy: Tensor, target: Tensor) -> int:
    gaps = torch.stack([_gap(policy, target, i / 100) for i in range(101)])
    return int((gaps[1:].sign() != gaps[:-1].sign()).sum(0).max())


def _spread(policy: Tensor) -> float:
    return max(_gap(policy, policy, i / 10).abs().max().item() for i in range(11))


def _condition(policy: Tensor, target: Tensor) -> Tensor:
    """-KL(target ‖ policy) <= log(target(S)/policy(S)) <= KL(policy ‖ target), both on the common tokens."""
    common = policy.isfinite() & target.isfinite()
    p, t = (x.log_softmax(-1).masked_fill(~common, -math.inf) for x in (policy, target))
    log_mass_ratio = t.logsumexp(-1) - p.logsumexp(-1)
    p, t = p.log_softmax(-1), t.log_softmax(-1)
    ratio = torch.where(common, t - p, 0.0)
    return (-(t.exp() * ratio).sum(-1) <= log_mass_ratio) & (log_mass_ratio <= -(p.exp() * ratio).sum(-1))


def _share(outcomes: Tensor) -> Figure:
    return Figure(outcomes.double().mean().item())


def judge(f: Figures) -> Judgement:
    full, partial = (
        f["share with a solution, full support"].value,
        f["share with a solution, each lacks a token of the other"].value,
    )
    changes, predicted = (
        f["largest number of sign changes of KL(q ‖ policy) - KL(q ‖ target)"].value,
        f["share where its condition predicts the outcome"].value,
    )
    if full < 1 or changes > 1:
        return "refuted", (
            f"a solution exists in {number(full)} of the worlds, with up to {number(changes)} sign changes"
        )
    if partial == 1:
        return "holds", "there is one solution in every world, whatever the supports"
    return "holds when", (
        "the two differ and have the same support: then the derivative -Var_q[log target/policy] < 0 makes "
        "it unique (continuity alone would not), and it is the Chernoff point. Where each lacks a token of "
        f"the other a solution exists in {number(partial)} of the worlds, exactly where (in "
        f"{number(predicted)} of cases) -KL(t ‖ p) ≤ log t(S)/p(S) ≤ KL(p ‖ t) on the common tokens S; "
        "without common tokens there is none, and for equal distributions every alpha is a solution"
    )


CLAIM = Claim(
    id="kl-symmetry-unique",
    subject="mixture",
    statement="There is exactly one alpha in (0, 1) with KL(q ‖ policy) = KL(q ‖ target).",
    source=f"{OPTIMAL_SAMPLING.at('theorem 4')}; the Chernoff point: {CHERNOFF}",
    experiment="500 random pairs over 6 actions; Σ policy^alpha·target^(1-alpha) on a grid",
    control="tokens in the support of only one of the two; no common token; equal distributions",
    measure=measure,
    judge=judge,
)
