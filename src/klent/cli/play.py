"""``klent play``: a game at the keyboard, or logs of scripted players and of trained models."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from klent.cli.common import (
    Behaviour,
    Beta,
    Debug,
    Runs,
    Yes,
    err,
    model_and_run,
    out,
    recipe_of_run,
    refuse_tilt,
    show,
)
from klent.errors import ConfigError, KlentError, RunError, first_line
from klent.kit.text import plural

if TYPE_CHECKING:
    from klent.config import Recipe
    from klent.environments import Environment
    from klent.environments.episode_log import Played, Turn
    from klent.environments.games.players import Player
    from klent.runs.play import PlayedTogether

HUMAN = "human"


def play(
    name: Annotated[
        str, typer.Argument(help="maze, wordle, guess_who, or path/to/file.py:Class.", show_default=False)
    ],
    policy: Annotated[
        str,
        typer.Option(
            help="Who plays: human, optimal, random, one good at one half (early, late), a run or a model folder."
        ),
    ] = HUMAN,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the game: turns=8; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the starts, and the dice of the player.")] = 0,
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 1,
    record: Annotated[
        Path | None, typer.Option(help="JSON Lines file to write, one episode a line.", show_default=False)
    ] = None,
    turn_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest turn of a model, in tokens; default: its run's, or 64.", show_default=False
        ),
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(min=1, help="Most turns of a model; default: its run's, or 100.", show_default=False),
    ] = None,
    beta: Beta = None,
    behaviour: Behaviour = None,
    yes: Yes = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Play a game, at the keyboard, by a scripted player or by a model, and record what happens.

    A line of the record has `start` and `seed`, which reproduce the start, `turns` with `observation`,
    `action` and `reward`, and `return`. The file is written at the end, whole; episodes that were finished
    before Ctrl-C are in it. A model plays many episodes side by side, from the same starts as a scripted player
    with this seed; of a run that learnt values (qsft, ilql) their player does.

    ```
    klent play maze
    klent play wordle --config words=32 --seed 7
    klent play maze --policy random --episodes 500 --record random.jsonl
    klent play maze --policy runs/values --beta 32 --episodes 500 --record values.jsonl
    klent play my_game.py:Nim
    ```
    """
    from klent.environments.episode_log import write_episodes
    from klent.kit.seeds import derive_seed

    if record is not None:
        _refuse(record)
    environment = _environment(name, config or [])
    starts = [
        derive_seed(seed, "play", number) >> 32 for number in range(episodes)
    ]  # 31 bits, as NumPy takes
    options = ModelOptions(turn_tokens, max_turns, beta, behaviour, yes)
    played: list[Played] = []
    if (model := _model(policy, runs)) is not None:
        game = (name, _settings(config or []))
        playing = _play_model(*model, game, environment, starts, seed, options, shown=record is None)
    else:
        options.refuse(policy)
        player = _player(policy, environment, name, derive_seed(seed, "player"))
        said = show if policy == HUMAN or record is None else None
        playing = ([_episode(environment, player, name, start, said, policy)] for start in starts)
    try:
        for some in playing:
            played += some
    finally:
        if record is not None and played:
            write_episodes(record, played)
            out.print(f"wrote {record}: {_count(len(played))}", soft_wrap=True)
    if not played:
        raise RunError(f"no episode of {name} was played to its end: each failed; the messages above say why")
    mean = sum(episode["return"] for episode in played) / len(played)
    out.print(f"return {mean:.3f}" + (f", mean of {_count(len(played))}" if len(played) > 1 else ""))


class ModelOptions(NamedTuple):
    """What is asked of a model, and of no other player."""

    turn_tokens: int | None
    max_turns: int | None
    beta: float | None
    behaviour: str | None
    yes: bool

    def refuse(self, policy: str) -> None:
        """Refuse what a player other than a model does not read."""
        for option, value in self._asdict().items():
            if value is not None and value is not False:
                shown = f"--{option.replace('_', '-')}"
                raise ConfigError(f"{shown} is for a run or a model, and --policy is {policy}; remove it")


def _model(policy: str, runs: Path) -> tuple[str, Path | None] | None:
    """The model that a policy names, and the run that made it; None for a player that is no model."""
    if policy == HUMAN:  # what reads the others takes seconds to import, and a person waits
        return None
    from klent.environments.games.players import POLICIES

    if policy in POLICIES:
        return None
    from klent.models.pull import KNOWN

    model, run = model_and_run(policy, runs)
    return (model, run) if run is not None or Path(model).is_dir() or model in KNOWN else None


def _play_model(
    model: str,
    run: Path | None,
    game: tuple[str, Mapping[str, object]],
    environment: "Environment",
    starts: Sequence[int],
    seed: int,
    options: ModelOptions,
    *,
    shown: bool,
) -> Iterator[list["Played"]]:
    """The episodes of a model, as they are finished; those that fail, and those that are cut, are told."""
    from klent.environments.games import Game
    from klent.runs.play import play_model, set_table

    opened, rollout, section = set_table(model, _recipe(model, run, options), game, options[:2])
    for together in play_model(opened, rollout, section, starts, seed=seed):
        _tell(together, section.max_turns)
        for episode in together.episodes:
            if isinstance(environment, Game):  # it says the whole of its start, also what the seed drew
                environment.reset({}, episode["seed"])
                episode["start"] = dict(environment.row)
            for turn in episode["turns"] if shown else ():
                _show_turn(turn)
        yield together.episodes


