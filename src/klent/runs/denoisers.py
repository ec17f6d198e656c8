"""A denoiser's parts: network, sampler, engine, reference, updater, and the divergence of its paths."""

from pathlib import Path
from typing import cast

from klent.config import DenoiserSettings, Recipe
from klent.control.organ import Organ
from klent.control.pairing import BestWorst
from klent.control.path_kl import PathKL
from klent.errors import ModelError
from klent.models.locate import check_folder
from klent.policies.denoiser.actor import DenoisingActor, noise_difference
from klent.policies.denoiser.network import load_denoiser, save_denoiser
from klent.policies.denoiser.sampler import make_steps
from klent.policies.vectors.policy import VectorPolicy, divergence_of
from klent.rollout.denoising_engine import DenoisingEngine
from klent.runs.objective import build_objective
from klent.runs.parts import Around, Parts
from klent.runs.samples import Places
from klent.runs.updaters import build_updater
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
        raise ModelError(f"there is no model folder at {name}: a denoiser is a folder with config.json")
    check_folder(folder)
    net = load_denoiser(folder)
    table = make_steps(settings.sampler, steps, high=net.config.high, low=net.config.low, eta=settings.eta)
    return DenoisingActor(net, table)


def build_denoiser_parts(recipe: Recipe, around: Around) -> Parts:
    """The parts of a run that trains a denoiser.

    Its reference is always loaded: each step's divergence from it is measured exactly, whatever the loss reads.
    """
    settings, count = cast(DenoiserSettings, recipe.policy), recipe.rollout.max_tokens
    actor = load_actor(recipe.model, settings, count)
    initial = load_actor(recipe.reference or recipe.model, settings, count).requires_grad_(False)
    budget, exact = recipe.update.tokens_per_microbatch, divergence_of(recipe.update.kl.divergence)
    compare = noise_difference(actor) if settings.penalty == "noise" else exact
    policy = VectorPolicy(actor, reference=initial, compare=compare, budget=budget)
    measured = VectorPolicy(actor, reference=initial, budget=budget)
    updater = build_updater(recipe, policy, build_objective(recipe), filler=0)
    engine = DenoisingEngine(actor, progress=around.progress)
    reference = VectorPolicy(initial, budget=budget)
    organs: list[Organ] = [PathKL(measured)]
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
