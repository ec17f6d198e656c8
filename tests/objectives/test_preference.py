"""DPO, IPO, cDPO, SimPO, ORPO and Bradley-Terry."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import preference as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, slope

FORMS = [("dpo", 0.0), ("dpo", 0.2), ("ipo", 0.0)]


def pairs(seed: int, count: int = 5) -> list[Tensor]:
    """Log-probabilities of both answers under policy and reference, ``[count]``."""
    generator = torch.Generator().manual_seed(seed)
    return list(-10 + 3 * torch.randn(4, count, generator=generator, dtype=torch.float64))


def test_dpo_table() -> None:
    # h = log 3 with beta 1: σ = 3/4. Loss -log 3/4; with noise 1/4: -(3/4 log 3/4 + 1/4 log 1/4), at its
    # best, as σ = 1 - ε; ipo with beta 1: (log 3 - 1/2)²
    three = math.log(3)
    x = torch.tensor([three - 1], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    loss = O.dpo(x, y, *ref, beta=1.0)
    assert_close(loss, [math.log(4 / 3)])
    assert_close(slope(loss, x), [-1 / 4])
    assert_close(slope(loss, y), [1 / 4])
    noisy = O.dpo(x, y, *ref, beta=1.0, label_noise=0.25)
    assert_close(noisy, [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))])
    assert_close(slope(noisy, x), [0.0])
    ipo = O.dpo(x, y, *ref, beta=1.0, form="ipo")
    assert_close(ipo, [(three - 0.5) ** 2])
    assert_close(slope(ipo, x), [2 * (three - 0.5)])


def test_at_the_start_the_loss_is_ln_2() -> None:
    chosen, rejected, *_ = pairs(0)
    start = (chosen, rejected, chosen, rejected)
    for beta in (0.1, 2.0):
        for noise in (0.0, 0.3):
            assert_close(O.dpo(*start, beta=beta, label_noise=noise), [math.log(2)] * 5)
        assert_close(O.dpo(*start, beta=beta, form="ipo"), [1 / (4 * beta**2)] * 5)


@pytest.mark.parametrize(("form", "noise"), FORMS)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_agrees_with_oracle_and_has_its_gradient(form: str, noise: float, beta: float) -> None:
    chosen, rejected, *ref = pairs(1)
    chosen.requires_grad_()
    rejected.requires_grad_()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return O.dpo(x, y, *ref, beta=beta, form=form, label_noise=noise)

    rows = zip(*(v.tolist() for v in (chosen, rejected, *ref)), strict=True)
    expected = [oracle.dpo(*row, beta, form, noise) for row in rows]
    assert_close(loss(chosen, rejected), [value for value, _ in expected], 1e-11)
    assert_close(slope(loss(chosen, rejected), chosen), [derivative for _, derivative in expected], 1e-11)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


def test_dpo_trains_the_policy_and_not_the_reference() -> None:
    inputs = [v.requires_grad_() for v in pairs(0)]
    O.dpo(*inputs).sum().backward()
    assert [v.grad is not None for v in inputs] == [True, True, False, False]


def test_dpo_stays_finite_far_away() -> None:
    x = torch.tensor([-1e4, 1e4], requires_grad=True)
    zero = torch.zeros(2)
    loss = O.dpo(x, zero, zero, zero, beta=1.0)
    assert_close(loss, [1e4, 0.0])
    assert_close(slope(loss, x), [-1.0, 0.0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
def test_only_the_difference_between_the_answers_matters(seed: int, shift: float) -> None:
    inputs = pairs(seed)
    before = [v.clone() for v in inputs]
    chosen, rejected, ref_chosen, ref_rejected = inputs
    for form, noise in FORMS:
        loss = O.dpo(*inputs, form=form, label_noise=noise)
        moved = O.dpo(
            chosen + shift, rejected + shift, ref_chosen, ref_rejected, form=form, label_noise=noise
        )
        assert_close(moved, loss, 1e-9)
        order = torch.tensor([4, 2, 0, 1, 3])
        assert_close(O.dpo(*(v[order] for v in inputs), form=form, label_noise=noise), loss[order])
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    # turned round, the label's loss is larger by beta·h
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    turned = O.dpo(rejected, chosen, ref_rejected, ref_chosen)
    assert_close(turned - O.dpo(*inputs), 0.1 * h, 1e-9)


def test_dpo_ends_at_the_policy_that_is_best_under_reward_and_kl() -> None:
    # "Rethinking the Reference Model in RLHF" (2025), equations 46 to 52: five answers with rewards, labels
    # by Bradley-Terry on every pair. At π* = ref·exp(r/beta)/Z the mean loss has no gradient.
    rng = np.random.default_rng(0)
    reward, beta = rng.normal(size=5), 0.5
    ref = torch.tensor(rng.dirichlet(np.ones(5))).log()
    best = (ref + torch.tensor(reward) / beta).log_softmax(dim=0)
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    chance = torch.tensor(np.array([oracle.sigmoid(a - b) for a in reward for b in reward]))

    def gradient(logits: Tensor) -> Tensor:
        logits = logits.detach().requires_grad_()
        logp = logits.log_softmax(dim=0)
        loss = O.dpo(logp[first], logp[second], ref[first], ref[second], beta=beta)
        return slope(chance * loss, logits)

    assert gradient(best).abs().max() < 1e-12
    assert gradient(0.9 * best + 0.1 * ref).abs().max() > 1e-3
    # the reward that the policy stands for is the true one, up to a constant
    implied = beta * (best - ref)
    assert_close(implied - implied.mean(), reward - reward.mean())


def test_both_log_probabilities_may_fall() -> None:
    # what DPO trains is the difference: lower both, the rejected one more, and the loss falls
    ref = torch.tensor([-5.0]), torch.tensor([-5.0])
    assert O.dpo(torch.tensor([-6.0]), torch.tensor([-9.0]), *ref) < O.dpo(*ref, *ref)


def test_bradley_terry_table() -> None:
    # rewards apart by log 3, the margin taking it back to 0
    chosen = torch.tensor([math.log(3), math.log(3)], dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = O.bradley_terry(chosen, rejected)
    assert_close(loss, [math.log(4 / 3)] * 2)
    assert_close(slope(loss, chosen), [-0.25] * 2)
    assert_close(slope(loss, rejected), [0.25] * 2)
    assert_close(O.bradley_terry(chosen, rejected, margin=math.log(3)), [math.log(2)] * 2)
    margin = torch.tensor([math.log(3), 0.0], dtype=torch.float64, requires_grad=True)
    loss = O.bradley_terry(chosen, rejected, margin=margin)
    assert_close(loss, [math.log(2), math.log(4 / 3)])
    assert_close(slope(loss, chosen), [-0.5, -0.25])
    assert torch.autograd.grad(loss.sum(), margin, allow_unused=True)[0] is None


@pytest.mark.parametrize("margin", [0.0, 1.3])
def test_bradley_terry_agrees_with_oracle_and_has_its_gradient(margin: float) -> None:
    chosen, rejected, *_ = pairs(2)
    chosen.requires_grad_()
    rejected.requires_grad_()
    rows = zip(chosen.tolist(), rejected.tolist(), strict=True)
    expected = [oracle.bradley_terry(a, b, margin) for a, b in rows]
    assert_close(O.bradley_terry(chosen, rejected, margin=margin), expected, 1e-10)
    assert torch.autograd.gradcheck(lambda x, y: O.bradley_terry(x, y, margin=margin), (chosen, rejected))
    # dpo is bradley_terry of the implied rewards
    _, _, *ref = pairs(2)
    implied = O.bradley_terry(0.3 * (chosen - ref[0]), 0.3 * (rejected - ref[1]))
    assert_close(O.dpo(chosen, rejected, *ref, beta=0.3), implied)


LENGTHS = (
    torch.tensor([3.0, 1.0, 8.0, 2.0, 5.0], dtype=torch.float64),
    torch.tensor([2.0, 4.0, 8.0, 1.0, 9.0], dtype=torch.float64),
)


def test_simpo_table() -> None:
    # means of -1 and -1 - log 3; beta 1: σ(log 3) = 3/4, and with the margin log 3 it is 1/2. The slope is
    # that of the mean over 4 tokens
    three = math.log(3)
    x = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([-2.0 - 2 * three], dtype=torch.float64, requires_grad=True)
    four, two = torch.tensor([4.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    loss = O.simpo(x, y, four, two, beta=1.0, margin=0.0)
    assert_close(loss, [math.log(4 / 3)])
    assert_close(slope(loss, x), [-1 / 16])
    assert_close(slope(loss, y), [1 / 8])
    loss = O.simpo(x, y, four, two, beta=1.0, margin=three)
    assert_close(loss, [math.log(2)])
    assert_close(slope(loss, x), [-1 / 8])
    assert_close(O.simpo(x, y, four, two, beta=2.0, margin=2 * three), [math.log(2)])


def test_orpo_table() -> None:
    # means of p = 3/4 (odds 3) and 1/2 (odds 1): σ(log 3) = 3/4. Slope in x: the mean over 2 tokens, and
    # coef·1/4 times 1/(1 - p) = 4
    x = 2 * torch.tensor([0.75], dtype=torch.float64).log()
    y = 3 * torch.tensor([0.5], dtype=torch.float64).log()
    x.requires_grad_()
    y.requires_grad_()
    lengths = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    loss = O.orpo(x, y, *lengths, coef=0.5)
    assert_close(loss, [1.5 * math.log(4 / 3)])
    assert_close(slope(loss, x), [-(1 + 0.5) / 2])
    assert_close(slope(loss, y), [0.5 * 0.25 * 2 / 3])
    alone = O.orpo(x, y, *lengths, coef=0.0)
    assert_close(alone, [math.log(4 / 3)])
    assert_close(slope(alone, y), [0.0])


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 0.0), (0.7, 1.3)])
def test_simpo_agrees_with_oracle_and_has_its_gradient(beta: float, margin: float) -> None:
    chosen, rejected, *_ = pairs(3)
    chosen.requires_grad_()
    rejected.requires_grad_()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return O.simpo(x, y, *LENGTHS, beta=beta, margin=margin)

    rows = zip(
        chosen.tolist(), rejected.tolist(), zip(*(v.tolist() for v in LENGTHS), strict=True), strict=True
    )
    expected = [oracle.simpo(*row, beta, margin) for row in rows]
    assert_close(loss(chosen, rejected), [value for value, _ in expected], 1e-10)
    assert_close(slope(loss(chosen, rejected), chosen), [derivative for _, derivative in expected], 1e-10)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


@pytest.mark.parametrize("coef", [0.1, 2.0])
def test_orpo_agrees_with_oracle_and_has_its_gradient(coef: float) -> None:
    chosen, rejected, *_ = pairs(4)
    chosen.requires_grad_()
    rejected.requires_grad_()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return O.orpo(x, y, *LENGTHS, coef=coef)

    rows = zip(
        chosen.tolist(), rejected.tolist(), zip(*(v.tolist() for v in LENGTHS), strict=True), strict=True
    )
    expected = [oracle.orpo(*row, coef) for row in rows]
    assert_close(loss(chosen, rejected), [value for value, _ in expected], 1e-9)
    assert_close(slope(loss(chosen, rejected), chosen), [derivative for _, derivative in expected], 1e-9)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


def test_orpo_of_a_certain_answer_stays_finite() -> None:
    x = torch.tensor([0.0, -1e-12], requires_grad=True)
    y = torch.tensor([-5.0, -5.0])
    one = torch.ones(2)
    loss = O.orpo(x, y, one, one)
    assert loss.isfinite().all()
    assert slope(loss, x).isfinite().all()


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_lengths_get_no_gradient(name: str) -> None:
    chosen, rejected, *_ = (v.requires_grad_() for v in pairs(0))
    lengths = [v.clone().requires_grad_() for v in LENGTHS]
    loss = getattr(O, name)(chosen, rejected, *lengths).sum()
    found = torch.autograd.grad(loss, [chosen, rejected, *lengths], allow_unused=True)
    assert [gradient is not None for gradient in found] == [True, True, False, False]


def test_only_sums_of_log_probabilities_have_the_optimum_of_reward_and_kl() -> None:
    # Six answers of one to three tokens, each token uniform over three at the start; labels by Bradley-Terry.
    # The policy is free over answers. The control reads means over tokens, and ends elsewhere.
    rng = np.random.default_rng(1)
    reward, beta = rng.normal(size=6), 0.7
    length = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], dtype=torch.float64)
    ref = (-length * math.log(3)).log_softmax(dim=0)
    best = (ref + torch.tensor(reward) / beta).log_softmax(dim=0)
    first, second = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    chance = torch.tensor(np.array([oracle.sigmoid(a - b) for a in reward for b in reward]))

    def trained(per: Tensor) -> Tensor:
        logits = ref.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [logits], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, history_size=20
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            policy, start = logits.log_softmax(dim=0) / per, ref / per
            loss = (
                chance * O.dpo(policy[first], policy[second], start[first], start[second], beta=beta)
            ).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return logits.detach().log_softmax(dim=0)

    def apart(policy: Tensor) -> float:
        return float((policy.exp() - best.exp()).abs().sum() / 2)

    assert apart(trained(torch.ones(6, dtype=torch.float64))) < 1e-5
    assert apart(trained(length)) > 0.05


X = torch.zeros(4)
REFUSED = [
    (lambda: O.simpo(X, X, X, X, beta=0), ValueError, "beta is 0, expected a number in (0, inf)"),
    (lambda: O.simpo(X, X, X, X, margin=-1), ValueError, "margin is -1, expected a number in [0, inf)"),
    (lambda: O.simpo(X, X, X[:2], X), ValueError, "length_chosen has shape [2], expected [4]"),
    (lambda: O.orpo(X, X, X, X, coef=-1), ValueError, "coef is -1, expected a number in [0, inf)"),
    (lambda: O.orpo(X, X, X, X.long()), TypeError, "length_rejected has dtype torch.int64"),
]

MUTANTS = [
    Mutant(
        "simpo: sums",
        "preference.py",
        "logp_chosen / length_chosen.detach() - logp_rejected / length_rejected.detach()",
        "logp_chosen - logp_rejected",
        test_simpo_table,
    ),
    Mutant(
        "simpo: margin helps", "preference.py", "beta * gap - margin", "beta * gap + margin", test_simpo_table
    ),
    Mutant(
        "simpo: margin times beta",
        "preference.py",
        "beta * gap - margin",
        "beta * (gap - margin)",
        test_simpo_table,
    ),
    Mutant(
        "orpo: p for the odds",
        "preference.py",
        "return logp - (-torch.expm1(logp)).log()",
        "return logp",
        test_orpo_table,
    ),
    Mutant("orpo: no imitation", "preference.py", "return -chosen - coef", "return -coef", test_orpo_table),
    Mutant(
        "orpo: worse odds",
        "preference.py",
        "_log_odds(chosen) - _log_odds(rejected)",
        "_log_odds(rejected) - _log_odds(chosen)",
        test_orpo_table,
    ),
    Mutant(
        "orpo: certain is infinite",
        "preference.py",
        "logp.clamp(max=-torch.finfo(logp.dtype).eps)",
        "logp",
        test_orpo_of_a_certain_answer_stays_finite,
    ),
    Mutant(
        "length carries gradient",
        "preference.py",
        "chosen, rejected = logp_chosen / length_chosen.detach()",
        "chosen, rejected = logp_chosen / length_chosen",
        lambda: test_lengths_get_no_gradient("orpo"),
    ),
]
