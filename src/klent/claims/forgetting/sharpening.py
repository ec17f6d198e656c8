"""Whether reinforcement learning does no more than sharpen what a model answers already."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import BEYOND_BASE, ENTROPY_ESSAY
from klent.claims.worlds import shared
from klent.claims.worlds.shared import ACTIONS, CONTEXTS, GROUP, World, groups, policy, sample, taken

_TRAINED = torch.arange(CONTEXTS) < 24  # the other contexts are held out
_K = (1, 256)
_LR, _STEPS = 20.0, 600
_POWERS = [1.25**i for i in range(21)]  # of the model before, up to 87


def measure() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, world in (
        ("shared weights", shared.worlds(SEEDS)),
        ("separate weights (control)", shared.separate(SEEDS)),
    ):
        before, after = policy(world, world.start), policy(world, _train(world))
        sharpened = max(
            (_pass(world, (power * before).log_softmax(-1), _TRAINED, 1).mean().item(), power)
            for power in _POWERS
        )[1]
        for label, contexts in (("trained on", _TRAINED), ("held out", ~_TRAINED)):
            if label == "held out" and "separate" in name:
                continue  # nothing that is trained reaches them
            for k in _K:
                was, now = (_pass(world, logp, contexts, k) for logp in (before, after))
                figures[f"pass@{k} before, {label}, {name}"] = over_seeds(was.tolist())
                figures[f"pass@{k} gained, {label}, {name}"] = over_seeds((now - was).tolist())
        tempered = _pass(world, (sharpened * before).log_softmax(-1), _TRAINED, 1)
        figures[f"pass@1 of the model before at its best temperature, trained on, {name}"] = over_seeds(
            tempered.tolist()
        )
        figures[f"pass@1 after, trained on, {name}"] = over_seeds(_pass(world, after, _TRAINED, 1).tolist())
    return figures


def _right(world: World) -> Tensor:
    """The best action of each context, ``[R, C, A]``: the only one that is rewarded."""
    return torch.nn.functional.one_hot(world.reward.argmax(-1), ACTIONS).to(world.start.dtype)


def _pass(world: World, logp: Tensor, contexts: Tensor, k: int) -> Tensor:
    """Chance that one of k answers is right, exactly; mean over contexts, ``[R]``."""
    p = (logp.exp() * _right(world)).sum(-1)[:, contexts]
    return (1 - (1 - p) ** k).mean(-1)


def _train(world: World) -> Tensor:
    """REINFORCE with the others of a group as the baseline; the weights after."""
    generator = torch.Generator().manual_seed(0)
    weights, right = world.start, _right(world)
    for _ in range(_STEPS):
        leaf = weights.clone().requires_grad_()
        logp = policy(world, leaf)
        batch = sample(logp.detach(), generator)
        reward = taken(right, batch)
        advantage = O.leave_one_out(reward.flatten(), groups(len(weights))).view_as(reward)
        gain = taken(logp, batch) * advantage * _TRAINED[batch.context]
        (slope,) = torch.autograd.grad(gain.sum() / (int(_TRAINED.sum()) * GROUP), leaf)
        weights = weights + _LR * slope
    return weights


def judge(f: Figures) -> Judgement:
    many = _K[-1]
    held = f[f"pass@{many} gained, held out, shared weights"]
    one = f["pass@1 gained, held out, shared weights"]
    alone = f[f"pass@{many} gained, trained on, separate weights (control)"]
    tempered, after = (
        f[f"pass@1 {label}, trained on, shared weights"]
        for label in ("of the model before at its best temperature", "after")
    )
    falls = held.high is not None and held.high < 0
    rises = alone.low is not None and alone.low > 0
    if falls and not rises:
        return "holds", f"pass@{many} gains {held} on held-out contexts and {alone} with separate weights"
    if falls:
        return "holds when", (
            f"contexts share their weights, and then it costs: pass@1 gains {one} on held-out contexts "
            f"and pass@{many} "
            f"{held}. Where each context has its own, pass@{many} gains {alone}: rare right answers are "
            f"found and kept. "
            f"Nor is it a sharper copy of the model before: that has {tempered} at its best temperature, "
            f"where training "
            f"reaches {after}"
        )
    return "refuted", f"pass@{many} gains {held} on held-out contexts, {alone} with separate weights"


CLAIM = Claim(
    id="rl-only-sharpens",
    subject="forgetting",
    statement="Reinforcement learning only sharpens the model's distribution: it raises pass@1, and not "
    "what the model "
    "solves in many tries.",
    source=f"{BEYOND_BASE}; {ENTROPY_ESSAY.at('notes')}",
    experiment="32 contexts with 20 actions, one of them right, 24 of the contexts trained on in groups "
    "of 8 for 600 "
    "steps; pass@k exactly, weights shared between contexts or not",
    control="the model before at its best temperature; separate weights, where nothing is traded",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "price.md#forgetting",
        "agree in part",
        "every arm but one raises pass@1, and at pass@8 none can be told from the untrained model: neither the gain "
        "nor the loss that the small world finds at 256 tries. Imitating gold answers does no better there than "
        "reinforcement",
    ),
)
