"""The example on wrong samplers: its gradients are those of the expected reward, its copies what they are called."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples" / "small_model"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "wrong_gradient", raising=False)
    import worse_copies
    import wrong_gradient

    monkeypatch.setattr(wrong_gradient, "LENGTH", 4)
    return wrong_gradient, worse_copies


def test_rounding_is_to_the_nearest_step_of_each_output(modules):
    weight = torch.tensor([[3.0, -0.9, 0.4], [0.0, 30.0, 11.0], [-7.0, 3.4, 3.6]])
    assert modules[1].rounded(weight, 3)[:2].tolist() == [[3, -1, 0], [0, 30, 10]]
    assert modules[1].rounded(weight, 4)[2].tolist() == [-7, 3, 4]


def test_the_policys_own_gradient_is_that_of_its_expected_reward(modules):
    wrong, _ = modules
    world = wrong.build(3)
    table = torch.zeros(int(world.prefix.max()) + 1, wrong.TOKENS, dtype=torch.float64)
    table[world.prefix.flatten()] = world.policy.flatten(0, 1)  # the same wherever a prefix stands
    table.requires_grad_()
    chosen = torch.log_softmax(table, -1)[world.prefix, world.tokens].sum(1)
    (chosen.exp() * world.reward).sum().backward()
    assert float(chosen.exp().sum().detach()) == pytest.approx(1.0)
    own, noise = wrong.gradient(world, world.policy, "none")
    torch.testing.assert_close(own, table.grad, rtol=1e-9, atol=1e-12)
    assert noise > 0


def test_whole_weights_leave_no_bias_and_none_leave_some(modules):
    wrong, _ = modules
    world = wrong.build(4)
    own, _ = wrong.gradient(world, world.policy, "none")
    for how in wrong.COPIES:
        found, _ = wrong.gradient(world, world.sampler[how], "whole completion")
        torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-12)
    plain, _ = wrong.gradient(world, world.sampler["int3"], "none")
    assert float((plain - own).norm() / own.norm()) > 0.05
    for mode in ("truncate", "mask_token", "mask_sequence", "icepop"):
        found, _ = wrong.gradient(world, world.sampler["int3"], mode)
        assert float((found - plain).norm() / own.norm()) > 1e-3
