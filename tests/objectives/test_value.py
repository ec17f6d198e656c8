"""What a critic learns from, clipped and not, and advantages of one variance: by hand, and by enumeration."""

import numpy as np
import pytest
import torch

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, slope, table

CASES = {"value_loss": [{}, {"coef": 0.3, "clip": 0.5}], "whiten": [{}, {"shift": False}]}


def test_squared_error_table() -> None:
    value = table([0.0, 2.0, 9.0]).requires_grad_()
    out = O.value_loss(value, table([1.0, -1.0, 5.0]), mask_of("xx."), coef=0.25)
    assert_close(out.loss, table([0.25, 2.25, 0.0]))
    assert_close(slope(out.loss, value), table([-0.5, 1.5, 0.0]))
    assert float(out.metrics["value/error"][0]) == 10.0
    assert float(out.metrics["value/error"][1]) == 2.0


def test_clipped_table() -> None:
    """Old value 0 and target 1, clip 0.25: beyond that towards the target nothing is trained; away, all is."""
    value = table([0.2, 0.8, -0.8, 1.4]).requires_grad_()
    old, target = torch.zeros_like(value), torch.ones_like(value)
    out = O.value_loss(value, target, mask_of("xxxx"), coef=1.0, value_old=old.detach(), clip=0.25)
    assert_close(out.loss, table([0.64, 0.5625, 3.24, 0.5625]))
    assert_close(slope(out.loss, value), table([-1.6, 0.0, -3.6, 0.0]))
    assert float(out.metrics["value/clipped"][0]) == 2.0


def test_its_minimum_is_the_expected_return() -> None:
    """Over all returns of a state with their probabilities the gradient vanishes at their mean, and there alone."""
    returns, probability = np.array([0.0, 1.0, 4.0]), np.array([0.5, 0.3, 0.2])
    mean = float(returns @ probability)
    for shift in (0.0, 0.1):
        value = torch.full((3, 1), mean + shift, dtype=torch.float64, requires_grad=True)
        loss = O.value_loss(
            value, torch.tensor(returns)[:, None], torch.ones(3, 1, dtype=torch.bool), coef=0.5
        ).loss
        gradient = slope(torch.tensor(probability)[:, None] * loss, value).sum()
        assert_close(gradient, torch.tensor(shift, dtype=torch.float64))


@pytest.mark.parametrize("shift", [True, False])
def test_whitened_as_numpy_says(shift: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    advantage = 3 + 2 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.6
    kept = advantage[mask].numpy()
    expected = (kept - shift * kept.mean()) / kept.std(ddof=1)
    found = O.whiten(advantage, mask, shift=shift)
    assert_close(found[mask], torch.tensor(expected))
    assert not found[~mask].any()


def test_equal_advantages_are_not_divided() -> None:
    equal = torch.full((1, 3), 0.1 + 0.2)
    assert torch.equal(O.whiten(equal, mask_of("xxx"), shift=False), equal)
    assert O.whiten(equal, mask_of("xxx")).abs().max() < 1e-6
    assert torch.equal(O.whiten(equal, mask_of("x.."), shift=False), torch.tensor([[0.1 + 0.2, 0.0, 0.0]]))


@pytest.mark.parametrize("exact", [False, True])
def test_a_divergence_in_the_reward_loses_the_tokens_own(exact: bool) -> None:
    """Two tokens of three, all nine completions: paid k1 the gradient is that of the KL between completions; paid
    each prefix's divergence over the vocabulary, its gradient at the prefixes is missing, and nothing else is."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)  # of the first token, and after each
    logq = torch.randn(4, 3, dtype=torch.float64).log_softmax(-1)
    first, second = (
        tokens.flatten() for tokens in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    )
    prefix = torch.stack([torch.zeros(9, dtype=torch.long), 1 + first], dim=1)
    token = torch.stack([first, second], dim=1)
    every = logits.log_softmax(-1)
    logp, other = every[prefix, token], logq[prefix, token]
    weight, mask = logp.sum(dim=1).exp(), torch.ones(9, 2, dtype=torch.bool)
    local = (every.exp() * (every - logq)).sum(-1)[prefix]
    (whole,) = torch.autograd.grad((weight * (logp - other).sum(dim=1)).sum(), logits, retain_graph=True)
    (missing,) = torch.autograd.grad((weight.detach()[:, None] * local).sum(), logits, retain_graph=True)
    paid = -local.detach() if exact else O.kl_in_reward(logp.detach(), other, mask, coef=1.0)
    pushed = O.reward_to_go(paid, mask) * logp
    (found,) = torch.autograd.grad(-(weight.detach()[:, None] * pushed).sum(), logits)
    assert_close(found, whole - missing if exact else whole)
    assert missing.abs().max() > 0.05


def test_clip_needs_the_value_that_it_clips_from() -> None:
    with pytest.raises(ValueError, match="clip is given without value_old"):
        O.value_loss(torch.zeros(1, 1), torch.zeros(1, 1), mask_of("x"), clip=0.2)


MUTANTS = [
    Mutant(
        "the smaller error kept", "value.py", "torch.maximum(error", "torch.minimum(error", test_clipped_table
    ),
    Mutant("the halved square", "value.py", "coef * error,", "0.5 * coef * error,", test_squared_error_table),
    Mutant("clipped from the target", "value.py", "start + (value", "returns + (value", test_clipped_table),
    Mutant(
        "divided by the count",
        "value.py",
        "(count - 1)",
        "(count - 0)",
        lambda: test_whitened_as_numpy_says(True),
    ),
    Mutant(
        "the mean left in",
        "value.py",
        "(centred if shift",
        "(values if shift",
        lambda: test_whitened_as_numpy_says(True),
    ),
    Mutant("noise divided", "value.py", "std > rounding", "std > -1", test_equal_advantages_are_not_divided),
]
