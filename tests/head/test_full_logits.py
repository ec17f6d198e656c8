"""Statistics of logits that a model has computed: impossible tokens, values and gradients."""

import math

import torch

from head.helpers import problem
from klent import token_stats
from klent.head.reference import full_logit_stats


def test_impossible_tokens_add_nothing_to_the_entropy_and_get_no_gradient() -> None:
    logits = torch.tensor(
        [[0.0, math.log(3.0), -torch.inf], [-torch.inf, 2.0, -torch.inf]], requires_grad=True
    )
    stats = full_logit_stats(logits, torch.tensor([1, 1]), 1.0)
    assert stats.entropy is not None
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(stats.logp, torch.tensor([math.log(0.75), 0.0]))
    torch.testing.assert_close(stats.entropy, torch.tensor([expected, 0.0]))
    (stats.logp.sum() + stats.entropy.sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[logits == -torch.inf], torch.zeros(3))


def test_an_impossible_target_has_log_probability_minus_infinity() -> None:
    stats = full_logit_stats(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([2]), 0.5)
    assert stats.entropy is not None
    assert stats.logp.item() == -math.inf
    torch.testing.assert_close(stats.entropy, torch.tensor([math.log(2.0)]))


def test_without_impossible_tokens_it_is_the_head_over_an_identity() -> None:
    p = problem(12, 5, 30)
    logits = p.hidden @ p.weight.T + p.bias
    expected = token_stats(p.hidden, p.weight, p.target, bias=p.bias, temperature=0.7)
    actual = full_logit_stats(logits, p.target, 0.7)
    torch.testing.assert_close(actual.logp, expected.logp)
    torch.testing.assert_close(actual.entropy, expected.entropy)
    assert full_logit_stats(logits, p.target, 0.7, entropy=False).entropy is None
