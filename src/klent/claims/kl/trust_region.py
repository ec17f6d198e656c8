"""The trust region of DPPO: by the sampled token, or by the whole distribution."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number, over_seeds
from klent.claims.sources import DPPO
from klent.claims.worlds import shared
from klent.kit.grid import grid_optimum

_SEEDS = range(8)
_DELAYS = (1, 2, 4, 8)  # updates between the policy that samples and the one that is trained
_THRESHOLDS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # of a total variation: 1 is no bound
_USUAL = 0.2
_SHOWN = (1, 8)  # delays that are shown at the usual threshold; the best one is shown at all
_STEPS, _LR = 100, 1.0  # large steps, which need a bound

Region = Literal["sampled token", "exact TV", "exact KL", "no region"]
_KEPT, _STILL = "past the threshold and not dropped", "dropped that hardly moved"
_REGIONS: tuple[Region, ...] = ("sampled token", "exact TV", "exact KL", "no region")


def dppo(
    logp: Tensor,
    logp_gen: Tensor,
    advantage: Tensor,
    *,
    distance: Tensor | None = None,
    threshold: float | Tensor = 0.2,
    ratio_max: float = 20.0,
) -> tuple[Tensor, Tensor]:
    """Loss per token, and which tokens are dropped: far off, by ``distance`` or |p - q|, and on their way."""
    p, q = logp.detach().exp(), logp_gen.exp()
    far = ((p - q).abs() if distance is None else distance) > threshold
    dropped = far & (advantage * (p - q) > 0)
    return torch.where(dropped, 0.0, -(p / q).clamp(max=ratio_max) * advantage * logp), dropped


class Run(NamedTuple):
    """The policy at the end, and shares of all tokens of all updates, ``[R]``."""

    missing: Tensor  # reward, to the best action everywhere
    entropy: Tensor
    dropped: Tensor
    kept_far: Tensor  # kept and on their way, where the distribution is past the threshold
    dropped_still: Tensor  # dropped, but their own probability moved by less than a quarter of it


def train(region: Region, delay: int, world: shared.World, threshold: Tensor) -> Run:
    """One policy for each run and threshold, ``[R]``, by Adam from rewards of 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    weights = world.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=_LR)
    past, seen = [shared.policy(world, world.start)], []
    group, bound = shared.groups(len(threshold)), threshold.unsqueeze(1)
    for _ in range(_STEPS):
        batch = shared.sample(past[0], generator)
        chance = shared.taken(world.reward, batch)
        reward = (torch.rand(chance.shape, generator=generator, dtype=chance.dtype) < chance).double()
        advantage = O.group_advantage(reward.flatten(), group).view_as(reward)
        every = shared.policy(world, weights)
        logp, logp_gen = (shared.taken(numbers, batch) for numbers in (every, batch.logp))
        tv = ((every.detach().exp() - batch.logp.exp()).abs().sum(-1) / 2)[:, batch.context[0]]
        distance, limit = _rule(region, every.detach(), batch, tv, bound)
        loss, dropped = dppo(logp, logp_gen, advantage, distance=distance, threshold=limit)
        move = logp.detach().exp() - logp_gen.exp()
        kept_far = ~dropped & (move * advantage > 0) & (tv > bound)
        shares = (dropped, kept_far, dropped & (move.abs() < bound / 4))
        seen.append(torch.stack([share.double().mean(1) for share in shares]))
        optimizer.zero_grad()
        (loss.sum() / logp.shape[1]).backward()
        optimizer.step()
        past = [*past, shared.policy(world, weights.detach())][-(delay + 1) :]
    end = shared.policy(world, weights.detach())
    missing = world.reward.amax(-1).mean(-1) - (end.exp() * world.reward).sum(-1).mean(-1)
    return Run(missing, shared.entropy(end), *torch.stack(seen).mean(0))


