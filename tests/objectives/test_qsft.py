"""Q-SFT: its target, the values that it reaches, and the policies taken from them."""

import math

import numpy as np
import pytest
import torch
from oracles import qsft as oracle
from oracles.likelihood import uniform_optimum

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table


def test_qsft_target_table() -> None:
    # ratios: 0.4, 0.8 -> 0.1 + 0.5·0.8; 0.6/0.2 is above 1 -> 0.3 + 0.5·1; nothing follows -> 0.7
    # the last: 0.9 + 0.5·0.8 is above 1
    value = table([0.2, 0.4], [0.6, 0.1], [0.0, 0.0], [0.4, 0.4]).log()
    behaviour = table([0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]).log()
    reward = table([0.1, 0.3, 0.7, 0.9])[0]
    assert_close(O.qsft_target(reward, value, behaviour, gamma=0.5), [0.5, 0.8, 0.7, 1.0])
    # without actions rarer than 0.3 the second has the ratio 1/8 left
    rare = O.qsft_target(reward, value, behaviour, gamma=0.5, min_behaviour=0.3)
    assert_close(rare, [0.5, 0.3625, 0.7, 1.0])


def test_qsft_target_leaves_out_what_the_data_never_does() -> None:
    value, behaviour = table([0.1, 0.2]).log(), table([1.0, 0.0]).log()
    target = O.qsft_target(torch.zeros(1, dtype=torch.float64), value.requires_grad_(), behaviour)
    assert_close(target, [0.1])
    assert not target.requires_grad


