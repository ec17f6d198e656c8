"""STEER's weights, control by the sign of advantages, and the thermostat, under one budget."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number, over_seeds
from klent.claims.sources import ENTROCRAFT, STEER
from klent.claims.worlds import shared
from klent.config import EntropyTarget, Thermostat
from klent.control.thermostat import Controller

_SEEDS = range(8)
_STEPS, _INNER = 240, 3
_BAND = 0.1  # of the target, to either side

Method = Literal["GRPO", "STEER", "STEER to 0.2", "sign", "thermostat", "fixed bonus"]
_METHODS: tuple[Method, ...] = ("GRPO", "STEER", "STEER to 0.2", "sign", "thermostat", "fixed bonus")
_CLAIMED: tuple[Method, ...] = ("STEER", "STEER to 0.2", "sign")
_CONTROLS: tuple[Method, ...] = ("GRPO", "thermostat", "fixed bonus")
_HELD = 0.2  # of the target: nearer is held
_LOWEST: dict[Method, float] = {"STEER": 0.8, "STEER to 0.2": 0.2}


class Setting(NamedTuple):
    """A step size, and the entropy to hold, nats, at the first step and at the last."""

    lr: float
    start: float
    end: float

    def target(self) -> EntropyTarget:
        return EntropyTarget(start=self.start, end=self.end, steps=_STEPS)


_SETTINGS = {"large steps": Setting(16.0, 2.0, 0.5), "small steps": Setting(4.0, 2.2, 1.0)}


class Run(NamedTuple):
    """Of each seed, ``[R]``, exact."""

    off: Tensor  # |entropy - target| over the target, mean of the second half
    entropy: Tensor  # before the last step, nats
    reward: Tensor  # at the end
    greedy: Tensor  # at the end, of the most likely actions
    bonus: Tensor  # mean coefficient of the entropy bonus


def steer_weight(logp: Tensor, every: Tensor, advantage: Tensor, logp_old: Tensor, lowest: float) -> Tensor:
    """STEER's weights by the exact effect of each token on its context's entropy; ``every`` is ``[R, N, A]``."""
    p, entropy = every.exp(), O.categorical_entropy(every)
    mean = (p.square() * (every + entropy.unsqueeze(-1))).sum(-1)
    effect = (logp - logp_old).exp() * advantage * (logp.exp() * (logp + entropy) - mean)
    size = effect.abs()
    return torch.exp(math.log(lowest) * size / size.amax(-1, keepdim=True).clamp(min=0.02))


def train(method: Method, setting: Setting, bonus: float = 0.0) -> Run:
    """One run for each seed: ``_STEPS`` batches of one group per context, ``_INNER`` gradient steps each."""
    generator = torch.Generator().manual_seed(0)
    world = shared.separate(_SEEDS)
    weights, group = world.start, shared.groups(len(_SEEDS))
    coef = torch.full((len(_SEEDS),), bonus, dtype=torch.float64)
    controllers = [
        Controller(Thermostat(target=setting.target(), start=0.0), lambda value: None) for _ in _SEEDS
    ]
    target = [setting.target().at(step, 0.0) for step in range(1, _STEPS + 1)]
    entropies, coefs = [], []
    for step in range(1, _STEPS + 1):
        logp_all = shared.policy(world, weights)
        entropy = shared.entropy(logp_all)
        entropies.append(entropy)
        batch = shared.sample(logp_all, generator)
        reward = shared.taken(world.reward, batch)
        advantage = O.group_advantage(reward.flatten(), group).view_as(reward)
        if method == "sign":
            advantage = _signed(advantage, entropy, target[step - 1])
        if method == "thermostat":
            coef = torch.tensor([c.state.value for c in controllers], dtype=torch.float64)
        coefs.append(coef)
        for _ in range(_INNER):
            weights = weights - setting.lr * _gradient(method, world, weights, batch, advantage, coef)
        change = shared.entropy(shared.policy(world, weights)) - entropy
        for i, controller in enumerate(controllers):
            controller.read(step, entropy[i].item(), change[i].item())
    p = shared.policy(world, weights).exp()
    aim = torch.tensor(target, dtype=p.dtype).unsqueeze(1)
    held = torch.stack(entropies)
    return Run(
        ((held - aim).abs() / aim)[_STEPS // 2 :].mean(0),
        held[-1],
        (p * world.reward).sum(-1).mean(-1),
        world.reward.gather(-1, p.argmax(-1).unsqueeze(-1)).mean((1, 2)),
        torch.stack(coefs).mean(0),
    )


def _signed(advantage: Tensor, entropy: Tensor, target: float) -> Tensor:
    """Positive advantages alone above the band, negative ones alone below it."""
    high, low = (entropy > target * (1 + _BAND)), (entropy < target * (1 - _BAND))
    kept = torch.where(high.unsqueeze(1), advantage > 0, torch.where(low.unsqueeze(1), advantage < 0, True))
    return torch.where(kept, advantage, 0.0)


def _gradient(
    method: Method, world: shared.World, weights: Tensor, batch: shared.Batch, advantage: Tensor, coef: Tensor
) -> Tensor:
    weights = weights.detach().requires_grad_()
    every = shared.policy(world, weights)
    logp, logp_old = shared.taken(every, batch), shared.taken(batch.logp, batch)
    mask = torch.ones_like(logp, dtype=torch.bool)
    loss = O.ppo_clip(logp, logp_old, advantage, mask).loss
    if method in _LOWEST:
        now = every.detach()[:, batch.context[0]]
        loss = loss * steer_weight(logp.detach(), now, advantage, logp_old, _LOWEST[method])
    entropy = O.categorical_entropy(every)[:, batch.context[0]]
    loss = loss - coef.unsqueeze(1) * O.entropy_loss(entropy, mask, coef=1.0).loss
    return torch.autograd.grad(loss.sum() / mask.shape[1], weights)[0]


def measure() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, setting in _SETTINGS.items():
        bonus = 0.0
        for method in _METHODS:
            run = train(method, setting, bonus if method == "fixed bonus" else 0.0)
            if method == "thermostat":
                bonus = run.bonus.mean().item()
                figures[f"{name}: mean coefficient of the bonus, thermostat"] = _over(run.bonus)
            if method == "GRPO":
                plain = run
            else:
                figures[_name(name, "reward more than GRPO", method)] = _over(run.reward - plain.reward)
            for what in ("off", "entropy", "reward", "greedy"):
                figures[_name(name, _WORDS[what], method)] = _over(getattr(run, what))
    return figures


_WORDS = {
    "off": "distance from the target",
    "entropy": "entropy at the end",
    "reward": "reward at the end",
    "greedy": "reward of the most likely actions",
}


def _over(values: Tensor) -> Figure:
    return over_seeds(values.tolist(), _SEEDS)


def _name(setting: str, what: str, method: Method) -> str:
    return f"{setting}: {what}, {method}{' (control)' if method in _CONTROLS else ''}"


def judge(f: Figures) -> Judgement:
    """Each method by whether it is near its target in both settings; reward is told beside it."""
    off = {m: [f[_name(s, _WORDS["off"], m)].value for s in _SETTINGS] for m in _METHODS}
    gain = {m: [f[_name(s, "reward more than GRPO", m)] for s in _SETTINGS] for m in _METHODS[1:]}
    held = [m for m in _CLAIMED if max(off[m]) < _HELD]
    told = "; ".join(
        f"{m} {' and '.join(f'{100 * x:.0f} %' for x in off[m])}, {' and '.join(map(str, gain[m]))}"
        for m in _METHODS[1:]
    )
    ends = {
        m: " and ".join(number(f[_name(s, _WORDS["entropy"], m)].value) for s in _SETTINGS) for m in _METHODS
    }
    numbers = (
        "distance from the target and reward more than GRPO's, with large and with small steps: "
        f"{told}. GRPO is off by {' and '.join(f'{100 * x:.0f} %' for x in off['GRPO'])}. STEER only slows the fall "
        f"({ends['STEER']} nats at the end, GRPO {ends['GRPO']}), and below the band negative advantages alone "
        f"do not bring entropy back ({ends['sign']})"
    )
    if len(held) == len(_CLAIMED):
        return "holds", numbers
    if held:
        return "holds when", f"it is done by {' or '.join(held)}: {numbers}"
    return "refuted", numbers


CLAIM = Claim(
    id="entropy-control-budget",
    subject="entropy",
    statement="Entropy can be held on a schedule, and reward gained by it, without a term in the loss: by the "
    "weights of tokens that would change it most (STEER), or by the sign of the advantages trained on.",
    source=f"{STEER}; {ENTROCRAFT}",
    experiment="the bandit of covariance-methods with 8 seeds, 240 batches, three updates each with PPO's clip, at "
    "two step sizes; the target falls on a line, from 2 to 0.5 nats with large steps, from 2.2 to 1 with small; "
    "STEER, which has no target, with the exact effect and weights from 0.8 and from 0.2, sign in a band of "
    "10 %; distance from the target is a mean over the second half",
    control="GRPO with PPO's clip alone; klent's thermostat with its defaults, which sets an entropy bonus; a bonus "
    "fixed at the thermostat's mean coefficient",
    measure=measure,
    judge=judge,
)
