"""How far a trained policy stands from the model it came from, measured on what it says."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klent.config import Recipe, TransformersRollout
from klent.control.schedule import derive_seed
from klent.io.files import write_atomic
from klent.models.load import LoadedModel, load_policy
from klent.objectives import categorical_kl
from klent.rollout.engine import Rollout
from klent.runs.build import build_sampler
from klent.tasks import load_task

FILE = "compare_eval.json"
PROBLEMS, SAMPLES = 64, 4


def measure_divergence(
    recipe: Recipe, run: Path, *, problems: int = PROBLEMS, samples: int = SAMPLES
) -> None:
    """Write ``compare_eval.json`` of a finished run: its KL divergence to the base model.

    .. math:: \\frac{1}{T} \\sum_t KL(\\pi(\\cdot | x_{<t}) \\,\\|\\, \\pi_0(\\cdot | x_{<t})),
        \\qquad x \\sim \\pi

    Completions of held-out problems are sampled from the final policy; at each of their tokens the divergence
    of the two next-token distributions is summed over the whole vocabulary, so that only which tokens were
    reached is left to chance. Both are taken at the sampling temperature; top-p and top-k are not applied.

    Args:
        recipe: of the run; its ``reference``, or else its ``model``, is the base model.
        run: the run folder, with ``final/``.
        problems: at most this many held-out problems.
        samples: completions of each.
    """
    assert isinstance(recipe.rollout, TransformersRollout)
    assert recipe.eval is not None
    started = time.perf_counter()
    name = recipe.reference or recipe.model
    policy, base = (_load(source, recipe) for source in (str(run / "final"), name))
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    prompts = task.heldout(min(problems, recipe.eval.problems))
    seed = derive_seed(recipe.seed, "compare")
    rollouts = build_sampler(policy, recipe.rollout).generate(prompts, group_size=samples, seed=seed)
    temperature = recipe.rollout.temperature
    each = [token_divergence(policy, base, rollout, temperature=temperature) for rollout in rollouts]
    by_problem = [float(torch.cat(each[i : i + samples]).mean()) for i in range(0, len(each), samples)]
    tokens = torch.cat(each)
    row: dict[str, Any] = {
        "step": recipe.steps,
        "base": name,
        "problems": len(prompts),
        "samples": samples,
        "tokens": len(tokens),
        "kl/base": float(tokens.mean()),
        "kl/base_error": _standard_error(by_problem),
        "kl/base_completion": float(tokens.sum()) / len(rollouts),
        "seconds": time.perf_counter() - started,
    }
    write_atomic(run / FILE, json.dumps(row, indent=2) + "\n")


@torch.no_grad()
def token_divergence(
    policy: LoadedModel, base: LoadedModel, rollout: Rollout, *, temperature: float
) -> Tensor:
    """Reverse KL of the next-token distributions at each token of a completion, nats, ``[L]``."""
    ids = torch.tensor([*rollout.prompt_ids, *rollout.tokens.tolist()], device=policy.model.device)[None]
    first = len(rollout.prompt_ids) - 1
    logp, logp_base = (
        (loaded.model(input_ids=ids, use_cache=False).logits[0, first:-1].float() / temperature).log_softmax(
            dim=-1
        )
        for loaded in (policy, base)
    )
    return categorical_kl(logp, logp_base).cpu()


def _load(name: str, recipe: Recipe) -> LoadedModel:
    loaded = load_policy(name, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def _standard_error(values: list[float]) -> float:
    """Of the mean over problems; 0 with a single one."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
