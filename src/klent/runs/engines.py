"""The engines that a recipe's ``rollout`` section describes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from klent.config import Bellman, DatasetRollout, TransformersRollout, VllmRollout
from klent.control.mixing import alpha_at
from klent.models.chat import context_length
from klent.models.device import type_name
from klent.models.load import LoadedModel
from klent.rollout.copied_engine import CopiedEngine
from klent.rollout.dataset_engine import DatasetEngine
from klent.rollout.engine import Engine
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.play import PlayEngine
from klent.rollout.recordable import Decoding
from klent.rollout.target import Target
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.rollout.value_engine import ValueEngine
from klent.rollout.vllm_engine import VllmEngine
from klent.rollout.vllm_library import VllmLibrary
from klent.rollout.vllm_server import VllmServer
from klent.tasks.pool import EnvironmentPool

Progress = Callable[[int, int], None]
RolloutSection = TransformersRollout | VllmRollout | DatasetRollout


class Player(NamedTuple):
    """How values are played: tilting the model of the data, as a recipe's ``bellman`` says."""

    behaviour: LoadedModel
    settings: Bellman


class Opened(NamedTuple):
    """A model to sample from: a policy, or values with who plays them."""

    loaded: LoadedModel
    player: Player | None = None


class Work(TypedDict, total=False):
    """How an engine does its work, which changes nothing of what it says."""

    rows: int | None
    decoding: Decoding
    note: Callable[[str], None] | None
    progress: Progress | None


def plain_sampler(opened: Opened, options: SamplingOptions, **work: Unpack[Work]) -> TransformersEngine:
    """The engine that answers one turn: with the model's own distribution, or with its player's."""
    loaded, player = opened
    if player is None:
        return TransformersEngine(loaded, options, **work)
    return ValueEngine(
        loaded,
        player.behaviour,
        options,
        beta=player.settings.beta,
        form=player.settings.form,
        min_behaviour=player.settings.min_behaviour,
        **work,
    )


def build_engine(
    loaded: LoadedModel,
    rollout: RolloutSection,
    columns: Sequence[str] = ("completion",),
    *,
    progress: Progress | None = None,
    target: Target | None = None,
    environments: EnvironmentPool | None = None,
    player: Player | None = None,
    note: Callable[[str], None] | None = None,
) -> Engine:
    """The engine that a recipe's ``rollout`` section describes.

    Args:
        loaded: the model.
        rollout: the section.
        columns: of the data, which ``engine: dataset`` replays.
        progress: told of (completions done, completions asked for).
        target: where the section has a ``mixture``.
        environments: play what the engine answers; None = an answer is the whole episode.
        player: where ``loaded`` has values, and is not a policy itself.
        note: told what is decoded how, where that is not as usual.
    """
    if environments is not None:
        task, most = environments.section, rollout.max_tokens
        longest = task.turn_tokens or most
        one_turn = rollout.model_copy(update={"max_tokens": longest})
        turn = build_engine(loaded, one_turn, progress=progress, player=player, note=note)
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
    if rollout.engine == "vllm":
        return _vllm(loaded, rollout, options, progress)
    rows = None if rollout.rows == "auto" else rollout.rows
    if rollout.staleness:
        return CopiedEngine(loaded, options, rows=rows, note=note)
    work: Work = {"rows": rows, "decoding": rollout.decoding, "note": note, "progress": progress}
    settings = rollout.mixture
    if target is None or settings is None:
        return plain_sampler(Opened(loaded, player), options, **work)
    alpha = alpha_at(settings, 1, reward=0.0)
    return MixtureEngine(loaded, target, options, alpha=alpha, value=settings.alpha.value, **work)


def _vllm(
    loaded: LoadedModel, rollout: VllmRollout, options: SamplingOptions, progress: Progress | None
) -> VllmEngine:
    """vLLM with a copy of the model, as its folder has it; the first sync brings the trainer's weights."""
    adapted = hasattr(loaded.model, "peft_config")  # merged for vllm, which bfloat16 would round away
    own = "float32" if adapted else type_name(loaded.model.dtype)
    dtype = own if rollout.dtype == "auto" else rollout.dtype
    if rollout.server is not None:
        server = VllmServer(rollout.server, Path(rollout.server_folder) if rollout.server_folder else None)
        return VllmEngine(loaded, options, server, dtype=dtype, progress=progress)
    longest = context_length(loaded.model)
    library = VllmLibrary(loaded.source, dtype=dtype, longest=longest, cache_gb=rollout.cache_gb)
    return VllmEngine(loaded, options, library, dtype=dtype, progress=progress)


def build_sampler(
    loaded: LoadedModel,
    rollout: RolloutSection,
    *,
    progress: Progress | None = None,
    environments: EnvironmentPool | None = None,
    player: Player | None = None,
) -> Engine:
    """The engine of evaluation: it samples from the policy as training does, never from a mixture, and
    plainly where training replays a dataset; where that taught values, it is their player.
    """
    sampled = rollout.for_evaluation()
    return build_engine(loaded, sampled, progress=progress, environments=environments, player=player)


def turn_engine(engine: Engine) -> Engine:
    """The engine that answers a turn."""
    return engine.engine if isinstance(engine, PlayEngine) else engine
