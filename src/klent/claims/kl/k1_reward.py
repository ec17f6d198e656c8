"""k1 in the reward."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import LIU_KL, REFERENCE_MODEL, TANG_MUNOS
from klent.claims.worlds.sequences import MASK, probability, sequence_kl_gradient, table, token_logp
from klent.claims.worlds.simplex import relative_error


def measure() -> dict[str, Figure]:
    policy, reference = table(0), table(1)
    logp, logp_ref = token_logp(policy), token_logp(reference)
    true = sequence_kl_gradient(policy, reference)
    k1 = O.kl_in_reward(logp, logp_ref, MASK, coef=1.0)
    k3 = -O.kl_estimate(logp, logp_ref, estimator="k3")

    def error(reward: Tensor, to_go: bool = True) -> Figure:
        advantage = O.reward_to_go(reward, MASK) if to_go else reward
        return Figure(relative_error(_policy_gradient(policy, advantage), true))

    return {
        "error against the gradient of the sequence KL, k1": error(k1),
        "error, k1 plus a constant": error(k1 + 7.0),
        "error, k1 without reward-to-go": error(k1, to_go=False),
        "error, k3 (control)": error(k3),
    }


def _policy_gradient(policy: Tensor, advantage: Tensor) -> Tensor:
    logits = policy.detach().requires_grad_()
    loss = O.reinforce(token_logp(logits), advantage, MASK).loss.sum(1)
    return torch.autograd.grad((probability(policy) * loss).sum(), logits)[0]


def judge(f: Figures) -> Judgement:
    k1 = f["error against the gradient of the sequence KL, k1"].value
    shifted = f["error, k1 plus a constant"].value
    alone, k3 = f["error, k1 without reward-to-go"].value, f["error, k3 (control)"].value
    if k1 > ROUNDING:
        return "refuted", f"k1 in the reward misses the gradient of the KL by {number(k1)} of its length"
    if min(alone, k3) < 0.01 or shifted > ROUNDING:
        return "holds", "k1 is exact, and no other form is"
    return "holds when", (
        "k1 is summed from each token to the end: then it is exact for whole sequences, and so is k1 plus a "
        f"constant (for sequences of one length). Without reward-to-go the error is {number(alone)}, with k3 "
        f"{number(k3)}"
    )


CLAIM = Claim(
    id="k1-reward",
    subject="kl",
    statement="The KL penalty can be moved into the reward, r - β·log(π/π_ref), if and only if it has the "
    "form of k1 or a similar one.",
    source=f"{REFERENCE_MODEL.at('section 1, equations 5 to 8, and section 1.5')}; {LIU_KL}; {TANG_MUNOS}",
    experiment="exact mean policy gradient over 27 sequences of 3 tokens with shared parameters",
    control="k3 in the reward; k1 without reward-to-go",
    measure=measure,
    judge=judge,
)
