"""Training prompts ranked by how much they can teach, with labels or without: ``klent select``."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from klent.config import Recipe
from klent.errors import ConfigError, RunError
from klent.io.files import append_line, read_jsonl, write_atomic
from klent.kit.seeds import derive_seed
from klent.measure.score import outcomes as outcomes_of
from klent.runs.engines import build_sampler
from klent.runs.evaluate import eval_rewards, load_on_device
from klent.runs.judges import open_judges
from klent.streams.episode import Episode
from klent.tasks import Prompt, Scorer, Task, load_task
from klent.tasks.agreement import question
from klent.tasks.clusters import NO_ANSWER, Equivalence, find_clusters, load_equivalence

By = Literal["pass_variance", "cluster_variance", "entropy", "random"]
BY: tuple[str, ...] = get_args(By)
AT_ONCE = 8  # prompts sampled together; fixed, because what is sampled depends on it

Row = dict[str, Any]
Scores = dict[str, float]
"""The scores of one prompt: score -> value."""


def rank_prompts(
    recipe: Recipe,
    *,
    prompts: int,
    samples: int,
    by: str,
    out: Path,
    same: str = "text",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Row]:
    r"""Sample completions of training prompts, score the prompts, and write them best first.

    .. math::
        \mathrm{pass\_variance} = \hat p\,(1 - \hat p), \qquad
        \mathrm{cluster\_variance} = 1 - \sum_j \hat p_j^2, \qquad
        \mathrm{entropy} = \tfrac1N \sum_t H_t

    with :math:`\hat p` the share of right answers, :math:`\hat p_j` that of meaning j, and :math:`H_t` the
    entropy of the distribution that token t was drawn from. The first needs labels, the others do not;
    ``random`` is the control.

    Args:
        recipe: whose model, task, sampling and seed to use. Its ``task.only`` is ignored.
        prompts: how many training prompts, counted from the first.
        samples: completions of each, 2 or more.
        by: what ranks them.
        out: the JSON Lines file to write: one row per prompt, with its columns and ``selection``, the scores.
            Scores are also kept in ``OUT.scores``: an interrupted call continues from there, and another
            ``by`` needs no new samples.
        same: the equivalence of answers, see :func:`klent.tasks.clusters.load_equivalence`.
        progress: called with (prompts done, prompts asked for).

    Returns:
        The rows, best first.

    Raises:
        ConfigError: ``by`` is unknown, or needs a reward that the recipe does not have.
        RunError: the existing scores come from another recipe.

    Reference:
        Gao et al., One-shot Entropy Minimization, 2025, arXiv:2505.20282: the variance of pass@k.
    """
    if by not in BY:
        raise ConfigError(f"--by {by} is none of {', '.join(BY)}")
    if samples < 2:
        raise ConfigError("--samples: one completion has no variance; ask for 2 or more")
    if recipe.task.pays:
        raise ConfigError(
            "klent select ranks prompts of one turn, and task.env has several turns; use task.data"
        )
    rewards = eval_rewards(recipe)
    if by == "pass_variance" and rewards is None:
        raise ConfigError(
            "--by pass_variance needs a reward that gives 1 to right answers and 0 to wrong ones; set reward or "
            "eval.reward"
        )
    section = recipe.task.model_copy(update={"only": None})
    task = load_task(section, seed=recipe.seed, heldout=recipe.eval.problems if recipe.eval else 0)
    chosen = _first(task, prompts)
    path = out.with_name(out.name + ".scores")
    scores = _read_scores(path, _header(recipe, samples, same))
    chunks = [chunk for chunk in _chunks(chosen) if any(prompt.id not in scores for prompt in chunk)]
    progress(len(scores), len(chosen))
    if chunks:
        relation = load_equivalence(same)
        engine = build_sampler(load_on_device(recipe.model, recipe), recipe.text_rollout)
        with Scorer(rewards or (), task, judge=open_judges(recipe)) as scorer:
            scorer.check()
            for chunk in chunks:
                seed = derive_seed(recipe.seed, "select", chunk[0].id)
                rollouts = engine.generate(chunk, group_size=samples, seed=seed)
                outcomes = _outcomes(scorer.score_episodes(rollouts).reward, by) if rewards else None
                for index, prompt in enumerate(chunk):
                    if prompt.id in scores:
                        continue
                    group = slice(index * samples, (index + 1) * samples)
                    measured = _measure(rollouts[group], outcomes[group] if outcomes else None, relation)
                    append_line(path, {"id": prompt.id, **measured})
                    scores[prompt.id] = measured
                progress(len(scores), len(chosen))
    return _write(out, chosen, scores, by, recipe.seed)


def _outcomes(rewards: Sequence[float], by: str) -> list[bool] | None:
    """Whether each completion is right; None where rewards are graded, or scored nothing.

    Raises:
        ConfigError: and that is what ranks them.
    """
    found = outcomes_of([rewards])
    if found is None and by == "pass_variance":
        raise ConfigError(
            "--by pass_variance needs rewards of 1 and 0, and these are graded, or scored nothing; set eval.reward "
            "to one that gives 1 and 0, or rank --by cluster_variance"
        )
    return found[0] if found else None


def _first(task: Task, count: int) -> list[Prompt]:
    """The first distinct training prompts."""
    prompts: dict[str, Prompt] = {}
    for position in range(count):
        prompt = task.train(position)
        if prompt.id in prompts:  # a data task has started its second epoch
            break
        prompts[prompt.id] = prompt
    return list(prompts.values())


def _chunks(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    for start in range(0, len(prompts), AT_ONCE):
        yield list(prompts[start : start + AT_ONCE])


def _measure(rollouts: Sequence[Episode], outcomes: Sequence[bool] | None, relation: Equivalence) -> Scores:
    """The scores of one prompt."""
    texts = [rollout.text for rollout in rollouts]
    labels = find_clusters(texts, relation, question(rollouts[0].prompt.prompt))
    no_answer = labels.count(NO_ANSWER)  # each is a cluster of its own
    sizes = [*Counter(label for label in labels if label != NO_ANSWER).values(), *[1] * no_answer]
    entropies = torch.cat([rollout.action_entropy for rollout in rollouts])
    scores: Scores = {
        "samples": len(texts),
        "cluster_variance": 1 - sum((size / len(texts)) ** 2 for size in sizes),
        "clusters": len(sizes),
        "no_answer": no_answer / len(texts),
        "entropy": float(entropies.mean()),
        "length": len(entropies) / len(texts),
    }
    if outcomes is not None:
        share = sum(outcomes) / len(outcomes)
        scores |= {"accuracy": share, "pass_variance": share * (1 - share)}
    return scores


def _header(recipe: Recipe, samples: int, same: str) -> Row:
    """Everything that scores depend on."""
    values = recipe.model_dump(mode="json", include={"model", "precision", "task", "rollout", "seed"})
    values["task"].pop("only", None)
    rewards = [reward.located(Path()) for reward in eval_rewards(recipe) or ()]
    values["reward"] = [[reward.fn, reward.weight] for reward in rewards]
    return values | {"samples": samples, "same": same}


def _read_scores(path: Path, header: Row) -> dict[str, Scores]:
    """Prompt id -> its scores from an earlier call; starts the file if there is none."""
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


def _write(out: Path, prompts: Sequence[Prompt], scores: dict[str, Scores], by: str, seed: int) -> list[Row]:
    if by == "random":
        ranked = random.Random(f"{seed}/select").sample(list(prompts), len(prompts))
    else:
        ranked = sorted(prompts, key=lambda prompt: -scores[prompt.id][by])  # stable: ties by position
    rows = [
        {"prompt": prompt.prompt, **prompt.columns, "selection": {"id": prompt.id, **scores[prompt.id]}}
        for prompt in ranked
    ]
    write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows
