"""The objectives that a loss may follow: exact functionals of the policy, with gradients by autograd.

A name ending in ``_token`` is a sum over tokens with the prefixes taken as given: the effect of a token on
later prefixes is left out, as in any loss written per token. Off-policy such a sum can run over the
prefixes of the behaviour policy (``@behaviour``) or over those of the policy itself. A name ending in ``_path``
is such a sum along the policy's own sequences, with the effect of a token on later prefixes.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from klent.audit import measures
from klent.audit.measures import ALPHAS, SKEW, TO_REFERENCE, Measure
from klent.audit.names import OF_REFERENCE
from klent.audit.worlds import Scene

Functional = Callable[[Tensor], Tensor]

_DIVERGENCES = {
    "reverse_kl": "KL(policy ‖ reference)",
    "forward_kl": "KL(reference ‖ policy)",
    "total_variation": "total variation to the reference",
    "jeffreys_kl": "KL(policy ‖ reference) + KL(reference ‖ policy)",
    "skewed_kl": f"KL(policy ‖ {SKEW}·policy + {1 - SKEW}·reference)",
    "chi_squared": "χ²(policy ‖ reference)",
    "chi_squared_forward": "χ²(reference ‖ policy)",
    "jensen_shannon": "Jensen-Shannon divergence from the reference",
    "hellinger": "squared Hellinger distance to the reference",
    **{f"alpha_{alpha}": f"alpha-divergence from the reference, alpha {alpha}" for alpha in ALPHAS},
}
#: divergences whose sum along the policy's sequences is not the divergence between sequences
_PATHS = tuple(name for name in TO_REFERENCE if name != "kl")
#: candidate -> what is lowered by minimising it
MEANING = {
    **{name: f"{what} of whole sequences" for name, what in _DIVERGENCES.items()},
    **{f"{name}_token": f"{what}, token by token" for name, what in _DIVERGENCES.items()},
    **{f"{name}_path": f"{_DIVERGENCES[name]} of tokens, along the policy's sequences" for name in _PATHS},
    "entropy": "entropy, token by token",
    "entropy_sequence": "entropy of whole sequences",
    "expected_reward": "expected reward",
    "expected_reward_token": "expected reward if one token is the policy's and the others the behaviour's",
    "reverse_kl_old": "KL(policy ‖ behaviour) of whole sequences",
    "reverse_kl_token_old": "KL(policy ‖ behaviour), token by token",
    "forward_kl_old": "KL(behaviour ‖ policy) of whole sequences: the likelihood of the samples",
    "forward_kl_token_old": "KL(behaviour ‖ policy), token by token",
}
#: candidates that penalties seldom are. Close to the reference all divergences are alike, so that a sum of
#: several comes near any other: a combination holds at most one of these, and none is called the nearest
RARE = frozenset(
    name
    for name in MEANING
    if name.removesuffix("_token").removesuffix("_path") in measures.RARE
    or name.endswith("_path")
    or name == "total_variation"
)


@functools.lru_cache(maxsize=256)
def candidate_gradients(scene: Scene, reads: frozenset[str]) -> dict[str, Tensor]:
    """Gradient of every candidate at the policy of the scene, by name, ``[P]``.

    Args:
        scene: world and policies.
        reads: ``concerned`` of the streams that the loss takes; candidates that need others (the reference,
            the reward) are left out.
    """
    return {name: gradient_of(value, scene.policy) for name, value in functionals(scene, reads).items()}


def gradient_of(value: Functional, policy: Tensor) -> Tensor:
    """Gradient of a functional at a policy, ``[P]``."""
    parameters = policy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(parameters), parameters)
    return gradient.flatten()


def concerned(reads: Iterable[str]) -> frozenset[str]:
    """What decides which candidates there are: whether a loss takes a number of the reference, or the reward."""
    of_reference = {"logp_ref"} if not set(OF_REFERENCE).isdisjoint(reads) else set()
    return frozenset(of_reference | {"advantage"}.intersection(reads))


def functionals(scene: Scene, reads: frozenset[str]) -> dict[str, Functional]:
    """The candidates of a scene, the simplest first."""
    candidates: dict[str, Functional] = {}
    one_position = len(scene.features) == 1
    refers = "logp_ref" in reads
    if refers:
        candidates |= _divergences(scene, scene.reference, "", measures.COMMON)
    candidates |= _by_token(scene, "entropy", measures.entropy, None)
    if not one_position:
        candidates["entropy_sequence"] = partial(_sequence_entropy, scene)
    if "advantage" in reads:
        candidates["expected_reward"] = partial(_expected_reward, scene)
        if scene.off_policy and not one_position:
            candidates["expected_reward_token"] = partial(_local_reward, scene)
    if scene.off_policy:
        kls = {name: measures.COMMON[name] for name in ("reverse_kl", "forward_kl")}
        candidates |= _divergences(scene, scene.behaviour, "_old", kls)
        # a likelihood of the samples already runs over the prefixes of the behaviour policy
        candidates.pop("forward_kl_token_old@behaviour", None)
    if refers:
        candidates |= _divergences(scene, scene.reference, "", measures.RARE)
        for name in _PATHS:
            q = scene.log_probs(scene.reference)
            candidates[f"{name}_path"] = partial(_along_path, scene, TO_REFERENCE[name], q)
    if one_position:
        candidates = {
            name: f
            for name, f in candidates.items()
            if not any(part in name for part in ("_token", "_path", "@"))
        }
    return candidates


def _divergences(
    scene: Scene, other: Tensor, suffix: str, kinds: Mapping[str, Measure]
) -> dict[str, Functional]:
    """Each kind of divergence from another policy: of whole sequences, and token by token."""
    found: dict[str, Functional] = {}
    for name, measure in kinds.items():
        found[f"{name}{suffix}"] = partial(_of_sequences, scene, measure, scene.sequence_logp(other))
        found |= _by_token(scene, f"{name}_token{suffix}", measure, other)
    return found


def _by_token(scene: Scene, name: str, measure: Measure, other: Tensor | None) -> dict[str, Functional]:
    """``measure`` between next-token distributions, summed over prefixes that are taken as given."""
    q = scene.log_probs(scene.policy if other is None else other)
    kinds = {name: scene.policy}
    if scene.off_policy:
        kinds[f"{name}@behaviour"] = scene.behaviour
    return {
        key: partial(_over_prefixes, scene, measure, q, scene.prefix_probability(walker))
        for key, walker in kinds.items()
    }


def _over_prefixes(scene: Scene, measure: Measure, q: Tensor, often: Tensor, parameters: Tensor) -> Tensor:
    return often @ measure(scene.log_probs(parameters), q)


def _along_path(scene: Scene, measure: Measure, q: Tensor, parameters: Tensor) -> Tensor:
    return scene.prefix_probability(parameters) @ measure(scene.log_probs(parameters), q)


def _of_sequences(scene: Scene, measure: Measure, q: Tensor, parameters: Tensor) -> Tensor:
    return measure(scene.sequence_logp(parameters), q)


def _sequence_entropy(scene: Scene, parameters: Tensor) -> Tensor:
    p = scene.sequence_logp(parameters)
    return measures.entropy(p, p)


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
