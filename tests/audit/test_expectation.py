"""Expectations over pairs of completions are those over completions, if the loss does not look at both."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from klent.audit.call import wire
from klent.audit.expectation import expected_gradient
from klent.audit.worlds import sample, two_tokens


def k2_with_entropy(logp: Tensor, logp_ref: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
    return (logp - logp_ref) ** 2 / 2 + 0.5 * entropy


@pytest.mark.parametrize("off_policy", [False, True])
def test_pairs_agree_with_single_completions(off_policy: bool) -> None:
    scene = two_tokens()[0] if off_policy else two_tokens()[0].on_policy()
    loss = wire(k2_with_entropy, {})
    one, two = (expected_gradient(kind, scene) for kind in (loss, replace(loss, rows=2)))
    torch.testing.assert_close(one.gradient, two.gradient, rtol=1e-12, atol=1e-12)
    assert one.variance == pytest.approx(two.variance)
    assert one.scale == pytest.approx(two.scale)


@pytest.mark.parametrize("off_policy", [False, True])
def test_the_mean_and_the_variance_are_those_of_a_plain_sum(off_policy: bool) -> None:
    scene = two_tokens()[1] if off_policy else two_tokens()[1].on_policy()
    listed = sample(scene)
    gradients = []
    for row in range(len(listed.probability)):
        parameters = scene.policy.clone().requires_grad_()
        table = scene.log_probs(parameters)
        entropy = -(table.exp() * table).sum(dim=1)[scene.world.prefix[row]]
        gap = scene.token_logp(parameters)[row] - listed.streams["logp_ref"][row]
        loss = (gap**2 / 2 + 0.5 * entropy).sum()
        gradients.append(torch.autograd.grad(loss, parameters)[0].flatten())
    mean = sum(p * g for p, g in zip(listed.probability, gradients, strict=True))
    spread = sum(p * (g - mean) @ (g - mean) for p, g in zip(listed.probability, gradients, strict=True))
    assert isinstance(spread, Tensor)
    found = expected_gradient(wire(k2_with_entropy, {}), scene)
    torch.testing.assert_close(found.gradient, mean, rtol=1e-12, atol=1e-12)
    assert found.variance == pytest.approx(spread.item())
