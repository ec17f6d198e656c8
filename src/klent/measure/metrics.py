"""From a finished step to one row of metrics.jsonl. docs/metrics.md says what each name means."""

import math
import resource
import sys
from typing import Any

import torch
from torch import Tensor

from klent.measure.diagnostics import (
    collision_metrics,
    covariance_tails,
    fork_share,
    repetition,
    selected_and_rest,
)
from klent.measure.roofline import Floor
from klent.objectives import kl_estimate, token_covariance
from klent.streams.batch import Batch
from klent.tasks.scorer import Scores
from klent.training.update import UpdateResult


def rollout_metrics(batch: Batch, scores: Scores | None) -> dict[str, Any]:
    """Rewards, lengths and the sampler's entropy, over all completions of the step."""
    lengths = batch.mask.sum(dim=1).float()
    row: dict[str, Any] = {}
    if scores is not None:
        scorable = batch.reward[~batch.reward.isnan()]
        row["reward/mean"] = float(scorable.mean()) if len(scorable) else math.nan
        row["reward/std"] = float(scorable.std(correction=0)) if len(scorable) else math.nan
        row["reward/unscorable"] = 1.0 - len(scorable) / len(batch.reward)
        if len(scores.parts) > 1:
            row |= {f"reward/{name}": _mean(values) for name, values in scores.parts.items()}
        row["group/zero_variance"] = _zero_variance(batch)
        row |= {name if "/" in name else f"reward/{name}": v for name, v in scores.metrics.items()}
    row["completion/length"] = float(lengths.mean())
    row["completion/truncated"] = sum(r.finish == "length" for r in batch.rollouts) / len(batch.rollouts)
    repeated = repetition([rollout.tokens for rollout in batch.rollouts])
    if repeated is not None:
        row["completion/repetition"] = repeated
    return row


def update_metrics(batch: Batch, result: UpdateResult) -> dict[str, Any]:
    """What the objective asked for, on the tokens of the step."""
    known = batch.mask & result.before["known"][:, None]
    logp = result.before["logp"]
    entropy = batch.own["entropy"]
    if entropy[batch.mask].isnan().any():  # nothing was sampled: the trainer's own numbers stand in
        entropy = result.before["entropy"]
    row: dict[str, Any] = {
        "policy/entropy": float(entropy[batch.mask].mean()),
        "objective/loss": result.loss,
        "objective/zero_fraction": 1.0 - float((result.coefficient != 0).sum()) / batch.tokens,
        "grad/norm": result.grad_norm,
        "update/skipped": result.skipped,
    }
    row |= {f"objective/{name}": total / count for name, (total, count) in result.sums.items() if count}
    row |= {f"select/{name}": float(chosen.sum()) / batch.tokens for name, chosen in result.chosen.items()}
    sampled = not batch.streams["logp_gen"][batch.mask].isnan().any()
    covariance = None
    if sampled and "advantage" in batch.streams:
        covariance = token_covariance(batch.own["logp"], batch.streams["advantage"], batch.mask)
        row["policy/covariance"] = float(covariance[batch.mask].mean())
        row |= covariance_tails(covariance, batch.mask)
    row |= collision_metrics(batch)
    row |= fork_share(entropy, result.coefficient, batch.mask)
    row |= selected_and_rest(entropy, covariance, selected(result), batch.mask)
    untouched = batch.mask & result.before["untouched"][:, None]  # the weights that sampled
    if sampled and untouched.any():
        row["policy/logp_mismatch"] = float((logp - batch.own["logp"])[untouched].abs().mean())
    if "logp_ref" in batch.streams and known.any() and not batch.mixed:
        kl = kl_estimate(logp[known], batch.streams["logp_ref"][known], estimator="k3")
        row["kl/reference"] = float(kl.mean())
    return row


def selected(result: UpdateResult) -> Tensor:
    """The tokens that a selector chose; of a run without one, those with a coefficient. Bool, ``[B, T]``."""
    if result.chosen:
        return torch.stack(list(result.chosen.values())).any(dim=0)
    return result.coefficient != 0


def time_metrics(
    batch: Batch, result: UpdateResult, seconds: dict[str, float], floor: Floor | None
) -> dict[str, Any]:
    """Seconds by phase beside their floors, and tokens a second: sampled, and passed through training."""
    row: dict[str, Any] = {f"time/{name}": value for name, value in seconds.items()}
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


def _zero_variance(batch: Batch) -> float:
    """Share of groups whose scorable rewards are all equal: they teach nothing."""
    groups = batch.group.unique()
    flat = 0
    for group in groups:
        reward = batch.reward[batch.group == group]
        reward = reward[~reward.isnan()]
        flat += int(len(reward) < 2 or bool((reward == reward[0]).all()))
    return flat / len(groups)


def _mean(values: list[float]) -> float:
    scorable = [value for value in values if not math.isnan(value)]
    return sum(scorable) / len(scorable) if scorable else math.nan
