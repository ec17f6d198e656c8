"""What EMPO's reward maximises."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import EMPO, READING_NOTES
from klent.claims.worlds.simplex import cosine, gradient, random_logits, relative_error

_CLUSTERS, _GROUP = 4, 3


def measure() -> dict[str, Figure]:
    logits = random_logits(0, _CLUSTERS)
    empo = empo_gradient(logits)
    collision = gradient(lambda logp: -(2 * logp).exp().sum(), logits)
    shannon = gradient(O.categorical_entropy, logits)
    factor = (empo @ collision / collision.square().sum()).item()
    angles = [
        cosine(empo_gradient(z), gradient(O.categorical_entropy, z))
        for z in (random_logits(seed, _CLUSTERS, scale=2.0) for seed in range(20))
    ]
    return {
        "error against the gradient of -Σp², up to a factor": Figure(
            relative_error(empo, factor * collision)
        ),
        "that factor, groups of 3": Figure(factor),
        "error against the gradient of Shannon's entropy, up to a factor": Figure(
            relative_error(empo, (empo @ shannon / shannon.square().sum()) * shannon)
        ),
        "smallest cosine with Shannon's in 20 worlds": Figure(min(angles)),
    }


def empo_gradient(logits: Tensor) -> Tensor:
    """Exact mean gradient of REINFORCE on EMPO's reward, over every group of answers."""
    outcomes = torch.cartesian_prod(*[torch.arange(_CLUSTERS)] * _GROUP)
    group = torch.arange(len(outcomes)).repeat_interleave(_GROUP)
    reward = _in_float64(O.empo_reward(outcomes.flatten(), group), outcomes).view(outcomes.shape)
    logits = logits.detach().requires_grad_()
    logp = logits.log_softmax(-1)[outcomes]
    probability = logp.detach().sum(1).exp()
    mask = torch.ones_like(outcomes, dtype=torch.bool)
    loss = O.reinforce(logp, reward, mask).loss.mean(1)
    return torch.autograd.grad((probability * loss).sum(), logits)[0]


def _in_float64(reward: Tensor, outcomes: Tensor) -> Tensor:
    """Shares of a group are whole numbers over its size; rewards come in torch's default precision."""
    return (reward.double() * outcomes.shape[1]).round() / outcomes.shape[1]


def judge(f: Figures) -> Judgement:
    error = f["error against the gradient of -Σp², up to a factor"].value
    shannon = f["error against the gradient of Shannon's entropy, up to a factor"].value
    angle = f["smallest cosine with Shannon's in 20 worlds"].value
    if shannon < ROUNDING:
        return "holds", "the mean gradient is that of Shannon's entropy"
    if error > ROUNDING or angle < 0:
        return "refuted", f"the step can raise entropy (cosine {number(angle)})"
    return "holds when", (
        "entropy is read as agreement: the mean gradient is exactly that of Σp², the chance that two answers "
        f"agree (collision entropy). From that of Shannon's entropy it differs by {number(shannon)} of its "
        f"length, though the cosine was never below {number(angle)}"
    )


CLAIM = Claim(
    id="empo-objective",
    subject="entropy",
    statement="EMPO, which rewards an answer with the frequency of its meaning, minimises the semantic "
    "entropy -Σ p·log p of the answers.",
    source=f"{EMPO}; {READING_NOTES.at('EMPO')}",
    experiment="exact mean gradient over all 64 groups of 3 answers with 4 meanings",
    control="the gradient of Σp² beside that of Shannon's entropy",
    measure=measure,
    judge=judge,
)
