"""DPO and the policy that is best under reward and KL."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import DPO, REFERENCE_MODEL
from klent.claims.worlds.minimise import minimise
from klent.claims.worlds.simplex import random_logits

_PROMPTS, _ANSWERS, _BETA = 2, 4, 0.5


def measure() -> dict[str, Figure]:
    reward, reference = random_logits(0, _PROMPTS, _ANSWERS), random_logits(1, _PROMPTS, _ANSWERS)
    logp_ref = reference.log_softmax(-1)
    best = (logp_ref + reward / _BETA).log_softmax(-1)
    same = [(x, i, x, j) for x in range(_PROMPTS) for i in range(_ANSWERS) for j in range(_ANSWERS) if i != j]
    mixed = [(0, i, 1, j) for i in range(_ANSWERS) for j in range(_ANSWERS)]
    trained = _train(reward, logp_ref, same)
    return {
        "distance from the best policy, trained by DPO": _distance(trained, best),
        "distance, pairs of answers to different prompts": _distance(_train(reward, logp_ref, mixed), best),
        "distance from the best policy under KL(reference ‖ policy)": _distance(
            trained, _best_under_forward_kl(reward, logp_ref)
        ),
        "distance of the reference (control)": _distance(logp_ref, best),
    }


def _train(reward: Tensor, logp_ref: Tensor, pairs: list[tuple[int, int, int, int]]) -> Tensor:
    """Minimise DPO's loss over every pair, with preferences as frequent as Bradley-Terry says."""
    x, i, y, j = torch.tensor(pairs).T
    preferred = torch.sigmoid(reward[x, i] - reward[y, j])
    logits = logp_ref.clone().requires_grad_()

    def loss() -> Tensor:
        logp = logits.log_softmax(-1)
        first, second = (logp[x, i], logp_ref[x, i]), (logp[y, j], logp_ref[y, j])
        won = O.dpo(first[0], second[0], first[1], second[1], beta=_BETA)
        lost = O.dpo(second[0], first[0], second[1], first[1], beta=_BETA)
        return (preferred * won + (1 - preferred) * lost).mean()

    minimise(loss, logits)
    return logits.detach().log_softmax(-1)


def _best_under_forward_kl(reward: Tensor, logp_ref: Tensor) -> Tensor:
    """argmax of E[r] - beta·KL(reference ‖ policy): beta·reference/(λ - r), λ by bisection."""
    reference = logp_ref.exp()
    top = reward.amax(-1, keepdim=True)
    low, high = top + 1e-12, top + _BETA * (_ANSWERS + 1)
    for _ in range(200):
        middle = (low + high) / 2
        too_much = (_BETA * reference / (middle - reward)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (_BETA * reference / (high - reward)).log()


def _distance(a: Tensor, b: Tensor) -> Figure:
    """Total variation, the largest over prompts."""
    return Figure(((a.exp() - b.exp()).abs().sum(-1) / 2).max().item())


def judge(f: Figures) -> Judgement:
    trained, mixed, forward, control = (figure.value for figure in f.values())
    if trained > 0.01:
        return "refuted", f"the trained policy is {number(trained)} from the best one (total variation)"
    if min(mixed, forward) < 0.01:
        return "holds", "the trained policy is the best one, also for pairs from different prompts"
    return "holds when", (
        "both answers belong to one prompt and the KL is KL(policy ‖ reference): total variation "
        f"{number(trained)} (that of the reference is {number(control)}). With answers to different prompts "
        f"Z(x) does not cancel: {number(mixed)}; the best policy under KL(reference ‖ policy) is "
        f"{number(forward)} away"
    )


CLAIM = Claim(
    id="dpo-optimum",
    subject="preference",
    statement="Minimising DPO's loss on Bradley-Terry preferences gives π* ∝ π_ref·exp(r/β), the policy "
    "that is best under reward minus β·KL.",
    source=f"{DPO}, equations 4 to 7; {REFERENCE_MODEL.at('section 6, equations 45 to 52')}",
    experiment="DPO trained to convergence on all pairs of 4 answers to 2 prompts, against π* in closed form",
    control="pairs across prompts; the optimum under forward KL; the reference itself",
    measure=measure,
    judge=judge,
)
