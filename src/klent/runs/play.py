"""Episodes of a trained model, or of the player of its values, as a log: many are decoded side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from klent.config import EnvironmentSettings, Recipe, TransformersRollout
from klent.environments.environment import Observation
from klent.environments.episode_log import Played, Turn
from klent.errors import RunError
from klent.kit.seeds import derive_seed
from klent.models.load import load_policy
from klent.rollout.engine import Engine
from klent.runs.engines import Opened, build_sampler
from klent.runs.targets import open_model
from klent.streams.prompt import Prompt
from klent.tasks.pool import Start
from klent.tasks.recording import RecordingPool
from klent.tasks.rows import with_system

TOGETHER = 64  # episodes that are played side by side
TURN_TOKENS, MAX_TURNS = 64, 100  # of a model that no run tells of

Table = tuple[Opened, TransformersRollout, EnvironmentSettings]
"""Who plays, how it is sampled, and the game with its limits."""


def set_table(
    model: str,
    recipe: Recipe | None,
    game: tuple[str, Mapping[str, object]],
    limits: tuple[int | None, int | None],
) -> Table:
    """Load who plays, and say how: as the run that trained it is evaluated, where there is one.

    Args:
        model: alias, folder or hub id.
        recipe: of the run that trained it; None = no run did.
        game: its name and settings.
        limits: longest turn in tokens, and most turns; None = those of the recipe's own game, or the defaults here.

    Raises:
        ModelError: a model cannot be loaded.
    """
    opened = Opened(load_policy(model, device="auto")) if recipe is None else open_model(model, recipe)
    rollout = TransformersRollout() if recipe is None else recipe.text_rollout.for_evaluation()
    known = None if recipe is None else recipe.game
    most = rollout.max_tokens if known else TURN_TOKENS
    turn_tokens = limits[0] or (known and known.turn_tokens) or most
    max_turns = limits[1] or (known.max_turns if known else MAX_TURNS)
    name, config = game
    section = (known or EnvironmentSettings(env=name)).model_copy(
        update={"env": name, "config": dict(config), "turn_tokens": turn_tokens, "max_turns": max_turns}
    )
    rollout = rollout.model_copy(update={"max_tokens": turn_tokens * max_turns})
    return opened, rollout, section


@dataclass
class PlayedTogether:
    """Episodes that were played side by side.

    Attributes:
        episodes: those that can be recorded, in the order of their seeds.
        cut: how many of them did not end by themselves.
        problems: why others could not be played to an end.
        read: tokens that were read: openings, and what was said between turns.
        written: tokens that were written.
    """

    episodes: list[Played] = field(default_factory=list)
    cut: int = 0
    problems: list[str] = field(default_factory=list)
    read: int = 0
    written: int = 0


def play_model(
    opened: Opened,
    rollout: TransformersRollout,
    section: EnvironmentSettings,
    starts: Sequence[int],
    *,
    seed: int,
) -> Iterator[PlayedTogether]:
    """Play an episode from each start; what is played is yielded as it is finished.

    Args:
        opened: who plays.
        rollout: how it is sampled; its ``max_tokens`` are of all turns together.
        section: the game, in processes of its own; its longest turn and most turns.
        starts: the seeds that episodes are reset with, their rows being empty.
        seed: of the sampling: the same seed and starts, the same episodes.

    Raises:
        RunError: no episode could be begun.
        TooLong: an opening does not fit the model's context.
    """
    pool = RecordingPool(section)
    engine = build_sampler(opened.loaded, rollout, environments=pool, player=opened.player)
    try:
        for first in range(0, len(starts), TOGETHER):
            prompts, problems = _openings(pool, starts[first : first + TOGETHER])
            if not prompts:
                raise RunError(f"{pool.name} could not be started: {problems[0]}")
            together = _played(engine, pool, prompts, derive_seed(seed, "sampling", first))
            together.problems += problems
            yield together
    finally:
        pool.close()


def _openings(pool: RecordingPool, starts: Sequence[int]) -> tuple[list[Prompt], list[str]]:
    """The openings of these starts, and what is wrong with those that have none."""
    prompts: list[Prompt] = []
    problems = []
    for start in starts:
        id = f"{pool.section.env}/{start}"
        answer = pool.open(id, Start({}, start))
        if answer.problem:
            problems.append(answer.problem)
            continue
        said = with_system(answer.observation, pool.section.system)
        columns: dict[str, object] = {"start": {"row": {}, "seed": start}, "opening": answer.observation}
        template = {**pool.section.rendering, **answer.template}
        prompts.append(Prompt(id, said, columns, template=template))
    return prompts, problems


def _played(engine: Engine, pool: RecordingPool, prompts: Sequence[Prompt], seed: int) -> PlayedTogether:
    for prompt in prompts:
        engine.check(prompt)
    together = PlayedTogether()
    for number, episode in enumerate(engine.generate(prompts, group_size=1, seed=seed)):
        together.read += episode.prefill
        together.written += int(episode.acted.sum())
        if episode.problem:
            together.problems.append(episode.problem)
            continue
        together.cut += episode.finish == "length"
        columns = prompts[number].columns
        heard = pool.turns[number]
        turns = [
            Turn(observation=cast(Observation, observation), action=turn.action, reward=turn.answer.reward)
            for observation, turn in zip(pool.observed(number, columns["opening"]), heard, strict=True)
        ]
        earned = sum(turn["reward"] for turn in turns)
        together.episodes.append(
            {"start": {}, "seed": columns["start"]["seed"], "turns": turns, "return": earned}
        )
    return together
