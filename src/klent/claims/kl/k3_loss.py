"""k3 as a loss."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import LIU_KL, REFERENCE_MODEL, SCHULMAN_KL
from klent.claims.worlds.simplex import Estimator, gradient, mean_gradient, random_logits, relative_error

_DISTANCES = (0.01, 0.1, 1.0, 4.0)


def measure() -> dict[str, Figure]:
    reference, direction = random_logits(1, 5), random_logits(0, 5)
    logp_ref = reference.log_softmax(-1)

    def estimated(name: Estimator, policy: Tensor) -> Tensor:
        return mean_gradient(
            lambda logp: O.kl_estimate(logp, logp_ref.unsqueeze(1), estimator=name),
            policy,
        )

    figures, worst = {}, 0.0
    for distance in _DISTANCES:
        policy = reference + distance * direction / direction.norm()
        k3 = estimated("k3", policy)
        figures[f"difference from k2's gradient at distance {distance:g}"] = Figure(
            relative_error(k3, estimated("k2", policy))
        )
        forward = gradient(lambda logp: O.categorical_kl(logp_ref, logp), policy)
        worst = max(worst, relative_error(k3, forward))
    unlikely = torch.tensor([[-8.0]], dtype=torch.float64).requires_grad_()
    likely = torch.log(torch.tensor([[0.5]], dtype=torch.float64))
    O.kl_estimate(unlikely, likely, estimator="k3").sum().backward()
    assert unlikely.grad is not None
    return {
        **figures,
        "difference from the gradient of KL(reference ‖ policy), largest over all distances": Figure(worst),
        "push on a token of log-probability -8 where the reference has 1/2, k3": Figure(
            -unlikely.grad.item()
        ),
        "the same push, k2 (control)": Figure(likely.item() + 8.0),
    }


def judge(f: Figures) -> Judgement:
    near, far = (f[f"difference from k2's gradient at distance {d:g}"].value for d in (0.01, 4.0))
    forward = f["difference from the gradient of KL(reference ‖ policy), largest over all distances"].value
    if forward > ROUNDING:
        return ("holds" if far < 0.1 else "refuted"), f"k3 differs from the forward KL by {number(forward)}"
    return "holds when", (
        f"the policy is close: the two differ by {number(near)} of k2's length at distance 0.01, by "
        f"{number(far)} at 4. But nothing is approximated: at every distance it is exactly the gradient of "
        "KL(reference ‖ policy)"
    )


CLAIM = Claim(
    id="k3-loss",
    subject="kl",
    statement="As a loss, k3's gradient (x - 1)·∇log π is the first-order Taylor approximation of k2's log "
    "x·∇log π, x = π_ref/π, with an error that grows as the policy moves away.",
    source=f"{REFERENCE_MODEL.at('section 2.2, equations 12 to 15')}; {LIU_KL}; k3: {SCHULMAN_KL}",
    experiment="exact mean gradients over 5 actions at four distances between policy and reference (in "
    "logits)",
    control="the gradient of KL(reference ‖ policy), to which k3 is compared as well",
    measure=measure,
    judge=judge,
)
