"""What an evaluation adds where a policy learns from its own certainty: votes, temperatures, logits."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from klent.config import Recipe, TransformersRollout
from klent.models.load import LoadedModel
from klent.policies.causal_lm.probe import body_of, head_is_linear
from klent.streams.episode import Episode
from klent.tasks import Prompt, Scorer
from klent.tasks.agreement import question
from klent.tasks.clusters import (
    NO_ANSWER,
    Equivalence,
    find_clusters,
    label_answers,
    load_equivalence,
    read_answers,
)

ROWS = 128  # positions whose logits are held at once

Correct = Sequence[Sequence[bool]]
More = Callable[[Sequence[Episode], Correct], dict[str, Any]]


def extra_measures(
    recipe: Recipe,
    loaded: LoadedModel,
    scorer: Scorer,
    seed: int,
    *,
    start: Sequence[str | None] | None = None,
) -> More:
    """What ``eval.same``, ``eval.temperatures`` and ``eval.logits`` ask for, as one function of the samples.

    Args:
        recipe: has an ``eval`` section.
        loaded: the model that answered.
        scorer: what tells right from wrong.
        seed: of the sampling at other temperatures.
        start: the ``vote`` of the evaluation before training; None = this is that evaluation.
    """
    settings = recipe.eval
    assert settings is not None
    relation = load_equivalence(settings.same) if settings.same else None

    def measure(rollouts: Sequence[Episode], correct: Correct) -> dict[str, Any]:
        found: dict[str, Any] = votes(rollouts, correct, relation) if relation else {}
        if relation:
            answers = by_problem(rollouts, settings.samples, relation)
            found["kept"] = kept(answers, relation, start)
            found |= {"vote": winners(answers, relation)} if start is None else {}
        prompts = [rollout.prompt for rollout in rollouts[:: settings.samples]]
        for temperature in settings.temperatures:
            share = accuracy_at(temperature, prompts, recipe, loaded, scorer, seed=seed)
            found[f"accuracy@{temperature:g}"] = share
        return found | (logit_skewness(loaded.model, rollouts) if settings.logits else {})

    return measure


def accuracy_at(
    temperature: float,
    prompts: Sequence[Prompt],
    recipe: Recipe,
    loaded: LoadedModel,
    scorer: Scorer,
    *,
    seed: int,
) -> float:
    """Accuracy when sampling at another temperature; one completion a problem where it is 0, greedy."""
    assert recipe.eval is not None
    samples = recipe.eval.samples if temperature else 1
    rollout = recipe.rollout
    if not isinstance(rollout, TransformersRollout):
        rollout = TransformersRollout(max_tokens=rollout.max_tokens)
    from klent.runs.build import build_sampler

    engine = build_sampler(loaded, rollout.model_copy(update={"temperature": temperature}))
    rollouts = engine.generate(prompts, group_size=samples, seed=seed)
    scores = scorer.score(
        [r.prompt for r in rollouts], [r.text for r in rollouts], [r.finish for r in rollouts]
    )
    return sum(value >= 1.0 - 1e-6 for value in scores.reward) / len(rollouts)


def votes(rollouts: Sequence[Episode], correct: Correct, relation: Equivalence) -> dict[str, float]:
    """How often the most frequent answer is right, and how frequent it is.

    Args:
        rollouts: problem by problem.
        correct: for each problem, whether each of its samples is correct.
        relation: which answers are the same.

    Returns:
        ``majority``, accuracy of a vote among a problem's samples; of several answers that are equally
        frequent each counts by its share. ``agreement``, the mean share of the most frequent answer.
    """
    samples = len(correct[0])
    right = share = 0.0
    for place, outcomes in enumerate(correct):
        own = rollouts[place * samples : (place + 1) * samples]
        found = find_clusters([r.text for r in own], relation, question(own[0].prompt.prompt))
        size = Counter(label for label in found if label != NO_ANSWER)
        most = max(size.values(), default=0)
        ahead = [c for label, c in zip(found, outcomes, strict=True) if most and size[label] == most]
        right += sum(ahead) / len(ahead) if ahead else 0.0
        share += most / samples
    return {"majority": right / len(correct), "agreement": share / len(correct)}


def by_problem(rollouts: Sequence[Episode], samples: int, relation: Equivalence) -> list[list[str | None]]:
    """The answers to each problem, ``samples`` of them; None is no answer."""
    groups = [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]
    return [read_answers([r.text for r in g], relation, question(g[0].prompt.prompt)) for g in groups]


def winners(answers: Sequence[Sequence[str | None]], relation: Equivalence) -> list[str | None]:
    """The answer to each problem that most samples gave, of several the first; None without any answer."""
    won = [(own, _winner(label_answers(own, relation))) for own in answers]
    return [None if label == NO_ANSWER else own[label] for own, label in won]


def kept(
    answers: Sequence[Sequence[str | None]], relation: Equivalence, start: Sequence[str | None] | None
) -> float:
    """Share of answers that are the answer which won the vote before training. No label is looked at.

    It rises as a policy grows sure of what it thought anyway, and falls once it leaves that.

    Args:
        answers: for each problem, of each sample.
        relation: which answers are the same.
        start: the :func:`winners` before training; a problem that had none is left out. None = the samples
            are those before training: each is held against the vote of the others, because a vote in which
            it takes part is nearer to it than one in which it does not.

    Returns:
        In [0, 1]; 0 where no problem had a winner.

    Example:
        >>> kept([["4", "4", "5"]], Equivalence(str), None), kept([["4", "4", "5"]], Equivalence(str), ["5"])
        (0.6666666666666666, 0.3333333333333333)
    """
    hits = pairs = 0
    for place, own in enumerate(answers):
        labels = label_answers(own, relation)
        if start is None:
            rivals = [_winner([*labels[:i], *labels[i + 1 :]]) for i in range(len(own))]
        else:
            rivals = [_label_of(start[place], own, labels, relation)] * len(own)
        hits += sum(label == rival != NO_ANSWER for label, rival in zip(labels, rivals, strict=True))
        pairs += sum(rival != NO_ANSWER for rival in rivals)
    return hits / pairs if pairs else 0.0


def _winner(labels: Sequence[int]) -> int:
    """The label of the largest cluster, of several the first."""
    size = Counter(label for label in labels if label != NO_ANSWER)
    return size.most_common(1)[0][0] if size else NO_ANSWER


def _label_of(
    answer: str | None, own: Sequence[str | None], labels: Sequence[int], relation: Equivalence
) -> int:
    """The cluster among these answers that another answer belongs to; a label of its own where none does."""
    if answer is None:
        return NO_ANSWER
    for label in dict.fromkeys(labels):
        if label != NO_ANSWER and label_answers([own[label], answer], relation) == [0, 0]:
            return label
    return len(own)


@torch.no_grad()
def logit_skewness(model: Any, rollouts: Sequence[Episode]) -> dict[str, float]:
    r"""Skewness of the raw logits (temperature 1) with which completions were sampled.

    .. math::
        \mathrm{skew}(z) = E[(z - \bar z)^3] \,/\, E[(z - \bar z)^2]^{3/2}

    Args:
        model: a causal language model.
        rollouts: completions.

    Returns:
        ``skewness``, of all logits of all positions taken together, as the One-shot EM paper has it, and
        ``skewness/position``, of each position's logits, mean. Sums are kept, not logits: never more than 128
        positions of these are held.
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