def _recipe(model: str, run: Path | None, options: ModelOptions) -> "Recipe | None":
    """The recipe that trained a model; None where no run did.

    Raises:
        ConfigError: a setting of the player of values, and there is none.
    """
    refuse_tilt(model, run, options.beta, options.behaviour)
    if run is None:
        return None
    return recipe_of_run(run, yes=options.yes, beta=options.beta, behaviour=options.behaviour)


def _show_turn(turn: "Turn") -> None:
    from klent.environments.episode_log import as_text

    show(as_text(turn["observation"]))
    show(f"> {turn['action']}")


def _tell(together: "PlayedTogether", max_turns: int) -> None:
    for problem in dict.fromkeys(together.problems):
        count = together.problems.count(problem)
        err.print(f"warning: {_count(count)} left out: {problem}", soft_wrap=True)
    counts = f"{together.read:,} tokens read, {together.written:,} written"
    err.print(f"{_count(len(together.episodes))} played: {counts}", soft_wrap=True)
    if together.cut:
        reason = f"of {plural(max_turns, 'turn')} (--max-turns) or the model's context"
        err.print(f"warning: {_count(together.cut)} cut at the limit {reason}", soft_wrap=True)


def _episode(
    environment: "Environment",
    player: "Player",
    name: str,
    seed: int,
    said: Callable[[str], None] | None,
    policy: str,
) -> "Played":
    """One episode, shown as it goes if somebody looks; what a game raises is told as that."""
    from klent.environments.episode_log import as_text, play_episode

    def shown(history: Sequence[str]) -> str:
        action = player(history)
        if said is not None and policy != HUMAN:
            said(f"> {action}")
        return action

    try:
        return play_episode(
            environment, shown, {}, seed, said=lambda words: said(as_text(words)) if said else None
        )
    except (KlentError, EOFError) as error:
        if isinstance(error, KlentError):
            raise
        raise RunError("the input ended before the episode did; nothing of this episode is kept") from None
    except Exception as error:
        raise RunError(
            f"{name} raised {type(error).__name__}: {first_line(error)}. --debug shows where"
        ) from error


def _environment(name: str, config: Sequence[str]) -> "Environment":
    """The environment of a name, made with its settings."""
    from klent.environments import NAMED
    from klent.kit.names import nearest

    if name not in NAMED and ":" not in name:
        raise ConfigError(
            f"there is no game {name!r}{nearest(name, NAMED)}; there are {', '.join(NAMED)}, and your own as "
            "path/to/file.py:Class"
        )
    settings = _settings(config)
    make = _loaded(NAMED.get(name, name))
    _refuse_settings(name, make, settings)
    try:
        made = make(**settings)
    except KlentError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot be made: {type(error).__name__}: {first_line(error)}") from error
    if not callable(getattr(made, "reset", None)) or not callable(getattr(made, "step", None)):
        raise ConfigError(
            f"{name} is no environment; it must have the methods `reset(row, seed)` and `step(action)`"
        )
    return cast("Environment", made)


def _settings(config: Sequence[str]) -> Mapping[str, object]:
    if not config:  # what reads them takes seconds to import, and a person waits
        return {}
    from klent.config.yaml_text import parse_overrides

    return parse_overrides(config, source="--config").values


def _loaded(target: str) -> Callable[..., object]:
    if target.startswith("klent."):  # likewise
        module, _, attribute = target.partition(":")
        found = getattr(import_module(module), attribute, None)
        if callable(found):
            return cast(Callable[..., object], found)
    from klent.kit.own_code import load

    return load(target)


def _refuse_settings(name: str, make: Callable[..., object], settings: Mapping[str, object]) -> None:
    signature = inspect.signature(make)
    try:
        signature.bind(**settings)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ConfigError(f"--config: {name}: {error}; its settings: {known}") from None


def _player(policy: str, environment: "Environment", name: str, seed: int) -> "Player":
    from klent.environments.games import Game
    from klent.environments.games.players import POLICIES
    from klent.kit.names import nearest

    if policy == HUMAN:
        return _ask
    if policy not in POLICIES:
        known = [HUMAN, *POLICIES]
        raise ConfigError(
            f"--policy {policy}: no such player{nearest(policy, known)}; there are {', '.join(known)}, and runs and "
            "model folders"
        )
    if not isinstance(environment, Game):
        raise ConfigError(
            f"--policy {policy}: {name} is no klent.environments.games.Game, so its possible actions are not known; "
            f"use --policy {HUMAN}"
        )
    return POLICIES[policy](environment, seed)


def _ask(history: Sequence[str]) -> str:
    """What the person types; letters that the terminal could not decode are replaced."""
    return input("> ").encode("utf-8", "replace").decode("utf-8")


def _refuse(record: Path) -> None:
    """Refuse a file before anybody plays for it."""
    if not record.name:
        raise ConfigError(f"--record {record} names no file; name one, such as games.jsonl")
    if record.exists():
        raise ConfigError(f"--record {record} exists; name another file, or remove it")
    record.parent.mkdir(parents=True, exist_ok=True)


def _count(number: int) -> str:
    return f"{number} episode{'s' * (number > 1)}"
