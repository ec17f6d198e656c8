"""STEER's weights, control by the sign of advantages, and the thermostat, under one budget."""

from collections.abc import Sequence
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


class Arm(NamedTuple):
    """A method in a setting; one run for each seed."""

    method: Method
    setting: Setting
    bonus: float = 0.0


def steer_weight(
    logp: Tensor, batch: shared.Batch, every: Tensor, advantage: Tensor, lowest: Tensor
) -> Tensor:
    """STEER's weights by the exact effect of each token on its context's entropy; ``every`` is ``[R, C, A]``."""
    p, entropy = every.exp(), O.categorical_entropy(every)
    mean = (p.square() * (every + entropy.unsqueeze(-1))).sum(-1)
    entropy, mean = entropy[:, batch.context[0]], mean[:, batch.context[0]]
    ratio = (logp - shared.taken(batch.logp, batch)).exp()
    size = (ratio * advantage * (logp.exp() * (logp + entropy) - mean)).abs()
    return torch.exp(lowest.log().unsqueeze(1) * size / size.amax(-1, keepdim=True).clamp(min=0.02))


class Arms:
    """All runs of some arms beside each other, arm by arm, ``[R]``: numbers are drawn once for all arms."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.count = len(arms)
        self.world = shared.World(*(part.repeat(self.count, 1, 1) for part in shared.separate(_SEEDS)))
        self.lr = _each([arm.setting.lr for arm in arms]).view(-1, 1, 1)
        self.target = torch.stack(
            [_each([arm.setting.target().at(step, 0.0) for arm in arms]) for step in range(1, _STEPS + 1)]
        )
        self.signed = _each([arm.method == "sign" for arm in arms])
        self.lowest = _each([_LOWEST.get(arm.method, 1.0) for arm in arms])
        self.coef = _each([arm.bonus for arm in arms])
        self.controllers = {
            i * len(_SEEDS) + j: Controller(
                Thermostat(target=arm.setting.target(), start=0.0), lambda value: None
            )
            for i, arm in enumerate(arms)
            if arm.method == "thermostat"
            for j in range(len(_SEEDS))
        }

    def train(self) -> list[Run]:
        """For each arm, ``_STEPS`` batches of one group per context, ``_INNER`` gradient steps each."""
        generator = torch.Generator().manual_seed(0)
        world, weights = self.world, self.world.start
        group = shared.groups(len(weights))
        entropies, coefs = [], []
        for step, target in enumerate(self.target, start=1):
            logp_all = shared.policy(world, weights)
            entropy = shared.entropy(logp_all)
            entropies.append(entropy)
            batch = shared.sample(logp_all, generator, arms=self.count)
            reward = shared.taken(world.reward, batch)
            advantage = O.group_advantage(reward.flatten(), group).view_as(reward)
            advantage = torch.where(self.signed.unsqueeze(1), _signed(advantage, entropy, target), advantage)
            for run, controller in self.controllers.items():
                self.coef[run] = controller.state.value
            coefs.append(self.coef.clone())
            for _ in range(_INNER):
                weights = weights - self.lr * self._gradient(weights, batch, advantage)
            change = shared.entropy(shared.policy(world, weights)) - entropy
            for run, controller in self.controllers.items():
                controller.read(step, entropy[run].item(), change[run].item())
        return self._runs(shared.policy(world, weights).exp(), torch.stack(entropies), torch.stack(coefs))

    def _gradient(self, weights: Tensor, batch: shared.Batch, advantage: Tensor) -> Tensor:
        weights = weights.detach().requires_grad_()
        every = shared.policy(self.world, weights)
        logp, logp_old = shared.taken(every, batch), shared.taken(batch.logp, batch)
        mask = torch.ones_like(logp, dtype=torch.bool)
        loss = O.ppo_clip(logp, logp_old, advantage, mask).loss
        steered = self.lowest < 1
        if steered.any():
            part = shared.Batch(batch.context, batch.action[steered], batch.logp[steered])
            now = (logp.detach()[steered], part, every.detach()[steered])
            weight = steer_weight(*now, advantage[steered], self.lowest[steered])
            loss = loss * torch.ones_like(loss).index_put((steered,), weight)
        entropy = O.categorical_entropy(every)[:, batch.context[0]]
        loss = loss - self.coef.unsqueeze(1) * O.entropy_loss(entropy, mask, coef=1.0).loss
        return torch.autograd.grad(loss.sum() / mask.shape[1], weights)[0]

    def _runs(self, p: Tensor, entropies: Tensor, coefs: Tensor) -> list[Run]:
        found = (
            ((entropies - self.target).abs() / self.target)[_STEPS // 2 :].mean(0),
            entropies[-1],
            (p * self.world.reward).sum(-1).mean(-1),
            self.world.reward.gather(-1, p.argmax(-1).unsqueeze(-1)).mean((1, 2)),
            coefs.mean(0),
        )
        return [Run(*parts) for parts in zip(*(part.chunk(self.count) for part in found), strict=True)]


def _each(values: Sequence[float]) -> Tensor:
    """A number of each arm for each of its runs, ``[R]``."""
    numbers = torch.tensor(values)
    return (numbers if numbers.dtype == torch.bool else numbers.double()).repeat_interleave(len(_SEEDS))


def _signed(advantage: Tensor, entropy: Tensor, target: Tensor) -> Tensor:
    """Positive advantages alone above the band, negative ones alone below it."""
    high, low = (entropy > target * (1 + _BAND)), (entropy < target * (1 - _BAND))
    kept = torch.where(high.unsqueeze(1), advantage > 0, torch.where(low.unsqueeze(1), advantage < 0, True))
    return torch.where(kept, advantage, 0.0)


def measure() -> dict[str, Figure]:
    free = [(name, method) for name in _SETTINGS for method in _METHODS if method != "fixed bonus"]
    runs = dict(zip(free, Arms([Arm(m, _SETTINGS[name]) for name, m in free]).train(), strict=True))
    bonus = {name: round(runs[name, "thermostat"].bonus.mean().item(), 4) for name in _SETTINGS}
    fixed = Arms([Arm("fixed bonus", setting, bonus[name]) for name, setting in _SETTINGS.items()]).train()
    figures: dict[str, Figure] = {}
    for name, last in zip(_SETTINGS, fixed, strict=True):
        plain = runs[name, "GRPO"]
        for method in _METHODS:
            run = last if method == "fixed bonus" else runs[name, method]
            if method == "thermostat":
                figures[f"{name}: mean coefficient of the bonus, thermostat"] = _over(run.bonus)
            if method != "GRPO":
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