@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(2))
def test_qsft_target_agrees_with_oracle(seed: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    behaviour = rng.dirichlet(np.ones(5), (3, 4))
    value, reward = behaviour * rng.random((3, 4, 5)) * 1.2, rng.random((3, 4))
    target = O.qsft_target(
        torch.tensor(reward),
        torch.tensor(value).log(),
        torch.tensor(behaviour).log(),
        gamma=0.9,
        min_behaviour=least,
    )
    expected = [
        [oracle.target(reward[i, j], value[i, j], behaviour[i, j], 0.9, least) for j in range(4)]
        for i in range(3)
    ]
    assert_close(target, expected)


NAN = math.nan


def test_ilql_loss_table() -> None:
    # squares 0.25, 1 and of the second 0.25, 4; targets 1 of (1, 3) and of (2, 1), so u = 0.5 (times 0.8) and -1
    # (times 0.2); 0.1 times -log of 1/2 and 1/4; then off the mask
    q = table([1.0, 0.0, NAN]).requires_grad_()
    r = table([0.0, 3.0, NAN]).requires_grad_()
    v = table([0.5, 2.0, NAN]).requires_grad_()
    x = table([0.5, 0.25, NAN]).log().requires_grad_()
    targets, weight = (table([1.0, 2.0, NAN]), table([3.0, 1.0, NAN])), table([0.5, 1.0, NAN])
    out = O.ilql_loss(q, r, x, v, weight, *targets, mask_of("xx."), tau=0.8, conservative=0.1)
    two = math.log(2)
    assert_close(out.loss, table([0.5 + 0.8 * 0.25 + 0.1 * two, 5.0 + 0.2 + 0.2 * two, 0.0]))
    assert_close(slope(out.loss, q), table([1.0, -2.0, 0.0]))
    assert_close(slope(out.loss, r), table([-1.0, 4.0, 0.0]))
    assert_close(slope(out.loss, v), table([-0.8, 0.4, 0.0]))
    assert_close(slope(out.loss, x), table([-0.1, -0.1, 0.0]))
    assert [float(n) for n in out.metrics["bellman/error"]] == [1.25, 2.0]
    assert [float(n) for n in out.metrics["bellman/advantage"]] == [-0.5, 2.0]
    assert [float(n) for n in out.metrics["bellman/apart"]] == [3.0, 2.0]


@pytest.mark.parametrize("seed", range(3))
def test_ilql_loss_agrees_with_oracle_and_has_its_gradient(seed: int) -> None:
    tokens = random_tokens(seed)
    q, x, v = (tokens[name].requires_grad_() for name in ("advantage", "logp", "entropy"))
    r = (-q.detach().roll(1, dims=1)).requires_grad_()
    weight, target, mask = tokens["weight"], tokens["logp_other"], tokens["mask"]
    known = (weight, target, target.roll(1, dims=1).where(mask, target), mask)
    out = O.ilql_loss(q, r, x, v, *known, tau=0.7, conservative=0.3)
    arrays = (one.detach().numpy() for one in (q, r, x, v, *known))
    assert_close(out.loss, oracle.ilql(*arrays, 0.7, 0.3))
    assert torch.autograd.gradcheck(
        lambda *trained: O.ilql_loss(*trained, *known, tau=0.7, conservative=0.3).loss, (q, r, x, v)
    )


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
def test_a_state_is_worth_the_expectile_of_its_actions(tau: float) -> None:
    # trained to the end on values 0 and 1, equally often: tau
    values, mask = table([0.0, 1.0]), mask_of("xx")
    zeros = torch.zeros_like(values)
    v = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([v], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = O.ilql_loss(
            zeros, zeros, zeros, v.expand(1, 2), zeros, values, values + 1, mask, tau=tau, conservative=0.0
        ).loss.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(v.detach()) == pytest.approx(tau, abs=1e-6)


def test_qsft_policy_table() -> None:
    # π = 2/3, 1/3 and Q = 0.5, 1. ratio: weights 2·e^{β/2} and e^β; probability: 2·e^{β/3} and e^{β/3}
    behaviour, value = table([2 / 3, 1 / 3]).log(), table([1 / 3, 1 / 3]).log()
    beta = 2 * math.log(6)  # e^{β/2} = 6: weights 12 and 36
    assert_close(O.qsft_policy(value, behaviour, beta=beta).exp(), table([0.25, 0.75]))
    form = O.qsft_policy(value, behaviour, beta=beta, form="probability")
    assert_close(form.exp(), table([2 / 3, 1 / 3]))
    assert_close(O.qsft_policy(value, behaviour, beta=0), behaviour)


@pytest.mark.parametrize("form", ["ratio", "probability"])
def test_qsft_policy_agrees_with_oracle(form: str) -> None:
    rng = np.random.default_rng(0)
    behaviour = rng.dirichlet(np.ones(5), 3)
    value = behaviour * rng.random((3, 5)) * 1.2
    policy = O.qsft_policy(torch.tensor(value).log(), torch.tensor(behaviour).log(), beta=3.0, form=form)
    assert_close(policy.exp(), [oracle.policy(value[i], behaviour[i], 3.0, form) for i in range(3)])
    assert not policy.requires_grad


def test_qsft_policy_never_does_what_the_data_never_does() -> None:
    behaviour, value = table([0.5, 0.5, 0.0]).log(), table([0.1, 0.2, 0.4]).log()
    for form in ("ratio", "probability"):
        policy = O.qsft_policy(value, behaviour, beta=1e6, form=form).exp()
        assert_close(policy, table([0.0, 1.0, 0.0]))


def values(problem: oracle.Problem, spread: str) -> np.ndarray:
    """Probabilities that Q-SFT reaches if each of its losses is trained to the end."""
    behaviour, states = torch.tensor(problem.behaviour), len(problem.reward)
    p = behaviour * 0.5
    for _ in range(100):
        shape = (*problem.next.shape, problem.reward.shape[1])
        target = O.qsft_target(
            torch.tensor(problem.reward)[..., None].expand(problem.next.shape),
            p.log().expand(shape),
            behaviour.log().expand(shape),
            gamma=problem.gamma,
        )
        weight = (torch.tensor(problem.next) * target).sum(dim=-1)
        if spread == "dummy":
            p = behaviour * weight
        else:
            p = torch.tensor(
                np.stack([uniform_optimum(behaviour[s].numpy(), weight[s].numpy()) for s in range(states)])
            )
    return p.numpy()


@pytest.mark.parametrize("seed", range(3))
def test_with_the_dummy_the_ratio_is_the_optimal_value(seed: int) -> None:
    problem = oracle.Problem(seed)
    p = values(problem, "dummy")
    np.testing.assert_allclose(p / problem.behaviour, problem.optimal(), atol=1e-10)
    # and so the paper's theorem 4.1 holds: Q* >= p >= πQ*, the right side with equality
    assert (p <= problem.optimal()).all()


def test_the_ratio_finds_better_policies_than_the_probability_and_the_dummy_than_the_spread() -> None:
    returns: dict[str, list[float]] = {}
    for problem in map(oracle.Problem, range(12)):
        behaviour = torch.tensor(problem.behaviour).log()
        for spread in ("dummy", "uniform"):
            p = torch.tensor(values(problem, spread)).log()
            for form in ("ratio", "probability"):
                policy = O.qsft_policy(p, behaviour, beta=1000.0, form=form).exp().numpy()
                returns.setdefault(f"{spread} {form}", []).append(problem.returns(policy))
        returns.setdefault("data", []).append(problem.returns(problem.behaviour))
        greedy = np.eye(4)[problem.optimal().argmax(axis=1)]
        returns.setdefault("best", []).append(problem.returns(greedy))
    mean = {name: float(np.mean(values)) for name, values in returns.items()}
    assert mean["dummy ratio"] == pytest.approx(mean["best"], rel=0.01)
    assert mean["data"] < mean["dummy probability"] < 0.9 * mean["best"]
    assert mean["uniform ratio"] < 0.8 * mean["best"]
