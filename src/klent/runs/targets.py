"""Models beside the policy: the target of a mixture, and others in the policy's precision."""

from collections.abc import Callable
from dataclasses import replace

from klent.config import MixtureSettings, Recipe
from klent.models.adapter import adapters_off, merge_adapter
from klent.models.load import LoadedModel, load_policy
from klent.rollout.target import Target


def load_beside(name: str, recipe: Recipe, loaded: LoadedModel) -> LoadedModel:
    """Another model in the policy's precision, on its device."""
    return load_policy(
        name,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        device=loaded.model.device,
    )


def build_target(
    mixture: MixtureSettings, recipe: Recipe, loaded: LoadedModel, initial: Callable[[], LoadedModel]
) -> Target:
    """The target that a recipe names.

    Args:
        mixture: the recipe's ``rollout.mixture``.
        recipe: what the policy is.
        loaded: the policy.
        initial: gives the reference model; loads it where nothing else has.
    """
    wanted = mixture.target
    temperature = wanted.temperature or recipe.rollout.temperature
    target = Target(loaded, prompt=wanted.prompt, system=wanted.system, temperature=temperature)
    if wanted.model == "policy":
        return target
    if wanted.model == "reference" and wanted.adapter is None:
        if recipe.lora is not None and recipe.reference is None:
            return replace(target, active=adapters_off(loaded.model))
        return replace(target, loaded=initial())
    name = (recipe.reference or recipe.model) if wanted.model == "reference" else wanted.model
    other = load_beside(name, recipe, loaded)
    if wanted.adapter is not None:
        merged = merge_adapter(other.model, wanted.adapter, source=other.source)
        other = replace(other, model=merged)
    other.model.requires_grad_(False)
    return replace(target, loaded=other)
