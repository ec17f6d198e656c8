"""A loss of what the environment said: on tokens that are no actions, and however a step is cut the same."""

import pytest
import torch
from helpers_training import GROUP, GRPO, batch, gradient, updater
from tiny import tiny_folder, tiny_model

from klent.config import load_recipe
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.runs.console import QuietConsole
from klent.runs.train import train
from klent.streams.batch import Batch, make_batch
from klent.training.objective import Objective

COEF = 0.3
TERMS = {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}, "observation": {"coef": COEF}}
REDUCTIONS = [{"over": "tokens"}, {"over": "sequences"}, {"over": "constant", "denominator": 9}]


def turns(rewards: list[float] | None = None) -> Batch:
    """Completions of a step, in all but two of which some tokens are the environment's."""
    made = batch(rewards)
    for number, episode in enumerate(made.episodes):
        length = len(episode.tokens)
        heard = slice(1 + number % 2, 1 + number % 2 + number % 4)
        if number not in (0, 7) and length > heard.stop:
            episode.acted = torch.ones(length, dtype=torch.bool)
            episode.acted[heard] = False
            episode.logp = torch.where(episode.acted, episode.logp, 0.0)
            episode.entropy = torch.where(episode.acted, episode.entropy, 0.0)
    again = make_batch(made.episodes, made.reward.tolist(), group_size=GROUP)
    assert again.streams.observed.any(dim=1).sum() > 4
    return again


def step(loss: dict = TERMS, **options: object):
    return updater(Objective(loss, {"group_advantage": {"scale": "std"}}, None), **options)


def close(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=3e-6, rtol=1e-3)


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda r: r["over"])
def test_the_gradient_is_that_of_the_formula(reduce):
    rows = turns()
    with_term, without = (
        gradient(step(loss, reduce=reduce), turns()) for loss in (TERMS, {"ppo_clip": TERMS["ppo_clip"]})
    )
    model, total = tiny_model(), torch.zeros(())
    for episode in rows.episodes:
        ids = torch.tensor([episode.prompt_ids + episode.tokens.tolist()])
        logp = model(input_ids=ids).logits[0, len(episode.prompt_ids) - 1 : -1].log_softmax(-1)
        heard = logp.gather(1, episode.tokens[:, None])[~episode.acted].sum()
        share = {
            "tokens": 1 / int(rows.mask.sum()),
            "sequences": 1 / (len(rows) * int(episode.acted.sum())),
            "constant": 1 / (len(rows) * 9),
        }[reduce["over"]]
        total = total - COEF * heard * share
    assert total.item() > 0.01
    total.backward()
    expected = {f"model.{name}": p.grad + without[f"model.{name}"] for name, p in model.named_parameters()}
    close(with_term, expected)


@pytest.mark.parametrize(("shared", "joined", "budget"), [(True, 0, 40), (True, 80, 80), (False, 0, 30)])
def test_any_cut_and_packing_gives_the_same_gradient(shared, joined, budget):
    whole = gradient(step(shared=False), turns())
    cut = gradient(step(tokens_per_microbatch=budget, shared=shared, joined=joined), turns())
    close(whole, cut)


def test_episodes_of_equal_rewards_are_computed_where_something_was_said():
    rows = turns([0.5] * 12)
    made = step()
    made.objective.estimate_advantage(rows)
    assert made.objective.active_rows(rows) == rows.streams.observed.any(dim=1).nonzero()[:, 0].tolist()
    assert updater(Objective(*GRPO)).objective.active_rows(rows) != made.objective.active_rows(rows)


def test_what_was_said_has_no_coefficient_and_no_importance_weight():
    rows = turns()
    rows.streams.importance_weight = torch.full(rows.mask.shape, 0.5)
    only = {"observation": {"coef": COEF}}
    weighted = gradient(updater(Objective(only, None, None)), rows)
    close(weighted, gradient(updater(Objective(only, None, None)), turns()))
    made = step()
    made.objective.estimate_advantage(rows)
    result = made.run(rows, seed=0)
    assert not result.coefficient[rows.streams.observed].any()
    assert result.sums["observation/loss"][1] == float(rows.streams.observed.sum())
    assert result.sums["observation/loss"][0] > 0


RECIPE = """
model: model
method: grpo
loss: {observation: {coef: 0.5}}
task: {env: "asks.py:Asks", max_turns: 3, turn_tokens: 2}
steps: 12
prompts_per_step: 2
group_size: 2
rollout: {max_tokens: 9}
optimizer: {lr: 0.02}
eval: null
"""
ASKS = """
from klent.environments import Step

class Asks:
    def reset(self, row, seed):
        self.turn = 0
        return "say"

    def step(self, action):
        self.turn += 1
        return Step("and now?", 0.0, done=self.turn == 3)
"""


def test_a_recipe_learns_what_an_environment_says_where_rewards_teach_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "asks.py").write_text(ASKS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = train(
        load_recipe("recipe.yaml", []), tmp_path / "runs" / "one", command="c", console=QuietConsole()
    )
    losses = [row["observation/loss"] for row in read_jsonl(run / "metrics.jsonl")]
    assert losses[0] > 2.0
    assert losses[-1] < losses[0] / 2


def test_a_term_of_observations_is_refused_where_an_answer_is_one_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "say"}\n')
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace('env: "asks.py:Asks", max_turns: 3, turn_tokens: 2', "data: prompts.jsonl")
        + "reward: exact\n"
    )
    with pytest.raises(ConfigError, match=r"observation is of what is said between turns.*task\.env"):
        load_recipe("recipe.yaml", [])
