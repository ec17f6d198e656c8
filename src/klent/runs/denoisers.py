"""A denoiser's parts: network, sampler, engine, reference, updater, and the divergence of its paths."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from klent.config import DenoiserSettings, NoiseSettings, Recipe
from klent.control.noising import Noising
from klent.control.organ import Organ
from klent.control.pairing import BestWorst
from klent.control.path_kl import PathKL, step_kl
from klent.errors import ModelError
from klent.models.locate import check_folder
from klent.policies.denoiser.actor import DenoisingActor, noise_difference, over_time
from klent.policies.denoiser.network import load_denoiser, save_denoiser
from klent.policies.denoiser.policy import DenoiserPolicy
from klent.policies.denoiser.sampler import flow_steps, make_steps
from klent.policies.vectors.policy import VectorPolicy, divergence_of
from klent.rollout.denoising_engine import DenoisingEngine
from klent.runs.objective import build_objective
from klent.runs.parts import Around, Parts
from klent.runs.samples import Places
from klent.runs.updaters import build_updater
from klent.streams.batch import make_batch
from klent.streams.prompt import Prompt
from klent.streams.sets import OF_IMAGES
from klent.tasks.images import read_images
from klent.training.reference import MeasuredReference


def load_actor(name: str, settings: DenoiserSettings, steps: int) -> DenoisingActor:
    """The network of a folder with the sampler that a recipe describes.

    Args:
        name: the folder.
        settings: the recipe's ``policy``.
        steps: from noise to image.

    Raises:
        ModelError: there is no such folder, or it holds no denoiser.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder at {name}; a denoiser is a folder with config.json. Check the path"
        )
    check_folder(folder)
    net = load_denoiser(folder)
    ends = {"high": net.config.high, "low": net.config.low}
    if settings.sampler == "flow":
        return DenoisingActor(net, flow_steps(steps, **ends, noise_level=settings.noise_level))
    return DenoisingActor(net, make_steps(settings.sampler, steps, **ends, eta=settings.eta))


def open_sampler(model: str, recipe: Recipe) -> DenoisingEngine:
    """What samples from a model of its own, as the recipe's policy does."""
    settings = cast(DenoiserSettings, recipe.policy)
    return DenoisingEngine(load_actor(model, settings, recipe.rollout.max_tokens))


def path_divergences(
    model: str, base: str, recipe: Recipe, prompts: Sequence[Prompt], *, samples: int, seed: int
) -> list[Tensor]:
    """KL(model ‖ base) of each step of paths that the model draws, exact, nats, ``[L]`` for each path."""
    engine, other = open_sampler(model, recipe), open_sampler(base, recipe)
    batch = make_batch(engine.generate(prompts, group_size=samples, seed=seed), None, group_size=samples)
    kl = step_kl(VectorPolicy(engine.actor, reference=other.actor), batch)
    return list(kl.unbind())


def export_denoiser(recipe: Recipe, fill: Callable[[Mapping[str, nn.Parameter]], None], folder: Path) -> None:
    """Write the recipe's network with other weights.

    Args:
        recipe: of the run.
        fill: copies the weights into the trained parameters.
        folder: where to.
    """
    actor = open_sampler(recipe.model, recipe).actor
    fill(dict(actor.named_parameters()))
    save_denoiser(actor.net, folder)


def build_denoiser_parts(recipe: Recipe, around: Around) -> Parts:
    """The parts of a run that trains a denoiser.

    Its reference is always loaded: each step's divergence from it is measured exactly, whatever the loss reads.
    """
    settings, count = cast(DenoiserSettings, recipe.policy), recipe.rollout.max_tokens
    actor = load_actor(recipe.model, settings, count)
    initial = load_actor(recipe.reference or recipe.model, settings, count).requires_grad_(False)
    budget, exact = recipe.update.tokens_per_microbatch, divergence_of(recipe.update.kl.divergence)
    penalties = {"kl": exact, "noise": noise_difference(actor), "flow_grpo": over_time(actor)}
    file = cast(NoiseSettings, recipe.task).images
    data = None if file is None else read_images(file, actor.size)
    compare = penalties[settings.penalty]
    policy = DenoiserPolicy(actor, reference=initial, compare=compare, budget=budget, data=data)
    measured = VectorPolicy(actor, reference=initial, budget=budget)
    updater = build_updater(recipe, policy, build_objective(recipe), around.world, filler=0)
    engine = DenoisingEngine(actor, progress=around.progress)
    reference = VectorPolicy(initial, budget=budget)
    organs: list[Organ] = [PathKL(measured)]
    if any(OF_IMAGES & term.streams for term in updater.objective.terms):
        organs.append(Noising(policy, recipe.seed))
    if recipe.rollout.pairs is not None:
        organs.insert(0, BestWorst())
    return Parts(
        model=actor,
        decoder=Places(),
        engine=engine,
        sampler=engine,
        policy=policy,
        updater=updater,
        compared=MeasuredReference(reference, updater.measure) if updater.needs.reference else None,
        organs=organs,
        save=lambda task, folder: save_denoiser(actor.net, folder),
        reference=reference,
    )
