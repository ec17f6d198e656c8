"""One game that textworld made, walked through once: a table of its states, so that what is best is known exactly.

    python examples/games/textworld_game.py 3      # writes textworld_game.json; needs textworld (1.7.0 was used)

Three rooms, a key in a case, and a locker that it opens; the quest takes four commands. The file has every state that
some player can reach (the facts that textworld holds true), what may be done there, what the game says, and where
that leads. What only tells something again (`look`, `examine`, `inventory`) is left out, and a command is one word
with underscores for its spaces, as an action of klent's own games is. The text of a state is that of the first way
that led to it.

    klent play examples/games/textworld_game.py:Walked
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klent.environments.games.game import Game, Reply, State

FILE = Path(__file__).resolve().with_suffix(".json")
TOLD = ("look", "examine", "inventory")
MOST = 500  # states


class Walked(Game):
    """The game of the file, as an environment and its own Markov model.

    Args:
        turns: budget of an episode.
        cost: of a turn; the quest earns 1.
    """

    rows = ({"game": "the locker"},)
    allowed = "Say a command that works here."
    home = (0,)

    def __init__(self, *, turns: int = 8, cost: float = 0.05) -> None:
        super().__init__(turns=turns, cost=cost)
        self.table = json.loads(FILE.read_text(encoding="utf-8"))
        self.far = _distances(self.table["states"])

    def opening(self, start: int) -> str:
        """The objective and the first room."""
        return str(self.table["opening"])

    def actions(self, state: State) -> Sequence[str]:
        """The commands that work in this state."""
        return list(self.table["states"][state.place[0]])

    def reply(self, state: State, action: str, start: int) -> Reply:
        """What textworld said."""
        text, after, won = self.table["states"][state.place[0]][action]
        return Reply(text, won=won, over=won, place=(after,))

    def late(self, state: State) -> bool:
        """At most half of the quest is left."""
        return self.far[state.place[0]] * 2 <= self.far[0]


def _distances(states: Sequence[dict[str, list[Any]]]) -> list[int]:
    """The fewest commands from each state to the end of the quest."""
    far = [len(states)] * len(states)
    for _ in states:
        for number, ways in enumerate(states):
            steps = [1 if won else 1 + far[after] for _, after, won in ways.values()]
            far[number] = min([far[number], *steps])
    return far


def walk(seed: int) -> dict[str, Any]:
    """Every state of a game of this seed, breadth first; each is reached by playing from the start again."""
    import textworld

    options = textworld.GameOptions()
    options.seeds, options.nb_rooms, options.nb_objects, options.quest_length = seed, 3, 2, 4
    with tempfile.TemporaryDirectory() as folder:
        options.path = f"{folder}/"
        wanted = ("facts", "admissible_commands", "won", "feedback", "description", "objective")
        world = textworld.start(textworld.make(options)[0], textworld.EnvInfos(**dict.fromkeys(wanted, True)))

        def at(commands: Sequence[str]) -> Any:
            state = world.reset()
            for command in commands:
                state, _, _ = world.step(command)
            return state

        first = at([])
        opening = _line(f"{first.objective} {first.description}")
        number, ways, states = {_facts(first): 0}, [list[str]()], list[dict[str, list[Any]]]()
        for way in ways:
            states.append({})
            state = at(way)
            for command in [] if state.won else state.admissible_commands:
                if command.startswith(TOLD):
                    continue
                after = at([*way, command])
                if _facts(after) not in number:
                    number[_facts(after)] = len(ways)
                    ways.append([*way, command])
                said = [_line(after.feedback), number[_facts(after)], bool(after.won)]
                states[-1][command.replace(" ", "_").casefold()] = said
            if len(ways) > MOST:
                raise SystemExit(f"the game of seed {seed} has more than {MOST} states: take another seed")
        world.close()
    return {"textworld": textworld.__version__, "seed": seed, "opening": opening, "states": states}


def _facts(state: Any) -> tuple[str, ...]:
    return tuple(sorted(map(str, state.facts)))


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    FILE.write_text(json.dumps(walk(int(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
