"""What an evaluation adds for a policy that learns from its own certainty: votes, temperatures, logits."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from klent.config import Eval
from klent.measure.evaluate import Correct, More, by_problem
from klent.measure.score import measure as measure_rewards
from klent.policies.causal_lm.probe import body_of, head_is_linear
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.agreement import question
from klent.tasks.clusters import (
    NO_ANSWER,
    Equivalence,
    find_clusters,
    label_answers,
    load_equivalence,
    read_answers,
)
from klent.tasks.returns import Judge

ROWS = 128  # positions whose logits are held at once

Answers = Sequence[str | None]
"""The answers of one problem's samples; None is no answer."""


def extra_measures(
    settings: Eval,
    model: Any,
    scorer: Judge,
    seed: int,
    *,
    sampler_at: Callable[[float], Engine],
    start: Answers | None = None,
) -> More:
    """What ``eval.same``, ``eval.temperatures`` and ``eval.logits`` ask for, as one function of the samples.

    Args:
        settings: the ``eval`` section of a recipe.
        model: the causal language model that answered.
        scorer: what tells right from wrong.
        seed: of the sampling at other temperatures.
        sampler_at: gives the engine that samples from ``model`` at a temperature; 0 is greedy.
        start: the ``vote`` of the evaluation before training; None = this is that evaluation.
    """
    relation = load_equivalence(settings.same) if settings.same else None

    def measure(rollouts: Sequence[Episode], correct: Correct | None) -> dict[str, object]:
        row: dict[str, object] = {}
        if relation:
            answers = answers_by_problem(rollouts, settings.samples, relation)
            row |= votes(rollouts, correct, relation, settings.samples) | {
                "kept": kept(answers, relation, start)
            }
            row |= {"vote": winners(answers, relation)} if start is None else {}
        prompts = [rollout.prompt for rollout in rollouts[:: settings.samples]]
        for temperature in settings.temperatures:
            samples = settings.samples if temperature else 1
            row |= scores_at(
                temperature, sampler_at(temperature), scorer, prompts, samples=samples, seed=seed
            )
        return row | (logit_skewness(model, rollouts) if settings.logits else {})

    return measure


def scores_at(
    temperature: float, engine: Engine, scorer: Judge, prompts: Sequence[Prompt], *, samples: int, seed: int
) -> dict[str, object]:
    """Mean reward and accuracy at another temperature, with their intervals: ``reward@0``, ``low@0``, ..."""
    rollouts = engine.generate(prompts, group_size=samples, seed=seed)
    measured = measure_rewards(by_problem(scorer.score_episodes(rollouts).reward, samples))
    return {f"{key}@{temperature:g}": value for key, value in measured.items() if "@" not in key}


def votes(
    rollouts: Sequence[Episode], correct: Correct | None, relation: Equivalence, samples: int
) -> dict[str, float]:
    """How often the most frequent answer is right, and how frequent it is.

    Args:
        rollouts: problem by problem.
        correct: for each problem, whether each of its samples is correct; None where rewards are graded.
        relation: which answers are the same.
        samples: of each problem.

    Returns:
        ``agreement``, the mean share of the most frequent answer; and, where right is told from wrong,
        ``majority``, accuracy of a vote among a problem's samples: where several answers tie, the share of
        them that is right.
    """
    problems = len(rollouts) // samples
    right = share = 0.0
    for index in range(problems):
        problem = rollouts[index * samples : (index + 1) * samples]
        labels = find_clusters([r.text for r in problem], relation, question(problem[0].prompt.prompt))
        size = Counter(label for label in labels if label != NO_ANSWER)
        most = max(size.values(), default=0)
        share += most / samples
        if correct is not None:
            pairs = zip(labels, correct[index], strict=True)
            leading = [outcome for label, outcome in pairs if most and size[label] == most]
            right += sum(leading) / len(leading) if leading else 0.0
    majority = {} if correct is None else {"majority": right / problems}
    return {**majority, "agreement": share / problems}


def answers_by_problem(
    rollouts: Sequence[Episode], samples: int, relation: Equivalence
) -> list[list[str | None]]:
    """The answers to each problem, ``samples`` of them; None is no answer."""
    groups = [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]
    return [read_answers([r.text for r in g], relation, question(g[0].prompt.prompt)) for g in groups]


