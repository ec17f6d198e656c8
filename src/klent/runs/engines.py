"""The engines that a recipe's ``rollout`` section describes."""

from collections.abc import Callable, Sequence

from klent.config import DatasetRollout, TransformersRollout
from klent.control.mixing import alpha_at
from klent.models.load import LoadedModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine

Progress = Callable[[int, int], None]
RolloutSection = TransformersRollout | DatasetRollout


def build_engine(
    loaded: LoadedModel,
    rollout: RolloutSection,
    *,
    progress: Progress | None = None,
    target: Target | None = None,
    columns: Sequence[str] = ("completion",),
) -> Engine:
    """The engine that a recipe's ``rollout`` section describes.

    Args:
        loaded: the model.
        rollout: the section.
        progress: told of (completions done, completions asked for).
        target: where the section has a ``mixture``.
        columns: of the data, which ``engine: dataset`` replays.
    """
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
    loaded: LoadedModel, rollout: RolloutSection, *, progress: Progress | None = None
) -> Engine:
    """The engine of evaluation: it samples from the policy as training does, never from a mixture, and
    plainly where training replays a dataset.
    """
    return build_engine(loaded, rollout.for_evaluation(), progress=progress)
