"""The objectives that a loss may follow: exact functionals of the policy, with gradients by autograd.

A name ending in ``_token`` is a sum over tokens with the prefixes taken as given: the effect of a token on
later prefixes is left out, as in any loss written per token. Off-policy such a sum can run over the
prefixes of the behaviour policy (``@behaviour``) or over those of the policy itself.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from klent.audit.worlds import Scene

Functional = Callable[[Tensor], Tensor]

#: candidate -> what is lowered by minimising it
MEANING = {
    "reverse_kl": "KL(policy ‖ reference) of whole sequences",
    "reverse_kl_token": "KL(policy ‖ reference), token by token",
    "forward_kl": "KL(reference ‖ policy) of whole sequences",
    "forward_kl_token": "KL(reference ‖ policy), token by token",
    "total_variation_token": "total variation to the reference, token by token",
    "entropy": "entropy, token by token",
    "entropy_sequence": "entropy of whole sequences",
    "expected_reward": "expected reward",
    "expected_reward_token": "expected reward if one token is the policy's and the others the behaviour's",
    "reverse_kl_old": "KL(policy ‖ behaviour) of whole sequences",
    "reverse_kl_token_old": "KL(policy ‖ behaviour), token by token",
    "forward_kl_old": "KL(behaviour ‖ policy) of whole sequences: the likelihood of the samples",
    "forward_kl_token_old": "KL(behaviour ‖ policy), token by token",
}


def candidate_gradients(scene: Scene, reads: Iterable[str]) -> dict[str, Tensor]:
    """Gradient of every candidate at the policy of the scene, by name, ``[P]``.

    Args:
        scene: world and policies.
        reads: streams that the loss takes; candidates that need others (the reference, the reward) are left
            out.
    """
    gradients = {}
    for name, value in functionals(scene, set(reads)).items():
        parameters = scene.policy.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(parameters), parameters)
        gradients[name] = gradient.flatten()
    return gradients


def functionals(scene: Scene, reads: set[str]) -> dict[str, Functional]:
    """The candidates of a scene, the simplest first."""
    candidates: dict[str, Functional] = {}
    one_position = len(scene.features) == 1
    if "logp_ref" in reads:
        candidates |= _divergences(scene, scene.reference, "")
        candidates |= _by_token(scene, "total_variation_token", _total_variation, scene.reference)
    candidates |= _by_token(scene, "entropy", _entropy, None)
    if not one_position:
        candidates["entropy_sequence"] = partial(_sequence_entropy, scene)
    if "advantage" in reads:
        candidates["expected_reward"] = partial(_expected_reward, scene)
        if scene.off_policy and not one_position:
            candidates["expected_reward_token"] = partial(_local_reward, scene)
    if scene.off_policy:
        candidates |= _divergences(scene, scene.behaviour, "_old")
        # a likelihood of the samples already runs over the prefixes of the behaviour policy
        candidates.pop("forward_kl_token_old@behaviour", None)
    if one_position:
        candidates = {
            name: f for name, f in candidates.items() if "_kl_token" not in name and "@" not in name
        }
    return candidates


def _divergences(scene: Scene, other: Tensor, suffix: str) -> dict[str, Functional]:
    return {
        f"reverse_kl{suffix}": partial(_sequence_kl, scene, other, forward=False),
        **_by_token(scene, f"reverse_kl_token{suffix}", _reverse_kl, other),
        f"forward_kl{suffix}": partial(_sequence_kl, scene, other, forward=True),
        **_by_token(scene, f"forward_kl_token{suffix}", _forward_kl, other),
    }


def _by_token(
    scene: Scene, name: str, measure: Callable[[Tensor, Tensor], Tensor], other: Tensor | None
) -> dict[str, Functional]:
    """``measure`` between next-token distributions, summed over prefixes that are taken as given."""
    q = scene.log_probs(scene.policy if other is None else other)
    kinds = {name: scene.policy}
    if scene.off_policy:
        kinds[f"{name}@behaviour"] = scene.behaviour
    return {
        key: partial(_over_prefixes, scene, measure, q, scene.prefix_probability(walker))
        for key, walker in kinds.items()
    }


def _over_prefixes(
    scene: Scene, measure: Callable[[Tensor, Tensor], Tensor], q: Tensor, often: Tensor, parameters: Tensor
) -> Tensor:
    return often @ measure(scene.log_probs(parameters), q)


def _reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=1)


def _forward_kl(p: Tensor, q: Tensor) -> Tensor:
    return (q.exp() * (q - p)).sum(dim=1)


def _total_variation(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() - q.exp()).abs().sum(dim=1) / 2


def _entropy(p: Tensor, _: Tensor) -> Tensor:
    return -(p.exp() * p).sum(dim=1)


def _sequence_kl(scene: Scene, other: Tensor, parameters: Tensor, *, forward: bool) -> Tensor:
    p, q = scene.sequence_logp(parameters), scene.sequence_logp(other)
    return (q.exp() * (q - p)).sum() if forward else (p.exp() * (p - q)).sum()


def _sequence_entropy(scene: Scene, parameters: Tensor) -> Tensor:
    p = scene.sequence_logp(parameters)
    return -(p.exp() * p).sum()


def _expected_reward(scene: Scene, parameters: Tensor) -> Tensor:
    return scene.sequence_logp(parameters).exp() @ scene.reward


def _local_reward(scene: Scene, parameters: Tensor) -> Tensor:
    """Reward expected when one token is drawn from the policy, the others from the behaviour (TRPO)."""
    world, probability = scene.world, scene.sequence_logp(scene.behaviour).exp()
    earned = torch.zeros(len(scene.features), world.vocabulary, dtype=probability.dtype)
    index = (world.prefix[world.mask], world.tokens[world.mask])
    of_row = (probability * scene.reward)[:, None].expand(world.mask.shape)[world.mask]
    earned.index_put_(index, of_row, accumulate=True)  # P(prefix, token)·E[reward | prefix, token]
    p, behaviour = scene.log_probs(parameters), scene.log_probs(scene.behaviour)
    return ((p - behaviour).exp() * earned).sum()
