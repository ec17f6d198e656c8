"""Held-out accuracy with an honest interval."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from klent.config import Recipe
from klent.control.schedule import derive_seed
from klent.errors import ConfigError
from klent.measure.certainty import extra_measures
from klent.models.load import load_policy
from klent.rollout.engine import Engine, Rollout
from klent.runs.build import build_sampler
from klent.tasks import Prompt, Reward, Scorer, load_task


def evaluate(
    engine: Engine,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    step: int,
    more: Callable[[list[Rollout], list[list[bool]]], dict[str, Any]] = lambda rollouts, correct: {},
) -> dict[str, Any]:
    """Sample every held-out problem and score it; one row of ``eval.jsonl``.

    ``accuracy`` is the share of completions whose reward is at least 1 (the field's "correct"; an unscorable
    one is not correct), ``reward`` their mean reward. The interval is Wilson's at 95% with the number of
    *problems* as its sample size: samples of one problem are not independent, and counting them as such would
    make it too narrow. ``pass@k`` is for every ``k`` up to ``samples`` the chance that at least one of k
    completions of a problem is correct, by :func:`pass_at_k`; ``pass@1`` is the accuracy.

    Args:
        engine: the policy.
        scorer: the rewards.
        prompts: the held-out problems.
        samples: completions a problem.
        seed: of the sampling; the same before and after training.
        step: the training step that the row speaks of, 0 before training.
        more: adds to the row, from the completions and whether each problem's are correct.
    """
    started = time.perf_counter()
    rollouts = engine.generate(prompts, group_size=samples, seed=seed)
    scores = scorer.score(
        [r.prompt for r in rollouts], [r.text for r in rollouts], [r.finish for r in rollouts]
    )
    correct = [value >= 1.0 - 1e-6 for value in scores.reward]  # nan compares false
    by_problem = [correct[i : i + samples] for i in range(0, len(correct), samples)]
    accuracy = sum(correct) / len(correct)
    low, high = wilson(accuracy, len(prompts))
    scorable = [value for value in scores.reward if not math.isnan(value)]
    entropies = [value for r in rollouts for value in r.entropy_gen.tolist()]
    return {
        "step": step,
        "split": "heldout",
        "problems": len(prompts),
        "samples": samples,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        **{f"pass@{k}": value for k, value in pass_at_k(by_problem).items()},
        "reward": sum(scorable) / len(scorable) if scorable else None,
        "entropy": sum(entropies) / len(entropies),
        "length": len(entropies) / len(rollouts),
        "unscorable": 1.0 - len(scorable) / len(rollouts),
        **more(rollouts, by_problem),
        "seconds": time.perf_counter() - started,
        "correct": [[float(c) for c in problem] for problem in by_problem],
    }


def evaluate_model(model: str, recipe: Recipe) -> dict[str, Any]:
    """Held-out accuracy of any model on a recipe's task, with its reward, sampling and seed.

    Args:
        model: alias, folder or hub id.
        recipe: where the problems come from and how they are scored; its own ``model`` is not loaded.

    Returns:
        A row as of :func:`evaluate`, step 0.

    Raises:
        ConfigError: the recipe has no ``eval`` section or no reward.
    """
    rewards = eval_rewards(recipe)
    if recipe.eval is None or rewards is None:
        missing = "eval" if recipe.eval is None else "reward"
        raise ConfigError(f"recipe {recipe.name} has no `{missing}`, so that nothing can be measured; set it")
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    with Scorer(rewards, task) as scorer:
        scorer.check()
        loaded = load_policy(model, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return evaluate(
            build_sampler(loaded, recipe.rollout),
            scorer,
            task.heldout(recipe.eval.problems),
            samples=recipe.eval.samples,
            seed=derive_seed(recipe.seed, "eval"),
            step=0,
            more=extra_measures(recipe, loaded, scorer, derive_seed(recipe.seed, "eval")),
        )


def eval_rewards(recipe: Recipe) -> tuple[Reward, ...] | None:
    """What tells right from wrong in evaluation: ``eval.reward``, else the recipe's own reward."""
    return (recipe.eval.reward if recipe.eval else None) or recipe.reward


def pass_at_k(correct: Sequence[Sequence[bool]]) -> dict[int, float]:
    r"""For every k, the chance that at least one of k completions of a problem is correct.

    .. math::
        \mathrm{pass@}k = \frac1P \sum_p 1 - \binom{n - c_p}{k} \Big/ \binom{n}{k}

    The mean over all choices of k among a problem's n samples, so unbiased; no other use of the samples has
    less variance.

    Args:
        correct: for each of P problems, whether each of its n samples is correct.

    Returns:
        k -> pass@k, for k from 1 to n.

    Example:
        >>> pass_at_k([[True, False, False], [False, False, False]])
        {1: 0.16666666666666669, 2: 0.33333333333333337, 3: 0.5}

    Reference:
        Chen et al., Evaluating Large Language Models Trained on Code, 2021, arXiv:2107.03374.
    """
    n = len(correct[0])
    return {
        k: sum(1.0 - math.comb(n - sum(problem), k) / math.comb(n, k) for problem in correct) / len(correct)
        for k in range(1, n + 1)
    }


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share of ``count`` independent trials; honest at 0 and 1 too.

    Example:
        >>> [round(x, 3) for x in wilson(0.0, 50)]
        [0.0, 0.071]
    """
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
