"""Whether the point of equal KLs is near the largest signal-to-noise ratio."""

from collections.abc import Callable

import torch
from torch import Tensor

from klent import mixture as M
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import OPTIMAL_SAMPLING
from klent.claims.worlds.simplex import random_logits
from klent.kit.grid import grid_optimum

_WORLDS, _ACTIONS = 300, 8
_ALPHAS = [i / 200 for i in range(201)]

#: logits of policies and targets, and rewards, ``[worlds, actions]``
World = Callable[[], tuple[Tensor, Tensor, Tensor]]


def _log_ratio() -> tuple[Tensor, Tensor, Tensor]:
    policy, target = (random_logits(seed, _WORLDS, _ACTIONS) for seed in (0, 1))
    return policy, target, target.log_softmax(-1) - policy.log_softmax(-1)


def _part_way() -> tuple[Tensor, Tensor, Tensor]:
    """A policy half-way from the reference to target ∝ reference·exp(R), plus noise."""
    reference, gain, noise = (random_logits(seed, _WORLDS, _ACTIONS) for seed in (2, 3, 4))
    return reference + gain / 2 + noise / 2, reference + gain, gain


def _other_reference() -> tuple[Tensor, Tensor, Tensor]:
    policy, target, reference = (random_logits(seed, _WORLDS, _ACTIONS) for seed in (5, 6, 7))
    return policy, target, target.log_softmax(-1) - reference.log_softmax(-1)


def _binary() -> tuple[Tensor, Tensor, Tensor]:
    """Some actions are right; the target is the policy shifted towards them."""
    policy, right = random_logits(8, _WORLDS, _ACTIONS), (random_logits(9, _WORLDS, _ACTIONS) > 0.7).double()
    right[:, 0], right[:, 1] = 1.0, 0.0
    return policy, policy + 2 * right + 0.5 * random_logits(10, _WORLDS, _ACTIONS), right


_SETTINGS: dict[str, World] = {
    "r = log(target/policy)": _log_ratio,
    "policy part-way": _part_way,
    "r from another reference": _other_reference,
    "binary reward": _binary,
}


def measure() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, world in _SETTINGS.items():
        policy, target, reward = world()
        equal = M.solve_alpha(policy, target)
        snr = torch.stack(
            [_snr(policy, target, M.geometric_mixture(policy, target, a), reward) for a in _ALPHAS]
        )
        tells = snr.amax(0) > snr.amin(0) * (1 + ROUNDING)  # with one right action every q has the same SNR
        alpha = _largest(snr[:, tells])
        lost = 1 - _snr(policy, target, equal.log_q, reward) / snr.amax(0)
        figures |= {
            f"{name}: worlds where SNR depends on q": Figure(int(tells.sum())),
            f"{name}: share of these with |alpha_SNR - alpha_KL| < 0.1": _share(
                (alpha - equal.alpha[tells]).abs() < 0.1
            ),
            f"{name}: share of these with alpha_SNR = 1": _share(alpha == 1),
            f"{name}: share of these that lose less than 5 % of SNR at alpha_KL": _share(lost[tells] < 0.05),
            f"{name}: share of all worlds that do": _share(lost < 0.05),
            f"{name}: median SNR lost at alpha_KL, these": Figure(lost[tells].median().item()),
            f"{name}: median SNR lost at alpha_KL, all worlds": Figure(lost.median().item()),
        }
    policy, target, reward = _log_ratio()
    best = M.snr_optimal(policy.softmax(-1), target.softmax(-1))
    best = (best / best.sum(-1, keepdim=True)).log()
    chi = M.chi_squared(target.softmax(-1), policy.softmax(-1)).sqrt()
    figures["unconstrained best SNR over its bound √χ² (control)"] = Figure(
        (_snr(policy, target, best, reward) / chi).min().item()
    )
    return figures | _variance()


def _snr(policy: Tensor, target: Tensor, log_q: Tensor, reward: Tensor) -> Tensor:
    return M.progress_terms(policy.softmax(-1), target.softmax(-1), log_q.exp(), reward).snr.abs()