def _rule(
    region: Region, logp: Tensor, batch: shared.Batch, tv: Tensor, bound: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The distance and its threshold; a KL of twice the square bounds the total variation."""
    if region == "sampled token":
        return None, bound
    if region == "exact KL":
        return O.categorical_kl(batch.logp, logp)[:, batch.context[0]], 2 * bound**2
    return tv, bound if region == "exact TV" else torch.full_like(bound, float("inf"))


def measure() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for delay in _DELAYS:
        runs = {region: _runs(region, delay) for region in _REGIONS}
        if delay in _SHOWN:
            figures |= _at_usual(runs, delay)
        figures |= _at_best(runs, delay)
    return figures


def _runs(region: Region, delay: int) -> Run:
    """``[seeds, thresholds]``; without a region the threshold is only one to count by."""
    thresholds = _THRESHOLDS if region != "no region" else (_USUAL,)
    world = shared.worlds(_SEEDS).repeated(len(thresholds))
    threshold = torch.tensor(thresholds * len(_SEEDS), dtype=torch.float64)
    found = train(region, delay, world, threshold)
    return Run(*(part.view(len(_SEEDS), len(thresholds)) for part in found))


def _at_usual(runs: dict[Region, Run], delay: int) -> dict[str, Figure]:
    figures = {}
    for region, run in runs.items():
        i = _THRESHOLDS.index(_USUAL) if region != "no region" else 0
        figures[_name(delay, "reward missing", region)] = _over(run.missing[:, i])
        figures[_name(delay, "entropy", region)] = _over(run.entropy[:, i])
        figures[_name(delay, _KEPT, region)] = _over(run.kept_far[:, i])
        if region != "no region":
            figures[_name(delay, "dropped", region)] = _over(run.dropped[:, i])
            figures[_name(delay, _STILL, region)] = _over(run.dropped_still[:, i])
    return figures


def _at_best(runs: dict[Region, Run], delay: int) -> dict[str, Figure]:
    """Each region at the threshold that is best for it, on average over the seeds."""
    figures: dict[str, Figure] = {}
    best: dict[Region, Tensor] = {}
    for region, run in runs.items():
        if region != "no region":
            i = grid_optimum(_THRESHOLDS, run.missing.mean(0).tolist(), best="least", domain=(0, 1))
            figures[_name(delay, "best threshold", region)] = Figure(_THRESHOLDS[i])
            best[region] = run.missing[:, i]
    for region in ("exact TV", "exact KL"):
        figures[_less(delay, region)] = _over(best["sampled token"] - best[region])
    return figures


def _over(values: Tensor) -> Figure:
    return over_seeds(values.tolist(), _SEEDS)


def _name(delay: int, what: str, region: Region) -> str:
    control = " (control)" if region == "no region" else ""
    return f"{delay} late: {what}, {region}{control}"


def _less(delay: int, region: str) -> str:
    return f"{delay} late, best thresholds: reward more than sampled token, {region}"


def judge(f: Figures) -> Judgement:
    """Whether the sampled token sees what moves, and whether seeing all of it gains reward."""
    token: Region = "sampled token"
    gains = {(d, r): f[_less(d, r)] for d in _DELAYS for r in ("exact TV", "exact KL")}
    gained = [key for key, gain in gains.items() if gain.low is not None and gain.low > 0]
    seen = {
        d: f[_name(d, "dropped", token)].value
        / (f[_name(d, "dropped", token)].value + f[_name(d, _KEPT, token)].value)
        for d in _SHOWN
    }
    last = _DELAYS[-1]
    still = f[_name(last, _STILL, "exact TV")].value / f[_name(last, "dropped", "exact TV")].value
    missing = {r: f[_name(last, "reward missing", r)] for r in (token, "no region")}
    numbers = (
        f"of the tokens that leave a distribution past a total variation of {_USUAL:g} it drops "
        f"{' and '.join(map(number, seen.values()))}, sampled {' and '.join(map(str, seen))} updates late"
    )
    reward = (
        f"each at its own best threshold, exact TV gains {_listed(gains, 'exact TV')} of reward and exact KL "
        f"{_listed(gains, 'exact KL')} ({', '.join(map(str, _DELAYS))} updates late). Some region is needed: "
        f"without one {missing['no region']} of reward is missing at {last}, with the sampled token's "
        f"{missing[token]}. And the exact one is not free: {number(still)} of what it drops there had itself "
        "moved by less than a quarter of the threshold"
    )
    if gained:
        return "refuted", f"{numbers}; {reward}"
    if min(seen.values()) > 0.9:
        return "holds", f"{numbers}; {reward}"
    return "holds when", f"read as a statement about reward, not about divergence: {numbers}; but {reward}"


def _listed(gains: dict[tuple[int, str], Figure], region: str) -> str:
    return ", ".join(str(gains[delay, region]) for delay in _DELAYS)


CLAIM = Claim(
    id="exact-trust-region",
    subject="kl",
    statement="To keep a policy near its sampler it is enough to look at the sampled token: the binary |p - q| "
    "captures the essential divergence, and the exact one over the vocabulary is not needed.",
    source=f"{DPPO}, section 4",
    experiment="a bandit of 32 contexts and 20 actions with shared weights and rewards of 0 and 1, in 8 random "
    "worlds: 100 Adam updates with large steps, each on samples of the policy some updates ago; tokens dropped, "
    "and reward missing to the best actions, at the usual threshold of 0.2 (exact KL: twice its square) and at "
    "the best of seven thresholds",
    control="the same without a region",
    measure=measure,
    judge=judge,
)
