"""The models that the policy is compared with inside the update, over the whole vocabulary."""

from collections.abc import Collection
from functools import partial
from typing import Literal

from klent.config.rollout import Rollout
from klent.config.training import ExactKL
from klent.errors import RunError
from klent.models.load import LoadedModel
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.teacher import Teacher
from klent.rollout.target import Target


def build_teachers(
    rollout: Rollout,
    kl: ExactKL,
    policy: CausalPolicy,
    loaded: LoadedModel,
    target: Target | None,
    reference: CausalPolicy | None,
    also: Collection[str],
) -> dict[str, Teacher]:
    """What gives each of the streams that an update compares, by the stream's name.

    Args:
        rollout: the recipe's section, with its mixture where it has one.
        kl: which divergence the stream ``kl`` is.
        policy: what is compared.
        loaded: its model and tokenizer.
        target: of the mixture.
        reference: the reference policy, where a term reads ``kl``.
        also: the streams wanted beside log-probability and entropy.

    Raises:
        RunError: one of the two models has no fused head, whose logits could be compared in tiles.
    """
    teachers: dict[str, Teacher] = {}
    if "divergence" in also and target is not None:
        teachers["divergence"] = _of_target(rollout, target, policy, loaded)
    if "kl" in also and reference is not None:
        _require_fused("a term that reads kl", policy=policy, reference=reference)
        teachers["kl"] = Teacher(reference, divergence=kl.divergence, skew=kl.skew, active=reference.active)
    return teachers


def distance_teacher(kind: Literal["tv", "kl"], policy: CausalPolicy, kept: KeptWeights) -> Teacher:
    """What gives the stream ``distance``: from the policy with the weights that are kept.

    Args:
        kind: ``tv``, total variation, or ``kl``, KL(kept ‖ policy).
        policy: what is trained.
        kept: its weights at the start of the step.

    Raises:
        RunError: the policy has no fused head.
    """
    _require_fused("update.distance", policy=policy)
    return Teacher(
        policy,
        divergence="total_variation" if kind == "tv" else "forward",
        active=kept.active,
        moved=lambda: kept.moved,
        trains=False,
    )


def _of_target(rollout: Rollout, target: Target, policy: CausalPolicy, loaded: LoadedModel) -> Teacher:
    mixture = rollout.mixture
    assert mixture is not None
    assert mixture.distill is not None
    with target.active():
        teacher = CausalPolicy(target.loaded.model, temperature=target.temperature)
        teacher.packing = Packing(takes_shared_prompt(teacher, longest=rollout.max_tokens))
    _require_fused("rollout.mixture.distill", policy=policy, target=teacher)
    return Teacher(
        teacher,
        partial(target.encode, policy=loaded.tokenizer),
        divergence=mixture.distill.divergence,
        skew=mixture.distill.skew,
        forward_above=mixture.distill.forward_above,
        active=target.active,
    )


def _require_fused(asked_by: str, **policies: CausalPolicy) -> None:
    for who, policy in policies.items():
        if not policy.fused:
            raise RunError(
                f"{asked_by}: needs logits that are one matrix product, and the {who} has others; remove it"
            )