def winners(answers: Sequence[Answers], relation: Equivalence) -> list[str | None]:
    """The most frequent answer to each problem, the first one on a tie; None if there is no answer."""
    labels = [_winner(label_answers(problem, relation)) for problem in answers]
    return [
        None if label == NO_ANSWER else problem[label] for problem, label in zip(answers, labels, strict=True)
    ]


def kept(answers: Sequence[Answers], relation: Equivalence, start: Answers | None) -> float:
    """Share of answers equal to the answer that won the vote before training. No label is read.

    It rises as a policy becomes more certain of its initial answers, and falls once it moves away from them.

    Args:
        answers: for each problem, of each sample.
        relation: which answers are the same.
        start: the :func:`winners` before training; a problem without a winner is left out. None = these
            samples are from before training: each is compared with the vote of the others, because a vote
            that counts it would be biased towards it.

    Returns:
        In [0, 1]; 0 if no problem had a winner.

    Example:
        >>> kept([["4", "4", "5"]], Equivalence(str), None), kept([["4", "4", "5"]], Equivalence(str), ["5"])
        (0.6666666666666666, 0.3333333333333333)
    """
    hits = pairs = 0
    for index, problem in enumerate(answers):
        labels = label_answers(problem, relation)
        if start is None:
            rivals = [_winner([*labels[:i], *labels[i + 1 :]]) for i in range(len(problem))]
        else:
            rivals = [_label_of(start[index], problem, labels, relation)] * len(problem)
        hits += sum(label == rival != NO_ANSWER for label, rival in zip(labels, rivals, strict=True))
        pairs += sum(rival != NO_ANSWER for rival in rivals)
    return hits / pairs if pairs else 0.0


def _winner(labels: Sequence[int]) -> int:
    """The label of the largest cluster, the first one on a tie."""
    size = Counter(label for label in labels if label != NO_ANSWER)
    return size.most_common(1)[0][0] if size else NO_ANSWER


def _label_of(answer: str | None, problem: Answers, labels: Sequence[int], relation: Equivalence) -> int:
    """The cluster of a problem's answers that another answer belongs to; a new label if it fits none."""
    if answer is None:
        return NO_ANSWER
    for label in dict.fromkeys(labels):
        if label != NO_ANSWER and label_answers([problem[label], answer], relation) == [0, 0]:
            return label
    return len(problem)


@torch.no_grad()
def logit_skewness(model: Any, rollouts: Sequence[Episode]) -> dict[str, float]:
    r"""Skewness of the raw logits (temperature 1) with which completions were sampled.

    .. math::
        \mathrm{skew}(z) = E[(z - \bar z)^3] \,/\, E[(z - \bar z)^2]^{3/2}

    Args:
        model: a causal language model.
        rollouts: completions.

    Returns:
        ``skewness``, of the logits of all positions pooled, as in the One-shot EM paper, and
        ``skewness/position``, the mean over positions of each position's skewness. Sums are kept, not logits:
        the logits of at most 128 positions are held at once.
    """
    powers = torch.zeros(4, dtype=torch.float64)
    total, positions = 0.0, 0
    for logits in _logit_tiles(model, rollouts):
        z = logits.double()
        powers += torch.stack([(z**k).sum() for k in range(4)]).cpu()
        centred = z - z.mean(dim=-1, keepdim=True)
        deviation = centred.square().mean(dim=-1).sqrt()
        total += float(((centred**3).mean(dim=-1) / deviation**3).sum())
        positions += len(z)
    first, second, third = (powers[1:] / powers[0]).tolist()
    variance = second - first**2
    pooled = (third - 3 * first * second + 2 * first**3) / variance**1.5
    return {"skewness": pooled, "skewness/position": total / positions}


def _logit_tiles(model: Any, rollouts: Sequence[Episode]) -> Iterator[Tensor]:
    """The logits that predict each completion's tokens, ``[at most ROWS, V]`` at a time."""
    linear = head_is_linear(model)
    head = model.get_output_embeddings()
    was_training = model.training
    model.eval()
    try:
        for rollout in rollouts:
            ids = torch.cat([torch.tensor(rollout.prompt_ids), rollout.tokens])[None, :-1].to(model.device)
            start = len(rollout.prompt_ids) - 1
            if not linear:
                yield from model(input_ids=ids, use_cache=False).logits[0, start:].split(ROWS)
                continue
            hidden = body_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, start:]
            for tile in hidden.split(ROWS):
                yield head(tile)
    finally:
        model.train(was_training)
