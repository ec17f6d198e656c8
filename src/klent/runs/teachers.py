"""The models that the policy is compared with inside the update, over the whole vocabulary."""

from collections.abc import Collection
from functools import partial

from klent.config import MixtureSettings
from klent.errors import RunError
from klent.models.load import LoadedModel
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.teacher import Teacher
from klent.rollout.target import Target


def build_teachers(
    mixture: MixtureSettings | None,
    target: Target | None,
    reference: CausalPolicy | None,
    policy: CausalPolicy,
    loaded: LoadedModel,
    compared: Collection[str],
    *,
    longest: int,
) -> dict[str, Teacher]:
    """What gives each of the streams that an update compares, by the stream's name.

    Args:
        mixture: the recipe's ``rollout.mixture``, where it has one.
        target: of that mixture.
        reference: the reference policy, where a term reads ``kl``.
        policy: what is compared.
        loaded: its model and tokenizer.
        compared: the streams wanted, of :data:`klent.training.requirements.COMPARED`.
        longest: tokens of the longest completion.

    Raises:
        RunError: one of the two models has no fused head, whose logits could be compared in tiles.
    """
    teachers: dict[str, Teacher] = {}
    if "divergence" in compared and target is not None and mixture is not None:
        teachers["divergence"] = _of_target(mixture, target, policy, loaded, longest)
    if "kl" in compared and reference is not None:
        _require_fused("a term that reads kl", policy=policy, reference=reference)
        teachers["kl"] = Teacher(reference, active=reference.active)
    return teachers


def _of_target(
    mixture: MixtureSettings, target: Target, policy: CausalPolicy, loaded: LoadedModel, longest: int
) -> Teacher:
    assert mixture.distill is not None
    with target.active():
        teacher = CausalPolicy(target.loaded.model, temperature=target.temperature)
        teacher.packing = Packing(takes_shared_prompt(teacher, longest=longest))
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
            raise RunError(f"{asked_by}: the {who} does more to its logits than a head; remove it")
