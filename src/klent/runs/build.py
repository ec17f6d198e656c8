"""A recipe's moving parts, built once: model, engine, reference, objective, updater."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from klent.config import DatasetRollout, Mixture, Recipe, TransformersRollout
from klent.control.mixing import Mixer, alpha_at, build_target
from klent.control.schedule import learning_rate
from klent.control.thermostat import Controller, knob
from klent.errors import RunError
from klent.models.load import LoadedModel, load_policy
from klent.policies.causal_lm.distill import Distiller
from klent.policies.causal_lm.policy import Policy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.reference import Reference, adapter_free, separate_model
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.training.objective import Objective
from klent.training.update import Updater

Progress = Callable[[int, int], None]


@dataclass
class Parts:
    """What a training step is made of."""

    loaded: LoadedModel
    engine: Engine
    sampler: Engine
    objective: Objective
    updater: Updater
    reference: Reference | None
    thermostat: Controller | None
    mixer: Mixer | None
    trainable: dict[str, torch.nn.Parameter]


def build_parts(recipe: Recipe, *, progress: Progress, note: Callable[[str], None]) -> Parts:
    """Load the model and build everything around it.

    Args:
        recipe: what to build.
        progress: told of (completions done, completions asked for) during a rollout.
        note: told in words of anything that a user should know, such as a model that cannot share prompts.
    """
    loaded = load_policy(
        recipe.model,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        lora=recipe.lora.model_dump() if recipe.lora else None,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        seed=recipe.seed,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded.model.to(device)
    rollout = recipe.rollout
    temperature = rollout.temperature if isinstance(rollout, TransformersRollout) else 1.0
    policy = Policy(loaded.model, temperature=temperature)
    if not policy.fused:
        note(
            "the model does more to its logits than one matrix product: its own head is used, on full logits"
        )
    objective = Objective(with_bonus(recipe), recipe.advantage, recipe.token_reward, recipe.select)
    trainable = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}

    @cache
    def initial() -> LoadedModel:
        """The reference model, loaded once for all that ask for it."""
        name = recipe.reference or recipe.model
        other = load_policy(name, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
        other.model.to(loaded.model.device)
        return other

    mixture = rollout.mixture if isinstance(rollout, TransformersRollout) else None
    target = None
    if mixture is not None:
        target = build_target(mixture, recipe, loaded, initial, temperature=temperature)
    engine = build_engine(loaded, rollout, progress=progress, target=target)
    reference = _build_reference(recipe, loaded, objective, temperature, initial)
    distiller = _build_distiller(mixture, target, policy, loaded, longest=rollout.max_tokens)
    policies = [policy, reference.policy] if reference else [policy]
    return Parts(
        loaded=loaded,
        engine=engine,
        sampler=build_sampler(loaded, rollout, progress=progress),
        objective=objective,
        updater=_build_updater(
            recipe, policy, objective, trainable, shared=_shared(recipe, policy, note), distiller=distiller
        ),
        reference=reference,
        thermostat=_build_thermostat(recipe, objective, engine, policies),
        mixer=Mixer(mixture, engine) if mixture and isinstance(engine, MixtureEngine) else None,
        trainable=trainable,
    )


def build_engine(
    loaded: LoadedModel,
    rollout: TransformersRollout | DatasetRollout,
    *,
    progress: Progress | None = None,
    target: Target | None = None,
) -> Engine:
    """The engine that a recipe's ``rollout`` section describes; ``target`` where it has a ``mixture``."""
    if isinstance(rollout, DatasetRollout):
        return DatasetEngine(loaded, max_tokens=rollout.max_tokens)
    options = SamplingOptions(
        max_tokens=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=rollout.stop,
    )
    if target is None or rollout.mixture is None:
        return TransformersEngine(loaded, options, progress=progress)
    settings = rollout.mixture
    alpha = alpha_at(settings, 1, reward=0.0)
    return MixtureEngine(loaded, target, options, alpha=alpha, value=settings.alpha.value, progress=progress)


