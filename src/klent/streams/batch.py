"""A step's episodes as streams on one ``[B, T]`` grid: a row each, padded on the right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from klent.streams.episode import Episode, MixtureTrace
from klent.streams.registry import Streams


class Stats(NamedTuple):
    """What a policy says of the actions of some episodes; a grid ``[rows, T]`` each, 0 off the mask.

    Attributes:
        logp: log-probability of each action, nats.
        entropy: entropy of the distribution at each action, nats.
        value: of a critic, in units of reward, where the policy has one and was asked.
        logit: of each action, where it was asked for.
        logit_second: each action's value by a second head, likewise.
        logp_dummy: log-probability of the dummy action, nats, where it was asked for.
        logp_mean: mean log-probability of the whole vocabulary, nats, likewise.
        logp_observed: log-probability of each token that the environment said, nats, 0 elsewhere, likewise.
        score: of a reward model, ``[rows]``, where the policy is one and was asked.
        divergence: from the policy's target, nats, where it has one and was asked.
        kl: divergence from the reference, nats, where it has one and was asked.
        distance: from the policy at the start of the step, without gradient, where it was asked.
        collision: sum of squared probabilities at each action, without gradient, where it was asked.
        collision_logp: sum of squared probabilities times their logarithms, nats, likewise.
        denoising: of a denoiser, loss of denoising its own image noised again, nats, where it was asked for.
        denoising_kl: divergence there from the policy at the start of the update, nats, likewise.
        denoising_data: the same loss on an image of data, nats, likewise.
        tokens: computed in the forward pass, prompts and padding included.
        targets: actions whose prediction was computed.
    """

    logp: Tensor
    entropy: Tensor
    value: Tensor | None = None
    logit: Tensor | None = None
    logit_second: Tensor | None = None
    logp_dummy: Tensor | None = None
    logp_mean: Tensor | None = None
    logp_observed: Tensor | None = None
    score: Tensor | None = None
    divergence: Tensor | None = None
    kl: Tensor | None = None
    distance: Tensor | None = None
    collision: Tensor | None = None
    collision_logp: Tensor | None = None
    denoising: Tensor | None = None
    denoising_kl: Tensor | None = None
    denoising_data: Tensor | None = None
    tokens: int = 0
    targets: int = 0


@dataclass
class Batch:
    """What a step knows about its episodes.

    Attributes:
        episodes: prompt by prompt.
        group: the prompt that each answers, ``[B]``.
        unit: rows with one number are read together by a loss (the two of a pair) and never part: neither
            an optimizer step nor a micro-batch cuts a unit, ``[B]``. Rows of token losses are units alone.
        mask: True where the policy acted, ``[B, T]`` bool.
        streams: the numbers of each action and episode.
        to_go: from each turn on, what an episode's rewards add up to, NaN where it has no such turn, ``[B, K]``;
            None where credit is the whole episode's.
        lag: optimizer steps that the policy took after it sampled the oldest episode.
    """

    episodes: list[Episode]
    group: Tensor
    unit: Tensor
    mask: Tensor
    streams: Streams
    to_go: Tensor | None = None
    lag: int = 0

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def tokens(self) -> int:
        """Actions in the batch."""
        return int(self.mask.sum())

    @property
    def reward(self) -> Tensor | None:
        """One number per episode, NaN where unscorable, ``[B]``; None where there are no rewards."""
        return self.streams.rewards

    @property
    def trained(self) -> Tensor:
        """The actions that the loss sees: those chosen under the name ``mask``, or all, ``[B, T]`` bool."""
        chosen = self.streams.choices.get("mask")
        return self.mask if chosen is None else chosen

    @property
    def sampled(self) -> bool:
        """Whether a distribution was sampled: not where a data set is replayed."""
        return self.streams.logp_gen is not None

    @property
    def of_vectors(self) -> bool:
        """Whether actions are vectors, so that probabilities are densities and no action comes twice."""
        return any(episode.actions is not None for episode in self.episodes)

    @property
    def mixed(self) -> bool:
        """Whether actions were drawn from a mixture, so that means over them are not the policy's."""
        return self.streams.logp_policy is not None

    @property
    def on_policy(self) -> bool:
        """Whether actions were drawn from the policy itself, so that means over them are the policy's."""
        return self.sampled and not self.mixed and not self.lag

    @property
    def at_sampling(self) -> Stats | None:
        """The policy's numbers at the start of the step, as it sampled with them; None where it did not.

        Those that the engine reports: of the distribution sampled where that is the policy's, or apart from
        it where a mixture was sampled.
        """
        streams = self.streams
        if self.lag:
            return None
        if streams.logp_policy is not None and streams.entropy_policy is not None:
            return Stats(streams.logp_policy, streams.entropy_policy)
        if streams.logp_gen is not None and streams.entropy_gen is not None:
            return Stats(
                streams.logp_gen,
                streams.entropy_gen,
                collision=streams.collision_gen,
                collision_logp=streams.collision_logp_gen,
            )
        return None

    @property
    def turn(self) -> Tensor:
        """The turn of each token, from 0, ``[B, T]``."""
        return pad_sequence([episode.turn for episode in self.episodes], batch_first=True)

    def with_streams(self, streams: Streams) -> "Batch":
        """The same episodes with other streams."""
        return replace(self, streams=streams)


