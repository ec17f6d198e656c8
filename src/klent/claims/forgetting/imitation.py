"""Whether supervised fine-tuning forgets more than reinforcement learning, and whether a KL tells it."""

from functools import cache
from itertools import combinations

import torch

from klent.claims.claim import Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import ENTROPY_ESSAY, RAZOR, RETAINING
from klent.claims.worlds.two_tasks import SCORE, Kept, learn, ways, worlds

_SCORES = (0.4, 0.55, 0.7, SCORE)
_RL = "policy gradient"
_ANEW = "imitation of its right answers, drawn anew"
_MEASURES = {
    "forward": "KL(before ‖ after) on the new task",
    "reverse": "KL(after ‖ before) on the new task",
    "distance": "distance of the weights",
}


@cache
def _learnt() -> dict[str, list[Kept]]:
    """Each way to learn at each score."""
    world = worlds()
    return {
        way: [learn(world, objective, score) for score in _SCORES] for way, objective in ways(world).items()
    }


def measure_forgetting() -> dict[str, Figure]:
    learnt = {way: kept[-1] for way, kept in _learnt().items()}
    figures = {
        f"old reward lost, {_label(way)}": over_seeds(kept.lost.tolist()) for way, kept in learnt.items()
    }
    for way, kept in learnt.items():
        if way != _RL:
            more = kept.lost - learnt[_RL].lost
            figures[f"lost more than {_RL}, {_label(way)}"] = over_seeds(more.tolist())
    return figures


def _label(way: str) -> str:
    return f"{way} (control)" if way == _ANEW else way


def judge_forgetting(f: Figures) -> Judgement:
    rl, anew = f[f"old reward lost, {_RL}"], f[f"old reward lost, {_ANEW} (control)"]
    fixed = [name for name in f if name.startswith("old reward lost, imitation") and _ANEW not in name]
    more = [f[name.replace("old reward lost,", f"lost more than {_RL},")] for name in fixed]
    shown = ", ".join(f"{name.removeprefix('old reward lost, ')} {f[name]}" for name in fixed)
    if not all(figure.low is not None and figure.low > 0 for figure in more):
        return "refuted", f"policy gradient lost {rl}; {shown}"
    control = f[f"lost more than {_RL}, {_ANEW} (control)"]
    if control.low is not None and control.low > 0:
        return "holds", f"policy gradient lost {rl}; {shown}"
    return "holds when", (
        f"the data are fixed: {shown}, and the policy gradient {rl} of the old task's reward, at a reward "
        f"of {SCORE} on "
        f"the new one. Maximum likelihood of right answers that the policy draws anew loses {anew}, no "
        f"more than the "
        "policy gradient: what spares the old task is where the answers come from, not the loss"
    )


def measure_prediction() -> dict[str, Figure]:
    learnt = _learnt()
    figures = {}
    for field, name in _MEASURES.items():
        along = [_same_order([(k, field) for k in kept]) for kept in learnt.values()]
        figures[f"share of pairs in order along one way to learn, {name}{_control(field)}"] = over_seeds(
            torch.stack(along).mean(0).tolist()
        )
    for field, name in _MEASURES.items():
        between = [_same_order([(kept[i], field) for kept in learnt.values()]) for i in range(len(_SCORES))]
        figures[f"share of pairs in order at one score, {name}{_control(field)}"] = over_seeds(
            torch.stack(between).mean(0).tolist()
        )
    first, rl = learnt["imitation of its first right answers"][-1], learnt[_RL][-1]
    for field in ("lost", "forward", "reverse"):
        label = "old reward lost" if field == "lost" else _MEASURES[field]
        more = getattr(first, field) - getattr(rl, field)
        figures[f"imitation of its first right answers less policy gradient, {label}"] = over_seeds(
            more.tolist()
        )
    return figures


def _control(field: str) -> str:
    return " (control)" if field == "distance" else ""


def _same_order(policies: list[tuple[Kept, str]]) -> torch.Tensor:
    """Of all pairs of policies, the share in which the larger measure has lost more of the old task, "
    "``[R]``."""
    agreed = [
        ((getattr(a, field) - getattr(b, field)) * (a.lost - b.lost) > 0).double()
        for (a, field), (b, _) in combinations(policies, 2)
    ]
    return torch.stack(agreed).mean(0)


def judge_prediction(f: Figures) -> Judgement:
    at_one, along = (
        "share of pairs in order at one score, ",
        "share of pairs in order along one way to learn, ",
    )
    kl, reverse, distance = (
        f[at_one + _MEASURES["forward"]],
        f[at_one + _MEASURES["reverse"]],
        f[f"{at_one}{_MEASURES['distance']} (control)"],
    )
    within = f[along + _MEASURES["forward"]]
    lost, less = (
        f[f"imitation of its first right answers less policy gradient, {label}"]
        for label in ("old reward lost", _MEASURES["forward"])
    )
    if kl.low is not None and kl.low > 0.9:
        return "holds", f"at one score the KL orders {kl} of the pairs as what was lost does"
    broken = lost.low is not None and lost.low > 0 and less.high is not None and less.high < 0
    if within.value > 0.9 and broken:
        return "holds when", (
            f"one way to learn is followed: along it the KL orders {within} of the pairs of policies as "
            f"what they lost "
            f"does. Between ways at one score it orders {kl} (the reverse KL {reverse}, the distance of "
            f"the weights "
            f"{distance}): imitating its own first right answers ends nearer in KL than the policy "
            f"gradient ({less} "
            f"nats) and has lost more of the old task ({lost})"
        )
    return (
        "refuted",
        f"at one score the KL orders {kl} of the pairs as what was lost does, along one way {within}",
    )


_EXPERIMENT = (
    "48 contexts of an old task and 8 of a new one with shared weights (32 features, 16 actions, 4 of "
    "them right on the "
    "new task; 5 worlds); exact gradient steps on the new task alone"
)

FORGETTING = Claim(
    id="sft-forgets-more",
    subject="forgetting",
    statement="Supervised fine-tuning forgets more of what a model could do than reinforcement learning "
    "on the same task.",
    source=f"{RETAINING}; {ENTROPY_ESSAY.at('notes')}",
    experiment=f"{_EXPERIMENT} until its reward is {SCORE}, by policy gradient and by maximum likelihood "
    f"of fixed answers",
    control="maximum likelihood of right answers that the policy draws anew at every step",
    measure=measure_forgetting,
    judge=judge_forgetting,
    real_runs=RealRuns(
        "price.md#forgetting",
        "agree",
        "at one score imitating gold answers costs more of the old texts than GRPO, with every weight and with "
        "adapters of rank 1; imitating the model's own right answers costs no more than GRPO that could be told",
    ),
)

PREDICTION = Claim(
    id="kl-predicts-forgetting",
    subject="forgetting",
    statement="How much is forgotten is told by the KL from the model before to the model after on the "
    "new task alone.",
    source=RAZOR,
    experiment=f"{_EXPERIMENT}, five ways to learn, stopped at a reward of {', '.join(map(str, _SCORES))}",
    control="the distance of the weights; the same within one way to learn",
    measure=measure_prediction,
    judge=judge_prediction,
    real_runs=RealRuns(
        "price.md#forgetting",
        "agree in part",
        "over all arms and rates together the KL on the new task ranks the runs as what they lost does, where way to "
        "learn and score differ; the distance of the weights, the better measure here, has an interval that overlaps",
    ),
)
