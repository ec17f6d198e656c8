"""A recipe's moving parts, built once: model, engine, reference, objective, updater, organs, and their loop.

Here and in klent.config a whole recipe is known; every part takes the sections that it reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import cast

from torch import Tensor

from klent.config import Recipe, dump_recipe
from klent.config.preference_checks import kl_terms
from klent.control.adaptive_kl import AdaptiveKL
from klent.control.keeper import Keeper
from klent.control.limits import Guard
from klent.control.mismatch import MismatchWeights
from klent.control.mixing import Mixer
from klent.control.organ import Organ
from klent.control.pairing import BestWorst
from klent.control.shared_trunk import SharedTrunk
from klent.control.thermostat import build_thermostat
from klent.control.witness import Witness
from klent.measure.calibration import calibration
from klent.measure.preferences import evaluate_pairs
from klent.measure.roofline import Floor
from klent.models.adapter import adapters_off
from klent.models.exact import close
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import read_alone
from klent.policies.policy import Policy
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.source import TaskSource
from klent.rollout.transformers_engine import TransformersEngine
from klent.runs.console import TrainConsole
from klent.runs.critics import build_critic
from klent.runs.engines import Progress, build_engine, build_sampler, turn_engine
from klent.runs.evaluation import EvalRow, Evaluations, Exam
from klent.runs.exams import build_exams
from klent.runs.folder import RunFolder
from klent.runs.loop import Loop
from klent.runs.objective import build_objective
from klent.runs.packing import choose_packing
from klent.runs.recorder import Recorder
from klent.runs.references import build_compared
from klent.runs.reward_models import build_reward_model, centre_and_save, load_scoring
from klent.runs.state import RunState
from klent.runs.targets import build_player, build_target, load_reference
from klent.runs.teachers import build_teachers, distance_teacher
from klent.runs.trackers import Trackers
from klent.runs.updaters import build_updater
from klent.runs.values import add_second_head, build_values, prepare_head
from klent.streams.batch import Batch
from klent.streams.prompt import Prompt
from klent.tasks import Task
from klent.tasks.pool import EnvironmentPool
from klent.tasks.returns import Judge
from klent.training.objective import Objective
from klent.training.reference import Reference
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
        reference: what the policy is compared with; None where it is not, or not loaded yet.
        compared: what gives the reference's log-probabilities; None where no term reads them.
        organs: thermostat, mixture, weights of the mismatch and the kept policy, where the recipe has them.
        alone: log-probabilities of a row's tokens, read without other rows; None of a policy that has none.
        save: writes the model as a folder, given the task.
        compare: measures held-out pairs after so many steps; None where completions are sampled and scored.
    """

    loaded: LoadedModel
    engine: Engine
    sampler: Engine
    policy: Policy
    updater: Updater
    reference: CausalPolicy | None
    compared: Reference | None
    organs: list[Organ]
    alone: Callable[[Batch, int], Tensor] | None
    save: Callable[[Task, Path], None]
    compare: Callable[[Sequence[Prompt], int], EvalRow] | None = None

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self.updater.objective


def build_parts(
    recipe: Recipe,
    *,
    progress: Progress,
    note: Note,
    environments: EnvironmentPool | None = None,
    played: EnvironmentPool | None = None,
) -> Parts:
    """Load the model and build everything that a step needs of it.

    Args:
        recipe: what to build.
        progress: told of (completions done, completions asked for) during a rollout.
        note: told in words of anything that a user should know, such as a model that cannot share prompts.
        environments: what the task's prompts are the openings of; None where they are answered once.
        played: the same of the held-out problems that are answered.
    """
    if recipe.policy.scores:
        return _build_scoring_parts(recipe, note)
    return _build(recipe, progress, note, environments, played)


