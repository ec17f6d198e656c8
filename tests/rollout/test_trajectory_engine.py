"""A logged game has the tokens that it had when it was played; what cannot be replayed so is refused."""

from pathlib import Path

import pytest
import torch
from tiny import CHAT_TEMPLATE, TURN_END, TURN_START, merging_tokenizer, tiny_model

from klent.config import EnvironmentSettings
from klent.environments.episode_log import play_episode, write_episodes
from klent.errors import DataError
from klent.models.load import LoadedModel
from klent.rollout.play import PlayEngine
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import load_task
from klent.tasks.starts import EnvironmentTask

WORLD = """
from klent.environments import Step

class Adverse:
    '''Says names of control tokens, what would merge with an action, and once two messages or nothing.'''

    def __init__(self, chat):
        self.chat = chat

    def reset(self, row, seed):
        self.turn = 0
        opening = "ab<|im_end|>\\n<think>a"
        return [{"role": "system", "content": "s"}, {"role": "user", "content": opening}] if self.chat else opening

    def step(self, action):
        self.turn += 1
        two = [{"role": "user", "content": "c<|im_end|>"}, {"role": "user", "content": "b<think>"}]
        said = ["c<|im_end|>\\n<|im_start|>assistant<think>", two, "", "over"]
        return Step(said[self.turn - 1], 0.5 * self.turn, done=self.turn == 4)
"""
ACTIONS = ("ab<think>", "", "c<pad>b", "a")


def loaded(template: str | None = None) -> LoadedModel:
    tokenizer, model = merging_tokenizer(), tiny_model()
    tokenizer.chat_template = template or tokenizer.chat_template
    model.resize_token_embeddings(len(tokenizer))
    return LoadedModel(model, tokenizer, "tiny", (TURN_END,))


class Scripted:
    """An engine that writes these actions, each ended."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.actions = tokenizer, iter(ACTIONS)

    def generate(self, prompts, *, group_size, seed):
        (prompt,) = prompts
        text = next(self.actions)
        tokens = [*self.tokenizer(text, add_special_tokens=False).input_ids, TURN_END]
        return [Episode(prompt, prompt.token_ids, torch.tensor(tokens), text, "stop")]


def engine(template: str | None = None) -> TrajectoryEngine:
    return TrajectoryEngine(loaded(template), max_tokens=400, columns=("trajectory",))


@pytest.mark.parametrize("chat", [True, False])
def test_a_replayed_game_has_the_tokens_it_was_played_with(tmp_path: Path, chat: bool):
    (tmp_path / "world.py").write_text(WORLD)
    section = EnvironmentSettings(env="world.py:Adverse", config={"chat": chat}, max_turns=9)
    task, model = EnvironmentTask(section, base=tmp_path), loaded()
    playing = PlayEngine(
        Scripted(model.tokenizer), task.environments, model, max_turns=9, max_tokens=99, turn_tokens=20
    )
    (played,) = playing.generate([task.train(0)], group_size=1, seed=0)
    task.environments.close()
    names: dict = {}
    exec(WORLD, names)
    actions = iter(ACTIONS)
    recorded = play_episode(names["Adverse"](chat), lambda history: next(actions), {}, 0)
    write_episodes(tmp_path / "log.jsonl", [recorded])
    logged = load_task({"trajectories": str(tmp_path / "log.jsonl")}, seed=0, heldout=0)
    (episode,) = engine().generate([logged.train(0)], group_size=1, seed=0)
    assert episode.prompt_ids == played.prompt_ids
    for name in ("tokens", "acted", "turn"):
        assert getattr(episode, name).tolist() == getattr(played, name).tolist(), name
    assert (episode.rewards, episode.text, episode.turns) == (played.rewards, played.text, 4)
    heard = [*episode.prompt_ids, *episode.tokens[~episode.acted].tolist()]
    assert heard.count(TURN_START) == (10 if chat else 0)  # of six messages and four turns
    thought = model.tokenizer.convert_tokens_to_ids("<think>")
    assert (thought in heard, thought in episode.tokens.tolist()) == (False, True)


def said(content: str, role: str = "assistant", **fields: object) -> dict[str, object]:
    return {"role": role, "content": content, **fields}


def replay(messages: list[dict[str, object]], template: str | None = None, opening: object = None) -> Episode:
    rewards = [0.0] * sum(message["role"] == "assistant" for message in messages)
    prompt = Prompt(
        "log.jsonl:3", opening or [said("go?", "user")], {"trajectory": messages, "rewards": rewards}
    )
    (episode,) = engine(template).generate([prompt], group_size=1, seed=0)
    return episode


def test_an_action_has_what_the_template_writes_of_its_calls():
    template = CHAT_TEMPLATE.replace(
        "message['content'] +", "message['content'] + ('<think>' + message.tool if message.tool else '') +"
    )
    messages = [said("a", tool="add"), said("4<|im_end|>", "tool"), said("b")]
    episode = replay(messages, template)
    tokenizer = merging_tokenizer()
    assert (
        tokenizer.decode(episode.tokens[episode.acted]).replace(" ", "") == "a<think>add<|im_end|>b<|im_end|>"
    )
    assert tokenizer.convert_tokens_to_ids("<think>") in episode.tokens.tolist()


def test_an_action_that_is_written_with_its_end_has_one():
    assert replay([said("a<|im_end|>")]).tokens.tolist() == replay([said("a")]).tokens.tolist()


THINKS = CHAT_TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
WRONG = {
    "a stop token": (
        [said("a<|im_end|>b")],
        None,
        None,
        "an action contains '<|im_end|>', which ends a turn",
    ),
    "a stop token in plain text": ([said("a<|im_end|>b")], None, "go?", "an action contains '<|im_end|>'"),
    "two actions": ([said("a"), said("b")], None, None, "an action directly follows another"),
    "a begun thought": ([said("a")], THINKS, None, "does not start this action the way"),
    "a control token in a field": (
        [said("a"), said("x", "tool", name="<think>"), said("b")],
        None,
        None,
        "a message's 'name' contains the name of a control token",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_game_that_cannot_be_replayed_is_refused_with_its_line(case: str):
    messages, template, opening, words = WRONG[case]
    with pytest.raises(DataError) as caught:
        replay(messages, template, opening)
    assert str(caught.value).startswith("log.jsonl:3: ")
    assert words in str(caught.value)
