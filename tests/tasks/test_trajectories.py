"""Logged play as a task: read, refused by place and key, replayed as episodes of several turns, filtered."""

import json
from pathlib import Path

import pytest
import torch
from tiny import END, TURN_END, tiny_model, tiny_tokenizer

from klent.config import make_recipe
from klent.environments.episode_log import play_episode, write_episodes
from klent.environments.games.maze import Maze
from klent.environments.games.players import POLICIES
from klent.errors import ConfigError, DataError
from klent.models.load import LoadedModel
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.tasks import load_task
from klent.tasks.trajectories import as_episode

TURN = {"observation": "go?", "action": "up", "reward": -0.5}


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(file: str, **options: object):
    return load_task({"trajectories": file, **options}, seed=0, heldout=0)


def engine() -> TrajectoryEngine:
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (END, TURN_END))
    return TrajectoryEngine(loaded, max_tokens=400, columns=("trajectory",))


def replay(file: str):
    return engine().generate([task(file).train(0)], group_size=1, seed=0)[0]


def test_turns_are_replayed_as_actions_and_what_is_heard_between_them(tmp_path):
    second = {"observation": "then?", "action": "no", "reward": 2}
    episode = replay(lines(tmp_path / "log.jsonl", {"turns": [TURN, second], "return": 1.5, "seed": 3}))
    tokens = tiny_tokenizer()
    end = tokens.eos_token
    assert tokens.decode(episode.prompt_ids) == "go?"
    assert tokens.decode(episode.tokens) == f"up{end}then?no{end}"
    assert tokens.decode(episode.tokens[episode.acted]) == f"up{end}no{end}"
    assert episode.turn.tolist() == [0] * 3 + [1] * 8
    assert episode.rewards == (-0.5, 2.0)
    assert (episode.turns, episode.text, episode.prompt.columns["seed"]) == (2, "no", 3)


def test_messages_with_rewards_go_through_the_chat_template(tmp_path):
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    said = ("s", "go?", "up", "then?", "no", "x")
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    episode = replay(lines(tmp_path / "log.jsonl", {"messages": messages, "rewards": [0, 1]}))
    tokens = tiny_tokenizer()
    assert tokens.decode(episode.tokens[episode.acted]) == "up<|im_end|>no<|im_end|>"
    assert tokens.decode(episode.prompt_ids).endswith("go?<|im_end|>\n<|im_start|>assistant\n")
    assert episode.rewards == (0.0, 1.0)
    assert not tokens.decode(episode.tokens).endswith("x")


def test_what_klent_play_writes_is_read_and_the_best_are_kept(tmp_path):
    game = Maze()
    player = POLICIES["early"](game, 1)
    played = [play_episode(game, player, {}, seed) for seed in range(12)]
    write_episodes(tmp_path / "log.jsonl", played)
    kept = task(str(tmp_path / "log.jsonl"), keep=0.25)
    returns = sorted((p["return"] for p in played), reverse=True)
    assert len(kept) == 3
    trained = sorted((sum(kept.train(i).columns["rewards"]) for i in range(3)), reverse=True)
    assert trained == pytest.approx(returns[:3])
    episode = engine().generate([kept.train(0)], group_size=1, seed=0)[0]
    assert sum(episode.rewards) == pytest.approx(episode.prompt.columns["return"])
    assert len(episode.rewards) == episode.turns > 1


