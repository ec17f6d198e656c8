"""Training on a mixture: alpha as the run goes, importance weights, and a step's numbers."""

import math
from collections.abc import Mapping, Sized
from functools import partial

import torch
from torch import Tensor

from klent.config import MixtureSettings
from klent.control.organ import Organ, StepRecord
from klent.errors import DataError
from klent.objectives import importance_weight
from klent.rollout.mixture_engine import MixtureEngine, Share
from klent.streams.batch import Batch
from klent.streams.prompt import Prompt
from klent.tasks import Task

MEMORY = 0.8  # of the policy's own reward, from one step to the next: a mean over about five steps


class Mixer(Organ):
    """Sets alpha before each step, and weighs what was sampled.

    Args:
        settings: the recipe's ``rollout.mixture``.
        engine: whose alpha is set.

    Attributes:
        reward: running mean of the policy's own reward, 0 at first; a checkpoint has to hold it.
    """

    name = "mixture"

    def __init__(self, settings: MixtureSettings, engine: MixtureEngine) -> None:
        self.settings = settings
        self.engine = engine
        self.reward = 0.0

    def before_step(self, number: int) -> None:
        """Set alpha for training step ``number``, from 1."""
        self.engine.alpha = alpha_at(self.settings, number, reward=self.reward)

    def after_rollout(self, batch: Batch) -> None:
        """Fill the stream ``importance_weight``, ``[B, T]``: the policy that sampled over the mixture."""
        weights = self.settings.weights
        if weights is None:
            return
        logp_policy, logp_gen = sampled_from(batch)
        batch.streams.importance_weight = importance_weight(
            logp_policy,
            logp_gen,
            batch.mask,
            ratio=weights.ratio,
            low=weights.low,
            high=float("inf") if weights.high is None else weights.high,
            outside=weights.outside,
            normalise=weights.normalise,
        )

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``mixture/...``: means over tokens, the effective sample size of the weights before bounds, and the
        policy's own reward where there are rewards; the next step's alpha may follow it.
        """
        batch = step.batch
        traces = [episode.mixture for episode in batch.episodes if episode.mixture is not None]
        ratio = self.settings.weights.ratio if self.settings.weights else "token"
        reward = policy_reward(batch)
        earned = {} if math.isnan(reward) else {"mixture/policy_reward": reward}
        if earned:
            self.reward = MEMORY * self.reward + (1 - MEMORY) * reward
        return {
            **earned,
            "mixture/alpha": float(torch.cat([t.alpha for t in traces]).mean()),
            "mixture/kl_policy": float(torch.cat([t.kl_policy for t in traces]).mean()),
            "mixture/kl_target": float(torch.cat([t.kl_target for t in traces]).mean()),
            "mixture/ess": sample_size(batch, whole=ratio == "sequence"),
        }

    def state_dict(self) -> dict[str, object]:
        """The running mean of the policy's reward."""
        return {"reward": self.reward}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The running mean of the policy's reward."""
        self.reward = float(str(state["reward"]))


def alpha_at(mixture: MixtureSettings, step: int, *, reward: float) -> Share:
    """The policy's share in training step ``step`` (from 1), or what decides it.

    Args:
        mixture: the recipe's ``rollout.mixture``.
        step: from 1.
        reward: what the policy earns by itself, which ``until_reward`` follows.

    >>> from klent.config.mixture import Alpha
    >>> ramp = MixtureSettings(alpha=Alpha(start=0.2, end=1.0, steps=3))
    >>> [round(alpha_at(ramp, step, reward=0.0), 2) for step in (1, 2, 3, 9)]
    [0.2, 0.6, 1.0, 1.0]
    >>> path = MixtureSettings(alpha=Alpha(start=0.2, until_reward=0.8))
    >>> [round(alpha_at(path, 1, reward=reward), 2) for reward in (-1.0, 0.0, 0.4, 0.9)]
    [0.2, 0.2, 0.6, 1.0]
    """
    alpha = mixture.alpha
    if alpha.criterion is not None:
        return alpha.criterion
    if alpha.fixed is not None:
        return alpha.fixed
    if alpha.column is not None:
        return partial(alpha_of, column=alpha.column)
    assert alpha.start is not None
    if alpha.until_reward is not None:
        done = min(max(reward / alpha.until_reward, 0.0), 1.0)
        return alpha.start + done * (1.0 - alpha.start)
    assert alpha.end is not None
    assert alpha.steps is not None
    done = min((step - 1) / max(alpha.steps - 1, 1), 1.0)
    return alpha.start + done * (alpha.end - alpha.start)


