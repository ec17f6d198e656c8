"""Reward against the KL between whole sequences, by the penalty that is trained with."""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, RealRuns, number, over_seeds
from klent.claims.sources import AMINI_KL, COMEDY
from klent.claims.worlds.table import LENGTH, Value, World, best, evaluate, row_kl, sample, world
from klent.kit.grid import grid_optimum

_SEEDS = range(8)
_COEFS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
_WANTED = 0.75  # the price of a nat in the objective for which each penalty's coefficient is also tuned
_PRICES = torch.logspace(-1.3, 1.0, 400, dtype=torch.float64)  # of a nat, at which the front is solved
_GROUP, _STEPS, _LR = 8, 200, 0.1
_AT = (0.25, 0.75)  # of the range of KLs that all fronts of a seed cover

Penalty = Literal["sequence", "exact per token", "k3 with the token's ratio"]
_PENALTIES: tuple[Penalty, ...] = ("sequence", "exact per token", "k3 with the token's ratio")
_LOCAL = _PENALTIES[1:]


class Setting(NamedTuple):
    """Groups in a batch, and updates between the policy that samples it and the one that is trained on it."""

    groups: int
    delay: int


_SETTINGS = {
    "on-policy": Setting(8, 0),
    "8 completions, 4 updates late": Setting(1, 4),
    "16 updates late": Setting(8, 16),
}


def _penalty(
    kind: Penalty, logp: Tensor, logp_ref: Tensor, logp_gen: Tensor, kl: Tensor, group: Tensor
) -> Tensor:
    mask = torch.ones_like(logp, dtype=torch.bool)
    if kind == "sequence":
        return O.sequence_kl_loss(logp, kl, mask, coef=1.0, logp_gen=logp_gen, group=group).loss
    if kind == "exact per token":
        return kl
    # sample by sample the gradient of k3 times a differentiated ratio
    return O.kl_in_loss(logp, logp_ref, mask, coef=1.0, logp_old=logp_gen).loss


def train(kind: Penalty, setting: Setting, worlds: World, coef: Tensor) -> Value:
    """Train one policy for each world and coefficient, ``[R]``, from the reference; their exact ends."""
    generator = torch.Generator().manual_seed(0)
    logits = worlds.reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=_LR)
    past = [logits.detach().clone()]
    count = _GROUP * setting.groups
    run, at = torch.arange(len(coef)).view(-1, 1, 1), torch.arange(LENGTH)
    group = torch.arange(len(coef) * setting.groups).repeat_interleave(_GROUP)
    for step in range(_STEPS):
        tokens, rows = sample(past[0], count, generator)
        flat = (run, at, rows, tokens)
        reward = worlds.reward[flat].sum(-1).flatten()
        advantage = O.leave_one_out(reward, group).unsqueeze(1).expand(-1, LENGTH)
        logp_gen, logp_ref = (t[flat].flatten(0, 1) for t in (past[0].log_softmax(-1), worlds.reference))
        logp = logits.log_softmax(-1)[flat].flatten(0, 1)
        kl = row_kl(logits, worlds.reference)[run, at, rows].flatten(0, 1)
        loss = O.ppo_clip(logp, logp_gen, advantage, torch.ones_like(logp, dtype=torch.bool)).loss
        penalty = _penalty(kind, logp, logp_ref, logp_gen, kl, group)
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / _STEPS)
        optimizer.zero_grad()
        ((loss + coef.repeat_interleave(count).unsqueeze(1) * penalty).sum() / count).backward()
        optimizer.step()
        past = [*past, logits.detach().clone()][-(setting.delay + 1) :]
    return evaluate(logits.detach(), worlds)


class Front(NamedTuple):
    """What one penalty reached at each coefficient, ``[seeds, coefs]``; ``below`` is the reward missing to the
    best policy of the same KL.
    """

    reward: Tensor
    kl: Tensor
    below: Tensor
    lost: Tensor  # of the objective that the coefficient sets, against the best policy's


def measure() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, setting in _SETTINGS.items():
        fronts = {kind: _front(kind, setting) for kind in _PENALTIES}
        figures |= _at_equal_coefficient(fronts, name) | _at_equal_kl(fronts, name)
        if name == "on-policy":
            figures |= _tuned(fronts)
    return figures


def _front(kind: Penalty, setting: Setting) -> Front:
    each = [world(seed) for seed in _SEEDS]
    worlds = World(*(torch.stack(part).repeat_interleave(len(_COEFS), 0) for part in zip(*each, strict=True)))
    coef = torch.tensor(_COEFS * len(each), dtype=torch.float64)
    reached = train(kind, setting, worlds, coef)
    reward, kl = (t.view(len(each), len(_COEFS)) for t in reached)
    prices, worth = _solved()
    limit = (worth.unsqueeze(1) + prices * kl.unsqueeze(2)).amin(-1)  # the front is concave
    lost = worth[:, len(_PRICES) :] - (reward - prices[len(_PRICES) :] * kl)
    return Front(reward, kl, limit - reward, lost)


@cache
def _solved() -> tuple[Tensor, Tensor]:
    """Prices of a nat, the coefficients last, and what the best policy has at each: ``[P]``, ``[seeds, P]``."""
    prices = torch.cat([_PRICES, torch.tensor(_COEFS, dtype=torch.float64)])
    solved = [evaluate(best(one, prices), one) for one in map(world, _SEEDS)]
    return prices, torch.stack([value.reward - prices * value.kl for value in solved])


