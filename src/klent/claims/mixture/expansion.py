"""Progress of one step as signal minus noise."""

from torch import Tensor

from klent import mixture as M
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import OPTIMAL_SAMPLING
from klent.claims.worlds.simplex import random_logits

_WORLDS, _ACTIONS = 200, 8


def measure() -> dict[str, Figure]:
    policy, target, q = (random_logits(seed, _WORLDS, _ACTIONS).softmax(-1) for seed in range(3))
    reward = (target / policy).log()
    terms = M.progress_terms(policy, target, q, reward)
    ratio = terms.curvature / M.sampling_variance(policy, q, reward.unsqueeze(-1))
    other = random_logits(7, _WORLDS, _ACTIONS).softmax(-1)
    backward = M.progress_terms(policy, target, q, (target / other).log()).signal < 0
    return {
        "error of the expansion, eta 0.01": _error(policy, target, q, reward, terms, 0.01),
        "error of the expansion, eta 0.001": _error(policy, target, q, reward, terms, 0.001),
        "median of progress at eta*, true over Φ₁²/(2Φ₂)": _at_best(policy, target, q, reward, terms),
        "Φ₂ over the variance of a sample, largest over smallest (control)": Figure(
            (ratio.max() / ratio.min()).item()
        ),
        "share of worlds with Φ₁ < 0, r = log(target/policy)": _share(terms.signal < 0),
        "share of worlds with Φ₁ < 0, r from another reference (control)": _share(backward),
    }


def _error(
    policy: Tensor, target: Tensor, q: Tensor, reward: Tensor, terms: M.ProgressTerms, eta: float
) -> Figure:
    """Median distance between progress and its expansion, as a share of the quadratic term."""
    quadratic = eta**2 / 2 * terms.curvature
    remainder = M.progress(policy, target, q, reward, eta) - (eta * terms.signal - quadratic)
    return Figure((remainder.abs() / quadratic).median().item())


def _at_best(policy: Tensor, target: Tensor, q: Tensor, reward: Tensor, terms: M.ProgressTerms) -> Figure:
    """Progress of a step of eta* in every world; eta is folded into the reward."""
    true = M.progress(policy, target, q, terms.best_step.unsqueeze(-1) * reward, 1.0)
    return Figure((true / (terms.signal * terms.best_step / 2)).median().item())


def _share(outcomes: Tensor) -> Figure:
    return Figure(outcomes.double().mean().item())


def judge(f: Figures) -> Judgement:
    coarse, fine = f["error of the expansion, eta 0.01"].value, f["error of the expansion, eta 0.001"].value
    true = f["median of progress at eta*, true over Φ₁²/(2Φ₂)"].value
    if not (fine < coarse / 5 < 0.2):
        return "refuted", f"the rest is {number(fine)} of the quadratic term and does not vanish with eta"
    spread = f["Φ₂ over the variance of a sample, largest over smallest (control)"].value
    backward = f["share of worlds with Φ₁ < 0, r from another reference (control)"].value
    numbers = (
        f"the rest of the expansion falls from {number(coarse)} to {number(fine)} of the quadratic term, and "
        f"at eta* = Φ₁/Φ₂ true progress is {number(true)} times the prediction"
    )
    if spread < 1.1 and backward == 0:
        return "holds", numbers
    return "holds when", (
        f"eta is small and Φ₂ is read as curvature: {numbers}. Φ₂ belongs to a step taken for every token at "
        f"once; its ratio to the variance of an estimate from samples varies {number(spread)}-fold between "
        "worlds. And Φ₁ is positive only for the reward's own reference: with another it is negative in "
        f"{number(backward)} of the worlds, where a large |Φ₁| leads away from the target"
    )


CLAIM = Claim(
    id="progress-expansion",
    subject="mixture",
    statement="The progress of a step with importance weights is eta·Φ₁ - eta²/2·Φ₂ + O(eta³): expected "
    "signal minus the variance of the gradient estimate.",
    source=OPTIMAL_SAMPLING.at("theorems 1 and 2"),
    experiment="200 random worlds of 8 actions, r = log(target/policy): true progress of policy' ∝ "
    "policy·exp(eta·w·r) against its expansion",
    control="the variance of w·r when actions are sampled from q; a reward from another reference",
    measure=measure,
    judge=judge,
)
