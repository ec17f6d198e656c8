"""Writes the table of games in docs/environments.md: ``python -m klent.environments.games.page``.

The table stands between two comments; the rest of the page is written by hand.
"""

import sys
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from klent.environments.episode_log import play_episode
from klent.environments.games.game import Game
from klent.environments.games.guess_who import GuessWho
from klent.environments.games.maze import Maze
from klent.environments.games.players import Optimal, Player, Random
from klent.environments.games.solve import Solution
from klent.environments.games.wordle import Wordle
from klent.io.files import write_atomic

BEGIN = "<!-- table: games, written by python -m klent.environments.games.page -->\n"
END = "\n<!-- end -->"
GAMES: dict[str, Game] = {
    "`maze`": Maze(),
    "`maze`, `note: false`": Maze(note=False),
    "`maze`, `stem: 2, arm: 2`": Maze(stem=2, arm=2),
    "`wordle`": Wordle(),
    "`guess_who`": GuessWho(),
}
RANDOM_EPISODES = 200


def markdown() -> str:
    """The games as a Markdown table."""
    head = (
        "game",
        "starts",
        "actions",
        "turns at most",
        "states solved",
        "V*",
        "turns of the best",
        "random",
    )
    rows = [head, *(_row(name, game) for name, game in GAMES.items())]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([first, "|---" * len(head) + "|", *rest])


def with_table(page: str, table: str) -> str:
    """The page with the table between its two comments replaced.

    Raises:
        ValueError: the page does not have the two comments exactly once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"expected {BEGIN.strip()!r} once, followed by {END.strip()!r}")
    return before + BEGIN + table + END + after


def _row(name: str, game: Game) -> tuple[str, ...]:
    solution = Solution(game)
    best = [_played(game, Optimal(solution), start) for start in range(len(game.rows))]
    dice = Random(game, 0)
    wild = [_played(game, dice, n % len(game.rows))[0] for n in range(RANDOM_EPISODES)]
    error = stdev(wild) / sqrt(len(wild))
    return (
        name,
        str(len(game.rows)),
        str(len(game.actions(game.begin(game.opening(0))))),
        str(game.turns),
        str(len(solution.known)),
        f"{solution.start():.4f}",
        f"{fmean(turns for _, turns in best):.2f}",
        f"{fmean(wild):.2f} {f'± {error:.2f}' if error > 0 else '(all alike)'}".replace("-", "−"),
    )


def _played(game: Game, player: Player, start: int) -> tuple[float, int]:
    """Return and turns of one episode."""
    episode = play_episode(game, player, game.rows[start], 0)
    return episode["return"], len(episode["turns"])


def main(path: Path) -> None:
    """Bring the table of a page up to date."""
    write_atomic(path, with_table(path.read_text(encoding="utf-8"), markdown()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/environments.md"))