def _largest(snr: Tensor) -> Tensor:
    """The alpha of the largest SNR in each world, ``[worlds]``; 0 and 1 are the ends of the family itself."""
    found = [grid_optimum(_ALPHAS, world, best="largest", domain=(0, 1)) for world in snr.T.tolist()]
    return torch.tensor(_ALPHAS, dtype=snr.dtype)[found]


def _variance() -> dict[str, Figure]:
    """Variance of a sampled policy gradient with importance weights, relative to on-policy sampling."""
    logits, target, reward = _log_ratio()
    policy = logits.softmax(-1)
    advantage = reward - (policy * reward).sum(-1, keepdim=True)
    field = advantage.unsqueeze(-1) * (torch.eye(_ACTIONS, dtype=policy.dtype) - policy.unsqueeze(1))
    on_policy = M.sampling_variance(policy, policy, field)
    samplers = {
        "alpha_KL": M.solve_alpha(logits, target).log_q.exp(),
        "target": target.softmax(-1),
        "best q": M.variance_optimal(policy, field),
    }
    figures = {}
    for name, q in samplers.items():
        over = M.sampling_variance(policy, q, field) / on_policy
        figures[f"variance of a sampled gradient over on-policy's, {name}, median (control)"] = Figure(
            over.median().item()
        )
        figures[f"share of worlds where it is larger than on-policy's, {name} (control)"] = _share(
            over > 1 + ROUNDING
        )
    return figures


def _share(outcomes: Tensor) -> Figure:
    return Figure(outcomes.double().mean().item())


def judge(f: Figures) -> Judgement:
    """Each half in every setting: whether it holds in most of the worlds.

    Where SNR does not depend on q, alpha_SNR does not exist, and nothing can be lost.
    """
    near = {name: f[f"{name}: share of these with |alpha_SNR - alpha_KL| < 0.1"].value for name in _SETTINGS}
    little = {name: f[f"{name}: share of all worlds that do"].value for name in _SETTINGS}
    can_tell = f["binary reward: share of these that lose less than 5 % of SNR at alpha_KL"].value
    at_one = f["r = log(target/policy): share of these with alpha_SNR = 1"].value
    graded = [share for name, share in little.items() if name != "binary reward"]
    numbers = (
        f"the alphas are near in {number(min(near.values()))} to {number(max(near.values()))} of the worlds; "
        f"less than 5 % is lost in {number(min(graded))} to {number(max(graded))} of them, and in "
        f"{number(little['binary reward'])} with a binary reward ({number(can_tell)} of those where SNR "
        "depends on q at all)"
    )
    if min(*near.values(), *little.values()) > 0.5:
        return "holds", numbers
    both = [name for name in _SETTINGS if near[name] > 0.5 and little[name] > 0.5]
    if both:
        return "holds when", f"the setting is {' or '.join(both)}: {numbers}"
    noise = {
        name: f[f"variance of a sampled gradient over on-policy's, {name}, median (control)"].value
        for name in ("alpha_KL", "target", "best q")
    }
    worse = f["share of worlds where it is larger than on-policy's, alpha_KL (control)"].value
    return "refuted", (
        f"{numbers}. With r = log(target/policy) the best alpha is 1 in {number(at_one)} of the "
        "worlds: by this measure one should sample on-policy. The noise of real samples is a different "
        f"quantity: a gradient estimate has in the median {number(noise['alpha_KL'])} of the on-policy "
        f"variance at alpha_KL, but in {number(worse)} of the worlds more than that; the target's median is "
        f"{number(noise['target'])}, the best q's {number(noise['best q'])}"
    )


CLAIM = Claim(
    id="snr-kl-gap",
    subject="mixture",
    statement="In most cases |alpha_SNR - alpha_KL| < 0.1, and the SNR at alpha_KL is within 5 % of the "
    "best.",
    source=OPTIMAL_SAMPLING.at("section 5.4"),
    experiment="300 random worlds of 8 actions in each of four settings; alpha_SNR on a grid of 201, where SNR "
    "depends on q: with one right action it is the same for every q",
    control="the best unconstrained q, which attains √χ²(target ‖ policy); the variance of a policy "
    "gradient from samples with importance weights",
    measure=measure,
    judge=judge,
)