def alpha_of(prompt: Prompt, column: str) -> float:
    """The policy's share that a prompt asks for in a column of the data.

    Raises:
        DataError: the prompt has none, or something else than a number in [0, 1].

    >>> alpha_of(Prompt("prompts.jsonl:3", "1 + 1 =", {"alpha": 0.25}), "alpha")
    0.25
    """
    found = prompt.columns.get(column)
    where = f"{prompt.id}: column {column!r}, which rollout.mixture.alpha.column names,"
    if found is None:
        there = ", ".join(prompt.columns) or "none"
        raise DataError(
            f"{where} is missing or empty; give every prompt a number in [0, 1]. Its columns: {there}"
        )
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise DataError(
            f"{where} has {found!r}; expected a number in [0, 1], the policy's share of the mixture"
        )
    return float(found)


def check_alpha(mixture: MixtureSettings | None, task: Task) -> None:
    """Refuse data that lacks the alpha of a training prompt, before a model is loaded.

    Raises:
        DataError: as of :func:`alpha_of`, for the first such prompt in the order of training.
    """
    if mixture is not None and mixture.alpha.column is not None and isinstance(task, Sized):
        for position in range(len(task)):
            alpha_of(task.train(position), mixture.alpha.column)


def sampled_from(batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a mixture's tokens under the policy and under the mixture, ``[B, T]``, nats."""
    logp = batch.streams.read(("logp_policy", "logp_gen"))
    return logp["logp_policy"], logp["logp_gen"]


def policy_reward(batch: Batch) -> float:
    """The policy's own mean reward, estimated from samples of the mixture; NaN where none has a reward.

        mean over prompts of  Σ wᵢ·Rᵢ / Σ wᵢ,   wᵢ = policy/q of the whole completion

    Self-normalised, prompt by prompt: it lies between the rewards that were seen. On long completions a
    prompt's largest weight has nearly all of the sum, and the estimate is as noisy as a single sample of it.
    """
    reward = batch.reward
    if reward is None:
        return math.nan
    scored = reward.isfinite()
    log_ratio = _log_ratio(batch).sum(1)
    shape = (int(batch.group.max()) + 1, -1)
    weight = log_ratio.masked_fill(~scored, -math.inf).view(shape).softmax(dim=1)
    earned = (weight * reward.nan_to_num(0.0, 0.0, 0.0).view(shape)).sum(dim=1)
    return float(earned.nanmean())


def sample_size(batch: Batch, *, whole: bool) -> float:
    """Effective sample size of the weights policy/mixture; see :func:`effective_share`."""
    return effective_share(_log_ratio(batch), batch.mask, whole=whole)


def effective_share(log_ratio: Tensor, mask: Tensor, *, whole: bool) -> float:
    """Effective sample size (Σw)²/Σw² over the number of samples: of tokens, or of whole completions.

    Args:
        log_ratio: log of each token's weight, ``[B, T]`` float64, 0 off the mask.
        mask: the tokens, ``[B, T]`` bool.
        whole: whether a sample is a whole completion.

    >>> two = torch.tensor([[0.0, 0.0], [0.0, -800.0]], dtype=torch.float64)
    >>> every = torch.ones(2, 2, dtype=torch.bool)
    >>> [round(effective_share(two, every, whole=whole), 4) for whole in (False, True)]
    [0.75, 0.5]
    """
    log_weight = log_ratio.sum(dim=1) if whole else log_ratio[mask]
    spread = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)
    return float(spread.exp()) / len(log_weight)


def _log_ratio(batch: Batch) -> Tensor:
    """log(policy / mixture) of each token, ``[B, T]`` float64, 0 off the mask."""
    logp_policy, logp_gen = sampled_from(batch)
    return torch.where(batch.mask, logp_policy - logp_gen, 0.0).double()