def build_sampler(
    loaded: LoadedModel, rollout: TransformersRollout | DatasetRollout, *, progress: Progress | None = None
) -> Engine:
    """The engine of evaluation: it samples from the policy as training does, never from a mixture, and
    plainly where training replays a dataset.
    """
    if isinstance(rollout, DatasetRollout):
        rollout = TransformersRollout(max_tokens=rollout.max_tokens)
    return build_engine(loaded, rollout, progress=progress)


def _shared(recipe: Recipe, policy: Policy, note: Callable[[str], None]) -> bool:
    if recipe.update.packing == "off":
        return False
    # The window check needs a length; the context is the safe answer where prompts are not known yet.
    window = getattr(policy.model.config.get_text_config(), "sliding_window", None)
    longest = recipe.rollout.max_tokens if window is None else recipe.rollout.max_tokens + window
    if takes_shared_prompt(policy, longest=longest):
        return True
    if recipe.update.packing == "on":
        raise RunError(
            f"update.packing=on, but {recipe.model} does not give the same log-probabilities when a group "
            "shares its prompt in one row: its attention refuses such a mask. Use update.packing=auto or off."
        )
    note("the model's attention refuses a shared prompt: each completion gets its own row (exact, slower)")
    return False


def _build_updater(
    recipe: Recipe,
    policy: Policy,
    objective: Objective,
    trainable: dict[str, torch.nn.Parameter],
    *,
    shared: bool,
    distiller: Distiller | None,
) -> Updater:
    update, options = recipe.update, recipe.optimizer
    matrices = [p for p in trainable.values() if p.ndim >= 2]
    vectors = [p for p in trainable.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    per_step = update.epochs * update.minibatches
    return Updater(
        policy,
        optimizer,
        objective,
        learning_rate=partial(
            learning_rate,
            peak=options.lr,
            warmup=options.warmup_steps * per_step,
            total=recipe.steps * per_step,
            schedule=options.schedule,
        ),
        reduce={
            "over": recipe.reduce.over,
            "denominator": recipe.reduce.denominator or recipe.rollout.max_tokens,
            "count": recipe.reduce.count,
        },
        epochs=update.epochs,
        minibatches=update.minibatches,
        tokens_per_microbatch=update.tokens_per_microbatch,
        shared=shared,
        max_grad_norm=options.max_grad_norm or float("inf"),
        distiller=distiller,
    )


def _build_distiller(
    mixture: Mixture | None, target: Target | None, policy: Policy, loaded: LoadedModel, *, longest: int
) -> Distiller | None:
    if mixture is None or mixture.distill is None or target is None:
        return None
    if not policy.fused:
        raise RunError("rollout.mixture.distill: the policy does more to its logits than a head; remove it")
    return Distiller(mixture.distill, target, loaded, longest=longest)


def with_bonus(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The loss, and the entropy term that a thermostat steers where it steers one."""
    if recipe.thermostat is None or recipe.thermostat.steer != "bonus":
        return recipe.loss
    return {**recipe.loss, "entropy_loss": {"coef": 0.0}}


def _build_thermostat(
    recipe: Recipe, objective: Objective, engine: Engine, policies: Sequence[Policy]
) -> Controller | None:
    if recipe.thermostat is None:
        return None

    def set_temperature(value: float) -> None:
        """Sampled and trained at one temperature: log-probs stay those of the sampled distribution."""
        assert isinstance(engine, TransformersEngine)
        engine.options = replace(engine.options, temperature=value)
        for policy in policies:
            policy.temperature = value

    return Controller(recipe.thermostat, knob(recipe.thermostat, objective, set_temperature))


def _build_reference(
    recipe: Recipe,
    loaded: LoadedModel,
    objective: Objective,
    temperature: float,
    initial: Callable[[], LoadedModel],
) -> Reference | None:
    if not objective.takes("logp_ref"):
        return None
    if recipe.lora is not None and recipe.reference is None:
        return adapter_free(loaded.model, temperature)
    return separate_model(initial().model, temperature)
