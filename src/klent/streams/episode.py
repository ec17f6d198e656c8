"""One trajectory: what the policy read and wrote, and the numbers of the distribution that it was drawn from."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from klent.streams.prompt import Prompt


@dataclass
class MixtureTrace:
    """The actions of an episode drawn from a mixture of policy and target, ``[L]`` each.

    Attributes:
        alpha: share of the policy.
        kl_policy: KL(q ‖ policy), nats.
        kl_target: KL(q ‖ target), nats.
        logp_policy: log-probability of the action under the policy, nats; the action's importance weight is
            ``exp(logp_policy - logp)``.
        entropy_policy: entropy of the policy's distribution, nats.
        logp_target: log-probability of the action under the target, nats.
        reverse_kl: KL(policy ‖ target), nats.
    """

    alpha: Tensor
    kl_policy: Tensor
    kl_target: Tensor
    logp_policy: Tensor
    entropy_policy: Tensor
    logp_target: Tensor
    reverse_kl: Tensor


@dataclass
class Episode:
    """One trajectory; a prompt with one completion is an episode of one turn whose ``acted`` is all True.

    Attributes:
        prompt: the problem, or the row that an environment was reset with.
        prompt_ids: token ids that the policy read before its first action, chat template applied.
        tokens: what followed, ``[L]``: the policy's actions and, between turns, what the environment said.
        acted: True where the policy chose the token, ``[L]`` bool.
        turn: the turn that each token belongs to, from 0, ``[L]``; an observation belongs to the turn it opens.
        logp: log-probability of each action under the distribution that it was drawn from, nats, ``[L]``, 0
            where the policy did not act; None where nothing was sampled.
        entropy: entropy of that distribution, nats, ``[L]``, likewise.
        renyi: its Rényi entropy of order 2, nats, ``[L]``, where the engine reports it.
        collision_logp: its sum of squared probabilities times their logarithms, nats, ``[L]``, likewise.
        rescored: whether ``entropy`` and what follows it are by a pass of the trainer, for an engine that has none.
        text: what a verifier reads: the last turn's actions decoded, without the stop token.
        finish: ``stop`` where a stop token, a stop string or the environment ended it, ``length`` where the
            budget did.
        rewards: one per turn, where an environment gave them, NaN where it failed; rewards of one-turn problems
            are scored apart.
        prefill: tokens read for it before it was acted: the prompt, once for the group, and what the environment
            said.
        problem: why its environment failed; empty where it did not.
        mixture: what the mixture was at each action, where the sampler is one of policy and target.
        preferred: of two answers to one prompt, whether it is the better one; None where it is not of a pair.
        margin: by how much it, or the other of its pair, should win; None where nothing asks.
        policy_version: optimizer steps that the policy had taken when it sampled; None where nobody counts them.
        states: what the policy read before each action, ``[L, S]``, where actions are vectors (:meth:`of_actions`).
        actions: what it chose, ``[L, A]``, likewise: motor commands, or the states that denoising steps drew.
    """

    prompt: Prompt
    prompt_ids: list[int]
    tokens: Tensor
    text: str
    finish: Literal["stop", "length"]
    logp: Tensor | None = None
    entropy: Tensor | None = None
    renyi: Tensor | None = None
    collision_logp: Tensor | None = None
    mixture: MixtureTrace | None = None
    rewards: tuple[float, ...] = ()
    preferred: bool | None = None
    problem: str = ""
    prefill: int = 0
    margin: float | None = None
    rescored: bool = False
    policy_version: int | None = None
    states: Tensor | None = None
    actions: Tensor | None = None
    acted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    turn: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def __post_init__(self) -> None:
        if len(self.acted) != len(self.tokens):
            self.acted = torch.ones(len(self.tokens), dtype=torch.bool)
        if len(self.turn) != len(self.tokens):
            self.turn = torch.zeros(len(self.tokens), dtype=torch.long)

    @classmethod
    def of_actions(
        cls,
        prompt: Prompt,
        states: Tensor,
        actions: Tensor,
        *,
        text: str,
        finish: Literal["stop", "length"] = "stop",
        logp: Tensor | None = None,
        entropy: Tensor | None = None,
        rewards: tuple[float, ...] = (),
    ) -> "Episode":
        """An episode whose actions are vectors; its ``tokens`` are their places, 0 to L - 1.

        Args:
            prompt: what it began from.
            states: what the policy read before each action, ``[L, S]``.
            actions: what it chose, ``[L, A]``.
            text: a line that a person can read.
            finish: ``length`` where it was cut.
            logp: log-density of each action under the distribution that it was drawn from, nats, ``[L]``.
            entropy: differential entropy of that distribution, nats, ``[L]``.
            rewards: as of :class:`Episode`: one per turn. Give ``turn`` with ``dataclasses.replace`` where actions
                are turns.

        >>> episode = Episode.of_actions(Prompt("noise/0", ""), torch.zeros(3, 2), torch.ones(3, 2), text="an image")
        >>> episode.tokens, episode.acted
        (tensor([0, 1, 2]), tensor([True, True, True]))
        """
        places = torch.arange(len(actions))
        return cls(
            prompt, [], places, text, finish, logp, entropy, rewards=rewards, states=states, actions=actions
        )

    @property
    def action_entropy(self) -> Tensor:
        """The sampling distribution's entropy at each action, nats; empty where nothing was sampled."""
        return torch.zeros(0) if self.entropy is None else self.entropy[self.acted]

    @property
    def collision(self) -> Tensor | None:
        """The sampling distribution's sum of squared probabilities at each action, ``[L]``, 0 elsewhere."""
        return None if self.renyi is None else torch.where(self.acted, (-self.renyi).exp(), 0.0)

    @property
    def turns(self) -> int:
        """How many turns it has."""
        return int(self.turn.max()) + 1 if len(self.turn) else 0

    def followed_by(self, observation: list[int], answer: "Episode", reward: float) -> "Episode":
        """This episode, what the environment said next, and the policy's next turn: tokens in, tokens out.

        Args:
            observation: token ids that the policy reads before its next action.
            answer: an episode whose prompt was all tokens so far; its numbers are appended.
            reward: of the turn that ``answer`` is.
        """
        silent = torch.zeros(len(observation))
        turn = self.turns
        return replace(
            answer,
            prompt=self.prompt,
            prompt_ids=self.prompt_ids,
            tokens=torch.cat([self.tokens, torch.tensor(observation, dtype=torch.long), answer.tokens]),
            acted=torch.cat([self.acted, silent.bool(), answer.acted]),
            turn=torch.cat([self.turn, torch.full((len(observation) + len(answer.tokens),), turn)]),
            logp=_appended(self.logp, silent, answer.logp),
            entropy=_appended(self.entropy, silent, answer.entropy),
            renyi=_appended(self.renyi, silent, answer.renyi),
            collision_logp=_appended(self.collision_logp, silent, answer.collision_logp),
            rewards=(*self.rewards, reward),
            prefill=self.prefill + answer.prefill,
        )


def _appended(before: Tensor | None, silent: Tensor, after: Tensor | None) -> Tensor | None:
    return None if before is None or after is None else torch.cat([before, silent, after])
