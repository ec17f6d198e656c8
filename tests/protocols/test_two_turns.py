"""An environment of two turns: tokens in, tokens out, and what it says gets no coefficient."""

from pathlib import Path

import pytest
import torch
from helpers_training import updater
from tiny import END, TURN_END, TURN_START, merging_tokenizer, tiny_model, tiny_tokenizer

from klent.config import EnvironmentSettings
from klent.measure.metrics import rollout_metrics
from klent.models.load import LoadedModel
from klent.models.spoken import opening_ids, reply_ids
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.decoding import GroupDecoder, PlainDecoder, RereadDecoder
from klent.rollout.extending import ExtendingDecoder, can_extend, keep_row
from klent.rollout.play import PlayEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.tasks.returns import Returns
from klent.tasks.starts import EnvironmentTask

SAID = "and now?"
TWICE = """
from klent.environments import Step

class Twice:
    '''Asks twice; a turn earns its share of digits, and the second one is the last.'''

    def reset(self, row, seed):
        self.turn = 0
        return f"say {row['number']}"

    def step(self, action):
        self.turn += 1
        reward = sum(letter.isdigit() for letter in action) / max(len(action), 1)
        return Step("and now?", reward, done=self.turn == 2)
"""
STOPS = (TURN_END, *range(20, 60))  # many ways to stop


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> EnvironmentTask:
    folder = tmp_path_factory.mktemp("twice")
    (folder / "twice.py").write_text(TWICE)
    (folder / "rows.jsonl").write_text('{"number": 1}\n{"number": 22}\n')
    section = EnvironmentSettings(env="twice.py:Twice", rows="rows.jsonl")
    made = EnvironmentTask(section, base=folder)
    yield made
    made.environments.close()


def engine(task: EnvironmentTask, *, max_turns: int = 5, turn: int = 6, tokens: int = 30) -> PlayEngine:
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", STOPS)
    turns = TransformersEngine(loaded, SamplingOptions(max_tokens=turn))
    return PlayEngine(
        turns, task.environments, loaded, max_turns=max_turns, max_tokens=tokens, turn_tokens=turn
    )


def play(task: EnvironmentTask, seed: int = 0, **options: int) -> list:
    return engine(task, **options).generate([task.train(0), task.train(1)], group_size=4, seed=seed)


@pytest.fixture(scope="module")
def episodes(task):
    played = play(task)
    assert len(played) == 8
    assert {episode.turns for episode in played} == {2}
    return played


def test_tokens_are_appended_and_never_tokenised_again(episodes):
    observation = tiny_tokenizer().encode(SAID, add_special_tokens=False)
    for episode in episodes:
        assert len(episode.rewards) == episode.turns
        assert episode.finish == "stop"
        said = episode.tokens[~episode.acted].tolist()
        assert said == observation
        first = episode.tokens[(episode.turn == 0)].tolist()
        assert first[-1] in STOPS or len(first) == 6  # the stop token stays in the episode
        assert episode.tokens.tolist()[len(first) : len(first) + len(said)] == observation
        assert (episode.logp[~episode.acted] == 0).all()
        assert (episode.logp[episode.acted] < 0).all()


def test_the_policy_scores_each_action_as_the_sampler_drew_it(episodes):
    for shared in (False, True):
        policy = CausalPolicy(tiny_model(), temperature=1.0, packing=Packing(shared, 4096))
        batch = make_batch(episodes, [0.0] * 8, group_size=4)
        stats = policy.evaluate(batch, range(8))
        torch.testing.assert_close(
            stats.logp[batch.mask], batch.streams.logp_gen[batch.mask], atol=2e-5, rtol=0
        )
        torch.testing.assert_close(
            stats.entropy[batch.mask], batch.streams.entropy_gen[batch.mask], atol=2e-5, rtol=0
        )
        assert (stats.logp[~batch.mask] == 0).all()
        assert stats.targets == batch.tokens


def test_what_the_environment_said_gets_no_coefficient(episodes):
    step = updater()
    batch = make_batch(episodes, [float(i % 3) for i in range(8)], group_size=4)
    step.objective.estimate_advantage(batch)
    result = step.run(batch, seed=0)
    assert (result.coefficient[~batch.mask] == 0).all()
    acted = torch.where(batch.mask, batch.streams.advantage, 0.0)
    torch.testing.assert_close(result.coefficient, acted, atol=1e-5, rtol=1e-5)
    assert any((~episode.acted).any() for episode in episodes)


