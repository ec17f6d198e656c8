"""Training on a mixture: its target, alpha as the run goes, importance weights, and a step's numbers."""

import math
from collections.abc import Callable
from functools import partial

import torch

from klent.config import MixtureSettings, Recipe
from klent.errors import DataError, ModelError
from klent.models.load import LoadedModel, load_policy
from klent.objectives import importance_weight
from klent.rollout.mixture_engine import MixtureEngine, Share
from klent.rollout.target import Target
from klent.streams.batch import Batch
from klent.tasks import DataTask, Prompt, Task

MEMORY = 0.8  # of the policy's own reward, from one step to the next: a mean over about five steps


def build_target(
    mixture: MixtureSettings,
    recipe: Recipe,
    loaded: LoadedModel,
    initial: Callable[[], LoadedModel],
    *,
    temperature: float,
) -> Target:
    """The target that a recipe names.

    Args:
        mixture: the recipe's ``rollout.mixture``.
        recipe: what the policy is.
        loaded: the policy.
        initial: gives the reference model; loads it where nothing else has.
        temperature: the policy's.
    """
    wanted = mixture.target

    def target(model: LoadedModel) -> Target:
        heat = wanted.temperature or temperature
        return Target(model, prompt=wanted.prompt, system=wanted.system, temperature=heat)

    if wanted.model == "policy":
        return target(loaded)
    if wanted.model == "reference" and wanted.adapter is None:
        if recipe.lora is not None and recipe.reference is None:
            made = target(loaded)
            return Target(
                made.loaded, made.prompt, made.system, made.temperature, loaded.model.disable_adapter
            )
        return target(initial())
    name = (recipe.reference or recipe.model) if wanted.model == "reference" else wanted.model
    other = load_policy(name, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
    if wanted.adapter is not None:
        other = with_adapter(other, wanted.adapter)
    other.model.requires_grad_(False)
    other.model.to(loaded.model.device)
    return target(other)


def with_adapter(loaded: LoadedModel, folder: str) -> LoadedModel:
    """A model with a LoRA adapter merged into its weights.

    Raises:
        ModelError: peft is missing, or the folder holds no adapter of this model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("an adapter needs peft: pip install 'klent[lora]'") from error
    try:
        model = PeftModel.from_pretrained(loaded.model, folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot put the adapter {folder} on {loaded.source}: {reason}") from error
    return LoadedModel(model.eval(), loaded.tokenizer, loaded.source, loaded.stop_ids)


class Mixer:
    """Sets alpha before each step, and weighs what was sampled.

    Args:
        settings: the recipe's ``rollout.mixture``.
        engine: whose alpha is set.

    Attributes:
        reward: running mean of the policy's own reward, 0 at first; a checkpoint has to hold it.
    """

    def __init__(self, settings: MixtureSettings, engine: MixtureEngine) -> None:
        self.settings = settings
        self.engine = engine
        self.reward = 0.0

    def apply(self, step: int) -> None:
        """Set alpha for a step, from 1."""
        self.engine.alpha = alpha_at(self.settings, step, reward=self.reward)

    def weigh(self, batch: Batch) -> None:
        """Fill ``batch.streams["weight"]``, ``[B, T]``: the policy that sampled over the mixture."""
        weights = self.settings.weights
        if weights is None:
            return
        batch.streams["weight"] = importance_weight(
            batch.own["logp"],
            batch.streams["logp_gen"],
            batch.mask,
            ratio=weights.ratio,
            low=weights.low,
            high=float("inf") if weights.high is None else weights.high,
            outside=weights.outside,
            normalise=weights.normalise,
        )

    def read(self, batch: Batch) -> dict[str, float]:
        """``mixture/...``: means over tokens, the effective sample size of the weights before bounds, and the
        policy's own reward where there are rewards; the next step's alpha may follow it.
        """
        traces = [r.mixture for r in batch.rollouts if r.mixture is not None]
        ratio = self.settings.weights.ratio if self.settings.weights else "token"
        reward = policy_reward(batch)
        own = {} if math.isnan(reward) else {"mixture/policy_reward": reward}
        if own:
            self.reward = MEMORY * self.reward + (1 - MEMORY) * reward
        return {
            **own,
            "mixture/alpha": float(torch.cat([t.alpha for t in traces]).mean()),
            "mixture/kl_policy": float(torch.cat([t.kl_policy for t in traces]).mean()),
            "mixture/kl_target": float(torch.cat([t.kl_target for t in traces]).mean()),
            "mixture/ess": sample_size(batch, whole=ratio == "sequence"),
        }


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
        raise DataError(f"{where} has nothing; give every prompt a number in [0, 1]. Its columns: {there}")
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise DataError(f"{where} has {found!r}; expected a number in [0, 1], the policy's share")
    return float(found)


def check_alpha(recipe: Recipe, task: Task) -> None:
    """Refuse data that lacks the alpha of a training prompt, before a model is loaded.

    Raises:
        DataError: as of :func:`alpha_of`, for the first such prompt in the order of training.
    """
    mixture = getattr(recipe.rollout, "mixture", None)
    if mixture is not None and mixture.alpha.column is not None and isinstance(task, DataTask):
        for position in range(len(task)):
            alpha_of(task.train(position), mixture.alpha.column)


def policy_reward(batch: Batch) -> float:
    """The policy's own mean reward, estimated from samples of the mixture; nan where none has a reward.

        mean over prompts of  Σ wᵢ·Rᵢ / Σ wᵢ,   wᵢ = policy/q of the whole completion

    Self-normalised, prompt by prompt: it lies between the rewards that were seen. On long completions a
    prompt's largest weight has nearly all of the sum, and the estimate is as noisy as a single sample of it.
    """
    scored = batch.reward.isfinite()
    log_ratio = torch.where(batch.mask, batch.own["logp"] - batch.streams["logp_gen"], 0.0).double().sum(1)
    shape = (int(batch.group.max()) + 1, -1)
    weight = log_ratio.masked_fill(~scored, -math.inf).view(shape).softmax(dim=1)
    earned = (weight * batch.reward.nan_to_num(0.0, 0.0, 0.0).view(shape)).sum(dim=1)
    return float(earned.nanmean())


def sample_size(batch: Batch, *, whole: bool) -> float:
    """Effective sample size (Σw)²/Σw² over the number of samples: of tokens, or of whole completions."""
    log_ratio = torch.where(batch.mask, batch.own["logp"] - batch.streams["logp_gen"], 0.0).double()
    log_weight = log_ratio.sum(dim=1) if whole else log_ratio[batch.mask]
    spread = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)
    return float(spread.exp()) / len(log_weight)
