"""Training on a mixture: its target, alpha as the run goes, importance weights, and a step's numbers."""

from collections.abc import Callable

import torch

from klent.config import Mixture, Recipe
from klent.errors import ModelError
from klent.mixture.criteria import Criterion
from klent.models import LoadedModel, load_policy
from klent.objectives import importance_weight
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.training.batch import Batch


def build_target(
    mixture: Mixture,
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
    """

    def __init__(self, settings: Mixture, engine: MixtureEngine) -> None:
        self.settings = settings
        self.engine = engine

    def apply(self, step: int) -> None:
        """Alpha of a step, from 1: a function of the step alone, so that a resumed run needs no memory."""
        self.engine.alpha = alpha_at(self.settings, step)

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
        """``mixture/...``: means over tokens, and the effective sample size of the weights before bounds."""
        traces = [r.mixture for r in batch.rollouts if r.mixture is not None]
        ratio = self.settings.weights.ratio if self.settings.weights else "token"
        return {
            "mixture/alpha": float(torch.cat([t.alpha for t in traces]).mean()),
            "mixture/kl_policy": float(torch.cat([t.kl_policy for t in traces]).mean()),
            "mixture/kl_target": float(torch.cat([t.kl_target for t in traces]).mean()),
            "mixture/ess": sample_size(batch, whole=ratio == "sequence"),
        }


def alpha_at(mixture: Mixture, step: int) -> float | Criterion:
    """The policy's share in training step ``step`` (from 1), or the criterion that decides it.

    >>> from klent.config.mixture import Alpha
    >>> ramp = Mixture(alpha=Alpha(start=0.2, end=1.0, steps=3))
    >>> [round(alpha_at(ramp, step), 2) for step in (1, 2, 3, 9)]
    [0.2, 0.6, 1.0, 1.0]
    """
    alpha = mixture.alpha
    if alpha.criterion is not None:
        return alpha.criterion
    if alpha.fixed is not None:
        return alpha.fixed
    assert alpha.start is not None
    assert alpha.end is not None
    assert alpha.steps is not None
    done = min((step - 1) / max(alpha.steps - 1, 1), 1.0)
    return alpha.start + done * (alpha.end - alpha.start)


def sample_size(batch: Batch, *, whole: bool) -> float:
    """Effective sample size (Σw)²/Σw² over the number of samples: of tokens, or of whole completions."""
    log_ratio = torch.where(batch.mask, batch.own["logp"] - batch.streams["logp_gen"], 0.0).double()
    log_weight = log_ratio.sum(dim=1) if whole else log_ratio[batch.mask]
    spread = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)
    return float(spread.exp()) / len(log_weight)
