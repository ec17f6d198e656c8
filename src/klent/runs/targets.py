"""Models beside the policy: the target of a mixture, and others in the policy's precision."""

from collections.abc import Callable
from dataclasses import replace

from klent.config import MixtureSettings, Recipe
from klent.errors import ModelError
from klent.models.adapter import adapters_off, merge_adapter
from klent.models.load import LoadedModel, load_policy
from klent.policies.causal_lm.beside import holds_values
from klent.rollout.target import Target
from klent.runs.device import computes_in, viewing
from klent.runs.engines import Opened, Player


def load_beside(name: str, recipe: Recipe, loaded: LoadedModel) -> LoadedModel:
    """Another model in the policy's precision, on its device."""
    return load_policy(
        name,
        dtype=computes_in(recipe.precision, loaded.model.device),
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        device=loaded.model.device,
    )


def load_reference(recipe: Recipe, loaded: LoadedModel) -> LoadedModel:
    """The reference model; where values are learnt, that is the model of the data.

    Raises:
        ModelError: it cannot be loaded, or has values in place of what the data does.
    """
    reference = load_beside(recipe.reference or recipe.model, recipe, loaded)
    if recipe.bellman is not None:
        refuse_values(reference, "reference")
    return reference


def refuse_values(loaded: LoadedModel, key: str) -> None:
    """Refuse a model whose head holds values where the model of the data is asked for.

    Raises:
        ModelError: with how to go on.
    """
    if holds_values(loaded.model):
        raise ModelError(
            f"{key}: {loaded.source} already holds values (method qsft or ilql), and learning values starts from a "
            f"model of the data. To train it further: klent resume RUN steps=+100. To start again: {key}=FOLDER of a "
            "run of method sft on the log"
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


def build_player(
    recipe: Recipe, loaded: LoadedModel, behaviour: Callable[[], LoadedModel] | None = None
) -> Player | None:
    """Who plays what a recipe's ``bellman`` taught; None where a model is played as it is.

    Args:
        recipe: whose ``reference``, or ``model``, is the model of the data.
        loaded: the values, whose precision and device the model of the data shares.
        behaviour: gives the model of the data; None = it is loaded.

    Raises:
        ModelError: it cannot be loaded.
    """
    if recipe.bellman is None:
        return None
    try:
        data = behaviour() if behaviour is not None else load_reference(recipe, loaded)
    except ModelError as error:
        raise ModelError(
            f"{error}. It is the model of the data, which the player of {recipe.name} needs beside its values. Put "
            "it back, or say where it is now: reference=FOLDER (klent eval), --behaviour FOLDER"
        ) from error
    data.model.requires_grad_(False)
    data.model.eval()
    return Player(data, recipe.bellman)


def open_model(model: str, recipe: Recipe) -> Opened:
    """A model that a recipe trained, in its precision on the accelerator if there is one, with who plays it.

    Raises:
        ModelError: the model, or the model of the data, cannot be loaded.
    """
    loaded = load_policy(
        model,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        **viewing(recipe.device, recipe.precision),
    )
    return Opened(loaded, build_player(recipe, loaded))
