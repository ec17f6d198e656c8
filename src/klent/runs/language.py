"""A causal language model's parts: model, engine, reference, updater, organs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from klent.config import Recipe
from klent.config.preference_checks import kl_terms
from klent.control.adaptive_kl import AdaptiveKL
from klent.control.keeper import Keeper
from klent.control.mismatch import MismatchWeights
from klent.control.mixing import Mixer
from klent.control.organ import Organ
from klent.control.pairing import BestWorst
from klent.control.shared_trunk import SharedTrunk
from klent.control.thermostat import build_thermostat
from klent.models.adapter import adapters_off
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import read_alone
from klent.policies.causal_lm.sharded import Gathered, plain_weights, shard
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.transformers_engine import TransformersEngine
from klent.runs.critics import build_critic
from klent.runs.device import placement
from klent.runs.engines import Progress, build_engine, build_sampler, turn_engine
from klent.runs.objective import build_objective
from klent.runs.packing import choose_packing, kept_logits
from klent.runs.parts import Around, Gathering, Note, Parts
from klent.runs.references import build_compared
from klent.runs.targets import build_player, build_target, load_reference
from klent.runs.teachers import build_teachers, distance_teacher
from klent.runs.updaters import build_updater, is_sharded
from klent.runs.values import add_second_head, build_values, prepare_head
from klent.streams.batch import Batch
from klent.tasks import Task
from klent.tasks.pool import EnvironmentPool
from klent.training.objective import Objective


def build_language_parts(recipe: Recipe, around: Around) -> Parts:
    """The parts of a run that trains a model that writes."""
    progress, note, environments, played, _ = around
    loaded = _load(recipe)
    rollout = recipe.text_rollout
    objective = build_objective(recipe)
    prepare_head(objective, loaded, note)
    policy = CausalPolicy(loaded.model, temperature=rollout.temperature)
    _tell(policy, eager=loaded.attention == "eager" and recipe.attention == "auto", note=note)

    @cache
    def initial() -> LoadedModel:
        """The reference model, loaded once for all that ask for it."""
        return load_reference(recipe, loaded)

    target = build_target(rollout.mixture, recipe, loaded, initial) if rollout.mixture else None
    engine = build_engine(
        loaded,
        rollout,
        recipe.task.completions,
        progress=progress,
        target=target,
        environments=environments,
        note=note,
    )
    if recipe.critic is not None:
        policy.critic = build_critic(recipe.critic, recipe, policy, loaded, note)
        add_second_head(objective, policy.critic, loaded.rows, recipe.seed)
    policy.packing = choose_packing(recipe.update, rollout, recipe.model, policy, note)
    policy.keep_bytes = kept_logits(recipe.update, loaded.model.device)
    gathered = shard(policy, around.world.size) if is_sharded(recipe, around.world) else None
    updater = build_updater(recipe, policy, objective, around.world, filler=loaded.tokenizer.pad_token_id)
    needs = updater.needs
    learnt = recipe.bellman
    of_data = learnt is not None and learnt.target == "bellman"  # held against the model of the data
    reference, compared = build_compared(
        name=recipe.reference or recipe.model,
        loaded=loaded,
        replayed=recipe.task.paired,
        build=lambda: _build_reference(recipe, loaded, initial, policy.packing),
        measure=updater.measure,
        wanted=(needs.reference, "kl" in needs.also or of_data),
        note=note,
    )
    policy.teachers = build_teachers(rollout, recipe.update.kl, policy, loaded, target, reference, needs.also)
    values = partial(build_values, learnt, policy, reference if of_data else None) if learnt else None
    return Parts(
        loaded=loaded,
        model=loaded.model,
        decoder=loaded.tokenizer,
        engine=engine,
        sampler=_build_sampler(recipe, loaded, initial, progress, played),
        policy=policy,
        updater=updater,
        reference=reference,
        compared=compared,
        organs=_build_organs(recipe, objective, turn_engine(engine), policy, reference),
        alone=partial(_read_alone, policy, gathered or nullcontext),
        values=values,
        save=partial(_save, loaded, gathered),
        gathered=gathered or nullcontext,
    )


def _read_alone(policy: CausalPolicy, gathered: Gathering, batch: Batch, row: int) -> Tensor:
    with gathered():
        return read_alone(policy, batch, row)


def _save(loaded: LoadedModel, gathered: Gathered | None, task: Task, folder: Path) -> None:
    weights = None if gathered is None else plain_weights(loaded.model)
    save_model(loaded.model, loaded.tokenizer, folder, weights=weights)


def _load(recipe: Recipe) -> LoadedModel:
    """The model that is trained, on the run's device."""
    return load_policy(
        recipe.model,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        lora=recipe.lora,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        seed=recipe.seed,
        **placement(recipe.device, recipe.precision),
    )


