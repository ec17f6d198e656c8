"""A small network that partly knows addition, and ways to train it further; every figure is exact.

Each of the 121 problems a + b mod 11 has one token as its answer. All of them share their weights, so that
training on one problem moves the others.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from klent import objectives as O

N, WIDTH = 11, 96
PAIRS = torch.cartesian_prod(torch.arange(N), torch.arange(N))
RIGHT = PAIRS.sum(1) % N
MISTAUGHT = 0.3  # share of problems whose first teacher was wrong: greedy answers stay below 1
START = 0.6  # probability of the taught answer at which the first training ends
LR, LR_AFTER = 3e-3, 3e-4
TEMPERATURE = 0.5  # of entropy minimisation, as in the paper

Method = Literal["EM", "right answers"]
Weights = dict[str, Tensor]


class State(NamedTuple):
    """The answers of a network to all problems, as temperature-1 logits ``[121, 11]``."""

    logits: Tensor

    def accuracy(self, temperature: float = 1.0, of: Tensor | None = None) -> float:
        """Probability of the right answer, mean over problems (or over ``of``); temperature 0 is greedy."""
        if temperature == 0:
            right = (self.logits.argmax(-1) == RIGHT).double()
        else:
            right = (self.logits / temperature).softmax(-1)[torch.arange(len(RIGHT)), RIGHT]
        return (right if of is None else right[of]).mean().item()

    def entropy(self, temperature: float = 1.0) -> float:
        return O.categorical_entropy((self.logits / temperature).log_softmax(-1)).mean().item()

    def skewness(self) -> float:
        """Skewness of all logits together, as in the paper."""
        z = self.logits - self.logits.mean()
        return ((z**3).mean() / z.square().mean() ** 1.5).item()


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(2 * N, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, N)]
    return nn.Sequential(*layers).double()


def inputs() -> Tensor:
    return nn.functional.one_hot(PAIRS, N).flatten(1).double()


@cache
def half_trained(seed: int) -> Weights:
    """Weights after supervised training that stops early, while the network is still unsure."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(RIGHT), generator=generator) < MISTAUGHT
    taught = torch.where(wrong, (RIGHT + torch.randint(1, N, RIGHT.shape, generator=generator)) % N, RIGHT)
    net = network(seed)
    x = inputs()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    while True:
        logp = net(x).log_softmax(-1)
        if logp.detach().exp()[torch.arange(len(taught)), taught].mean() >= START:
            break
        optimizer.zero_grad()
        nn.functional.nll_loss(logp, taught).backward()
        optimizer.step()
    return _copy(net)


def train_on(
    start: Weights, method: Method, *, steps: int, problems: Tensor | None = None
) -> tuple[Weights, list[State]]:
    """Exact gradient steps from ``start``; the final weights, and the state before each step and at the end.

    Args:
        start: weights.
        method: ``EM`` lowers the entropy at temperature 0.5, ``right answers`` raises the expected reward.
        steps: number of Adam steps.
        problems: which to train on; None = all.
    """
    net = network(0)
    net.load_state_dict(start)
    x = inputs()
    chosen = torch.arange(len(x)) if problems is None else problems
    optimizer = torch.optim.Adam(net.parameters(), lr=LR_AFTER)
    states = []
    for _ in range(steps):
        logits = net(x)
        states.append(State(logits.detach()))
        trained = logits[chosen]
        if method == "EM":
            entropy = O.categorical_entropy((trained / TEMPERATURE).log_softmax(-1)).unsqueeze(1)
            loss = O.entropy_loss(entropy, torch.ones_like(entropy, dtype=torch.bool), coef=1.0).loss.mean()
        else:
            loss = -trained.softmax(-1)[torch.arange(len(trained)), RIGHT[chosen]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states.append(State(net(x).detach()))
    return _copy(net), states


def _copy(net: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
