"""k1 as a loss."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, SEEDS, Claim, Figure, Figures, Judgement, number, over_seeds
from klent.claims.sources import LIU_KL, REFERENCE_MODEL, SCHULMAN_KL
from klent.claims.worlds.simplex import Estimator, draw, mean_gradient, random_logits

_CHAINS, _STEPS, _LR = 64, 600, 0.1
_ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2")


def measure() -> dict[str, Figure]:
    policy, reference, older = (random_logits(seed, 5) for seed in (0, 1, 2))
    logp_ref = reference.log_softmax(-1).unsqueeze(1)

    def loss(estimator: Estimator, behaviour: Tensor | None = None) -> Tensor:
        return mean_gradient(
            lambda logp: O.kl_estimate(logp, logp_ref, estimator=estimator), policy, behaviour
        )

    mean = loss("k1").norm().item()
    p = policy.softmax(-1)
    one_sample = (p * (torch.eye(5, dtype=p.dtype) - p).norm(dim=1)).sum().item()
    k1, k2 = ([_entropy_lost(name, reference, seed) for seed in SEEDS] for name in _ESTIMATORS)
    return {
        "|mean gradient|, k1": Figure(mean),
        "|gradient| of one sample, k1": Figure(one_sample),
        "|mean gradient|, k2 (control)": Figure(loss("k2").norm().item()),
        "|mean gradient|, k1, tokens from another policy": Figure(
            loss("k1", older.softmax(-1)).norm().item()
        ),
        "entropy lost by 600 sampled steps from the reference, k1": over_seeds(k1),
        "entropy lost, k2 (control)": over_seeds(k2),
    }


def _entropy_lost(estimator: Estimator, reference: Tensor, seed: int) -> float:
    """Nats that a policy which starts at the reference loses to the noise of the penalty alone."""
    generator = torch.Generator().manual_seed(seed)
    logits = reference.repeat(_CHAINS, 1)
    logp_ref = reference.log_softmax(-1)
    start = O.categorical_entropy(logp_ref).item()
    for _ in range(_STEPS):
        logp = logits.log_softmax(-1)
        action = draw(logp.exp(), generator).unsqueeze(1)
        sampled = logp.gather(1, action).requires_grad_()
        total = O.kl_estimate(sampled, logp_ref[action], estimator=estimator).sum()
        (slope,) = torch.autograd.grad(total, sampled)
        step = torch.zeros_like(logits).scatter_(1, action, 1.0) - logp.exp()
        logits = logits - _LR * slope * step
    return start - O.categorical_entropy(logits.log_softmax(-1)).mean().item()


def judge(f: Figures) -> Judgement:
    mean, control = f["|mean gradient|, k1"].value, f["|mean gradient|, k2 (control)"].value
    lost = f["entropy lost by 600 sampled steps from the reference, k1"]
    if mean > ROUNDING * control:
        return "holds", f"the mean gradient is {number(mean)}, not 0: it has a direction"
    return "refuted", (
        "each sampled token is pushed down, but the normalisation of the softmax pushes all others up, and "
        f"the mean gradient is 0 (k2's is {number(control)}). What is left is noise, which costs {lost} nats "
        "in 600 steps, and, with tokens from another policy, a drift away from that policy"
    )


CLAIM = Claim(
    id="k1-loss",
    subject="kl",
    statement="The gradient of k1 as a loss always points to a lower probability, so outputs decay until "
    "the model collapses.",
    source=f"{REFERENCE_MODEL.at('section 2.2, equations 10 and 11')}; k1: {SCHULMAN_KL}; the opposite: "
    f"{LIU_KL}",
    experiment="mean gradient in the logits, summed over 5 actions; then 600 sampled steps of the penalty "
    "alone, 64 chains, from the reference",
    control="k2 as a loss",
    measure=measure,
    judge=judge,
)