def _build_sampler(
    recipe: Recipe,
    loaded: LoadedModel,
    initial: Callable[[], LoadedModel],
    progress: Progress,
    played: EnvironmentPool | None,
) -> Engine:
    """What answers held-out problems: the policy, or where values are learnt their player."""
    player = build_player(recipe, loaded, initial) if recipe.judged else None
    return build_sampler(loaded, recipe.text_rollout, progress=progress, environments=played, player=player)


def _tell(policy: CausalPolicy, *, eager: bool, note: Note) -> None:
    """What is slower than it could be, and why."""
    if not policy.fused:
        note(
            "the model's logits are not one matrix product: its own head is used, with full logits (exact, slower)"
        )
    if eager:
        note("SDPA does not compute this model's attention: eager attention is used (exact, slower)")


def _build_organs(
    recipe: Recipe, objective: Objective, engine: Engine, policy: CausalPolicy, reference: CausalPolicy | None
) -> list[Organ]:
    organs: list[Organ] = []
    policies = [policy] if reference is None else [policy, reference]
    if recipe.thermostat is not None:

        def set_temperature(value: float) -> None:
            """Sampled and trained at one temperature: log-probs stay those of the sampled distribution."""
            if isinstance(engine, TransformersEngine):
                engine.options = replace(engine.options, temperature=value)
            for policy in policies:
                policy.temperature = value

        organs.append(build_thermostat(recipe.thermostat, objective, set_temperature))
    if recipe.rollout.mixture is not None and isinstance(engine, MixtureEngine):
        organs.append(Mixer(recipe.rollout.mixture, engine))
    if recipe.rollout.pairs is not None:
        organs.append(BestWorst())
    if recipe.adaptive_kl is not None:
        (path,) = kl_terms(recipe)
        terms = [term for term in (*objective.terms, *objective.token_rewards) if term.name == path[-1]]
        organs.append(AdaptiveKL(recipe.adaptive_kl, terms, float(terms[0].settings["coef"])))
    critic = policy.critic
    if critic is not None and critic.trunk is None:
        organs.append(SharedTrunk(critic.shares))
    if recipe.rollout.mismatch is not None:
        organs.append(MismatchWeights(recipe.rollout.mismatch))
    return [*organs, *_build_keeper(recipe, policy)]


def _build_keeper(recipe: Recipe, policy: CausalPolicy) -> list[Organ]:
    """What keeps the weights of the start of a step, where the policy is asked how far it is from them."""
    if recipe.update.distance is None:
        return []
    kept = KeptWeights(policy)
    policy.teachers["distance"] = distance_teacher(recipe.update.distance, policy, kept)
    return [Keeper(kept)]


def _build_reference(
    recipe: Recipe, loaded: LoadedModel, initial: Callable[[], LoadedModel], packing: Packing
) -> CausalPolicy:
    """The policy that is compared with and never trained; without a second model where adapters can be off."""
    temperature = recipe.rollout.temperature
    if recipe.lora is not None and recipe.reference is None:
        active = adapters_off(loaded.model)
        return CausalPolicy(loaded.model, temperature=temperature, active=active, packing=packing)
    model = initial().model
    model.requires_grad_(False)
    model.eval()
    return CausalPolicy(model, temperature=temperature, packing=packing)