def _at_equal_coefficient(fronts: dict[Penalty, Front], setting: str) -> dict[str, Figure]:
    one, figures = _COEFS.index(1.0), {}
    for kind, front in fronts.items():
        figures[f"{setting}, coefficient 1: objective lost, {kind}"] = _over(front.lost[:, one])
        figures[f"{setting}, coefficient 1: KL, {kind}"] = _over(front.kl[:, one])
    return figures


def _at_equal_kl(fronts: dict[Penalty, Front], setting: str) -> dict[str, Figure]:
    """The reward missing to the solved front, interpolated between coefficients, where all fronts reach."""
    low = torch.stack([front.kl.amin(1) for front in fronts.values()]).amax(0)
    high = torch.stack([front.kl.amax(1) for front in fronts.values()]).amin(0)
    figures = {}
    for share in _AT:
        at = low + share * (high - low)
        below = {kind: _interpolated(front.kl, front.below, at) for kind, front in fronts.items()}
        figures[_equal(setting, share, "KL")] = _over(at)
        for kind in fronts:
            figures[_equal(setting, share, f"reward below the front, {kind}")] = _over(below[kind])
        for kind in _LOCAL:
            figures[_more(setting, share, kind)] = _over(below[kind] - below["sequence"])
    return figures


def _tuned(fronts: dict[Penalty, Front]) -> dict[str, Figure]:
    """Each penalty at whichever coefficient is best for reward minus ``_WANTED`` times the KL."""
    figures, own = {}, fronts["sequence"]
    base = (own.reward - _WANTED * own.kl)[:, _COEFS.index(_WANTED)]
    for kind, front in fronts.items():
        objective = front.reward - _WANTED * front.kl
        i = grid_optimum(_COEFS, objective.mean(0).tolist(), best="largest")
        figures[f"best coefficient for a price of {_WANTED:g} a nat, {kind}"] = Figure(_COEFS[i])
        if kind != "sequence":
            figures[f"objective lost to sequence at that, {kind}"] = _over(base - objective[:, i])
    return figures


def _interpolated(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Linear between the points of each row, ``[seeds]``."""
    x, order = x.sort(dim=1)
    y = y.gather(1, order)
    right = torch.searchsorted(x, at.unsqueeze(1)).clamp(1, x.shape[1] - 1)
    left = right - 1
    x0, x1, y0, y1 = (t.gather(1, i).squeeze(1) for t in (x, y) for i in (left, right))
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _over(values: Tensor) -> Figure:
    return over_seeds(values.tolist(), _SEEDS)


def _equal(setting: str, share: float, what: str) -> str:
    return f"{setting}, equal KL, {share:g} of the common range: {what}"


def _more(setting: str, share: float, kind: Penalty) -> str:
    return _equal(setting, share, f"more than sequence, {kind}")


def judge(f: Figures) -> Judgement:
    """By what is left of the advantage at equal KL, in every setting."""
    left = {name: [f[_more(name, share, kind)] for kind in _LOCAL for share in _AT] for name in _SETTINGS}
    better = [name for name, figures in left.items() if all(x.low is not None and x.low > 0 for x in figures)]
    per_token = _LOCAL[0]
    lost = {kind: f[f"on-policy, coefficient 1: objective lost, {kind}"] for kind in ("sequence", per_token)}
    below = {
        kind: [f[_equal("on-policy", share, f"reward below the front, {kind}")].value for share in _AT]
        for kind in _PENALTIES
    }
    best_coef = f[f"best coefficient for a price of {_WANTED:g} a nat, {per_token}"]
    numbers = (
        f"on-policy and at equal coefficient the objective falls short of the best policy's by "
        f"{lost['sequence']}, with the exact KL per token by {lost[per_token]}. At equal KL, at a quarter and "
        f"three quarters of the range, {' and '.join(map(number, below['sequence']))} of reward are missing to "
        f"the solved front, {' and '.join(map(number, below[per_token]))} per token "
        f"({' and '.join(map(number, below[_LOCAL[1]]))} with k3 and the token's ratio), and with the "
        f"coefficient that suits it best ({best_coef}) per token loses "
        f"{f[f'objective lost to sequence at that, {per_token}']}"
    )
    late = "; ".join(
        f"{name} {' and '.join(str(f[_more(name, share, per_token)]) for share in _AT)}" for name in _SETTINGS
    )
    if len(better) == len(_SETTINGS):
        return "holds", numbers
    if not better:
        return "refuted", f"at equal KL nothing is left. {numbers}"
    return "holds when", (
        f"samples are fresh enough: {numbers}. What per token misses more at equal KL, in the same order: "
        f"{late}"
    )


CLAIM = Claim(
    id="reward-kl-front",
    subject="kl",
    statement="Trained with the exact gradient of the KL between whole sequences, a policy has more reward at "
    "the same KL than with a penalty per token: it is on the Pareto front more often.",
    source=f"{AMINI_KL}, section 5; biased gradients in common use: {COMEDY}",
    experiment="a table of logits per position and last token, 8 tokens over 6 symbols, trained from the "
    "reference with PPO's clip and leave-one-out advantages, 200 updates with Adam at six coefficients in 8 random "
    "worlds (the seeds of the intervals); reward, KL and the front are exact, and rewards are interpolated "
    "between coefficients by what they miss of the front",
    control="equal coefficient, equal KL, and each penalty's best coefficient for one price of a nat; exact KL per "
    "token with prefixes frozen, and sampled, as k3 with a differentiated ratio of the token",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "sequences.md#reward-against-kl",
        "cannot tell",
        "on a small model the three fronts lie on one another: at equal KL rewards differ by at most 0.006, with "
        "95 % intervals over 5 seeds that reach 0.039; smaller differences cannot be told",
    ),
)
