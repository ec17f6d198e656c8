"""``compare_eval.json`` of a finished run: how far its final policy is from the base model."""

import json
import time
from pathlib import Path

from klent.config import Recipe
from klent.io.files import write_atomic
from klent.kit.seeds import derive_seed
from klent.measure.divergence import in_short, measure_divergence
from klent.runs.denoisers import path_divergences
from klent.runs.engines import build_sampler
from klent.runs.evaluate import load_on_device
from klent.tasks import load_task

FILE = "compare_eval.json"
PROBLEMS, SAMPLES = 64, 4


def write_divergence(recipe: Recipe, run: Path, *, problems: int = PROBLEMS, samples: int = SAMPLES) -> None:
    """Sample completions of held-out problems from the final policy and measure its KL to the base model.

    Args:
        recipe: of the run; its ``reference``, or else its ``model``, is the base model.
        run: the run folder, with ``final/``.
        problems: at most this many held-out problems.
        samples: completions per problem.
    """
    assert recipe.eval is not None
    started = time.perf_counter()
    name, model = recipe.reference or recipe.model, str(run / "final")
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    prompts = task.heldout(min(problems, recipe.eval.problems))
    seed = derive_seed(recipe.seed, "compare")
    if recipe.policy.language:
        policy, base = (load_on_device(source, recipe) for source in (model, name))
        sampler = build_sampler(policy, recipe.text_rollout, environments=task.environments)
        rollouts = sampler.generate(prompts, group_size=samples, seed=seed)
        divergence = measure_divergence(
            policy, base, rollouts, samples=samples, temperature=recipe.rollout.temperature
        )
    else:
        by_path = path_divergences(model, name, recipe, prompts, samples=samples, seed=seed)
        divergence = in_short(by_path, samples=samples)
    seconds = time.perf_counter() - started
    row = {"step": recipe.steps, "base": name, **divergence, "seconds": seconds}
    write_atomic(run / FILE, json.dumps(row, indent=2) + "\n")
