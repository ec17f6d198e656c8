"""An environment of two turns: tokens in, tokens out, and what it says gets no coefficient."""

import pytest
import torch
from helpers_training import updater
from tiny import TURN_END, tiny_model, tiny_tokenizer

from klent.environments import Step
from klent.models.load import LoadedModel
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.play import EnvironmentSource
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.batch import make_batch

SAID = "and now?"


class Twice:
    """Asks twice; a turn earns its share of digits, and the second one is the last."""

    def reset(self, row, seed):
        self.turn = 0
        self.seed = seed
        return f"say {row['number']}"

    def step(self, action):
        self.turn += 1
        reward = sum(letter.isdigit() for letter in action) / max(len(action), 1)
        return Step(SAID, reward, done=self.turn == 2)


def source(model, *, max_turns: int = 5, max_tokens: int = 6) -> EnvironmentSource:
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", (TURN_END, *range(20, 60)))  # many ways to stop
    return EnvironmentSource(
        Twice,
        [{"number": 1}, {"number": 22}],
        TransformersEngine(loaded, SamplingOptions(max_tokens=max_tokens)),
        lambda text: tiny_tokenizer().encode(text, add_special_tokens=False),
        prompts_per_step=2,
        group_size=4,
        max_turns=max_turns,
        seed=0,
    )


@pytest.fixture(scope="module")
def episodes():
    played = source(tiny_model()).collect(1)
    assert len(played) == 8
    assert any(episode.turns == 2 for episode in played)
    return played


def test_tokens_are_appended_and_never_tokenised_again(episodes):
    observation = tiny_tokenizer().encode(SAID, add_special_tokens=False)
    for episode in episodes:
        assert len(episode.rewards) == episode.turns
        said = episode.tokens[~episode.acted].tolist()
        assert said == observation * (episode.turns - 1)
        if episode.turns == 2:
            first = episode.tokens[(episode.turn == 0)].tolist()
            assert first[-1] in (TURN_END, *range(20, 60))  # the stop token stays in the episode
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


def test_budgets_cut_an_episode_and_say_so():
    played = source(tiny_model(), max_turns=1).collect(1)
    assert {episode.turns for episode in played} == {1}
    assert {episode.finish for episode in played} == {"length"}
    again = source(tiny_model(), max_turns=1).collect(1)
    assert [e.tokens.tolist() for e in played] == [e.tokens.tolist() for e in again]


def test_the_return_is_the_sum_of_the_turns(episodes):
    scores = source(tiny_model()).score(episodes)
    assert scores.reward == [sum(episode.rewards) for episode in episodes]
