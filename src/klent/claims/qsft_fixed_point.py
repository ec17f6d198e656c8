"""Q-SFT's fixed point."""

import torch

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.dpo_optimum import minimise
from klent.claims.simplex import random_logits

_ACTIONS = 6


def measure() -> dict[str, Figure]:
    behaviour = random_logits(0, _ACTIONS).softmax(-1)
    weight = random_logits(1, _ACTIONS).sigmoid()
    mask = torch.ones(_ACTIONS, 1, dtype=torch.bool)
    with_dummy = torch.zeros(_ACTIONS + 1, dtype=torch.float64, requires_grad=True)
    plain = torch.zeros(_ACTIONS, dtype=torch.float64, requires_grad=True)

    def dummy_loss() -> torch.Tensor:
        logp = with_dummy.log_softmax(-1)
        dummy = logp[-1].expand(_ACTIONS, 1)
        each = O.weighted_cross_entropy(logp[:-1].unsqueeze(1), dummy, weight.unsqueeze(1), mask).loss
        return (behaviour * each.squeeze(1)).sum()

    def plain_loss() -> torch.Tensor:
        each = O.cross_entropy(plain.log_softmax(-1).unsqueeze(1), mask).loss.squeeze(1)
        return (weight * behaviour * each).sum()

    minimise(dummy_loss, with_dummy)
    minimise(plain_loss, plain)
    p, q = with_dummy.detach().softmax(-1), plain.detach().softmax(-1)
    target = weight * behaviour
    return {
        "largest |p - w·πᵦ|": Figure((p[:-1] - target).abs().max().item()),
        "|p(dummy) - Σ πᵦ·(1 - w)|": Figure((p[-1] - (behaviour * (1 - weight)).sum()).abs().item()),
        "largest |p/πᵦ - w|": Figure((p[:-1] / behaviour - weight).abs().max().item()),
        "largest |p - w·πᵦ| without the dummy action (control)": Figure((q - target).abs().max().item()),
    }


def judge(f: Figures) -> Judgement:
    worst = max(figure.value for name, figure in f.items() if "control" not in name)
    control = f["largest |p - w·πᵦ| without the dummy action (control)"].value
    if worst > 1e-4:
        return "refuted", f"trained to the end, p is {number(worst)} from w·πᵦ"
    return "holds", (
        f"trained to the end p is w·πᵦ, with an error of {number(worst)}, and the dummy holds the rest; "
        "without the "
        f"dummy, weights alone miss by {number(control)}, since they are normalised away"
    )


CLAIM = Claim(
    id="qsft-fixed-point",
    statement="Weighted cross-entropy with a dummy action has the solution p*(a|s) = w(s, a)·π_β(a|s), and "
    "the dummy "
    "takes the rest of the mass.",
    source="seed 000; Q-SFT, arXiv:2411.05193, equation 2",
    experiment="the loss, in exact mean over 6 actions, trained to convergence",
    control="cross-entropy with the same weights and no dummy action",
    measure=measure,
    judge=judge,
)
