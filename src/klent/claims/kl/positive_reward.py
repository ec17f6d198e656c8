"""k2 and k3 in the reward."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import REFERENCE_MODEL, SCHULMAN_KL
from klent.claims.worlds.simplex import Estimator, cosine, gradient, mean_gradient, random_logits

_WORLDS = 200
_ALL: tuple[Estimator, ...] = ("k1", "k2", "k3")


def measure() -> dict[str, Figure]:
    rises: dict[Estimator, float] = {"k2": 0.0, "k3": 0.0}
    backwards: dict[Estimator, int] = {"k2": 0, "k3": 0}
    for world in range(_WORLDS):
        policy, reference = random_logits(2 * world, 5), random_logits(2 * world + 1, 5)
        true = _kl_gradient(policy, reference)
        for estimator in rises:
            paid_gradient = paid(estimator, policy, reference)
            p = policy.softmax(-1)
            # of each log-probability, for a small step against the gradient
            change = -paid_gradient + (p * paid_gradient).sum()
            rises[estimator] += (change > 0).double().mean().item() / _WORLDS
            backwards[estimator] += cosine(paid_gradient, true) < 0
    return {
        "share of actions whose probability rises, k2": Figure(rises["k2"]),
        "share of actions whose probability rises, k3": Figure(rises["k3"]),
        "share of worlds where the step points away from the KL's, k2": Figure(backwards["k2"] / _WORLDS),
        "share of worlds where the step points away from the KL's, k3": Figure(backwards["k3"] / _WORLDS),
        **{
            f"pull at distance 0.01 from the reference over the KL's, {name}": Figure(_pull(name, 0.01))
            for name in _ALL
        },
        "the same at distance 0.1, k2": Figure(_pull("k2", 0.1)),
    }


def paid(estimator: Estimator, policy: Tensor, reference: Tensor) -> Tensor:
    """Mean gradient of the policy-gradient loss whose reward is the negative of an estimator."""
    logp_ref = reference.log_softmax(-1).unsqueeze(1)
    mask = torch.ones(len(policy), 1, dtype=torch.bool)

    def loss(logp: Tensor) -> Tensor:
        reward = -O.kl_estimate(logp.detach(), logp_ref, estimator=estimator)
        return O.reinforce(logp, reward, mask).loss

    return mean_gradient(loss, policy)


def _kl_gradient(policy: Tensor, reference: Tensor) -> Tensor:
    return gradient(lambda logp: O.categorical_kl(logp, reference.log_softmax(-1)), policy)


def _pull(estimator: Estimator, distance: float) -> float:
    reference = random_logits(1, 5)
    direction = random_logits(0, 5)
    policy = reference + distance * direction / direction.norm()
    return float(paid(estimator, policy, reference).norm() / _kl_gradient(policy, reference).norm())


def judge(f: Figures) -> Judgement:
    k2, k3 = (f[f"share of actions whose probability rises, {name}"].value for name in ("k2", "k3"))
    near = f["pull at distance 0.01 from the reference over the KL's, k2"].value
    if max(k2, k3) == 0:
        return "holds", "no action's probability rises in any world"
    return "refuted", (
        f"on average {number(100 * k2)} % (k2) and {number(100 * k3)} % (k3) of actions rise: each sample "
        "pushes against all the others, and a reward counts only relative to its mean. The real fault is "
        f"different: at 0.01 from the reference the pull is {number(near)} of the KL's, and it shrinks with "
        "the distance, so nothing holds the policy there"
    )


CLAIM = Claim(
    id="k2-k3-reward",
    subject="kl",
    statement="k2 and k3 are never negative, so as a penalty in the reward they lower the probability of "
    "every sampled action, however policy and reference compare.",
    source=f"{REFERENCE_MODEL.at('section 2.1, equation 9')}; k2 and k3: {SCHULMAN_KL}",
    experiment="exact mean step in 200 random worlds of 5 actions; size of the step close to the reference",
    control="k1 in the reward, and the gradient of the KL itself",
    measure=measure,
    judge=judge,
)
