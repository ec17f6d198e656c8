"""From a finished step to one row of metrics.jsonl. docs/metrics.md says what each name means."""

import math
import resource
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from klent.measure.critics import critic_metrics
from klent.measure.diagnostics import (
    collision_metrics,
    covariance_tails,
    effect_metrics,
    fork_share,
    repetition,
    selected_and_rest,
)
from klent.measure.roofline import Floor
from klent.measure.sequences import WHOLE_SEQUENCES, sequence_metrics
from klent.objectives import kl_estimate, token_covariance
from klent.streams.batch import Batch
from klent.tasks.scorer import Scores
from klent.training.update import FirstPass, UpdateResult

Row = dict[str, float]
"""Metric -> its value in a step."""


def rollout_metrics(batch: Batch, scores: Scores | None) -> Row:
    """Rewards, lengths and repetition, over all episodes of the step."""
    lengths = batch.mask.sum(dim=1).float()
    row: Row = {}
    reward = batch.reward
    if scores is not None and reward is not None:
        scorable = reward[~reward.isnan()]
        row["reward/mean"] = float(scorable.mean()) if len(scorable) else math.nan
        row["reward/std"] = float(scorable.std(correction=0)) if len(scorable) else math.nan
        row["reward/unscorable"] = 1.0 - len(scorable) / len(reward)
        if len(scores.parts) > 1:
            row |= {f"reward/{name}": _mean(values) for name, values in scores.parts.items()}
        if len(batch.group.unique()) < len(reward):  # of a group of one there is nothing to say
            row["group/zero_variance"] = _zero_variance(reward, batch.group)
        row |= {name if "/" in name else f"reward/{name}": v for name, v in scores.metrics.items()}
    row["completion/length"] = float(lengths.mean())
    row["completion/truncated"] = sum(e.finish == "length" for e in batch.episodes) / len(batch)
    ids = [episode.tokens[episode.acted] for episode in batch.episodes if episode.actions is None]
    if (repeated := repetition(ids)) is not None:
        row["completion/repetition"] = repeated
    if rescored := sum(episode.rescored for episode in batch.episodes):
        row["policy/entropy_rescored"] = rescored / len(batch)
    return row | _episode_metrics(batch)


def _episode_metrics(batch: Batch) -> Row:
    """Return and turns, where episodes have rewards of their own turns."""
    if not any(episode.rewards for episode in batch.episodes):
        return {}
    return {
        "episode/return": _mean([sum(episode.rewards) for episode in batch.episodes]),
        "tokens/prefill": sum(episode.prefill for episode in batch.episodes),
        "episode/turns": sum(episode.turns for episode in batch.episodes) / len(batch),
    }


def update_metrics(batch: Batch, result: UpdateResult) -> Row:
    """What the objective asked for, on the actions of the step; of a reward model, which has none, on its texts."""
    before = result.before
    if before is None:
        return _loss_metrics(result)
    sampling = batch.at_sampling  # None where nothing was sampled: the trainer's own numbers stand in
    entropy = before.entropy if sampling is None else sampling.entropy
    row: Row = {
        "policy/entropy": float(entropy[batch.mask].mean()),
        "objective/zero_fraction": 1.0 - float((result.coefficient != 0).sum()) / batch.tokens,
        **_loss_metrics(result),
    }
    row |= {f"select/{name}": float(chosen.sum()) / batch.tokens for name, chosen in result.chosen.items()}
    covariance = None
    if sampling is not None and batch.streams.advantage is not None:
        covariance = token_covariance(sampling.logp, batch.streams.advantage, batch.mask)
        row["policy/covariance"] = float(covariance[batch.mask].mean())
        row |= covariance_tails(covariance, batch.mask)
        row |= effect_metrics(sampling, batch.streams.advantage, batch.mask)
    row |= {} if batch.of_vectors else collision_metrics(batch)  # of probabilities, and a density is none
    row |= critic_metrics(batch)
    row |= {} if batch.of_vectors else fork_share(entropy, result.coefficient, batch.mask)
    row |= selected_and_rest(entropy, covariance, selected(result), batch.mask)
    return row | _distances(batch, before)


def _loss_metrics(result: UpdateResult) -> Row:
    """The loss, its gradient, and what its terms report."""
    row: Row = {
        "objective/loss": result.loss,
        "grad/norm": result.grad_norm,
        "update/skipped": result.skipped,
    }
    means = {name: total / count for name, (total, count) in result.sums.items() if count}
    row |= sequence_metrics(means)
    named = {name: value for name, value in means.items() if name not in WHOLE_SEQUENCES}
    row |= {name if "/" in name else f"objective/{name}": value for name, value in named.items()}
    return row


def _distances(batch: Batch, before: FirstPass) -> Row:
    """How far the trainer is from the sampler, and the policy from its reference."""
    row: Row = {}
    logp, sampling = before.logp, batch.at_sampling
    untouched = batch.mask & before.untouched[:, None]  # the weights that sampled
    if sampling is not None and untouched.any():
        row["policy/logp_mismatch"] = float((logp - sampling.logp)[untouched].abs().mean())
    known = batch.mask & before.known[:, None]
    of_policy = batch.sampled or batch.streams.preferred is None  # worse answers are not what the policy says
    if batch.streams.logp_ref is not None and known.any() and not batch.mixed and of_policy:
        kl = kl_estimate(logp[known], batch.streams.logp_ref[known], estimator="k3")
        row["kl/reference"] = float(kl.mean())
    return row


def selected(result: UpdateResult) -> Tensor:
    """The tokens that a selector chose; of a run without one, those with a coefficient. Bool, ``[B, T]``."""
    if result.chosen:
        return torch.stack(list(result.chosen.values())).any(dim=0)
    return result.coefficient != 0


def time_metrics(
    batch: Batch, result: UpdateResult, seconds: Mapping[str, float], floor: Floor | None
) -> Row:
    """Seconds per phase beside their floors, and tokens per second: sampled, and passed through training."""
    row: Row = {f"time/{name}": value for name, value in seconds.items()}
    if floor is not None:
        row |= {"time/rollout_floor": floor.rollout(batch), "time/train_floor": floor.train(result)}
    row["tokens/rollout"] = batch.tokens
    row["tokens/train"] = result.tokens
    row["tokens/rollout_per_second"] = batch.tokens / max(seconds["rollout"], 1e-9)
    row["tokens/train_per_second"] = result.tokens / max(seconds["train"], 1e-9)
    row["memory/peak_gb"] = peak_memory_gb()
    return row


def peak_memory_gb() -> float:
    """The process's peak: device memory on a GPU, resident memory on a CPU; GB of 10^9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _zero_variance(reward: Tensor, group: Tensor) -> float:
    """Share of groups whose scorable rewards are all equal: they teach nothing."""
    groups = group.unique()
    flat = 0
    for number in groups:
        scored = reward[group == number]
        scored = scored[~scored.isnan()]
        flat += int(len(scored) < 2 or bool((scored == scored[0]).all()))
    return flat / len(groups)


def _mean(values: list[float]) -> float:
    scorable = [value for value in values if not math.isnan(value)]
    return sum(scorable) / len(scorable) if scorable else math.nan
