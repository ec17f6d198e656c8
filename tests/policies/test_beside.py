"""Log-probabilities beside the action's: of the dummy action, and the mean over the vocabulary."""

import pytest
import torch
from helpers_training import batch
from tiny import VOCABULARY, tiny_model, tiny_tokenizer

from klent.errors import ModelError
from klent.head import token_stats
from klent.head.stats import Head, LogitTransform
from klent.models.load import load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.beside import add_dummy_action, beside, start_logits_at_zero
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.expected_next import ExpectedNext
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.policy import CausalPolicy


def draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize("name", ["logit", "logp_dummy", "logp_mean"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(0.7, 1.3), LogitTransform(1.4, 1.0, 2.0)]
)
def test_values_and_gradients_are_those_of_full_logits(name, bias, transform):
    leaves = [draw(5, 4).requires_grad_(), draw(9, 4).requires_grad_()]
    leaves += [draw(9).requires_grad_()] if bias else []
    head = Head(leaves[0], leaves[1], leaves[2] if bias else None, transform)
    action = torch.tensor([0, 3, 8, 3, 1])
    if name == "logp_mean" and transform.softcap is not None:
        with pytest.raises(ModelError, match="caps its logits"):
            beside(name, head, action, draw(5))
        return
    logp = token_stats(head.hidden, head.weight, action, bias=head.bias, **transform._asdict()).logp
    raw = (head.hidden @ head.weight.T + (0.0 if head.bias is None else head.bias)) * transform.scale
    if transform.softcap is not None:
        raw = transform.softcap * torch.tanh(raw / transform.softcap)
    full = (raw / transform.temperature).log_softmax(-1)
    own = (raw / transform.temperature)[torch.arange(5), action]
    expected = {"logit": own, "logp_dummy": full[:, -1], "logp_mean": full.mean(-1)}[name]
    got = beside(name, head, action, logp)
    torch.testing.assert_close(got, expected)
    upstream = draw(5)
    for one, other in zip(
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_dummy_action_is_one_more_row_and_changes_no_ratio_of_the_others():
    model = tiny_model()
    ids = torch.tensor([[7, 8, 9]])
    before = model(input_ids=ids).logits
    state = torch.get_rng_state()
    add_dummy_action(model)
    assert torch.equal(torch.get_rng_state(), state)
    after = model(input_ids=ids).logits
    assert after.shape[-1] == len(VOCABULARY) + 1
    torch.testing.assert_close(after[..., :-1], before)
    assert (after[..., -1] == 0).all()


def test_a_head_of_zeros_is_the_models_own_and_is_saved(tmp_path):
    model = tiny_model()
    embedded = model.get_input_embeddings().weight.clone()
    state = torch.get_rng_state()
    start_logits_at_zero(model)
    assert torch.equal(torch.get_rng_state(), state)
    ids = torch.tensor([[7, 8, 9]])
    assert not model(input_ids=ids).logits.any()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = 1.0
    assert torch.equal(model.get_input_embeddings().weight, embedded)
    expected = model(input_ids=ids).logits
    assert expected[..., 3].any()
    save_model(model, tiny_tokenizer(), tmp_path / "values")
    torch.testing.assert_close(load_policy(str(tmp_path / "values")).model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("own", [False, True])
def test_the_second_head_is_a_row_of_its_own_for_each_action(own):
    """By the hidden states of whole rows, read one at a time, with layers of its own or the policy's."""
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    policy.critic = Critic(32, tiny_model(3) if own else None)
    policy.critic.add_actions(len(VOCABULARY), torch.Generator().manual_seed(1))
    made = batch()
    stats = policy.evaluate(made, range(len(made)), also=["logit_second"])
    assert stats.value is None
    body = (policy.critic.trunk if own else policy.model).model
    for row, episode in enumerate(made.episodes):
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        states = body(input_ids=ids).last_hidden_state[0, len(episode.prompt_ids) - 1 : -1]
        everything = states @ policy.critic.actions.T
        expected = everything.gather(1, episode.tokens[:, None])[:, 0]
        torch.testing.assert_close(stats.logit_second[row, : len(expected)], expected, atol=1e-5, rtol=1e-4)
        assert (stats.logit_second[row, len(expected) :] == 0).all()


def test_before_an_update_a_state_is_worth_what_the_critic_says_and_an_action_its_kept_logit():
    policy = CausalPolicy(tiny_model(), temperature=1.0)
    policy.critic = Critic(32)
    policy.critic.add_actions(len(VOCABULARY), torch.Generator().manual_seed(1))
    torch.nn.init.normal_(policy.critic.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    kept, made = KeptWeights(policy), batch()
    before = policy.evaluate(made, range(len(made)), also=["logit", "logit_second", "value"])
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.1)
    values = ExpectedNext(policy, kept).values(made)
    after = policy.evaluate(made, range(len(made)), also=["logit", "logit_second", "value"])
    torch.testing.assert_close(values, after.value.detach().clamp(0, 1))
    torch.testing.assert_close(made.streams.logit_target, before.logit.detach())
    torch.testing.assert_close(made.streams.logit_second_target, before.logit_second.detach())
    assert (after.logit_second - before.logit_second).abs().max() > 0.01
    assert (after.logit - before.logit).abs().max() > 0.01
    assert 0 < float(values.max()) <= 1
