"""Whether an advantage keeps the reward in its unit, so that a coefficient of the KL means the same in every group.

A KL in the loss, or added to the advantage as a reward of its own, is not touched by the estimator of advantages. If
that multiplies the reward by a number which depends on the group, the reward is weighed against the KL differently
from prompt to prompt.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from klent.audit.call import LossProblem
from klent.audit.worlds import build_world, draw_scene
from klent.kit.threads import one_thread

Estimator = Callable[..., Tensor]
#: how often a prompt is solved, for which the weight of its reward is computed
SOLVED = (0.05, 0.25, 0.5, 0.75, 0.95)
#: for rewards that are real numbers: the vocabulary of the one token that a completion is, and the largest group
VOCABULARY, LARGEST = 6, 4
#: a ratio of weights beyond rounding
SAME = 1 + 1e-6


@dataclass(frozen=True)
class AdvantageCertificate:
    """What an estimator of advantages makes of the reward, by enumeration of every group of completions.

    Attributes:
        target: name of the estimator.
        settings: its settings.
        group_size: completions in a group.
        weights: how often a prompt is solved, with a reward of 1 or else 0 -> the multiple of the gradient of its
            expected reward that its expected gradient is.
        unexplained: the share of the gradient that is no multiple of that of the expected reward, for rewards that
            are real numbers and groups of at most ``LARGEST``; 0 where the estimator is linear in the reward.
    """

    target: str
    settings: Mapping[str, object]
    group_size: int
    weights: Mapping[float, float]
    unexplained: float

    @property
    def ratio(self) -> float:
        """The largest weight over the smallest: 1 if a coefficient of the KL means the same for every prompt."""
        return max(self.weights.values()) / min(self.weights.values())

    @property
    def rescales(self) -> bool:
        """Whether the reward is multiplied by a number that depends on the group."""
        return self.ratio > SAME or self.unexplained > SAME - 1

    def to_dict(self) -> dict[str, object]:
        """As a dict that JSON can hold."""
        settings = {key: str(value) for key, value in self.settings.items()}
        return {**asdict(self), "settings": settings, "ratio": self.ratio, "rescales": self.rescales}

    def __str__(self) -> str:
        listed = ", ".join(f"{weight:.3g} at {solved:g}" for solved, weight in self.weights.items())
        lines = [
            f"certificate of {self.target}, groups of {self.group_size}",
            f"  weight      of the reward, by how often a prompt is solved: {listed}",
            f"  unexplained {self.unexplained:.2g} of the gradient for rewards that are real numbers",
        ]
        if self.rescales:
            factor = ""
            if self.ratio > SAME:
                factor = f", here by a factor of up to {self.ratio:.3g} among rewards of 1 and 0"
            lines.append(
                "  note        The reward is scaled group by group, and a KL of a fixed coefficient is not: against "
                f"the reward its weight differs from prompt to prompt{factor}."
            )
        return "\n".join(lines)


def certify_advantage(
    estimator: Estimator, /, *, group_size: int = 8, **params: object
) -> AdvantageCertificate:
    """Find out whether an estimator of advantages rescales the reward, by enumerating all groups.

        g = E over groups of  mean over the group of  A·∇logp,   against the gradient of the expected reward

    Args:
        estimator: takes ``rewards``, ``[n]``, and ``group``, ``[n]``, and returns advantages, ``[n]``.
        group_size: completions in a group, at least 2.
        params: settings of the estimator.

    Raises:
        LossProblem: it cannot be called, or ``group_size`` is too small.

    Example:
        >>> from klent import audit
        >>> from klent.objectives import group_advantage, leave_one_out
        >>> round(audit.certify_advantage(leave_one_out).ratio, 6)
        1.0
        >>> round(audit.certify_advantage(group_advantage, scale="std").ratio, 1)
        1.3
    """
    if group_size < 2:
        raise LossProblem(f"group_size is {group_size}; a group has at least 2 completions")
    with one_thread():
        found, true = _of_real_rewards(estimator, params, min(group_size, LARGEST))
        weights = {solved: _weight(estimator, params, solved, group_size) for solved in SOLVED}
    leftover = found - (found @ true) / (true @ true) * true
    name = getattr(estimator, "__name__", type(estimator).__name__)
    return AdvantageCertificate(name, params, group_size, weights, (leftover.norm() / found.norm()).item())


def _weight(estimator: Estimator, params: Mapping[str, object], solved: float, size: int) -> float:
    """E[A | solved] - E[A | not solved] for rewards of 1 and 0: the multiple of the gradient of P(solved).

    A completion's advantage depends on its own reward and on how many of the others are solved.
    """
    count = torch.arange(size)  # solved among the others
    rewards = torch.zeros(2, size, size, dtype=torch.float64)  # own reward, others solved, completion
    rewards[:, :, 1:] = (torch.arange(size - 1) < count[:, None]).double()
    rewards[1, :, 0] = 1.0
    own = _called(estimator, params, rewards.view(-1, size)).view(2, size, size)[:, :, 0]
    chance = [math.comb(size - 1, k) * solved**k * (1 - solved) ** (size - 1 - k) for k in range(size)]
    return ((own[1] - own[0]) @ torch.tensor(chance, dtype=torch.float64)).item()


def _of_real_rewards(estimator: Estimator, params: Mapping[str, object], size: int) -> tuple[Tensor, Tensor]:
    """Expected gradient of the mean of A·logp, and the gradient of the expected reward, in the logits."""
    scene = draw_scene(build_world(VOCABULARY, 1), 50)
    probability = scene.log_probs(scene.policy)[0].exp()
    score = torch.eye(VOCABULARY, dtype=torch.float64) - probability
    groups = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=size)))
    advantage = _called(estimator, params, scene.reward[groups])
    of_group = torch.einsum("gi,gif->gf", advantage, score[groups]) / size
    return probability[groups].prod(dim=1) @ of_group, (probability * scene.reward) @ score


def _called(estimator: Estimator, params: Mapping[str, object], rewards: Tensor) -> Tensor:
    """Advantages of many groups, ``[groups, n]``, from their rewards."""
    ids = torch.arange(len(rewards)).repeat_interleave(rewards.shape[1])
    try:
        taken = {"group": ids} if "group" in inspect.signature(estimator).parameters else {}
        advantage = estimator(rewards=rewards.flatten(), **taken, **params)
        return advantage.double().view(rewards.shape)
    except Exception as error:  # of the audited estimator
        raise LossProblem(f"raised {type(error).__name__}: {error}") from error
