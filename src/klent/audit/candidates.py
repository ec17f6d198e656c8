"""What a loss may be following: exact functionals of the policy, and their gradients by autograd.

A name ending in ``_token`` is a sum over tokens with the prefixes taken as given: that a token changes what
comes after it is left out, as in any loss written per token. Off-policy such a sum can run over the
prefixes that the behaviour policy met (``@behaviour``) or over those that the policy itself would meet.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from klent.audit.worlds import Scene

Functional = Callable[[Tensor], Tensor]

#: candidate -> what lowering it does, in words
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
    """Gradient of every candidate at the scene's policy, by name, ``[P]``.

    Args:
        scene: where.
        reads: streams that the loss takes; a candidate that it cannot know of (the reference, the reward) is
            left out.
    """
    gradients = {}
    for name, value in functionals(scene, set(reads)).items():
        parameters = scene.policy.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(parameters), parameters)
        gradients[name] = gradient.flatten()
    return gradients


def functionals(scene: Scene, reads: set[str]) -> dict[str, Functional]:
    """The candidates of a scene, simplest claim first."""
    found: dict[str, Functional] = {}
    one_position = len(scene.features) == 1
    if "logp_ref" in reads:
        found |= _divergences(scene, scene.reference, "")
        found |= _by_token(scene, "total_variation_token", _total_variation, scene.reference)
    found |= _by_token(scene, "entropy", _entropy, None)
    if not one_position:
        found["entropy_sequence"] = partial(_sequence_entropy, scene)
    if "advantage" in reads:
        found["expected_reward"] = partial(_expected_reward, scene)
        if scene.off_policy and not one_position:
            found["expected_reward_token"] = partial(_local_reward, scene)
    if scene.off_policy:
        found |= _divergences(scene, scene.behaviour, "_old")
        # the behaviour's own prefixes are the ones that a likelihood of its samples runs over
        found.pop("forward_kl_token_old@behaviour", None)
    if one_position:
        found = {name: f for name, f in found.items() if "_kl_token" not in name and "@" not in name}
    return found


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
    """Σ over the behaviour's prefixes of what it earns after one token of the policy's: TRPO's surrogate."""
    world, chance = scene.world, scene.sequence_logp(scene.behaviour).exp()
    earned = torch.zeros(len(scene.features), world.words, dtype=chance.dtype)
    place = (world.prefix[world.mask], world.tokens[world.mask])
    of_row = (chance * scene.reward)[:, None].expand(world.mask.shape)[world.mask]
    earned.index_put_(place, of_row, accumulate=True)  # P(prefix, word)·E[reward | prefix, word]
    p, behaviour = scene.log_probs(parameters), scene.log_probs(scene.behaviour)
    return ((p - behaviour).exp() * earned).sum()
