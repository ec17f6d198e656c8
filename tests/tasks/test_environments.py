"""Environments in their processes: what fails ends its episode, and nothing else."""

import math
import random
import time
from pathlib import Path

import pytest
import torch

from klent.config import EnvironmentSettings, make_recipe
from klent.errors import ConfigError, DataError, TooLong
from klent.runs.plan import describe_plan
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scores, load_task, starts
from klent.tasks.pool import Play, Start
from klent.tasks.returns import Returns
from klent.tasks.starts import EnvironmentTask, start_of

WORLD = """
import os, random, time
from klent.environments import Step

count = [0]

class Counter:
    '''Counts its turns; says its seed and what it was told.'''

    def __init__(self, secret=0):
        self.secret = secret

    def reset(self, row, seed):
        self.turns = 0
        return f"start {seed} {row}"

    def step(self, action):
        self.turns += 1
        if action == "raise":
            raise ValueError("told to")
        if action == "die":
            os._exit(3)
        if action == "hang":
            time.sleep(60)
        if action == "nan":
            return Step("", float("nan"))
        if action == "none":
            return None
        if action == "assistant":
            return Step([{"role": "assistant", "content": "I say"}])
        return Step(f"turn {self.turns}: {action}", float(self.turns), done=action == "end")

class Unlike(Counter):
    def step(self, action):
        count[0] += 1
        return Step(f"{os.getpid()} {count[0]}", 0.0)

class Unopened(Counter):
    def reset(self, row, seed):
        if "bad" in row:
            raise KeyError("bad row")
        return super().reset(row, seed)

class Closes(Counter):
    '''Notes that it was closed, and cannot be.'''

    def reset(self, row, seed):
        self.seed = seed
        if seed == 0:
            raise ValueError("no start")
        return super().reset(row, seed)

    def close(self):
        with open("closed.txt", "a") as file:
            file.write(f"{self.seed} {getattr(self, 'turns', None)}\\n")
        raise SystemExit(5) if self.seed % 2 else OSError("cannot be closed")

class Empty:
    pass
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world.py").write_text(WORLD)
    return tmp_path


def task(name: str = "Counter", **settings) -> EnvironmentTask:
    return EnvironmentTask(EnvironmentSettings(env=f"world.py:{name}", **settings), seed=1, heldout=2)


@pytest.fixture
def made(world: Path):
    one = task(timeout=0.7)
    one.log_to(world / "rewards.log")
    yield one
    one.environments.close()


def plays(made: EnvironmentTask, count: int) -> list[Play]:
    prompt = made.train(0)
    made.environments.begin()
    return [Play(prompt.id, start_of(prompt), number) for number in range(count)]


def say(made: EnvironmentTask, games: list[Play], *actions: str) -> list:
    for play, action in zip(games, actions, strict=True):
        play.actions.append(action)
    return made.environments.step(games)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("raise", "raised ValueError: told to (world.py, line"),
        ("die", "its process exited with code 3"),
        ("hang", "took longer than its limit of 0.7 s"),
        ("nan", "paid nan, which is no number"),
        ("none", "step() returned NoneType, not a klent.environments.Step"),
        ("assistant", "role 'assistant', which is the policy's own"),
    ],
)
def test_what_fails_ends_its_episode_and_no_other(made, world, bad, reason):
    games = plays(made, 3)
    say(made, games, "a", "b", "c")
    first, second, third = say(made, games, "d", bad, "f")
    assert math.isnan(second.reward)
    assert second.done
    assert reason in second.problem
    assert second.problem.startswith("environment world.py:Counter ")
    log = (world / "rewards.log").read_text()
    assert log.count("\n") == 1
    assert reason in log
    assert "2 actions in" in log
    assert (first.observation, third.observation) == (
        "turn 2: d",
        "turn 2: f",
    )  # played again where it must be
    last = say(made, [games[0], games[2]], "end", "g")
    assert [answer.done for answer in last] == [True, False]
    assert [answer.reward for answer in last] == [3.0, 3.0]


def test_the_same_failure_has_one_text_however_often_it_is_met(made):
    games = plays(made, 3)
    problems = {answer.problem for answer in say(made, games, "raise", "raise", "ok")}
    assert len(problems) == 2  # one of them empty


def test_four_limits_in_a_row_give_the_turn_up(world):
    made = task(timeout=0.2)
    games = plays(made, 7)
    say(made, games, *"abcdefg")
    started = time.monotonic()
    answers = say(made, games, *["hang"] * 7)
    made.environments.close()
    assert all(math.isnan(answer.reward) for answer in answers)
    assert "4 times in a row" in answers[-1].problem
    assert time.monotonic() - started < 40


def test_one_that_is_no_function_of_its_actions_is_found_where_it_is_played_again(world):
    made = task("Unlike")
    games = plays(made, 2)
    say(made, games, "a", "b")
    made.environments.close()
    answers = say(made, games, "c", "d")
    made.environments.close()
    assert all("behaved differently" in answer.problem for answer in answers)


def test_two_processes_say_what_one_says(world):
    said = []
    for workers in (1, 2):
        made = task(workers=workers)
        games = plays(made, 5)
        say(made, games, *"abcde")
        said.append([answer.observation for answer in say(made, games, *"fghij")])
        made.environments.close()
    assert said[0] == said[1] == [f"turn 2: {letter}" for letter in "fghij"]


def test_starts_are_functions_of_the_position(world):
    made, again = task(), task()
    prompts = [made.train(position) for position in (0, 1, 5)]
    assert [again.train(position) for position in (5, 1, 0)] == prompts[::-1]
    assert len({prompt.prompt for prompt in prompts}) == 3
    kept_out = made.heldout(2)
    assert [prompt.id for prompt in kept_out] == ["world/heldout/0", "world/heldout/1"]
    counted = task(rows=3)
    assert len({counted.train(position).id for position in range(9)}) == 3
    assert {p.id for p in map(task(rows=5, only=(1, 3)).train, range(4))} == {"world/1", "world/3"}
    for one in (made, again, counted):
        one.environments.close()


def test_rows_of_a_file_are_columns_and_some_are_held_out(world):
    (world / "rows.jsonl").write_text("".join(f'{{"number": {i % 8}}}\n' for i in range(16)))
    made = task(rows="rows.jsonl", heldout=3, system="be brief")
    kept_out = {prompt.columns["number"] for prompt in made.heldout(3)}
    trained = {made.train(position).columns["number"] for position in range(10)}
    assert len(kept_out) == 3
    assert kept_out | trained == set(range(8))
    assert not kept_out & trained
    prompt = made.train(0)
    assert prompt.prompt[0] == {"role": "system", "content": "be brief"}
    assert f"{{'number': {prompt.columns['number']}}}" in prompt.prompt[1]["content"]
    made.environments.close()


def test_a_start_that_cannot_be_opened_is_played_and_unscorable(world):
    (world / "rows.jsonl").write_text('{"bad": 1}\n{"bad": 2}\n')
    made = task("Unopened", rows="rows.jsonl")
    assert "could not be opened" in made.train(0).prompt
    games = plays(made, 1)
    (answer,) = say(made, games, "a")
    assert "raised KeyError" in answer.problem
    with pytest.raises(ConfigError, match=r"raised KeyError.*opening the first start"):
        made.check()
    made.environments.close()


def test_a_close_that_fails_costs_no_episode_and_is_in_the_log(world):
    made = task("Closes")
    made.log_to(world / "rewards.log")
    made.environments.begin()
    games = [Play("p", Start({}, seed), number) for number, seed in enumerate((1, 2, 3))]
    answers = say(made, games, "end", "end", "a")
    assert [(answer.done, answer.problem) for answer in answers] == [(True, ""), (True, ""), (False, "")]
    assert (world / "closed.txt").read_text() == "1 1\n2 1\n"
    made.environments.begin()  # what is left of this session is closed
    (answer,) = say(made, [Play("p", Start({}, 4), 0)], "b")
    assert (answer.observation, answer.problem) == ("turn 1: b", "")
    assert (world / "closed.txt").read_text() == "1 1\n2 1\n3 1\n"
    log = (world / "rewards.log").read_text()
    assert log.count("SystemExit: 5") == 2
    assert log.count("OSError: cannot be closed") == 1
    made.environments.close()


def test_an_episode_in_which_something_is_raised_is_closed(world):
    made = task("Closes")
    games = plays(made, 1)
    say(made, games, "a")
    (answer,) = say(made, games, "raise")
    assert "raised ValueError: told to" in answer.problem
    seed = games[0].start.seed
    assert f"{seed} 2" in (world / "closed.txt").read_text().splitlines()
    assert "no start" in made.environments.open("world/x", Start({}, 0)).problem
    assert (world / "closed.txt").read_text().splitlines()[-1] == "0 None"
    made.environments.close()


def test_the_first_start_is_tried_before_a_run(world):
    made = task()
    assert "pays 1 for" in made.check().text
    made.environments.close()


def test_too_long_openings(world):
    def refuse(prompt):
        raise TooLong("too long")

    made = task()
    with pytest.raises(TooLong):
        made.fit(refuse, refuse)
    made.environments.close()


@pytest.mark.parametrize("rows", [None, 60])
def test_an_opening_that_does_not_fit_is_dropped_at_any_position(world, rows):
    def number(prompt):
        return int(prompt.id.rpartition("/")[2])

    def check(prompt):
        if number(prompt) % 3 == 2:
            raise TooLong("too long")

    whole, made, again = task(rows=rows), *(task(rows=rows, too_long="drop") for _ in range(2))
    assert made.fit(check, lambda prompt: None) > 0
    again.fit(check, lambda prompt: None)
    positions = range(150)
    taken = {position: made.train(position) for position in positions}
    assert {position: again.train(position) for position in reversed(positions)} == taken
    for position, prompt in taken.items():
        there = next(one for one in map(whole.train, range(position, 999)) if number(one) % 3 != 2)
        assert prompt == there
    for one in (whole, made, again):
        one.environments.close()


def test_a_run_in_which_hardly_any_opening_fits_is_ended(world, monkeypatch):
    monkeypatch.setattr(starts, "_ATTEMPTS", 20)

    def check(prompt):
        if int(prompt.id.rpartition("/")[2]) > 3:
            raise TooLong("too long")

    made = task(too_long="drop")
    made.fit(check, lambda prompt: None)
    assert made.train(3).id == "world/3"
    with pytest.raises(DataError, match="almost no opening of world fits"):
        made.train(4)
    made.environments.close()


def test_the_order_of_an_epoch_is_made_once(world, monkeypatch):
    shuffle, calls = random.Random.shuffle, []
    monkeypatch.setattr(random.Random, "shuffle", lambda self, x: (calls.append(len(x)), shuffle(self, x))[1])
    made = task(rows=50)
    ids = [made.train(position).id for position in range(100)]
    made.environments.close()
    assert calls == [50, 50]
    for epoch in range(2):
        order = list(range(50))
        shuffle(random.Random(f"1/epoch/{epoch}"), order)
        assert ids[50 * epoch : 50 * epoch + 50] == [f"world/{row}" for row in order]


def test_a_row_cannot_have_a_column_called_start(world):
    (world / "rows.jsonl").write_text('{"number": 1}\n{"number": 2, "start": "left"}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: a column cannot be called 'start': .*Rename or remove it"
    ):
        task(rows="rows.jsonl")


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("Missing", {}, "world.py has no class 'Missing'"),
        ("Empty", {}, "has no method `reset`"),
        ("Counter", {"sekret": 1}, "cannot be made with config"),
    ],
)
def test_what_is_no_environment_is_refused_before_the_run(world, name, config, reason):
    made = task(name, config=config)
    with pytest.raises(ConfigError, match=reason):
        made.check()
    made.environments.close()


RECIPE = {"model": "m", "method": "grpo", "task": {"env": "world.py:Counter"}, "steps": 1}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("task.env=maize", "there is no environment 'maize'; did you mean `maze`"),
        ("task.env=world.py", "names no class"),
        ("task.max_turn=3", "did you mean `max_turns`"),
        ("task.discount=1.5", "less than or equal to 1"),
        ("task.turn_tokens=999", "is more than rollout.max_tokens"),
        ("task.heldout=3", "is for rows of a file"),
        ("rollout.mixture={target: reference, alpha: 0.5}", "answers prompts of one turn"),
        ("reward={model: rm}", "a reward model reads a prompt and an answer, and would miss what is said"),
        ("eval.reward=[gym, {model: rm}]", "a reward model reads a prompt and an answer"),
    ],
)
def test_recipes_that_contradict_themselves(override, reason):
    with pytest.raises(ConfigError) as error:
        make_recipe(RECIPE, [override])
    assert reason in str(error.value)


def test_an_environment_needs_no_reward_and_the_plan_says_its_turns():
    recipe = make_recipe(RECIPE, ["task.turn_tokens=8", "task.credit=turn"])
    assert recipe.reward is None
    assert "at most 8 turns of at most 8 tokens; credit by turn" in describe_plan(recipe)[0]


def test_another_kind_of_task_replaces_the_former_and_a_setting_joins_it():
    generated = {**RECIPE, "task": {"gym": "chain_sum", "config": {"min_terms": 2}}, "reward": "gym"}
    assert make_recipe(generated, ["task.env=maze"]).task.config == {}
    assert make_recipe(RECIPE, ["task.env=maze"]).task.env == "maze"
    assert make_recipe(RECIPE, ["task.max_turns=3"]).task.env == "world.py:Counter"
    both = {**RECIPE, "task": {"env": "maze", "gym": "chain_sum"}}
    with pytest.raises(ConfigError, match="name one source: "):
        make_recipe(both)


def test_a_task_of_a_mapping(world):
    made = load_task({"env": "world.py:Counter"}, seed=0, heldout=1)
    assert isinstance(made, EnvironmentTask)
    with pytest.raises(ConfigError, match="has no completion"):
        load_task({"env": "world.py:Counter"}, seed=0, heldout=1, needed=["completion"])
    with pytest.raises((ConfigError, DataError), match="no file"):
        load_task({"env": "world.py:Counter", "rows": "none.jsonl"}, seed=0, heldout=1)


class Says:
    """Rewards of a recipe, in a stand-in."""

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)

    def score_episodes(self, episodes):
        return Scores(self.rewards, {"brief": self.rewards}, {"brief failed": 1})


def paid(*rewards: float, problem: str = "") -> Episode:
    prompt = Prompt("p", "p")
    return Episode(prompt, [1], torch.tensor([2]), "x", "stop", rewards=rewards, problem=problem)


def test_returns_are_discounted_and_a_recipes_rewards_join_the_last_turn():
    nan = math.nan
    episodes = [paid(1.0, 2.0, 4.0), paid(8.0), paid(1.0, nan, problem="environment x hung"), paid(1e17)]
    alone = Returns(discount=0.5).score_episodes(episodes)
    assert alone.reward[:2] == [3.0, 8.0]
    assert [math.isnan(value) for value in alone.reward] == [False, False, True, True]
    assert alone.problems == {"environment x hung": 1}
    both = Returns(Says(4.0, nan, 0.0, 0.0), discount=0.5, credit="turn").score_episodes(episodes)
    assert both.reward[0] == 4.0
    assert both.to_go[0] == [4.0, 6.0, 8.0]
    assert math.isnan(both.reward[1])  # the recipe's reward failed
    assert both.parts["environment"][:2] == [3.0, 8.0]
    assert both.parts["brief"][0] == 4.0
    assert both.problems == {"environment x hung": 1, "brief failed": 1}
