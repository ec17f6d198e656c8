"""What one token's update does to the entropy at its position."""

from typing import NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, over_seeds
from klent.claims.sources import ENTROPY_MECHANISM, STEER

_WORLDS, _WORDS = 800, 200
_SMALL, _LARGE = 1e-5, 1.0
_UPDATES, _TOKENS, _WIDTH = 200, 16, 16  # of the network: updates, tokens of each, hidden units
_TAIL = 0.02
_PREDICTORS = ("exact", "STEER's metric", "covariance of one token")


class _Worlds(NamedTuple):
    """Softmaxes, a token drawn from each, and its advantage."""

    logits: Tensor
    token: Tensor
    advantage: Tensor

    @property
    def push(self) -> Tensor:
        """The gradient of ``advantage * log p[token]`` in the logits."""
        rest = -self.logits.softmax(-1)
        return self.advantage.unsqueeze(-1) * rest.scatter_add(
            -1, self.token.unsqueeze(-1), torch.ones_like(self.advantage).unsqueeze(-1)
        )

    def predictions(self) -> dict[str, Tensor]:
        """What each predictor says of the change of entropy, up to a factor that all tokens share."""
        full = self.logits.log_softmax(-1)
        p, entropy = full.exp(), O.categorical_entropy(full)
        logp = full.gather(-1, self.token.unsqueeze(-1)).squeeze(-1)
        mask = torch.ones_like(logp, dtype=torch.bool)
        squares = p.square().sum(-1), (p.square() * full).sum(-1)
        surprise = -self.advantage * (logp + entropy)
        exact = O.entropy_effect(logp, entropy, *squares, self.advantage, mask)
        return dict(zip(_PREDICTORS, (exact, surprise * (1 - logp.exp()), surprise), strict=True))


def measure() -> dict[str, Figure]:
    alone = [_drawn(seed, _WORLDS, 1) for seed in SEEDS]
    figures: dict[str, Figure] = {}
    for step, name in ((_SMALL, "a small step"), (_LARGE, "a step of 1 (control)")):
        changes = [_change(world.logits, step * world.push) for world in alone]
        figures |= _compared(name, [world.predictions() for world in alone], changes)
    changes = [_change(world.logits, _SMALL * world.push) for world in alone]
    for predictor in _PREDICTORS:
        shared = [_overlap(w.predictions()[predictor], c) for w, c in zip(alone, changes, strict=True)]
        figures[f"of the 2 % that spend most, found among its 2 %: {predictor}"] = over_seeds(shared)
    networks = [_network(seed) for seed in SEEDS]
    predicted = [{name: x.mean(1) for name, x in world.predictions().items()} for world, _ in networks]
    return figures | _compared(
        f"an update of {_TOKENS} tokens on shared weights (control)", predicted, [c for _, c in networks]
    )


def _drawn(seed: int, *shape: int) -> _Worlds:
    """Normal logits, from nearly flat to peaked."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + 3.5 * torch.rand(*shape, 1, generator=generator, dtype=torch.float64)
    logits = scale * torch.randn(*shape, _WORDS, generator=generator, dtype=torch.float64)
    return _with_tokens(logits, generator)


def _with_tokens(logits: Tensor, generator: torch.Generator) -> _Worlds:
    flat = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator)
    advantage = torch.randn(logits.shape[:-1], generator=generator, dtype=torch.float64)
    return _Worlds(logits, flat.view(logits.shape[:-1]), advantage)


def _network(seed: int) -> tuple[_Worlds, Tensor]:
    """Updates of an output layer that all tokens share, and the mean change of entropy of each update's tokens."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(_UPDATES, _TOKENS, _WIDTH, generator=generator, dtype=torch.float64)
    weight = 0.5 * torch.randn(_UPDATES, _WORDS, _WIDTH, generator=generator, dtype=torch.float64)
    world = _with_tokens(hidden @ weight.mT, generator)
    slope = world.push.mT @ hidden  # of the weight
    return world, _change(world.logits, _SMALL * hidden @ slope.mT).mean(1)


def _change(logits: Tensor, step: Tensor) -> Tensor:
    after, before = ((logits + move).log_softmax(-1) for move in (step, torch.zeros_like(step)))
    return O.categorical_entropy(after) - O.categorical_entropy(before)


def _compared(name: str, predicted: list[dict[str, Tensor]], changes: list[Tensor]) -> dict[str, Figure]:
    figures = {}
    for predictor in _PREDICTORS:
        pairs = [(p[predictor].flatten(), c.flatten()) for p, c in zip(predicted, changes, strict=True)]
        right = [((p > 0) == (c > 0)).double().mean().item() for p, c in pairs]
        figures[f"correlation with the change, {name}: {predictor}"] = over_seeds(
            [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs]
        )
        figures[f"sign right, {name}: {predictor}"] = over_seeds(right)
    return figures


def _overlap(predicted: Tensor, change: Tensor) -> float:
    """Of the tokens that spend most entropy, the share that a predictor puts there."""
    count = int(_TAIL * change.numel())
    most, chosen = (set(x.flatten().argsort()[:count].tolist()) for x in (change, predicted))
    return len(most & chosen) / count


def judge(f: Figures) -> Judgement:
    exact, released, covariance = (
        (f[f"correlation with the change, a small step: {p}"], f[f"sign right, a small step: {p}"])
        for p in _PREDICTORS
    )
    if released[0].value > 0.99 and released[1].value > 0.99:
        return "holds", "the released metric foretells change and sign"
    network = [
        f[f"sign right, an update of {_TOKENS} tokens on shared weights (control): {p}"] for p in _PREDICTORS
    ]
    tail = [f[f"of the 2 % that spend most, found among its 2 %: {p}"] for p in _PREDICTORS]
    return "refuted", (
        f"it correlates with the change by {released[0]} and has its sign in {released[1]} of the cases, the "
        f"covariance of one token by {covariance[0]} and in {covariance[1]}: both leave out what the push takes from "
        f"the other tokens. With that, and the token's probability, the prediction is exact for a small step "
        f"(correlation {exact[0]}, sign {exact[1]}). Of the 2 % of tokens that spend most it finds {tail[1]}, the "
        f"covariance {tail[2]}, the exact effect {tail[0]}. Where {_TOKENS} tokens share an output layer the sign of "
        f"the mean is right in {network[0]} (exact), {network[1]} and {network[2]}"
    )


CLAIM = Claim(
    id="entropy-effect",
    subject="entropy",
    statement="The change of entropy that the update of a token causes is, up to the step, -A·(1 - p)·(log p + H): "
    "advantage, probability and entropy govern it.",
    source=f"{STEER}, as its released code computes it; the covariance is that of {ENTROPY_MECHANISM}",
    experiment=f"entropy before and after a gradient step on the logits of {_WORLDS} random softmaxes of {_WORDS} "
    "words, each pushing a token drawn from it with a normal advantage; 5 seeds",
    control="the exact effect, which also counts Σp² and Σp²·log p; the covariance of one token, -A·(log p + H); a "
    f"large step; updates of {_TOKENS} tokens that share an output layer of {_WIDTH} units",
    measure=measure,
    judge=judge,
)