def _build(
    recipe: Recipe,
    progress: Progress,
    note: Note,
    environments: EnvironmentPool | None,
    played: EnvironmentPool | None,
) -> Parts:
    """The parts of a run that trains a model that writes."""
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
    prepare_head(objective, loaded, note)
    policy = CausalPolicy(loaded.model, temperature=rollout.temperature)
    _tell(policy, eager=loaded.attention == "eager" and recipe.attention == "auto", note=note)

    @cache
    def initial() -> LoadedModel:
        """The reference model, loaded once for all that ask for it."""
        return load_reference(recipe, loaded)

    target = build_target(rollout.mixture, recipe, loaded, initial) if rollout.mixture else None
    engine = build_engine(
        loaded, rollout, recipe.task.completions, progress=progress, target=target, environments=environments
    )
    if recipe.critic is not None:
        policy.critic = build_critic(recipe.critic, recipe, policy, loaded, note)
        add_second_head(objective, policy.critic, loaded.rows, recipe.seed)
    updater = build_updater(recipe, policy, objective, filler=loaded.tokenizer.pad_token_id)
    needs = updater.needs
    policy.packing = choose_packing(recipe.update, rollout, recipe.model, policy, note)
    reference, compared = build_compared(
        name=recipe.reference or recipe.model,
        loaded=loaded,
        replayed=recipe.task.paired,
        build=lambda: _build_reference(recipe, loaded, initial, policy.packing),
        measure=updater.measure,
        wanted=(needs.reference, "kl" in needs.also or _reads_behaviour(recipe)),
        note=note,
    )
    policies = [policy] if reference is None else [policy, reference]
    policy.teachers = build_teachers(rollout, recipe.update.kl, policy, loaded, target, reference, needs.also)
    return Parts(
        loaded=loaded,
        engine=engine,
        sampler=_build_sampler(recipe, loaded, initial, progress, played),
        policy=policy,
        updater=updater,
        reference=reference,
        compared=compared,
        organs=[
            *_build_organs(recipe, objective, turn_engine(engine), policies),
            *_build_keeper(recipe, policy),
        ],
        alone=partial(read_alone, policy),
        save=lambda task, folder: save_model(loaded.model, loaded.tokenizer, folder),
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
    return build_sampler(loaded, recipe.rollout, progress=progress, environments=played, player=player)


def _build_scoring_parts(recipe: Recipe, note: Note) -> Parts:
    """The parts of a run that trains a reward model: it replays pairs, and samples nothing."""
    loaded = load_scoring(recipe)
    policy = build_reward_model(recipe, loaded, note)
    columns = recipe.task.completions
    engine = DatasetEngine(loaded, max_tokens=recipe.rollout.max_tokens, columns=columns, margins=True)
    filler = loaded.tokenizer.pad_token_id
    return Parts(
        loaded=loaded,
        engine=engine,
        sampler=engine,
        policy=policy,
        updater=build_updater(recipe, policy, build_objective(recipe), filler=filler),
        reference=None,
        compared=None,
        organs=[],
        alone=None,
        save=lambda task, folder: centre_and_save(policy, loaded, engine, recipe, task, folder),
        compare=lambda prompts, step: evaluate_pairs(
            engine, policy.scores, prompts, step=step, more=calibration
        ),
    )


def _reads_behaviour(recipe: Recipe) -> bool:
    """Whether values are held against the model of the data."""
    return recipe.bellman is not None and recipe.bellman.target == "bellman"


def _tell(policy: CausalPolicy, *, eager: bool, note: Note) -> None:
    """What is slower than it could be, and why."""
    if not policy.fused:
        note(
            "the model does more to its logits than one matrix product: its own head is used, on full logits"
        )
    if eager:
        note("the model's attention is more than SDPA computes: eager attention is used (exact, slower)")


def build_loop(
    recipe: Recipe,
    parts: Parts,
    folder: RunFolder,
    task: Task,
    examined: Task,
    scorer: Judge | None,
    judge: Judge | None,
    console: TrainConsole,
    *,
    evaluate: bool = True,
) -> Loop:
    """The loop over a recipe's parts.

    Args:
        recipe: what to run.
        parts: as of :func:`build_parts`.
        folder: the run's.
        task: gives the problems.
        examined: gives the held-out problems that are answered.
        scorer: rewards completions.
        judge: tells right from wrong on held-out problems; None = none is answered.
        console: shows the run.
        evaluate: False = nothing held out is measured.
    """
    rollout = recipe.rollout

    def checkpoints() -> list[str]:
        return sorted(path.name for path in folder.checkpoints.glob("[0-9]*"))

    trackers = Trackers(recipe.track, folder.path, title=recipe.name, recipe=dump_recipe(recipe))
    agree = partial(close, dtype=parts.loaded.model.dtype)
    organs = [*parts.organs, Guard(recipe.limits, folder.path, checkpoints, console.warn)]
    if parts.alone is not None:
        organs.append(Witness(parts.updater.measure, parts.alone, agree, console.warn))
    if recipe.bellman is not None:
        behaviour = parts.reference if _reads_behaviour(recipe) else None
        organs.append(build_values(recipe.bellman, cast(CausalPolicy, parts.policy), behaviour, task))
    exams = []
    if evaluate:
        measured = (parts.loaded, parts.engine, parts.sampler, parts.updater, parts.compared)
        exams = build_exams(
            recipe,
            *measured,
            task=task,
            examined=examined,
            judge=judge,
            note=console.warn,
            compare=parts.compare,
        )
    evaluations = _build_evaluations(recipe, parts, folder, task, exams, console)
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
        reference=parts.compared,
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
    exams: Sequence[Exam],
    console: TrainConsole,
) -> Evaluations:
    settings = recipe.eval
    return Evaluations(
        folder,
        exams,
        every=settings.every if settings else 0,
        early_stop=settings.early_stop if settings else None,
        keep_best=lambda: parts.save(task, folder.best),
        show=console.eval,
    )


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
    if recipe.rollout.pairs is not None:
        organs.append(BestWorst())
    if recipe.adaptive_kl is not None:
        (path,) = kl_terms(recipe)
        terms = [term for term in (*objective.terms, *objective.token_rewards) if term.name == path[-1]]
        organs.append(AdaptiveKL(recipe.adaptive_kl, terms, float(terms[0].settings["coef"])))
    critic = policies[0].critic
    if critic is not None and critic.trunk is None:
        organs.append(SharedTrunk(critic.shares))
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
