"""Whether PPO works because it clips trajectories whose reward swings."""

from functools import cache

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, RealRuns, over_seeds
from klent.claims.sources import ENTROPY_ESSAY
from klent.claims.worlds.shared import World, groups, policy, sample, taken, worlds
from klent.kit.grid import grid_optimum

_ARMS = ("PPO", "without the clip", "without the clip, the fifth of largest |advantage| left out")
_RATES = tuple(2.0**k for k in range(2, 12))
_STEPS, _EPOCHS = 30, 8
_TUNING = range(len(SEEDS), 2 * len(SEEDS))  # other worlds, on which each arm's rate is chosen


def measure() -> dict[str, Figure]:
    figures = {}
    for arm in _ARMS:
        chosen = grid_optimum(
            _RATES, [_reward(arm, rate, _TUNING).mean().item() for rate in _RATES], best="largest"
        )
        figures[f"reward at its best rate, {_label(arm)}"] = over_seeds(
            _reward(arm, _RATES[chosen], SEEDS).tolist()
        )
    for arm in _ARMS:
        good = [_reward(arm, rate, SEEDS) > 0.9 for rate in _RATES]
        figures[f"rates of {len(_RATES)} that reach 0.9, {_label(arm)}"] = over_seeds(
            torch.stack(good).double().sum(0).tolist()
        )
    figures["clipped at a rate of 8: share of the larger half of |advantage|, less that of the smaller"] = (
        over_seeds(_clipped_more(8.0).tolist())
    )
    return figures


def _label(arm: str) -> str:
    return f"{arm} (control)" if arm == _ARMS[1] else arm


@cache
def _reward(arm: str, rate: float, seeds: range) -> Tensor:
    """Expected reward after training, ``[R]``."""
    world = worlds(seeds)
    logp = policy(world, _train(world, arm, rate)[0])
    return (logp.exp() * world.reward).sum(-1).mean(-1)


def _clipped_more(rate: float) -> Tensor:
    """Mean over steps, ``[R]``."""
    return torch.stack(_train(worlds(SEEDS), _ARMS[0], rate)[1]).mean(0)


def _train(world: World, arm: str, rate: float) -> tuple[Tensor, list[Tensor]]:
    """Weights after training, and step by step how much more the larger half of |advantage| was clipped, "
    "``[R]``."""
    generator = torch.Generator().manual_seed(0)
    weights, more, runs = world.start, [], len(world.start)
    low, high = (0.2, 0.2) if arm == _ARMS[0] else (0.99, 1e6)
    for _ in range(_STEPS):
        before = policy(world, weights)
        batch = sample(before, generator)
        chance = taken(world.reward, batch)
        reward = (torch.rand(chance.shape, generator=generator, dtype=chance.dtype) < chance).double()
        advantage = O.group_advantage(reward.flatten(), groups(runs), scale="none").view_as(reward)
        if arm == _ARMS[2]:
            advantage = torch.where(
                advantage.abs() > advantage.abs().quantile(0.8, dim=1, keepdim=True), 0.0, advantage
            )
        old, mask = taken(before, batch), torch.ones_like(reward, dtype=torch.bool)
        for _ in range(_EPOCHS):
            leaf = weights.clone().requires_grad_()
            loss = O.ppo_clip(
                taken(policy(world, leaf), batch), old, advantage, mask, clip_low=low, clip_high=high
            ).loss
            (slope,) = torch.autograd.grad(loss.mean(-1).sum(), leaf)
            weights = weights - rate * slope
        ratio = (taken(policy(world, weights), batch) - old).exp()
        cut = ((ratio > 1.2) & (advantage > 0)) | ((ratio < 0.8) & (advantage < 0))
        order = advantage.abs().argsort(dim=1)  # ties fall on either side
        cut = cut.gather(1, order).double()
        half = cut.shape[1] // 2
        more.append(cut[:, half:].mean(1) - cut[:, :half].mean(1))
    return weights, more


def judge(f: Figures) -> Judgement:
    ppo, free, calm = (f[f"reward at its best rate, {_label(arm)}"] for arm in _ARMS)
    wide, narrow = (f[f"rates of {len(_RATES)} that reach 0.9, {_label(arm)}"] for arm in _ARMS[:2])
    more = f["clipped at a rate of 8: share of the larger half of |advantage|, less that of the smaller"]
    if calm.low is not None and free.high is not None and calm.low > free.high:
        return "holds", f"leaving out large advantages gives {calm}, without it {free}, PPO {ppo}"
    return "refuted", (
        f"leaving out the samples of largest |advantage| gives {calm} at its best rate, and {free} "
        f"without: they are what is "
        f"learnt from. PPO, {ppo}, clips the ratio of a sample's probabilities: {wide} of {len(_RATES)} "
        f"rates reach 0.9 "
        f"with it and {narrow} without. Samples of large |advantage| are clipped more often ({more} "
        f"more), since they "
        "move further"
    )


CLAIM = Claim(
    id="ppo-clips-swings",
    subject="forgetting",
    statement="PPO works better than what came before because it clips trajectories with large swings of "
    "the reward.",
    source=ENTROPY_ESSAY.at("notes"),
    experiment="32 contexts that share weights, rewards of 0 or 1 by chance, groups of 8, 30 steps of 8 "
    "epochs; each arm "
    "at its best of 10 rates, chosen on 5 other worlds",
    control="the same without the clip, at its own best rate",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "ppo.md#what-a-few-are-worth",
        "agree",
        "without the clip PPO ends with an accuracy that three seeds cannot tell from that with it",
    ),
)