def test_the_bounds_are_of_what_can_be_earned_from_any_turn_on(tmp_path):
    first, second = ({"turns": [TURN | {"reward": r} for r in rewards]} for rewards in ((1, -3, 4), (0, -1)))
    file = lines(tmp_path / "log.jsonl", first, second)
    assert task(file).bounds == (-1.0, 4.0)
    assert task(file, discount=0.5).bounds == (-1.0, 4.0)
    assert task(file, returns=[-2, 5]).bounds == (-2.0, 5.0)
    assert task(file, keep=0.5).bounds == (1.0, 4.0)


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
WRONG = {
    "no turns": ({"turn": []}, "log.jsonl:2: no 'turns' and no 'messages'; did you mean `turn`?"),
    "empty": ({"turns": []}, "log.jsonl:2: 'turns' must be a list"),
    "no action": (
        {"turns": [{"observation": "a", "acton": "b", "reward": 0}]},
        "log.jsonl:2: turn 1: no 'action'",
    ),
    "no reward": ({"turns": [TURN, {"observation": "a", "action": "b"}]}, "log.jsonl:2: turn 2: no 'reward'"),
    "a reward of words": (
        {"turns": [TURN | {"reward": "1"}]},
        "turn 1: 'reward' must be a finite number, not '1'",
    ),
    "an endless reward": (
        {"turns": [TURN | {"reward": float("nan")}]},
        "turn 1: 'reward' must be a finite number",
    ),
    "an action of numbers": ({"turns": [TURN | {"action": 3}]}, "turn 1: 'action' must be text, not int"),
    "an observation of numbers": (
        {"turns": [TURN | {"observation": 3}]},
        "turn 1: 'observation' must be text",
    ),
    "an observation of the policy": (
        {"turns": [TURN, TURN | {"observation": [{"role": "assistant", "content": "I say"}]}]},
        "log.jsonl:2: turn 2: the environment said a message of role 'assistant', which is the policy's own",
    ),
    "both": ({"turns": [TURN], "messages": CHAT}, "has 'turns' and 'messages'; keep one"),
    "messages without rewards": ({"messages": CHAT}, "log.jsonl:2: no 'rewards'"),
    "a reward too few": (
        {"messages": [*CHAT, *CHAT], "rewards": [1]},
        "must have 2 numbers, one for each answer",
    ),
    "no answer": ({"messages": CHAT[:1], "rewards": []}, "at least one of the assistant's"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_line_that_is_no_episode_is_refused_with_its_place_and_key(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    row, words = WRONG[case]
    with pytest.raises(DataError) as caught:
        task(lines(Path("log.jsonl"), {"turns": [TURN]}, row))
    assert words in str(caught.value)


def test_an_action_of_no_tokens_is_a_turn_all_the_same(tmp_path):
    episode = replay(lines(tmp_path / "log.jsonl", {"turns": [TURN | {"action": ""}, TURN]}))
    assert episode.rewards == (-0.5, -0.5)
    assert int(episode.acted.sum()) == 1 + 3


def test_returns_out_of_order_are_refused():
    with pytest.raises(ConfigError, match=r"task.returns.*must be below the second"):
        recipe(task={"trajectories": "log.jsonl", "returns": [1, 0]})


def test_returns_and_discount_that_nothing_reads_are_refused():
    log = {"trajectories": "log.jsonl"}
    with pytest.raises(ConfigError, match=r"task\.returns: is not used: .*remove it, or use method qsft"):
        recipe(task={**log, "returns": [0, 1]})
    with pytest.raises(ConfigError, match=r"task\.discount: is not used: .*remove it, or set task\.keep"):
        recipe(task={**log, "discount": 0.5})
    assert recipe(task={**log, "discount": 0.5, "keep": 0.5}).task.discount == 0.5
    values = recipe(task={**log, "discount": 0.5, "returns": [0, 1]}, method="qsft")
    assert (values.task.discount, values.task.returns) == (0.5, (0, 1))


def test_whole_episodes_are_held_out_also_where_all_begin_alike(tmp_path):
    rows = [{"turns": [TURN | {"action": f"go {number % 20}"}]} for number in range(40)]  # each twice
    file = lines(tmp_path / "log.jsonl", *rows)
    made = load_task({"trajectories": file}, seed=0, heldout=50)
    held_out = [prompt.columns["trajectory"] for prompt in made.heldout(50)]
    trained = [made.train(place).columns["trajectory"] for place in range(len(made))]
    assert (len(held_out), len(trained)) == (2, 36)
    assert not any(episode in trained for episode in held_out)


def recipe(**changes: object):
    values = {"name": "n", "model": "m", "method": "sft", "task": {"trajectories": "log.jsonl"}, "steps": 1}
    return make_recipe({**values, **changes})


def test_behaviour_cloning_learns_the_actions_alone(tmp_path, monkeypatch):
    from tiny import tiny_folder

    from klent.io.files import read_jsonl
    from klent.runs.console import QuietConsole
    from klent.runs.train import train

    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    turn = {"observation": "a", "action": "bc", "reward": 1}
    lines(tmp_path / "log.jsonl", *[{"turns": [turn, turn]}] * 4)
    values = recipe(model="model", prompts_per_step=4, steps=12, optimizer={"lr": 0.02})
    run = train(values, tmp_path / "run", command="c", console=QuietConsole())
    rows = list(read_jsonl(run / "metrics.jsonl"))
    assert rows[-1]["policy/entropy"] < 0.5 < rows[0]["policy/entropy"]
    assert rows[0]["completion/length"] == 6.0  # two actions of two tokens, each with its end
    assert torch.isfinite(torch.tensor(rows[-1]["grad/norm"]))


WORDLE = {
    "sequence": [
        ["Wordle:\n", 0.0],
        ["s t a r e\n", 1.0],
        ["b y b b g\n", 0.0],
        ["t r u c e\n", 1.0],
        ["g\n", 0.0],
    ],
    "reward": [-1.0, 0.0, 0.0, 0.0],
    "done": True,
}
PATHS = {
    "text_history": ["at 1, 2", "move up", "at 1, 1", "move left", "Success"],
    "rewards": [0, -1, 0, 0, 0],
    "dones": [0, 0, 0, 1, 1],
    "maze": "T",
}


def test_the_layouts_of_lmrl_gym_are_read():
    wordle, maze = as_episode(WORDLE, "w.jsonl:1"), as_episode(PATHS, "m.jsonl:1")
    assert wordle == {
        "prompt": "Wordle:\n",
        "trajectory": [
            {"role": "assistant", "content": "s t a r e\n"},
            {"role": "user", "content": "b y b b g\n"},
            {"role": "assistant", "content": "t r u c e\n"},
        ],
        "rewards": [-1.0, 0.0],
    }
    assert (maze["prompt"], maze["rewards"], maze["maze"]) == ("at 1, 2", [-1.0, 0.0], "T")
    assert [message["content"] for message in maze["trajectory"]] == ["move up", "at 1, 1", "move left"]
    each = {**WORDLE, "reward": [0.0, *WORDLE["reward"]]}
    assert as_episode(each, "w.jsonl:1") == wordle


QUESTIONS = {
    "lines": ["Is the object alive? No.", "Is it yes? or no? Yes.", "Is it a kite? Yes."],
    "correct": True,
    "word": ["Kite"],
}
DEAL = {
    "buyer_info": {
        "personality": "rude",
        "preferred_brands": "a Ford",
        "preferred_type": "truck",
        "preferred_features": ["sunroof"],
        "budget": 10000,
    },
    "lines": [
        {"role": "Buyer", "text": "Hello."},
        {"role": "Seller", "text": "Hi!\n"},
        {"role": "Seller", "text": "A truck?"},
        {"role": "Buyer", "text": "Yes."},
        {"role": "Seller", "text": "$15,000."},
        {"role": "Buyer", "text": "Done."},
    ],
    "output": {"car_bought": True, "msrp": 20000, "buy_price": 15000},
}


def test_questions_of_lmrl_gym_cost_one_each_but_for_the_right_guess():
    """As its loader has it: '? ' parts a question from the answer at its last place, and each ends its line."""
    episode = as_episode(QUESTIONS, "q.jsonl:1")
    assert (episode["prompt"], episode["rewards"], episode["word"]) == (
        "Questions:\n",
        [-1.0, -1.0, 0.0],
        ["Kite"],
    )
    assert [message["content"] for message in episode["trajectory"]] == [
        "Is the object alive?\n",
        "No.\n",
        "Is it yes? or no?\n",
        "Yes.\n",
        "Is it a kite?\n",
    ]
    assert as_episode({**QUESTIONS, "correct": False}, "q.jsonl:1")["rewards"] == [-1.0, -1.0, -1.0]


def test_the_car_dealer_of_lmrl_gym_is_played_by_the_seller():
    """15000 of a budget of 10000 and a list price of 20000 is 1; a sale that fails costs (budget - list) / list."""
    episode = as_episode(DEAL, "d.jsonl:1")
    assert episode["prompt"] == "Start\nHello.\n"
    assert [(m["role"], m["content"]) for m in episode["trajectory"]] == [
        ("assistant", "Hi! A truck?\n"),
        ("user", "Yes.\n"),
        ("assistant", "$15,000.\n"),
    ]
    assert episode["rewards"] == [0.0, 1.0]
    assert "output" not in episode
    kept = {"msrp": 20000, "buy_price": None}
    for output, last in (
        ({"car_bought": False, **kept}, 0.5),
        ({"car_bought": True, **kept}, 0.0),
        (None, 0.0),
    ):
        assert as_episode({**DEAL, "output": output}, "d.jsonl:1")["rewards"] == [0.0, last]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**QUESTIONS, "lines": ["Is it? No.", "a kite"]},
            "'lines', number 2: must be a question and its answer",
        ),
        ({**QUESTIONS, "lines": "Is it? No."}, "'lines' must be a list, not str"),
        ({**QUESTIONS, "lines": []}, "'lines' has no action"),
        ({**QUESTIONS, "correct": "yes"}, "'correct' must be true or false, not 'yes'"),
        (
            {**DEAL, "lines": [{"role": "seller", "text": "a"}]},
            "number 1: must be {role: Seller or Buyer, text}",
        ),
        ({**DEAL, "lines": DEAL["lines"][:1]}, "'lines' has no action"),
        ({**DEAL, "buyer_info": {}}, "'buyer_info': 'budget' must be a number, not None"),
        ({**DEAL, "output": {"msrp": 1}}, "'output': 'car_bought' must be true or false"),
        ({**WORDLE, "reward": [1.0]}, "'reward' must have 5 numbers, one for each text; it has 1"),
        (
            {**WORDLE, "reward": [-1.0, 2.0, 0.0, 0.0]},
            "text 3 is not an action, so its reward must be 0, not 2.0",
        ),
        ({"sequence": WORDLE["sequence"], "rewards": []}, "no 'reward'; did you mean `rewards`?"),
        (
            {**WORDLE, "sequence": [["a", 1.0], ["b", 0.0]], "reward": [0.0]},
            "an action with nothing from the environment before it",
        ),
        (
            {**WORDLE, "sequence": ["a", "b"]},
            "must be [text, 1 for an action and 0 for what is read], not 'a'",
        ),
        ({**PATHS, "text_history": ["a"], "rewards": [0]}, "'text_history' has no action"),
        ({**PATHS, "text_history": [["a", 0]]}, "must be text, not ['a', 0]"),
    ],
)
def test_what_is_wrong_with_a_log_of_lmrl_gym_is_said(row, message):
    with pytest.raises(DataError) as error:
        as_episode(row, "w.jsonl:1")
    assert str(error.value).startswith("w.jsonl:1: ")
    assert message in str(error.value)
