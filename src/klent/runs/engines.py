"""The engines that a recipe's ``rollout`` section describes."""

from collections.abc import Callable, Sequence

from klent.config import DatasetRollout, TransformersRollout
from klent.control.mixing import alpha_at
from klent.models.load import LoadedModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.play import PlayEngine
from klent.rollout.target import Target
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.tasks.pool import EnvironmentPool

Progress = Callable[[int, int], None]
RolloutSection = TransformersRollout | DatasetRollout


def build_engine(
    loaded: LoadedModel,
    rollout: RolloutSection,
    columns: Sequence[str] = ("completion",),
    *,
    progress: Progress | None = None,
    target: Target | None = None,
    environments: EnvironmentPool | None = None,
) -> Engine:
    """The engine that a recipe's ``rollout`` section describes.

    Args:
        loaded: the model.
        rollout: the section.
        columns: of the data, which ``engine: dataset`` replays.
        progress: told of (completions done, completions asked for).
        target: where the section has a ``mixture``.
        environments: play what the engine answers; None = an answer is the whole episode.
    """
    if environments is not None:
        task, most = environments.section, rollout.max_tokens
        longest = task.turn_tokens or most
        turn = build_engine(loaded, rollout.model_copy(update={"max_tokens": longest}), progress=progress)
        return PlayEngine(
            turn,
            environments,
            loaded,
            max_turns=task.max_turns,
            max_tokens=most,
            turn_tokens=longest,
        )
    if rollout.engine == "dataset":
        replay = TrajectoryEngine if "trajectory" in columns else DatasetEngine
        return replay(loaded, max_tokens=rollout.max_tokens, columns=columns)
    options = SamplingOptions(
        max_tokens=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=rollout.stop,
    )
    settings = rollout.mixture
    if target is None or settings is None:
        return TransformersEngine(loaded, options, progress=progress)
    alpha = alpha_at(settings, 1, reward=0.0)
    return MixtureEngine(loaded, target, options, alpha=alpha, value=settings.alpha.value, progress=progress)


def build_sampler(
    loaded: LoadedModel,
    rollout: RolloutSection,
    *,
    progress: Progress | None = None,
    environments: EnvironmentPool | None = None,
) -> Engine:
    """The engine of evaluation: it samples from the policy as training does, never from a mixture, and
    plainly where training replays a dataset.
    """
    return build_engine(loaded, rollout.for_evaluation(), progress=progress, environments=environments)


def turn_engine(engine: Engine) -> Engine:
    """The engine that answers a turn."""
    return engine.engine if isinstance(engine, PlayEngine) else engine
