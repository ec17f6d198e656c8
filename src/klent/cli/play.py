"""``klent play``: a game at the keyboard, or logs of scripted players."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from klent.cli.common import Debug, out, show
from klent.errors import ConfigError, KlentError, RunError, first_line

if TYPE_CHECKING:
    from klent.environments import Environment
    from klent.environments.episode_log import Played
    from klent.environments.games.players import Player

HUMAN = "human"


def play(
    name: Annotated[
        str, typer.Argument(help="maze, wordle, guess_who, or path/to/file.py:Class.", show_default=False)
    ],
    policy: Annotated[
        str,
        typer.Option(help="Who plays: human, optimal, random, or one good at one half: early, late."),
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
    debug: Debug = False,
) -> None:
    """Play a game, at the keyboard or by a scripted player, and record what happens.

    A line of the record has `start` and `seed`, which begin the episode again, `turns` with `observation`,
    `action` and `reward`, and `return`. The file is written at the end, whole; episodes that were finished
    before Ctrl-C are in it.

    ```
    klent play maze
    klent play wordle --config words=32 --seed 7
    klent play maze --policy random --episodes 500 --record random.jsonl
    klent play my_game.py:Nim
    ```
    """
    from klent.environments.episode_log import write_episodes
    from klent.kit.seeds import derive_seed

    if record is not None:
        _refuse(record)
    environment = _environment(name, config or [])
    player = _player(policy, environment, name, derive_seed(seed, "player"))
    said = show if policy == HUMAN or record is None else None
    played: list[Played] = []
    try:
        for number in range(episodes):
            start = derive_seed(seed, "play", number) >> 32  # 31 bits: environments may hand it to NumPy
            played.append(_episode(environment, player, name, start, said, policy))
    finally:
        if record is not None and played:
            write_episodes(record, played)
            out.print(f"wrote {record}: {_count(len(played))}", soft_wrap=True)
    mean = sum(episode["return"] for episode in played) / len(played)
    out.print(f"return {mean:.3f}" + (f", mean of {_count(len(played))}" if len(played) > 1 else ""))


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
        raise ConfigError(f"{name} is no environment: it must have `reset(row, seed)` and `step(action)`")
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
            f"--policy {policy}: no such player{nearest(policy, known)}; there are {', '.join(known)}"
        )
    if not isinstance(environment, Game):
        raise ConfigError(
            f"--policy {policy}: {name} is no klent.environments.games.Game, whose actions are known; only "
            f"{HUMAN} can play it"
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
