"""A recipe's moving parts, built once: model, engine, reference, objective, updater, organs, and their loop.

Here and in klent.config a whole recipe is known; every part takes the sections that it reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from klent.config import MixtureSettings, Recipe, dump_recipe
from klent.control.keeper import Keeper
from klent.control.limits import Guard
from klent.control.mismatch import MismatchWeights
from klent.control.mixing import Mixer
from klent.control.organ import Organ
from klent.control.thermostat import build_thermostat
from klent.control.witness import Witness
from klent.errors import RunError
from klent.measure.evaluate import NO_PROBLEMS
from klent.measure.roofline import Floor
from klent.models.adapter import adapters_off, merge_adapter
from klent.models.exact import close
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import read_alone, takes_shared_prompt
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.source import TaskSource
from klent.rollout.target import Target
from klent.rollout.transformers_engine import TransformersEngine
from klent.runs.console import TrainConsole
from klent.runs.critics import build_critic
from klent.runs.engines import Progress, build_engine, build_sampler
from klent.runs.evaluate import evaluate_policy
from klent.runs.evaluation import EvalRow, Evaluations
from klent.runs.folder import RunFolder
from klent.runs.loop import Loop
from klent.runs.objective import build_objective
from klent.runs.recorder import Recorder
from klent.runs.state import RunState
from klent.runs.teachers import build_teachers, distance_teacher
from klent.runs.trackers import Trackers
from klent.runs.updaters import build_updater
from klent.runs.values import build_values, prepare_head
from klent.tasks import Scorer, Task
from klent.training.objective import Objective
from klent.training.update import Updater

Note = Callable[[str], None]


@dataclass
class Parts:
    """What a training step is made of.

    Attributes:
        loaded: the model, its tokenizer and stop tokens.
        engine: samples for training.
        sampler: samples for evaluation: from the policy alone.
        policy: what is trained.
        updater: trains it.
        reference: what the policy is compared with.
        organs: thermostat, mixture, weights of the mismatch and the kept policy, where the recipe has them.
    """

    loaded: LoadedModel
    engine: Engine
    sampler: Engine
    policy: CausalPolicy
    updater: Updater
    reference: CausalPolicy | None
    organs: list[Organ]

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self.updater.objective


def build_parts(recipe: Recipe, *, progress: Progress, note: Note) -> Parts:
    """Load the model and build everything that a step needs of it.

    Args:
        recipe: what to build.
        progress: told of (completions done, completions asked for) during a rollout.
        note: told in words of anything that a user should know, such as a model that cannot share prompts.
    """
    loaded = load_policy(
        recipe.model,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        lora=recipe.lora,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        seed=recipe.seed,
        device="auto",
    )
    rollout = recipe.rollout
    objective = build_objective(recipe)
    prepare_head(objective, loaded)
    policy = CausalPolicy(loaded.model, temperature=rollout.temperature)
    if not policy.fused:
        note(
            "the model does more to its logits than one matrix product: its own head is used, on full logits"
        )
    if loaded.attention == "eager" and recipe.attention == "auto":
        note("the model's attention is more than SDPA computes: eager attention is used (exact, slower)")

    @cache
    def initial() -> LoadedModel:
        """The reference model, loaded once for all that ask for it."""
        name = recipe.reference or recipe.model
        return load_policy(
            name,
            dtype=recipe.dtype,
            trust_remote_code=recipe.trust_remote_code,
            attention=recipe.attention,
            device=loaded.model.device,
        )

    target = build_target(rollout.mixture, recipe, loaded, initial) if rollout.mixture else None
    columns = recipe.task.completions
    engine = build_engine(loaded, rollout, progress=progress, target=target, columns=columns)
    if recipe.critic is not None:
        policy.critic = build_critic(recipe.critic, recipe, policy)
    updater = build_updater(recipe, policy, objective, filler=loaded.tokenizer.pad_token_id)
    needs = updater.needs
    reference = None
    of_data = recipe.bellman is not None and recipe.bellman.target == "bellman"
    if needs.reference or "kl" in needs.also or of_data:
        reference = _build_reference(recipe, loaded, initial)
    policy.packing = Packing(_shared(recipe, policy, note), recipe.update.tokens_per_microbatch)
    policies = [policy]
    if reference is not None:
        reference.packing = policy.packing
        policies.append(reference)
    policy.teachers = build_teachers(rollout, recipe.update.kl, policy, loaded, target, reference, needs.also)
    return Parts(
        loaded=loaded,
        engine=engine,
        sampler=build_sampler(loaded, rollout, progress=progress),
        policy=policy,
        updater=updater,
        reference=reference,
        organs=[*_build_organs(recipe, objective, engine, policies), *_build_keeper(recipe, policy)],
    )


def build_loop(
    recipe: Recipe,
    parts: Parts,
    folder: RunFolder,
    task: Task,
    scorer: Scorer | None,
    judge: Scorer | None,
    console: TrainConsole,
) -> Loop:
    """The loop over a recipe's parts.

    Args:
        recipe: what to run.
        parts: as of :func:`build_parts`.
        folder: the run's.
        task: gives the problems.
        scorer: rewards completions.
        judge: tells right from wrong on held-out problems; None = they are not measured.
        console: shows the run.
    """
    rollout = recipe.rollout

    def checkpoints() -> list[str]:
        return sorted(path.name for path in folder.checkpoints.glob("[0-9]*"))

    trackers = Trackers(recipe.track, folder.path, title=recipe.name, recipe=dump_recipe(recipe))
    agree = partial(close, dtype=parts.loaded.model.dtype)
    organs = [
        *parts.organs,
        Guard(recipe.limits, folder.path, checkpoints, console.warn),
        Witness(parts.updater.measure, partial(read_alone, parts.policy), agree, console.warn),
    ]
    if recipe.bellman is not None:
        behaviour = parts.reference if recipe.bellman.target == "bellman" else None
        organs.append(build_values(recipe.bellman, parts.policy, behaviour, task))
    evaluations = _build_evaluations(recipe, parts, folder, task, judge, console)
    return Loop(
        source=TaskSource(
            task,
            parts.engine,
            scorer if rollout.sampled else None,
            prompts_per_step=recipe.prompts_per_step,
            group_size=recipe.group_size,
            seed=recipe.seed,
        ),
        engine=parts.engine,
        updater=parts.updater,
        reference=parts.reference if parts.updater.needs.reference else None,
        organs=organs,
        evaluations=evaluations,
        recorder=Recorder(folder, parts.loaded.tokenizer, trackers, console),
        state=RunState(
            folder,
            parts.updater,
            [*organs, evaluations],
            keep=recipe.checkpoint.keep,
            on_damage=console.warn,
        ),
        console=console,
        floor=Floor.of(parts.loaded.model) if rollout.sampled else None,
        steps=recipe.steps,
        checkpoint_every=recipe.checkpoint.every,
        seed=recipe.seed,
    )


def _build_evaluations(
    recipe: Recipe,
    parts: Parts,
    folder: RunFolder,
    task: Task,
    judge: Scorer | None,
    console: TrainConsole,
) -> Evaluations:
    settings = recipe.eval
    prompts = task.heldout(settings.problems) if settings is not None and judge is not None else []
    if settings is not None and judge is not None and not prompts:
        console.warn(NO_PROBLEMS)

    def measure(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        assert settings is not None
        assert judge is not None
        return evaluate_policy(
            parts.loaded,
            recipe.rollout,
            settings,
            scorer=judge,
            prompts=prompts,
            seed=recipe.seed,
            step=step,
            start=votes,
            engine=parts.sampler,
        )

    return Evaluations(
        folder,
        measure if prompts else None,
        every=settings.every if settings else 0,
        early_stop=settings.early_stop if settings else None,
        keep_best=lambda: save_model(parts.loaded.model, parts.loaded.tokenizer, folder.best),
        show=console.eval,
    )


def build_target(
    mixture: MixtureSettings, recipe: Recipe, loaded: LoadedModel, initial: Callable[[], LoadedModel]
) -> Target:
    """The target that a recipe names.

    Args:
        mixture: the recipe's ``rollout.mixture``.
        recipe: what the policy is.
        loaded: the policy.
        initial: gives the reference model; loads it where nothing else has.
    """
    wanted = mixture.target
    temperature = wanted.temperature or recipe.rollout.temperature
    target = Target(loaded, prompt=wanted.prompt, system=wanted.system, temperature=temperature)
    if wanted.model == "policy":
        return target
    if wanted.model == "reference" and wanted.adapter is None:
        if recipe.lora is not None and recipe.reference is None:
            return replace(target, active=adapters_off(loaded.model))
        return replace(target, loaded=initial())
    name = (recipe.reference or recipe.model) if wanted.model == "reference" else wanted.model
    other = load_policy(
        name,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        device=loaded.model.device,
    )
    if wanted.adapter is not None:
        merged = merge_adapter(other.model, wanted.adapter, source=other.source)
        other = replace(other, model=merged)
    other.model.requires_grad_(False)
    return replace(target, loaded=other)


def _shared(recipe: Recipe, policy: CausalPolicy, note: Note) -> bool:
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


def _build_organs(
    recipe: Recipe, objective: Objective, engine: Engine, policies: Sequence[CausalPolicy]
) -> list[Organ]:
    organs: list[Organ] = []
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
    if recipe.rollout.mismatch is not None:
        organs.append(MismatchWeights(recipe.rollout.mismatch))
    return organs


def _build_keeper(recipe: Recipe, policy: CausalPolicy) -> list[Organ]:
    """What keeps the weights of the start of a step, where the policy is asked how far it is from them."""
    if recipe.update.distance is None:
        return []
    kept = KeptWeights(policy)
    policy.teachers["distance"] = distance_teacher(recipe.update.distance, policy, kept)
    return [Keeper(kept)]


def _build_reference(recipe: Recipe, loaded: LoadedModel, initial: Callable[[], LoadedModel]) -> CausalPolicy:
    """The policy that is compared with and never trained; without a second model where adapters can be off."""
    temperature = recipe.rollout.temperature
    if recipe.lora is not None and recipe.reference is None:
        return CausalPolicy(loaded.model, temperature=temperature, active=adapters_off(loaded.model))
    model = initial().model
    model.requires_grad_(False)
    model.eval()
    return CausalPolicy(model, temperature=temperature)
