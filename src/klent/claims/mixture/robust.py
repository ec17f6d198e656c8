"""Whether the best signal-to-noise ratio is what an unknown step size asks for."""

import torch
from torch import Tensor

from klent import mixture as M
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import OPTIMAL_SAMPLING
from klent.claims.worlds.simplex import random_logits
from klent.kit.grid import grid_optimum

_WORLDS, _ACTIONS = 200, 8
#: intervals of the unknown step; for r = log(target/policy) and q = policy, eta = 1 reaches the target
_INTERVALS = ((0.1, 0.5), (0.1, 1.0), (0.1, 3.0))
_ALPHAS = [i / 100 for i in range(101)]


def measure() -> dict[str, Figure]:
    policy, target = (random_logits(seed, _WORLDS, _ACTIONS).softmax(-1) for seed in range(2))
    reward = (target / policy).log()
    family = [M.geometric_mixture(policy.log(), target.log(), alpha).exp() for alpha in _ALPHAS]
    terms = [M.progress_terms(policy, target, q, reward) for q in family]
    snr = torch.stack([term.snr for term in terms])
    doubled = M.progress_terms(policy, target, family[50], 2 * reward).snr / snr[50]
    scaled = M.ProgressTerms(2 * terms[50].signal, 2 * terms[50].curvature).snr / snr[50]
    largest = _largest(snr)
    figures = {"median alpha of the largest SNR (control)": Figure(_median_alpha(largest))}
    for low, high in _INTERVALS:
        # Progress is concave in eta, so its minimum over an interval is at an end.
        ends = [[M.progress(policy, target, q, reward, eta) for q in family] for eta in (low, high)]
        worst = torch.minimum(*(torch.stack(progress) for progress in ends))
        best = _largest(worst)
        name = f"eta from {low} to {high}"
        figures[f"median alpha of the largest worst progress, {name}"] = Figure(_median_alpha(best))
        figures[f"worst progress of the largest SNR over the best, {name}, median"] = Figure(
            (worst.gather(0, largest) / worst.gather(0, best)).median().item()
        )
    figures["SNR with r doubled, over SNR"] = Figure(doubled.mean().item())
    figures["SNR with Φ₁ and Φ₂ doubled, over SNR"] = Figure(scaled.mean().item())
    return figures


def _largest(values: Tensor) -> Tensor:
    """The index of each world's best alpha, ``[1, worlds]``; 0 and 1 are the ends of the family itself."""
    found = [grid_optimum(_ALPHAS, world, best="largest", domain=(0, 1)) for world in values.T.tolist()]
    return torch.tensor([found])


def _median_alpha(index: Tensor) -> float:
    return torch.tensor(_ALPHAS, dtype=torch.float64)[index].median().item()


def judge(f: Figures) -> Judgement:
    snr = f["median alpha of the largest SNR (control)"].value
    robust = [
        f[f"median alpha of the largest worst progress, eta from {low} to {high}"].value
        for low, high in _INTERVALS
    ]
    kept = [
        f[f"worst progress of the largest SNR over the best, eta from {low} to {high}, median"].value
        for low, high in _INTERVALS
    ]
    away = [abs(alpha - snr) for alpha in robust]
    numbers = (
        f"the largest SNR is at alpha {number(snr)}, the largest worst progress at "
        f"{', '.join(number(alpha) for alpha in robust)} where eta is at least 0.1 and at most "
        f"{', '.join(f'{high:g}' for _, high in _INTERVALS)}"
    )
    if max(away) < 0.1:
        return "holds", numbers
    if min(away) < 0.1:
        return "holds when", f"the interval suits it: {numbers}"
    return "refuted", (
        f"{numbers}; the first keeps {', '.join(number(share) for share in kept)} of the worst progress of "
        "the second. The proof replaces the minimum over eta by a maximum, the best eta for each q; the "
        "robust alpha depends on the interval"
    )


CLAIM = Claim(
    id="snr-robust",
    subject="mixture",
    statement="Against an unknown step size, in the worst case over eta, the best q is the one with the "
    "largest |Φ₁|/√Φ₂, which does not change when Φ₁ and Φ₂ are scaled.",
    source=OPTIMAL_SAMPLING.at("sections 3.3 to 3.6"),
    experiment="200 random worlds of 8 actions, r = log(target/policy): over a grid of alpha, the largest "
    "true progress in the worst case of three intervals of eta",
    control="the largest SNR over the same grid; SNR with r doubled, and with both terms doubled",
    measure=measure,
    judge=judge,
)