def make_batch(
    episodes: Sequence[Episode],
    reward: Sequence[float] | None,
    *,
    group_size: int,
    unit: Sequence[int] | None = None,
    whole_groups: bool = False,
    to_go: Sequence[Sequence[float]] | None = None,
    version: int | None = None,
) -> Batch:
    """Line episodes up on a grid.

    Args:
        episodes: ``group_size`` per prompt, prompt by prompt.
        reward: one number each, NaN where unscorable; None where there are no rewards.
        group_size: episodes per prompt.
        unit: which rows a loss reads together; None = each alone, or each group.
        whole_groups: whether a loss reads the episodes of a prompt together.
        to_go: for each episode, from each turn on, what its rewards add up to, where each turn has its own
            advantage.
        version: optimizer steps that the policy has taken by now; None = as many as when it sampled.
    """
    mask = pad_sequence([episode.acted for episode in episodes], batch_first=True)
    group = torch.arange(len(episodes)) // group_size
    streams = Streams(
        logp_gen=_grid(episodes, lambda episode: episode.logp),
        entropy_gen=_grid(episodes, lambda episode: episode.entropy),
        collision_gen=_grid(episodes, lambda episode: episode.collision),
        collision_logp_gen=_grid(episodes, lambda episode: episode.collision_logp),
        logp_policy=_traced(episodes, lambda trace: trace.logp_policy),
        entropy_policy=_traced(episodes, lambda trace: trace.entropy_policy),
        logp_target=_traced(episodes, lambda trace: trace.logp_target),
        reverse_kl=_traced(episodes, lambda trace: trace.reverse_kl),
        rewards=None if reward is None else torch.tensor(reward, dtype=torch.float32),
        group=group,
        preferred=_preferred(episodes),
        pair_margin=_margins(episodes),
        mask=mask,
        observed=pad_sequence([~episode.acted for episode in episodes], batch_first=True),
    )
    return Batch(
        episodes=list(episodes),
        group=group,
        unit=torch.tensor(unit)
        if unit is not None
        else group
        if whole_groups
        else torch.arange(len(episodes)),
        mask=mask,
        streams=streams,
        to_go=None
        if to_go is None
        else pad_sequence([torch.tensor(sums) for sums in to_go], batch_first=True, padding_value=math.nan),
        lag=_lag(episodes, version),
    )


def _lag(episodes: Sequence[Episode], version: int | None) -> int:
    """How old the oldest is, optimizer steps."""
    versions = (episode.policy_version for episode in episodes)
    known = [one for one in versions if one is not None and version is not None]
    return 0 if version is None else version - min(known, default=version)


def _preferred(episodes: Sequence[Episode]) -> Tensor | None:
    """Which episodes are the better ones of their pairs; None unless every one is of a pair."""
    known = [episode.preferred for episode in episodes if episode.preferred is not None]
    return torch.tensor(known) if len(known) == len(episodes) else None


def _margins(episodes: Sequence[Episode]) -> Tensor | None:
    """By how much the better one of each pair should win; None unless every episode says."""
    known = [episode.margin for episode in episodes if episode.margin is not None]
    return torch.tensor(known) if len(known) == len(episodes) else None


def _traced(episodes: Sequence[Episode], read: Callable[[MixtureTrace], Tensor]) -> Tensor | None:
    """A number of every action drawn from a mixture, ``[B, T]``; None unless every episode was."""
    return _grid(episodes, lambda episode: read(episode.mixture) if episode.mixture else None)


def _grid(episodes: Sequence[Episode], read: Callable[[Episode], Tensor | None]) -> Tensor | None:
    """A number of every action, ``[B, T]``; None unless every episode has it."""
    values = [read(episode) for episode in episodes]
    present = [value for value in values if value is not None]
    return pad_sequence(present, batch_first=True) if len(present) == len(values) else None
