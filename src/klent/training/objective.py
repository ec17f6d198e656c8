"""The objective of a recipe: functions of klent.objectives, bound to streams by their arguments' names.

The trainer does not know which algorithm it runs. A term asks for what it needs by the names of its
parameters (``logp``, ``advantage``, ``logp_ref``, ...), and what no term asks for is not computed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from klent.config.binding import is_per_token
from klent.objectives import TokenLoss, reward_to_go
from klent.objectives.masking import metric
from klent.streams.batch import Batch
from klent.streams.registry import Streams
from klent.training.observations import with_observations
from klent.training.pairs import with_pairs
from klent.training.selection import Select, Selection
from klent.training.term import Term

Terms = Mapping[str, Mapping[str, object] | None]


class Objective:
    """A sum of surrogate terms, an advantage estimator, and rewards paid token by token.

    Args:
        loss: term name -> hyper-parameters; their losses add up.
        advantage: estimator name -> hyper-parameters, or None for the reward itself; more names change what the
            first one gives, in order.
        token_reward: term name -> hyper-parameters; each returns a reward per token, and its sum from a token
            to the end of the completion joins that token's advantage: credit for what the token leads to.
        select: stream name -> {selector: hyper-parameters}; what each chooses becomes a stream.
        weigh: name of a term of the loss -> {weight: hyper-parameters}; each multiplies that term's loss.
        more: terms that no recipe names, such as the divergence from a target.
    """

    def __init__(
        self,
        loss: Terms,
        advantage: Terms | None,
        token_reward: Terms | None,
        select: Select | None = None,
        *,
        weigh: Select | None = None,
        more: Sequence[Term] = (),
    ) -> None:
        named = [Term.named(name, settings) for name, settings in loss.items()]
        self.terms = [*with_observations(with_pairs(named)), *more]
        self.estimators = [Term.named(name, settings) for name, settings in (advantage or {}).items()]
        self.token_rewards = [Term.named(name, settings) for name, settings in (token_reward or {}).items()]
        self.selection = Selection(select, weigh)
        self.sign = 0

    def train_on(self, sign: int) -> None:
        """Of the advantages estimated from now on, keep those above 0 (1), those below (-1), or all (0)."""
        self.sign = sign

    @property
    def all_terms(self) -> list[Term]:
        """Everything that reads streams of actions."""
        return [*self.terms, *self.token_rewards, *self.selection.functions]

    def named(self, function: str) -> list[Term]:
        """The terms, selectors and weights made of a function of this name."""
        terms = [*self.terms, *self.selection.functions]
        return [term for term in terms if term.function.__name__ == function]

    def reads(self, stream: str) -> bool:
        """Whether any part of the objective reads this stream."""
        readers = self.all_terms
        if any({"advantage", "returns"} & term.streams for term in readers):
            readers = [*readers, *self.estimators]
        return any(stream in term.streams for term in readers)

    def estimate_advantage(self, batch: Batch) -> None:
        """Fill the stream ``advantage``, ``[B, T]``, from the rewards; 0 where unscorable or not trained on.

        The estimator sees every completion, whatever :meth:`train_on` keeps: baselines and scales are the same.
        One that estimates for each token (``gae``) is given the completion's reward at its last action, with what
        ``token_reward`` pays; any other rates completions, and what tokens are paid from an action on is added to
        that. With a critic's ``value_old`` the stream ``returns`` is filled too; it is ``value_old`` itself where
        unscorable, from which a critic learns nothing: see :meth:`token_loss`. Where the batch has sums ``to_go``,
        each turn of an episode has an advantage of its own.

        Args:
            batch: the step's episodes, of all ranks.

        Raises:
            ValueError: a term reads it and the step has no rewards.
        """
        if not (self.reads("advantage") or self.reads("returns")):
            return
        reward = batch.reward
        if reward is None:
            raise ValueError(
                "a term of the loss reads `advantage`, and this step has no rewards; set `reward`"
            )
        mask, scorable = batch.mask, ~reward.isnan()[:, None]
        at_start = batch.streams.with_(mask=mask, logp=batch.streams.logp_old)
        paid = [term(at_start) for term in self.token_rewards]
        first, others = next(iter(self.estimators), None), self.estimators[1:]
        if first is not None and is_per_token(first.function):
            rewards = sum(paid, at_last(reward.nan_to_num(nan=0.0), mask))
            advantage = first(at_start.with_(rewards=torch.where(scorable, rewards, 0.0)))
        else:
            advantage = torch.where(mask, self._credit(batch, reward), 0.0)
            for tokens in paid:
                advantage = advantage + torch.where(scorable, reward_to_go(tokens, mask), 0.0)
        advantage = torch.where(scorable, advantage, 0.0)
        if batch.streams.value_old is not None:
            batch.streams.returns = advantage + batch.streams.value_old
        for term in others:
            known = at_start.with_(advantage=advantage, mask=mask & scorable)
            advantage = torch.where(scorable, term(known), 0.0)
        kept = advantage if self.sign == 0 else torch.where(self.sign * advantage > 0, advantage, 0.0)
        batch.streams.advantage = kept

    def _credit(self, batch: Batch, reward: Tensor) -> Tensor:
        """What each action is credited with, ``[B, 1]``; ``[B, T]`` where each turn has its own advantage.

        The estimator then compares, turn by turn, what the rewards add up to from there on, among the episodes
        of a start that have come so far.
        """

        def estimate(rewards: Tensor) -> Tensor:
            if not self.estimators:
                return rewards.nan_to_num(nan=0.0)
            value: Tensor = self.estimators[0](batch.streams.with_(rewards=rewards))
            return value

        if batch.to_go is None:
            return estimate(reward)[:, None]
        turns = torch.stack([estimate(rewards) for rewards in batch.to_go.unbind(dim=1)], dim=1)
        turns = turns.nan_to_num(nan=0.0)
        return turns.gather(1, batch.turn)

    def token_loss(self, streams: Streams) -> TokenLoss:
        """The terms' losses added up, ``[B, T]``, with the metrics of all of them.

        Where the step has an ``importance_weight``, it multiplies every term but those that are exact
        whatever was sampled (``Term.weighted``); of those that hold the ratio to the sampler already
        (``Term.weighs_itself``) it leaves out what it drops. A term's own weights (``weigh``) multiply it too. A
        metric that several terms report has its term's name in front: ``ppo_clip.ratio``. A term that reads
        ``returns`` is 0 on completions without any, the unscorable ones; they count in the divisor all the same.
        """
        outcomes = [
            (term, self._weighted(term, term.loss(_learnt_from(term, streams)), streams))
            for term in self.terms
        ]
        losses = [outcome.loss for _, outcome in outcomes]
        total = torch.stack(losses).sum(dim=0) if len(losses) > 1 else losses[0]
        reported = Counter(metric for _, outcome in outcomes for metric in outcome.metrics)
        metrics = {
            metric if reported[metric] == 1 else f"{term.name}.{metric}": value
            for term, outcome in outcomes
            for metric, value in outcome.metrics.items()
        }
        return TokenLoss(total, metrics)

    @staticmethod
    def _weighted(term: Term, outcome: TokenLoss, streams: Streams) -> TokenLoss:
        weight = streams.importance_weight
        if weight is not None and term.weighted:
            factor = (weight != 0) if term.weighs_itself else weight
            outcome = outcome._replace(loss=outcome.loss * factor)
        own, mask = streams.weights.get(term.name), streams.get("mask")
        if own is None or mask is None:
            return outcome
        return TokenLoss(outcome.loss * own, {**outcome.metrics, "weight": metric(own, mask)})

    def active_rows(self, batch: Batch) -> list[int]:
        """The episodes that some term has a gradient for; the others need no forward pass.

        A term says itself where it is idle whatever the policy's numbers turn out to be (see
        :mod:`klent.objectives.kinds`); one that does not say is taken to have a gradient everywhere. No list
        of algorithms is needed to know that a group of equal rewards is idle.
        """
        streams = batch.streams
        idle = torch.ones_like(batch.mask)
        for term in self.terms:
            silent = term.idle(streams)
            if silent is None:
                silent = torch.zeros_like(batch.mask)
            if streams.importance_weight is not None and term.weighted:
                silent = silent | (streams.importance_weight == 0)
            if term.name in streams.weights:
                silent = silent | (streams.weights[term.name] == 0)
            if (unknown := _without_returns(term, streams)) is not None:
                silent = silent | unknown
            idle &= silent
        return (batch.trained & ~idle).any(dim=1).nonzero()[:, 0].tolist()


def _without_returns(term: Term, streams: Streams) -> Tensor | None:
    """The completions that tell a critic nothing, ``[B, 1]``: unscorable ones; None for a term of something else."""
    if "returns" not in term.streams or streams.rewards is None:
        return None
    return streams.rewards.isnan()[:, None]


def _learnt_from(term: Term, streams: Streams) -> Streams:
    """The streams as a term sees them: without the actions that it has nothing to learn from."""
    unknown, mask = _without_returns(term, streams), streams.get("mask")
    return streams if unknown is None or mask is None else streams.choosing({"mask": mask & ~unknown})


def at_last(reward: Tensor, mask: Tensor) -> Tensor:
    """Each completion's reward at the last of its actions, ``[B, T]``; 0 elsewhere."""
    last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))
    return torch.where(last, reward[:, None], 0.0)
