"""Policy-labeled preference learning."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, over_seeds
from klent.claims.sources import PPL, READING_NOTES
from klent.claims.worlds.mdp import ACTIONS, ALPHA, GAMMA, STATES, World, discounted, evaluate, solve
from klent.claims.worlds.minimise import minimise
from klent.claims.worlds.simplex import draw

_WORLDS = range(16)  # the spread between worlds decides here, so more of them than elsewhere
_PAIRS, _LENGTH, _ITERATIONS = 4000, 8, 60
#: behaviour policies: the optimal policy's log-probabilities times these, from adversary to optimum
_SKILLS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_METHODS = ("PPL, expected KL", "PPL, realised KL", "PPL, pseudo-labels", "CPL")

Labels = Literal["regret", "advantage"]
_LABELS: tuple[Labels, ...] = ("regret", "advantage")


class Pairs(NamedTuple):
    """Trajectories, the first of each pair preferred: ``[n, T]`` states and actions, ``[n]`` behaviours."""

    states: tuple[Tensor, Tensor]
    actions: tuple[Tensor, Tensor]
    behaviour: tuple[Tensor, Tensor]


def measure() -> dict[str, Figure]:
    gaps: dict[str, list[float]] = {}
    for seed in _WORLDS:
        generator = torch.Generator().manual_seed(seed)
        world = solve(generator)
        behaviours = torch.stack([(skill * world.logp_best).log_softmax(-1) for skill in _SKILLS])
        for labels in _LABELS:
            pairs = _prefer(world, behaviours, labels, generator)
            for method in _METHODS if labels == "regret" else _METHODS[::3]:
                learned = _train(method, world, behaviours, pairs)
                gap = (world.value_best - evaluate(world, learned)[0]).mean().item()
                gaps.setdefault(f"V* - V, labels from {labels}: {method}", []).append(gap)
        uniform = torch.full((STATES, ACTIONS), 1 / ACTIONS, dtype=torch.float64).log()
        gap = (world.value_best - evaluate(world, uniform)[0]).mean().item()
        gaps.setdefault("V* - V, uniform policy (control)", []).append(gap)
    figures = {name: over_seeds(values, _WORLDS) for name, values in gaps.items()}
    ppl, cpl = (gaps[f"V* - V, labels from regret: {name}"] for name in ("PPL, expected KL", "CPL"))
    figures["the gap of CPL less that of PPL with the expected KL, labels from regret, world by world"] = (
        over_seeds([b - a for a, b in zip(ppl, cpl, strict=True)], _WORLDS)
    )
    return figures


def _prefer(world: World, behaviours: Tensor, labels: Labels, generator: torch.Generator) -> Pairs:
    """Sample pairs of trajectories and preferences, with the probabilities of the preference model."""
    first, second = (_sample(world, behaviours, generator) for _ in range(2))
    best = ALPHA * world.logp_best
    regret = torch.stack([evaluate(world, logp)[1] for logp in behaviours]) - world.value_best.unsqueeze(1)
    discount = GAMMA ** torch.arange(_LENGTH, dtype=torch.float64)

    def score(part: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        states, actions, behaviour = part
        per_action = (
            best[states, actions]
            if labels == "advantage"
            else regret[behaviour.unsqueeze(1), states, actions]
        )
        return (discount * per_action).sum(1)

    u = torch.rand(_PAIRS, generator=generator, dtype=torch.float64)
    wins = u < torch.sigmoid(score(first) - score(second))

    def order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        won = wins.unsqueeze(1) if a.ndim == 2 else wins
        return torch.where(won, a, b), torch.where(won, b, a)

    return Pairs(*(order(a, b) for a, b in zip(first, second, strict=True)))


def _sample(world: World, behaviours: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    behaviour = torch.randint(len(_SKILLS), (_PAIRS,), generator=generator)
    state = torch.randint(STATES, (_PAIRS,), generator=generator)
    states, actions = [], []
    for _ in range(_LENGTH):
        action = draw(behaviours[behaviour, state].exp(), generator)
        states.append(state)
        actions.append(action)
        state = draw(world.transition[state, action], generator)
    return torch.stack(states, 1), torch.stack(actions, 1), behaviour


def _train(method: str, world: World, behaviours: Tensor, pairs: Pairs) -> Tensor:
    logits = torch.zeros(STATES, ACTIONS, dtype=torch.float64, requires_grad=True)
    mask = torch.ones_like(pairs.states[0], dtype=torch.bool)
    pair_of = list(zip(pairs.behaviour, pairs.states, pairs.actions, strict=True))
    moves = [s * ACTIONS + a for _, s, a in pair_of]
    states_of = [b.unsqueeze(1) * STATES + s for b, s, _ in pair_of]
    moves_of = [state * ACTIONS + a for state, (_, _, a) in zip(states_of, pair_of, strict=True)]

    def loss() -> Tensor:
        logp = logits.log_softmax(-1)
        chosen, rejected = (_take(logp, move) for move in moves)
        if method == "CPL":
            return O.cpl(chosen, rejected, mask, mask, alpha=ALPHA, gamma=GAMMA).mean()
        kls: list[Tensor | None] = [None, None]
        label: Literal["expected", "realised", "pseudo"] = "pseudo"
        if method != "PPL, pseudo-labels":
            kl = O.categorical_kl(behaviours, logp.expand(behaviours.shape))
            label = "realised" if method == "PPL, realised KL" else "expected"
            if label == "realised":
                kls = [_take(kl, state) for state in states_of]
            else:
                future = _future(world, behaviours, kl)
                kls = [_take(future, move) for move in moves_of]
        return O.policy_labeled_preference(
            chosen,
            rejected,
            mask,
            mask,
            kl_chosen=kls[0],
            kl_rejected=kls[1],
            label=label,
            alpha=ALPHA,
            gamma=GAMMA,
        ).mean()

    minimise(loss, logits, iterations=_ITERATIONS)
    return logits.detach().log_softmax(-1)


def _take(table: Tensor, index: Tensor) -> Tensor:
    """The entries at flat indices; the backward of ``gather`` is several times as fast as that of an index."""
    return table.flatten().gather(0, index.flatten()).view(index.shape)


def _future(world: World, behaviours: Tensor, kl: Tensor) -> Tensor:
    """Expected discounted KL after each action under each behaviour policy, ``[behaviours, S, A]``."""
    onward = [discounted(world, p, per_state) for p, per_state in zip(behaviours.exp(), kl, strict=True)]
    return torch.stack([GAMMA * world.transition @ value for value in onward])


def judge(f: Figures) -> Judgement:
    expected, realised, pseudo, cpl = (f[f"V* - V, labels from regret: {method}"] for method in _METHODS)
    advantage, advantage_cpl = (f[f"V* - V, labels from advantage: {method}"] for method in _METHODS[::3])
    gain = f["the gap of CPL less that of PPL with the expected KL, labels from regret, world by world"]
    if gain.value <= 0:
        return "refuted", f"even with regret labels and the expected KL the gap is {expected}, CPL's {cpl}"
    best = max(expected.value, realised.value, pseudo.value) < cpl.value
    if best and advantage.value <= advantage_cpl.value:
        return "holds", (
            f"the gap is {expected} beside CPL's {cpl}, for every way of taking the KL and either label"
        )
    assert gain.low is not None
    unsure = "" if gain.low > 0 else f", a difference that {len(_WORLDS)} worlds do not settle"
    return "holds when", (
        "labels follow the regret of the behaviour policy and the future KL is taken in expectation: gap "
        f"{expected}, CPL's {cpl} (smaller by {gain} world by world{unsure}). With the realised KL it is "
        f"{realised}, with pseudo-labels {pseudo}; with labels from the optimal advantage {advantage}, CPL's "
        f"{advantage_cpl}"
    )


CLAIM = Claim(
    id="ppl-conditions",
    subject="preference",
    statement="Labelling trajectories with the policy that produced them, and regularising by the "
    "contrastive KL, learns better from data of mixed quality than methods that take every trajectory as "
    "optimal.",
    source=f"{PPL}; {READING_NOTES.at('Policy-labeled Preference Learning')}",
    experiment=f"{len(_WORLDS)} random soft decision problems, {_PAIRS} pairs of {_LENGTH} actions from "
    f"{len(_SKILLS)} behaviour policies; V* - V of the learned policy, mean and interval over the problems",
    control="CPL; labels that follow the optimal advantage instead; a uniform policy",
    measure=measure,
    judge=judge,
)
