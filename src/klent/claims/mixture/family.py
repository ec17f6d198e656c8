"""Where the geometric family comes from."""

import torch
from torch import Tensor

from klent import mixture as M
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import INFORMATION_GEOMETRY, OPTIMAL_SAMPLING
from klent.claims.worlds.simplex import random_logits

_WORLDS, _ACTIONS, _POINTS, _ALPHA = 50, 6, 2001, 0.3


def measure() -> dict[str, Figure]:
    log_p, log_t = (random_logits(seed, _WORLDS, _ACTIONS).log_softmax(-1) for seed in range(2))
    wide = 3 * log_p, 3 * log_t  # the same pairs, three times as far apart in logits
    q = M.geometric_mixture(log_p, log_t, _ALPHA)
    line = _ALPHA * log_p + (1 - _ALPHA) * log_t
    arithmetic = (_ALPHA * log_p.exp() + (1 - _ALPHA) * log_t.exp()).log()
    ratio, far = (_length(*pair) / _shortest(*pair) for pair in ((log_p, log_t), wide))
    return {
        "log q less its linear interpolation: deviation over tokens": Figure((q - line).std(-1).max().item()),
        "largest |excess of the weighted sum of KLs - KL(other ‖ q)|": Figure(_excess(q, line)),
        "the same for the arithmetic mixture (control)": Figure(_excess(arithmetic, line)),
        "Fisher-Rao length of the family over the shortest path, mean": Figure(ratio.mean().item()),
        "the same, largest": Figure(ratio.max().item()),
        "the same, mean, logits three times as large": Figure(far.mean().item()),
        "the same for the great circle (control)": Figure(
            max((_circle(*pair) / _shortest(*pair)).max().item() for pair in ((log_p, log_t), wide))
        ),
    }


def _excess(log_q: Tensor, line: Tensor) -> float:
    """How far alpha·KL(· ‖ policy) + (1-alpha)·KL(· ‖ target) minus its value at q is from KL(· ‖ q).

    Zero for every other distribution means that q alone minimises the weighted sum.
    """
    other = random_logits(9, 200, _WORLDS, _ACTIONS, scale=2.0).log_softmax(-1)

    def cost(x: Tensor) -> Tensor:
        return (x.exp() * (x - line)).sum(-1)

    kl = (other.exp() * (other - log_q)).sum(-1)
    return (cost(other) - cost(log_q) - kl).abs().max().item()


def _length(log_p: Tensor, log_t: Tensor) -> Tensor:
    """Length of the path of mixtures in the Fisher metric: √probabilities lie on a sphere of radius 2."""
    alphas = torch.linspace(0, 1, _POINTS, dtype=torch.float64).unsqueeze(-1)
    shape = (_POINTS, *log_p.shape)
    return _along((M.geometric_mixture(log_p.expand(shape), log_t.expand(shape), alphas) / 2).exp())


def _shortest(log_p: Tensor, log_t: Tensor) -> Tensor:
    """The arc between the two on that sphere."""
    roots = [(x.log_softmax(-1) / 2).exp() for x in (log_p, log_t)]
    return 2 * (roots[0] * roots[1]).sum(-1).clamp(max=1).arccos()


def _circle(log_p: Tensor, log_t: Tensor) -> Tensor:
    """Length of the arc, walked in as many steps: shows the error of the discretisation."""
    a, b = ((x.log_softmax(-1) / 2).exp() for x in (log_p, log_t))
    angle = (a * b).sum(-1, keepdim=True).arccos()
    t = torch.linspace(0, 1, _POINTS, dtype=torch.float64)[:, None, None]
    return _along((((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin())


def _along(roots: Tensor) -> Tensor:
    length: Tensor = 2 * (roots[1:] - roots[:-1]).norm(dim=-1).sum(0)
    return length


def judge(f: Figures) -> Judgement:
    straight = f["log q less its linear interpolation: deviation over tokens"].value
    excess = f["largest |excess of the weighted sum of KLs - KL(other ‖ q)|"].value
    mean, largest = (
        f[name].value
        for name in ("Fisher-Rao length of the family over the shortest path, mean", "the same, largest")
    )
    far = f["the same, mean, logits three times as large"].value
    if max(straight, excess) > ROUNDING:
        return "refuted", (
            f"the family is not the interpolation ({number(straight)}) or not optimal ({number(excess)})"
        )
    if largest < 1 + 1e-4:
        return "holds", "the family interpolates, is Pareto-optimal, and is the shortest path"
    return "holds when", (
        "'geodesic' is not read as shortest path: this family is exactly the log-linear interpolation and "
        f"minimises the weighted sum of the two KLs, but its path is on average {number(mean)} times as long "
        f"as the Fisher-Rao geodesic (at most {number(largest)}; {number(far)} for logits three times as "
        "large). That geodesic is the great circle of √p; the family is straight for the exponential "
        "connection, which minimises no length"
    )


CLAIM = Claim(
    id="geometric-family",
    subject="mixture",
    statement="The geometric family is log-linear interpolation, the Pareto front of KL(q ‖ policy) and "
    "KL(q ‖ target), and the geodesic of information geometry: the shortest path between the two.",
    source=f"{OPTIMAL_SAMPLING.at('section 4.2')}; the exponential connection: {INFORMATION_GEOMETRY}",
    experiment="50 random pairs over 6 actions: residual of the interpolation, the weighted sum of KLs at "
    "200 other distributions each, and the length of the path in the Fisher metric",
    control="the arithmetic mixture; the great circle, walked in as many steps",
    measure=measure,
    judge=judge,
)
