"""Prompts ranked by how much there is to learn from them, with labels or without."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from klent.config import Recipe
from klent.control.schedule import derive_seed
from klent.errors import ConfigError, RunError
from klent.io.files import append_line, read_jsonl, write_atomic
from klent.measure.evaluate import eval_rewards
from klent.models.load import load_policy
from klent.rollout.engine import Rollout
from klent.runs.build import build_sampler
from klent.tasks import Prompt, Scorer, Task, load_task
from klent.tasks.agreement import question
from klent.tasks.clusters import NO_ANSWER, Equivalence, find_clusters, load_equivalence

By = Literal["pass_variance", "cluster_variance", "entropy", "random"]
BY: tuple[str, ...] = get_args(By)
AT_ONCE = 8  # prompts sampled together; what is sampled depends on it, so that it is fixed


def rank_prompts(
    recipe: Recipe,
    *,
    prompts: int,
    samples: int,
    by: str,
    out: Path,
    same: str = "text",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, Any]]:
    r"""Sample training prompts, score them, and write them best first.

    .. math::
        \mathrm{pass\_variance} = \hat p\,(1 - \hat p), \qquad
        \mathrm{cluster\_variance} = 1 - \sum_j \hat p_j^2, \qquad
        \mathrm{entropy} = \tfrac1N \sum_t H_t

    with :math:`\hat p` the share of right answers, :math:`\hat p_j` that of meaning j, and :math:`H_t` the
    entropy of the distribution that token t was drawn from. The first needs labels, the others do not;
    ``random`` is the control.

    Args:
        recipe: whose model, task, sampling and seed to use. Its ``task.only`` is not looked at.
        prompts: how many of the training prompts, from the first.
        samples: completions of each, 2 or more.
        by: what ranks them.
        out: the JSON Lines file to write: a row a prompt, with its columns and ``selection``, the scores.
            Scores are kept beside it, in ``OUT.scores``: interrupted, the same call goes on, and another
            ``by`` samples nothing anew.
        same: the equivalence of answers, see :func:`klent.tasks.clusters.load_equivalence`.
        progress: told of (prompts done, prompts asked for).

    Returns:
        The rows, best first.

    Raises:
        ConfigError: ``by`` is unknown, or needs a reward that the recipe does not have.
        RunError: the scores that are there come from another recipe.

    Reference:
        Gao et al., One-shot Entropy Minimization, 2025, arXiv:2505.20282: the variance of pass@k.
    """
    if by not in BY:
        raise ConfigError(f"--by {by} is none of {', '.join(BY)}")
    if samples < 2:
        raise ConfigError("--samples: one completion has no variance; ask for 2 or more")
    rewards = eval_rewards(recipe)
    if by == "pass_variance" and rewards is None:
        raise ConfigError("--by pass_variance needs to know right from wrong: set reward or eval.reward")
    section = recipe.task.model_copy(update={"only": None})
    task = load_task(section, seed=recipe.seed, heldout=recipe.eval.problems if recipe.eval else 0)
    chosen = _first(task, prompts)
    scores = out.with_name(out.name + ".scores")
    known = _known(scores, _header(recipe, samples, same))
    left = [chunk for chunk in _chunks(chosen) if any(prompt.id not in known for prompt in chunk)]
    progress(len(known), len(chosen))
    if left:
        relation = load_equivalence(same)
        loaded = load_policy(recipe.model, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        engine = build_sampler(loaded, recipe.rollout)
        with Scorer(rewards or (), task) as scorer:
            scorer.check()
            for chunk in left:
                seed = derive_seed(recipe.seed, "select", chunk[0].id)
                rollouts = engine.generate(chunk, group_size=samples, seed=seed)
                outcomes = _outcomes(scorer, rollouts) if rewards else None
                for place, prompt in enumerate(chunk):
                    own = slice(place * samples, (place + 1) * samples)
                    found = _measure(rollouts[own], outcomes[own] if outcomes else None, relation)
                    if prompt.id not in known:
                        append_line(scores, {"id": prompt.id, **found})
                        known[prompt.id] = found
                progress(len(known), len(chosen))
    return _write(out, chosen, known, by, recipe.seed)


def _first(task: Task, count: int) -> list[Prompt]:
    """The first distinct training prompts."""
    found: dict[str, Prompt] = {}
    for position in range(count):
        prompt = task.train(position)
        if prompt.id in found:  # a data task has begun its second epoch
            break
        found[prompt.id] = prompt
    return list(found.values())


def _chunks(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    for start in range(0, len(prompts), AT_ONCE):
        yield list(prompts[start : start + AT_ONCE])


def _outcomes(scorer: Scorer, rollouts: Sequence[Rollout]) -> list[float]:
    scores = scorer.score(
        [r.prompt for r in rollouts], [r.text for r in rollouts], [r.finish for r in rollouts]
    )
    return [float(value >= 1.0 - 1e-6) for value in scores.reward]


def _measure(
    rollouts: Sequence[Rollout], outcomes: Sequence[float] | None, relation: Equivalence
) -> dict[str, Any]:
    """The scores of one prompt."""
    texts = [rollout.text for rollout in rollouts]
    labels = find_clusters(texts, relation, question(rollouts[0].prompt.prompt))
    alone = labels.count(NO_ANSWER)  # each is a cluster by itself
    sizes = [*Counter(label for label in labels if label != NO_ANSWER).values(), *[1] * alone]
    entropies = torch.cat([rollout.entropy_gen for rollout in rollouts])
    found: dict[str, Any] = {
        "samples": len(texts),
        "cluster_variance": 1 - sum((size / len(texts)) ** 2 for size in sizes),
        "clusters": len(sizes),
        "no_answer": alone / len(texts),
        "entropy": float(entropies.mean()),
        "length": len(entropies) / len(texts),
    }
    if outcomes is not None:
        share = sum(outcomes) / len(outcomes)
        found |= {"accuracy": share, "pass_variance": share * (1 - share)}
    return found


def _header(recipe: Recipe, samples: int, same: str) -> dict[str, Any]:
    """All that scores depend on."""
    values = recipe.model_dump(mode="json", include={"model", "dtype", "task", "rollout", "seed"})
    values["task"].pop("only", None)
    rewards = [reward.located(Path()) for reward in eval_rewards(recipe) or ()]
    values["reward"] = [[reward.fn, reward.weight] for reward in rewards]
    return values | {"samples": samples, "same": same}


def _known(path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = list(read_jsonl(path))
    if not rows:
        write_atomic(path, json.dumps(header) + "\n")
        return {}
    if rows[0] != header:
        differ = [key for key in header if rows[0].get(key) != header[key]]
        raise RunError(
            f"{path} holds scores of another setting ({', '.join(differ)} differ); remove it, or choose "
            "another --out"
        )
    return {row.pop("id"): row for row in rows[1:]}


def _write(
    out: Path, prompts: Sequence[Prompt], known: dict[str, dict[str, Any]], by: str, seed: int
) -> list[dict[str, Any]]:
    if by == "random":
        ranked = random.Random(f"{seed}/select").sample(list(prompts), len(prompts))
    else:
        ranked = sorted(prompts, key=lambda prompt: -known[prompt.id][by])  # stable: ties by position
    rows = [
        {"prompt": prompt.prompt, **prompt.columns, "selection": {"id": prompt.id, **known[prompt.id]}}
        for prompt in ranked
    ]
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows
