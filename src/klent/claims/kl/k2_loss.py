"""k2 as a loss."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import LIU_KL, REFERENCE_MODEL, TANG_MUNOS
from klent.claims.worlds.sequences import MASK, probability, sequence_kl_gradient, table, token_logp
from klent.claims.worlds.simplex import gradient, mean_gradient, random_logits, relative_error


def measure() -> dict[str, Figure]:
    policy, reference, older = (random_logits(seed, 5) for seed in (0, 1, 2))
    logp, logp_ref = policy.log_softmax(-1), reference.log_softmax(-1)
    old = older.log_softmax(-1)
    mask = torch.ones(5, 1, dtype=torch.bool)
    true = gradient(lambda logp: O.categorical_kl(logp, logp_ref), policy)

    def k2(logp: Tensor) -> Tensor:
        return O.kl_estimate(logp, logp_ref.unsqueeze(1), estimator="k2")

    def weighted(logp: Tensor) -> Tensor:
        return O.kl_in_loss(logp, logp_ref.unsqueeze(1), mask, coef=1.0, logp_old=old.unsqueeze(1)).loss

    kl = O.categorical_kl(logp, logp_ref)
    value = (logp.exp() * k2(logp.unsqueeze(1)).squeeze(1)).sum()
    return {
        "gradient's error, one token": Figure(relative_error(mean_gradient(k2, policy), true)),
        "mean of k2 over the KL": Figure((value / kl).item()),
        "gradient's error, tokens from another policy": Figure(
            relative_error(mean_gradient(k2, policy, old.exp()), true)
        ),
        "the same with the weight of kl_in_loss (control)": Figure(
            relative_error(mean_gradient(weighted, policy, old.exp()), true)
        ),
        "gradient's error against the KL of whole sequences": Figure(_sequence_error()),
    }


def _sequence_error() -> float:
    policy, reference = table(0), table(1)
    logits = policy.detach().requires_grad_()
    loss = O.kl_in_loss(token_logp(logits), token_logp(reference), MASK, coef=1.0).loss.sum(1)
    gradient_of_k2 = torch.autograd.grad((probability(policy) * loss).sum(), logits)[0]
    return relative_error(gradient_of_k2, sequence_kl_gradient(policy, reference))


def judge(f: Figures) -> Judgement:
    error, value = f["gradient's error, one token"].value, f["mean of k2 over the KL"].value
    off = f["gradient's error, tokens from another policy"].value
    whole = f["gradient's error against the KL of whole sequences"].value
    if error > ROUNDING:
        return "refuted", f"the gradient is off by {number(error)} of its length"
    if max(off, whole) < 0.01 and abs(value - 1) < 0.01:
        return "holds", "gradient and value are those of the KL, for tokens and for sequences"
    return "holds when", (
        "tokens come from the policy itself and the prefix is taken as given: then the gradients are equal, "
        f"but the values are not (the mean of k2 is {number(value)} of the KL). With tokens from another "
        f"policy and no weight the error is {number(off)}; against whole sequences it is {number(whole)}"
    )


CLAIM = Claim(
    id="k2-loss",
    subject="kl",
    statement="As a loss, log π·stop_gradient(log(π/π_ref)) equals ½·(log(π/π_ref))²: k2 is a valid KL "
    "penalty.",
    source=f"{REFERENCE_MODEL.at('section 2.2 and equation 28')}; {LIU_KL}; {TANG_MUNOS}",
    experiment="exact mean gradient and value over 5 actions, on- and off-policy; over 27 sequences",
    control="the off-policy case with importance weights",
    measure=measure,
    judge=judge,
)
