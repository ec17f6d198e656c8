"""Cross-entropy with weights: the exact form, the paper's biased one, and where training on them ends."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import likelihood as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {"uniform_cross_entropy": [{"actions": 5}], "observation_loss": [{"coef": 0.1}, {"coef": 2.0}]}

NAN = math.nan

BEHAVIOUR = np.array([0.5, 0.3, 0.15, 0.05])
VALUE = np.array([0.2, 0.9, 1.0, 0.4])


def trained(expected_loss: Callable[[Tensor], Tensor], actions: int) -> np.ndarray:
    """Probabilities after minimising a loss of the logits to the end."""
    logits = torch.zeros(actions, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = expected_loss(logits.log_softmax(dim=0))
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().softmax(dim=0).numpy()


def column(values: np.ndarray) -> Tensor:
    return torch.tensor(values)[:, None]


def test_weighted_cross_entropy_table() -> None:
    # w = 1, 0, 0.25: -log 0.5; -log 0.125; -(0.25 log 0.5 + 0.75 log 0.25)
    x, two = table([0.5, 0.5, 0.5, NAN]).log().requires_grad_(), math.log(2)
    dummy = table([0.25, 0.125, 0.25, NAN]).log().requires_grad_()
    out = O.weighted_cross_entropy(x, dummy, table([1.0, 0.0, 0.25, NAN]), mask_of("xxx."))
    assert_close(out.loss, table([two, 3 * two, 1.75 * two, 0.0]))
    assert_close(slope(out.loss, x), table([-1.0, 0.0, -0.25, 0.0]))
    assert_close(slope(out.loss, dummy), table([0.0, -1.0, -0.75, 0.0]))
    assert [float(v) for v in out.metrics["weight"]] == [1.25, 3.0]


def test_observation_loss_table() -> None:
    # 0.1 times -log of 1/2 and of 1/4; nothing where the policy acted, whatever stands there
    x = table([0.5, NAN, 0.25, 1.0]).log().requires_grad_()
    out = O.observation_loss(x, mask_of("x.x."), coef=0.1)
    assert_close(out.loss, table([0.1 * math.log(2), 0.0, 0.2 * math.log(2), 0.0]))
    assert_close(slope(out.loss, x), table([-0.1, 0.0, -0.1, 0.0]))
    assert [float(v) for v in out.metrics["observation/loss"]] == pytest.approx([3 * math.log(2), 2.0])


@pytest.mark.parametrize("seed", range(3))
def test_observation_loss_agrees_with_oracle_and_has_its_gradient(seed: int) -> None:
    tokens = random_tokens(seed)
    x, mask = tokens["logp"].requires_grad_(), tokens["mask"]
    out = O.observation_loss(x, mask, coef=0.7)
    expected = oracle.observation(x.detach().numpy(), mask.numpy(), 0.7)
    assert_close(out.loss, expected[0])
    assert_close(slope(out.loss, x), expected[1])
    assert torch.autograd.gradcheck(lambda x: O.observation_loss(x, mask, coef=0.7).loss, (x,))


def test_uniform_cross_entropy_table() -> None:
    # probabilities 1/2, 1/4, 1/8, 1/8, the first the token's; w = 0.7 leaves 0.1 for each other action
    p, two = table([0.5, 0.25, 0.125, 0.125]).log(), math.log(2)
    x, mean = p[:, :1].clone().requires_grad_(), p.mean(dim=1, keepdim=True).requires_grad_()
    out = O.uniform_cross_entropy(x, mean, table([0.7]), mask_of("x"), actions=4)
    assert_close(out.loss, table([(0.7 * 1 + 0.1 * (2 + 3 + 3)) * two]))
    # of Σ_{a ≠ aₜ} = 4·mean - logp the token's own part comes off again: -(0.7 - 0.1)
    assert_close(slope(out.loss, x), table([-0.6]))
    assert_close(slope(out.loss, mean), table([-0.4]))


@pytest.mark.parametrize("seed", range(3))
def test_weighted_cross_entropy_agrees_with_oracle_and_has_its_gradient(seed: int) -> None:
    tokens = random_tokens(seed)
    x, dummy, weight, mask = (tokens[name] for name in ("logp", "logp_other", "weight", "mask"))
    x.requires_grad_()
    dummy.requires_grad_()
    out = O.weighted_cross_entropy(x, dummy, weight, mask)
    expected = oracle.weighted(x.detach().numpy(), dummy.detach().numpy(), weight.numpy(), mask.numpy())
    assert_close(out.loss, expected[0])
    assert_close(slope(out.loss, x), expected[1])
    assert_close(slope(out.loss, dummy), expected[2])
    assert torch.autograd.gradcheck(
        lambda x, y: O.weighted_cross_entropy(x, y, weight, mask).loss, (x, dummy)
    )
    assert torch.autograd.gradcheck(
        lambda x, y: O.uniform_cross_entropy(x, y, weight, mask, actions=5).loss, (x, dummy)
    )


@pytest.mark.parametrize("actions", [2, 7])
def test_uniform_cross_entropy_agrees_with_oracle_on_full_distributions(actions: int) -> None:
    generator = torch.Generator().manual_seed(actions)
    logp = torch.randn(6, actions, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    weight = torch.rand(6, 1, generator=generator, dtype=torch.float64)
    token = torch.randint(actions, (6, 1), generator=generator)
    out = O.uniform_cross_entropy(
        logp.gather(1, token),
        logp.mean(dim=1, keepdim=True),
        weight,
        torch.ones(6, 1, dtype=torch.bool),
        actions=actions,
    )
    expected = [oracle.uniform(logp[i].numpy(), int(token[i]), float(weight[i])) for i in range(6)]
    assert_close(out.loss[:, 0], expected)


def test_a_weight_of_one_is_cross_entropy() -> None:
    tokens = random_tokens(0)
    x, other, mask = tokens["logp"], tokens["logp_other"], tokens["mask"]
    plain, ones = O.cross_entropy(x, mask).loss, torch.ones_like(x)
    assert_close(O.weighted_cross_entropy(x, other, ones, mask).loss, plain)
    assert_close(O.uniform_cross_entropy(x, other, ones, mask, actions=9).loss, plain)


def dummy_loss(logp: Tensor, weight: np.ndarray, share: np.ndarray) -> Tensor:
    """Mean over the data of the loss; the last action is the dummy."""
    k = len(logp) - 1
    everywhere = torch.ones(k, 1, dtype=torch.bool)
    out = O.weighted_cross_entropy(logp[:k, None], logp[k:].expand(k)[:, None], column(weight), everywhere)
    return (torch.tensor(share) * out.loss[:, 0]).sum()


def test_training_with_the_dummy_ends_at_weight_times_behaviour() -> None:
    p = trained(lambda logp: dummy_loss(logp, VALUE, BEHAVIOUR), 5)
    np.testing.assert_allclose(p, oracle.weighted_optimum(BEHAVIOUR, VALUE), atol=1e-8)
    np.testing.assert_allclose(p[:4] / BEHAVIOUR, VALUE, atol=1e-6)


def test_a_random_weight_counts_by_its_mean() -> None:
    # the weights 0 and 2·VALUE/2 = VALUE, half of the time each: as if it were always VALUE / 2
    p = trained(
        lambda logp: (dummy_loss(logp, VALUE, BEHAVIOUR) + dummy_loss(logp, 0 * VALUE, BEHAVIOUR)) / 2, 5
    )
    np.testing.assert_allclose(p, oracle.weighted_optimum(BEHAVIOUR, VALUE / 2), atol=1e-8)


def test_training_with_the_uniform_spread_ends_elsewhere() -> None:
    def loss(logp: Tensor) -> Tensor:
        mean = logp.mean().expand(4)[:, None]
        everywhere = torch.ones(4, 1, dtype=torch.bool)
        out = O.uniform_cross_entropy(logp[:, None], mean, column(VALUE), everywhere, actions=4)
        return (torch.tensor(BEHAVIOUR) * out.loss[:, 0]).sum()

    p = trained(loss, 4)
    np.testing.assert_allclose(p, oracle.uniform_optimum(BEHAVIOUR, VALUE), atol=1e-8)
    # the rarest action, worth 0.4, looks as if it were worth 3.3: the bias that the docstring tells of
    assert p[3] / BEHAVIOUR[3] == pytest.approx(0.4 + (0.5 * 0.8 + 0.3 * 0.1) / 3 / 0.05)
    assert p[3] / BEHAVIOUR[3] > 3


def test_a_large_vocabulary_does_not_cure_the_bias() -> None:
    # Dirichlet behaviours, uniform weights: the worst error of p/π grows with the number of actions
    rng = np.random.default_rng(0)
    worst = []
    for actions in (3, 30, 300):
        behaviour, weight = rng.dirichlet(np.ones(actions)), rng.random(actions)
        ratio = oracle.uniform_optimum(behaviour, weight) / behaviour
        worst.append(np.abs(ratio - weight).max())
    assert worst[0] < worst[1] < worst[2]
    assert worst[2] > 10
