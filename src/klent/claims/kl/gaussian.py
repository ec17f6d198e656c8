"""KL between Gaussians."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import BISHOP, REFERENCE_MODEL
from klent.claims.worlds.simplex import random_logits, relative_error

_DIMENSIONS = 3


def measure() -> dict[str, Figure]:
    mean, ref = random_logits(0, _DIMENSIONS), random_logits(1, _DIMENSIONS)
    one, two = (torch.tensor([s], dtype=torch.float64) for s in (0.8, 1.5))
    true = _integral(mean, one, ref, two)
    equal = ((mean - ref) ** 2).sum() / (2 * one**2)
    at = mean.clone().requires_grad_()
    (slope,) = torch.autograd.grad(O.gaussian_kl(at, one, ref, two), at)
    derived_slope = (mean - ref) / two**2
    return {
        "error against the integral, equation 38": _gap(O.gaussian_kl(mean, one, ref, two), true),
        "error against the integral, equal widths, equation 39": _gap(equal, _integral(mean, one, ref, one)),
        "error of the gradient, equation 44": Figure(relative_error(slope, derived_slope)),
        "error with the two Gaussians exchanged (control)": _gap(O.gaussian_kl(ref, two, mean, one), true),
        "error of the gradient with the policy's width (control)": Figure(
            relative_error((mean - ref) / one**2, slope)
        ),
    }


def _gap(value: Tensor, true: Tensor) -> Figure:
    return Figure(abs((value.squeeze() / true.squeeze()).item() - 1))


def _integral(mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
    """KL by summing p·(log p - log q) over a fine grid of each coordinate."""
    grid = torch.linspace(-16, 16, 20001, dtype=torch.float64).unsqueeze(1)
    total = torch.zeros((), dtype=torch.float64)
    for p, q in zip(mean_p, mean_q, strict=True):
        log_p, log_q = O.gaussian_logp(grid, p, std_p), O.gaussian_logp(grid, q, std_q)
        total = total + (log_p.exp() * (log_p - log_q)).sum() * (grid[1, 0] - grid[0, 0])
    return total


def judge(f: Figures) -> Judgement:
    worst = max(figure.value for name, figure in f.items() if "control" not in name)
    control = f["error with the two Gaussians exchanged (control)"].value
    if worst > 1e-8:
        return "refuted", f"an equation is off by {number(worst)}"
    return "holds", (
        "value and gradient agree with integration; with the Gaussians exchanged the error is "
        f"{number(control)}"
    )


CLAIM = Claim(
    id="gaussian-kl",
    subject="kl",
    statement="KL(N(μ₁, σ₁²) ‖ N(μ₂, σ₂²)) = k·(ln(σ₂/σ₁) + σ₁²/(2σ₂²) - ½) + ‖μ₁ - μ₂‖²/(2σ₂²), and its "
    "gradient in μ₁ is (μ₁ - μ₂)/σ₂².",
    source=f"{REFERENCE_MODEL.at('section 5, equations 37 to 44')}; {BISHOP}, exercise 2.13",
    experiment="numerical integration in 3 dimensions; automatic differentiation",
    control="the Gaussians exchanged; the other width in the gradient",
    measure=measure,
    judge=judge,
)