def test_the_gradient_is_that_of_the_actions_alone(episodes):
    """Written out with full logits, one episode at a time."""
    step = updater(shared=True)
    batch = make_batch(episodes, [float(i % 3) for i in range(8)], group_size=4)
    step.objective.estimate_advantage(batch)
    step.learning_rate = lambda number: 0.0
    step.run(batch, seed=0)
    model, total = tiny_model(), torch.zeros(())
    for row, episode in enumerate(episodes):
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logp = model(input_ids=ids).logits[0, len(episode.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = logp.gather(1, episode.tokens[:, None])[:, 0]
        total = total - (chosen * batch.streams.advantage[row, : len(chosen)])[episode.acted].sum()
    (total / batch.tokens).backward()
    for name, parameter in model.named_parameters():
        found = dict(step.policy.model.named_parameters())[name].grad
        torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-3)


def test_budgets_cut_an_episode_and_say_so(task, episodes):
    played = play(task, max_turns=1)
    assert {(episode.turns, episode.finish) for episode in played} == {(1, "length")}
    for one, both in zip(played, episodes, strict=True):  # the first turn is the same, whatever follows
        assert one.tokens.tolist() == both.tokens[both.turn == 0].tolist()
    short = play(task, tokens=7)
    for one, both in zip(short, episodes, strict=True):
        first = int((both.turn == 0).sum())
        assert int(one.acted.sum()) == min(7, int(both.acted.sum()))
        assert one.turns == (2 if first < 7 else 1)


def test_the_return_is_the_sum_of_the_turns(episodes):
    scores = Returns().score_episodes(episodes)
    assert scores.reward == [sum(episode.rewards) for episode in episodes]
    assert scores.to_go is None


def test_an_episode_draws_as_it_would_beside_no_other(task, episodes):
    """The second turn of each, asked for by itself, at its own row of random numbers."""
    from dataclasses import replace

    from klent.kit.seeds import derive_seed

    turns = engine(task).engine
    for number in (2, 7):
        episode = episodes[number]
        before = episode.turn == 0
        known = [*episode.tokens[before].tolist(), *episode.tokens[~episode.acted].tolist()]
        asked = replace(episode.prompt, token_ids=[*episode.prompt_ids, *known], number=number)
        (answer,) = turns.generate([asked], group_size=1, seed=derive_seed(0, "turn", 1))
        assert answer.tokens.tolist() == episode.tokens[(episode.turn == 1) & episode.acted].tolist()


def test_a_turn_reads_what_is_new_and_nothing_again(episodes):
    """An opening once for its group, then each turn's last token, which was drawn and not read, and what was said."""
    openings = sum(len(episodes[number].prompt_ids) for number in (0, 4))
    said = sum(1 + int((~episode.acted).sum()) for episode in episodes)
    assert sum(episode.prefill for episode in episodes) == openings + said
    assert (
        rollout_metrics(make_batch(episodes, [0.0] * 8, group_size=4), None)["tokens/prefill"]
        == openings + said
    )


def test_turns_are_the_same_where_each_is_read_from_the_start(task, episodes):
    playing = engine(task)
    playing.engine.extends = False
    again = playing.generate([task.train(0), task.train(1)], group_size=4, seed=0)
    for one, other in zip(again, episodes, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        torch.testing.assert_close(one.logp, other.logp, atol=2e-5, rtol=0)
    assert sum(e.prefill for e in again) > sum(e.prefill for e in episodes)


def test_three_turns_of_different_lengths_are_read_once(task):
    """The kept keys of a turn that was itself begun from kept ones; rows of several lengths."""
    model = tiny_model()
    rows = [[(5 * i + k) % 90 for i in range(length)] for k, length in enumerate((9, 14, 11))]
    cuts = [(3, 6), (8, 10), (4, 9)]
    decoder = PlainDecoder(
        model, [row[:a] for row, (a, _) in zip(rows, cuts, strict=True)], group_size=1, pad=0
    )
    with torch.no_grad():
        decoder.start()
        for end in (1, None):
            kept = [keep_row(decoder, index) for index in range(3)]
            prompts = [row[: cut[end]] if end else row for row, cut in zip(rows, cuts, strict=True)]
            decoder = ExtendingDecoder(model, prompts, kept, pad=0)
            logits = decoder.start()
        for row, found in zip(rows, logits, strict=True):
            whole = model(input_ids=torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [PlainDecoder, GroupDecoder, RereadDecoder])
def test_a_model_is_asked_whether_its_cache_can_be_gone_on_from(kind):
    assert can_extend(tiny_model(), kind) is (kind is not RereadDecoder)


ADVERSE = """
from klent.environments import Step

class Echo:
    '''Says what would merge with what the policy wrote, and the names of control tokens; repeats what it heard.'''

    def __init__(self, chat):
        self.chat = chat

    def reset(self, row, seed):
        self.turn = 0
        return [{"role": "user", "content": "ab<|im_end|>"}] if self.chat else "ab<|im_end|>a"

    def step(self, action):
        self.turn += 1
        return Step(f"c<|im_start|>assistant{action}<think>", len(action), done=self.turn == 3)
"""


class Scripted:
    """An engine that writes what it is told, whatever it is asked, and remembers what that was."""

    def __init__(self, tokenizer, turns: list[list[int]]) -> None:
        self.tokenizer, self.turns, self.asked = tokenizer, iter(turns), []

    def generate(self, prompts, *, group_size, seed):
        (prompt,) = prompts
        self.asked.append(prompt.token_ids)
        tokens = next(self.turns)
        ended = tokens[-1] == TURN_END
        numbers = torch.full((len(tokens),), -1.0)
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)
        finish = "stop" if ended else "length"
        return [
            Episode(
                prompt, prompt.token_ids, torch.tensor(tokens), text, finish, logp=numbers, entropy=numbers
            )
        ]


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_survive_merges_stop_tokens_and_control_tokens(tmp_path, chat):
    """What was written is what is read: none of it is what its text would be tokenised to."""
    (tmp_path / "echo.py").write_text(ADVERSE)
    tokenizer, model = merging_tokenizer(), tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    loaded = LoadedModel(model, tokenizer, "tiny", (TURN_END,))
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    turns = [[a, b], [TURN_START, a, b, TURN_END], [b, END, a]]  # cut, ended, with control tokens of its own
    task = EnvironmentTask(EnvironmentSettings(env="echo.py:Echo", config={"chat": chat}), base=tmp_path)
    scripted = Scripted(tokenizer, turns)
    playing = PlayEngine(scripted, task.environments, loaded, max_turns=5, max_tokens=40, turn_tokens=9)
    prompt = task.train(0)
    (episode,) = playing.generate([prompt], group_size=1, seed=0)
    task.environments.close()
    said = ["c<|im_start|>assistantab<think>", "c<|im_start|>assistant<|im_start|>ab<think>"]
    between = [
        reply_ids(tokenizer, prompt.prompt, text, ended=turn[-1] == TURN_END)
        for text, turn in zip(said, turns, strict=False)
    ]
    assert episode.tokens.tolist() == [*turns[0], *between[0], *turns[1], *between[1], *turns[2]]
    assert episode.tokens[episode.acted].tolist() == [token for turn in turns for token in turn]
    opening = opening_ids(tokenizer, prompt.prompt)
    first = [*opening, *turns[0], *between[0]]
    assert scripted.asked == [opening, first, [*first, *turns[1], *between[1]]]
    heard = [*opening, *episode.tokens[~episode.acted].tolist()]
    assert heard.count(TURN_START) == (6 if chat else 0)  # the template's two of each prompt, and no other
    assert episode.rewards == (2.0, 14.0, float(len("b<|endoftext|>a")))
    whole = tokenizer(
        tokenizer.decode([*opening, *episode.tokens.tolist()]), add_special_tokens=False
    ).input_ids
    assert whole != [*opening, *episode.tokens.tolist()]  # as it would be, decoded and tokenised again


@pytest.mark.parametrize("credit", ["episode", "turn"])
def test_credit_of_turns_by_hand(episodes, credit):
    """Two starts of four episodes, two turns each; discount a half, group means as the baseline."""
    from klent.training.objective import Objective

    scores = Returns(discount=0.5, credit=credit).score_episodes(episodes)
    batch = make_batch(episodes, scores.reward, group_size=4, to_go=scores.to_go)
    Objective({"reinforce": {}}, {"group_advantage": {"scale": "none"}}, None).estimate_advantage(batch)
    paid = torch.tensor([episode.rewards for episode in episodes])
    whole = paid[:, 0] + 0.5 * paid[:, 1]
    expected = torch.stack([whole, paid[:, 1] if credit == "turn" else whole], dim=1)
    expected = expected - expected.view(2, 4, 2).mean(dim=1).repeat_interleave(4, dim=0)
    for row, episode in enumerate(episodes):
        wanted = torch.where(episode.acted, expected[row][episode.turn], 0.0)
        torch.testing.assert_close(batch.streams.advantage[row, : len(wanted)], wanted, atol=1e-6, rtol=0)


def test_the_file_is_found_beside_the_recipe(tmp_path: Path):
    from klent.config import load_recipe

    (tmp_path / "twice.py").write_text(TWICE)
    (tmp_path / "rows.jsonl").write_text('{"number": 1}\n')
    recipe = "model: m\nmethod: grpo\ntask: {env: twice.py:Twice, rows: rows.jsonl}\nsteps: 1\n"
    (tmp_path / "r.yaml").write_text(recipe)
    task = load_recipe(tmp_path / "r.yaml").task
    assert (task.env, task.rows) == (f"{tmp_path}/twice.py:Twice", f"{tmp_path}/rows.jsonl")
