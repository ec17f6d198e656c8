"""examples/games: logs whose halves must be joined, the walked game against its solution, and what the table says."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from klent.environments.games import Maze, Solution, states

GAMES = Path(__file__).parents[1] / "examples" / "games"


@pytest.fixture(scope="module")
def parts():
    """The example's modules, which import each other by name."""
    folders = [GAMES, GAMES.parent, GAMES.parent / "unsupervised", GAMES.parents[1] / "benchmarks"]
    before, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(folder) for folder in folders]
    loaded = {}
    for name in ("textworld_game", "worlds", "arms_table", "arms"):
        spec = importlib.util.spec_from_file_location(name, GAMES / f"{name}.py")
        sys.modules[name] = loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield argparse.Namespace(**loaded)
    sys.path[:] = before
    for name in {"textworld_game", "worlds", "arms_table", "arms", "stitching", "table"} - modules:
        sys.modules.pop(name, None)


def test_the_walked_game_is_won_by_its_four_commands_and_by_no_fewer(parts):
    game = parts.textworld_game.Walked()
    way = ["go_south", "open_portmanteau", "take_type_f_latchkey_from_portmanteau"]
    way += ["unlock_type_f_locker_with_type_f_latchkey"]
    game.reset({}, 0)
    steps = [game.step(command) for command in way]
    assert [step.done for step in steps] == [False, False, False, True]
    assert sum(step.reward for step in steps) == pytest.approx(Solution(game).start()) == pytest.approx(0.8)
    assert "locker" in steps[0].observation
    far = parts.textworld_game._distances(game.table["states"])
    assert far[0] == 4
    for number, ways in enumerate(game.table["states"]):  # one command changes the distance by one at most
        assert all(far[number] <= 1 + (0 if won else far[after]) for _, after, won in ways.values())


def test_a_command_that_does_not_work_here_costs_its_turn(parts):
    game = parts.textworld_game.Walked(turns=2)
    game.reset({}, 0)
    assert game.step("open_portmanteau") == (
        "Not understood. Say a command that works here.",
        -0.05,
        False,
        {},
    )
    assert game.step("go_south").done


def test_no_episode_of_the_joined_log_is_as_good_as_the_best_and_none_was_cut(parts):
    game = Maze(turns=12)
    solved = Solution(game)
    episodes = parts.worlds.log(parts.worlds.WORLDS["maze, halves"], 3, 20)
    assert len(episodes) == 20
    for played in episodes:
        best = solved.value(game.begin(played["turns"][0]["observation"]))
        assert played["return"] < best - 1e-9
        assert len(played["turns"]) < 12
    plain = parts.worlds.log(parts.worlds.WORLDS["maze"], 3, 60)
    assert max(played["return"] for played in plain) == pytest.approx(0.7)


def test_every_world_of_the_study_can_be_solved_and_no_log_beats_the_solution(parts):
    for name, world in parts.worlds.WORLDS.items():
        game = world.make(**world.config)
        mean = sum(played["return"] for played in parts.worlds.log(world, 0, 20)) / 20
        assert mean < Solution(game).start() < 1, name
    assert len(list(states(parts.textworld_game.Walked()))) > 32


def rows():
    cells = [
        ("0", "cloning", "", 0.1),
        ("1", "cloning", "", 0.3),
        ("0", "Q-SFT", "8", 0.4),
        ("1", "Q-SFT", "8", 0.4),
    ]
    more = {"q_error": "", "log": "0.2", "best": "0.9", "optimal": "0.95"}
    return [
        {"world": "maze", "seed": seed, "arm": arm, "beta": beta, "return": str(earned), **more}
        for seed, arm, beta, earned in cells
    ]


def test_the_table_pairs_seeds(parts):
    lines = parts.arms_table.table(rows(), "maze").splitlines()
    assert lines[2].split(" | ")[2] == "0.200 [-1.071, 1.471]"  # 0.2 -+ 12.706 * 0.1
    assert lines[3].split(" | ")[2:4] == ["0.400 [0.400, 0.400]", "0.200 [-1.071, 1.471]"]
    assert lines[-1].startswith("| *V\\** |  | 0.950 [0.950, 0.950]")


def test_what_is_missing_is_asked_for_seed_by_seed(parts):
    options = argparse.Namespace(
        seeds=[0, 1, 2], worlds=["maze", "wordle"], arms=["cloning", "Q-SFT"], betas=[8.0]
    )
    missing = [("wordle", 0), ("wordle", 1), ("maze", 2), ("wordle", 2)]
    assert list(parts.arms.plan(options, rows())) == missing
    options.betas.append(32.0)  # the seeds that are there lack it
    assert list(parts.arms.plan(options, rows())) == [
        ("maze", 0), missing[0], ("maze", 1), missing[1], *missing[2:]
    ]  # fmt: skip


def test_the_file_is_written_whole_and_read_back(parts, tmp_path):
    full = [dict.fromkeys(parts.arms.NAMES, "") | row for row in rows()]
    parts.arms.write(full, tmp_path / "arms.csv")
    assert parts.arms_table.read(tmp_path / "arms.csv") == full
    assert parts.arms_table.read(tmp_path / "none.csv") == []
