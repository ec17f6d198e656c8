"""`klent play`: at the keyboard, by scripted players, and what is recorded."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from klent.cli import app, common
from klent.environments.games import Maze, Solution

HOSTILE = """
class Loud:
    def reset(self, row, seed):
        return [{"role": "user", "content": "\\x1b[2Jhello \\u202e"}]
    def step(self, action):
        from klent.environments import Step
        if action == "raise":
            raise ValueError("no such move")
        return Step(f"\\x07{action}", 2.0, done=action == "end")

class Nothing:
    pass

def broken():
    raise KeyError("table")
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(HOSTILE)
    for console in (common.out, common.err):
        monkeypatch.setattr(console, "_width", 200)

    def play(*arguments: str, typed: str = ""):
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["play", *arguments], input=typed)

    return play


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_person_plays_and_the_episode_is_kept(play, tmp_path):
    result = play("maze", "--record", "deep/own.jsonl", typed="up\nwhat?\nup\n" + "down\n" * 9)
    assert result.exit_code == 0, result.output
    assert "The door is locked." in result.output
    assert result.output.splitlines()[-2:] == ["wrote deep/own.jsonl: 1 episode", "return -0.600"]
    (episode,) = rows(tmp_path / "deep" / "own.jsonl")
    assert list(episode) == ["start", "seed", "turns", "return"]
    assert [turn["action"] for turn in episode["turns"]] == ["up", "what?", "up", *["down"] * 9]
    assert episode["turns"][2]["observation"] == "Not understood. Answer up, down, left or right."
    assert episode["turns"][0]["reward"] == -0.05
    assert episode["return"] == pytest.approx(-0.6, abs=1e-12)


def test_a_record_begins_its_episodes_again(play, tmp_path):
    words = ("wordle", "--config", "words=[crane, caner, train]", "--policy", "random", "--episodes", "6")
    assert play(*words, "--record", "a.jsonl", "--seed", "5").exit_code == 0
    assert play(*words, "--record", "b.jsonl", "--seed", "5").exit_code == 0
    assert play(*words, "--record", "c.jsonl", "--seed", "6").exit_code == 0
    a, b, c = (tmp_path.joinpath(f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    from klent.environments.games import Wordle

    game = Wordle(words=["crane", "caner", "train"])
    episodes = rows(tmp_path / "a.jsonl")
    assert len({episode["start"]["word"] for episode in episodes}) > 1
    for episode in episodes:
        said = game.reset(episode["start"], 0)
        assert game.reset({}, episode["seed"]) == said
        for turn in episode["turns"]:
            assert turn["observation"] == said
            said, reward, done, _ = game.step(turn["action"])
            assert reward == turn["reward"]
        assert done
        assert sum(turn["reward"] for turn in episode["turns"]) == episode["return"]


def test_the_optimal_player_earns_the_value(play, tmp_path):
    result = play(
        "maze", "--policy", "optimal", "--config", "arm=2", "--episodes", "3", "--record", "m.jsonl"
    )
    value = Solution(Maze(arm=2)).start()
    assert f"return {value:.3f}, mean of 3 episodes" in result.output
    assert "The key is" not in result.output  # with a record only its summary is shown
    assert "> up" in play("maze", "--policy", "optimal").output


def test_a_game_of_ones_own_is_shown_and_not_obeyed(play, tmp_path):
    result = play("own.py:Loud", "--record", "loud.jsonl", typed="\x1b[31mx\nend\n")
    assert result.exit_code == 0
    assert r"\x1b[2Jhello \u202e" in result.output
    assert not {"\x1b", "\u202e", "\x07"} & set(result.output)
    (episode,) = rows(tmp_path / "loud.jsonl")
    assert episode["start"] == {}
    assert episode["turns"][0]["observation"] == [{"role": "user", "content": "\x1b[2Jhello \u202e"}]
    assert episode["return"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mase"], 2, "there is no game 'mase'; did you mean `maze`?; there are maze, wordle, guess_who"),
        (
            ["maze", "--policy", "optimum"],
            2,
            "no such player; did you mean `optimal`?; there are human, optimal",
        ),
        (
            ["maze", "--config", "arms=2"],
            2,
            "got an unexpected keyword argument 'arms'; its settings: stem, arm",
        ),
        (["maze", "--config", "arm=-1"], 2, "arm is -1: it must be a whole number, at least 1"),
        (["maze", "--config", "arm"], 2, "should be key=value"),
        (["wordle", "--config", "words=3.5"], 2, "words is 3.5"),
        (["maze", "--episodes", "0"], 2, "Usage"),
        (["maze", "--record", "own.py"], 2, "own.py exists; name another file"),
        (["maze", "--record", "."], 2, "names no file"),
        (["maze", "--record", "a\0b"], 2, "Usage"),
        (["maze", "--record", "a" * 300], 1, "file name too long"),
        (["maze", "--record", "own.py/games.jsonl"], 1, "own.py"),
        (["own.py:Loud", "--policy", "optimal"], 2, "use --policy human"),
        (["own.py:Nothing"], 2, "it must have the methods `reset(row, seed)` and `step(action)`"),
        (["own.py:broken"], 2, "cannot be made: KeyError"),
        (["own.py:Lout"], 2, "Loud"),
        (["nowhere.py:Game"], 2, "there is no file nowhere.py"),
        (["own.py:Loud"], 1, "own.py:Loud raised ValueError: no such move. --debug shows where"),
        (["maze"], 1, "the input ended before the episode did"),
    ],
)
def test_what_cannot_be_played(play, arguments, code, message):
    result = play(*arguments, typed="raise\n")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


def test_finished_episodes_are_kept_where_a_person_leaves(play, tmp_path):
    result = play("maze", "--episodes", "3", "--record", "left.jsonl", typed="up\n" * 15)
    assert result.exit_code == 1
    assert len(rows(tmp_path / "left.jsonl")) == 1
    assert "wrote left.jsonl: 1 episode" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left.jsonl", "own.py"]


def test_control_c_stops_with_130():
    """A person's game starts without what training needs."""
    # A job in the background is born with the signal ignored; a person's is not.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = (
        f"{heard}import sys; from klent.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    )
    game = subprocess.Popen(
        [sys.executable, "-c", code, "play", "maze"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert game.stdout is not None
    seen = b""
    while not seen.endswith(b"> "):  # the game waits for a move
        seen += game.stdout.read(1)
    assert b"Take the key" in seen
    game.send_signal(signal.SIGINT)
    printed, said = game.communicate(timeout=120)
    assert game.returncode == 130
    assert printed.split()[-1] == b"False"
    assert said.decode().strip() == "stopped"
