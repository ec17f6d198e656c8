"""KL to a reference: what each estimator estimates, and which KL each placement's gradient follows.

The placements are tried on a world of 27 sequences, where means over samples are exact sums.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import kl as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {
    "kl_in_loss": [{"coef": 0.1}, {"coef": 0.1, "divergence": "forward"}],
    "token_kl_loss": [{"coef": 0.1}],
    "kl_in_reward": [{"coef": 0.1}],
}

NAN, INF = math.nan, math.inf

POLICY, REFERENCE, SAMPLER = world.policy(0), world.policy(1), world.policy(0) + 0.4 * world.policy(2)
LOGP_REF = torch.tensor(world.token_logp(REFERENCE))
LOGP_OLD = torch.tensor(world.token_logp(SAMPLER))
ALL = torch.ones(27, 3, dtype=torch.bool)

TokenLossOf = Callable[[Tensor], Tensor]


def mean_gradient(loss: TokenLossOf, sampler: np.ndarray = POLICY, policy: np.ndarray = POLICY) -> Tensor:
    """Mean over sequences from ``sampler`` of the gradient, in the logits, of a sequence's summed loss."""
    logits = torch.tensor(policy, requires_grad=True)
    logp = logits.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
    chance = torch.tensor(world.sequence_probability(sampler))
    return slope(chance[:, None] * loss(logp), logits)


def mean_value(loss: TokenLossOf, sampler: np.ndarray = POLICY) -> float:
    values = loss(torch.tensor(world.token_logp(POLICY))).sum(dim=1)
    return float(torch.tensor(world.sequence_probability(sampler)) @ values)


def true_gradient(divergence: str, sampler: np.ndarray = POLICY) -> np.ndarray:
    """Of the KL token by token over the sampler's prefixes, or ("sequence") between whole sequences."""
    if divergence == "sequence":
        return world.gradient(lambda z: world.sequence_kl(z, REFERENCE), POLICY)
    prefixes = world.prefix_probability(sampler)
    return world.gradient(lambda z: world.token_kl(z, REFERENCE, divergence, prefixes), POLICY)


def distance(gradient: Tensor, expected: np.ndarray) -> float:
    """Relative to ``expected``."""
    return float(np.linalg.norm(gradient.numpy() - expected) / np.linalg.norm(expected))


# The estimators, as estimates ---------------------------------------------------------------------


def test_kl_estimate_table() -> None:
    # δ = log 2, 0, -log 2; exp(-δ) = 1/2, 1, 2
    logp, ref = table([0.5, 0.3, 0.25]).log(), table([0.25, 0.3, 0.5]).log()
    two = math.log(2)
    assert_close(O.kl_estimate(logp, ref), table([two, 0.0, -two]))
    assert_close(O.kl_estimate(logp, ref, estimator="k1"), table([two, 0.0, -two]))
    assert_close(O.kl_estimate(logp, ref, estimator="k2"), table([two**2 / 2, 0.0, two**2 / 2]))
    assert_close(O.kl_estimate(logp, ref, estimator="k3"), table([two - 0.5, 0.0, 1 - two]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimate_agrees_with_oracle_and_has_its_gradient(estimator: str) -> None:
    tokens = random_tokens(0)
    logp, ref = tokens["logp"].requires_grad_(), tokens["logp_ref"].requires_grad_()

    def estimate(x: Tensor, y: Tensor) -> Tensor:
        return O.kl_estimate(x, y, estimator=estimator)

    pairs = zip(logp.flatten().exp().tolist(), ref.flatten().exp().tolist(), strict=True)
    expected = [oracle.estimate(p, q, estimator) for p, q in pairs]
    assert_close(estimate(logp, ref).flatten(), expected)
    assert torch.autograd.gradcheck(estimate, (logp, ref))


def test_mean_over_five_words() -> None:
    # k1 and k3 are unbiased; k2's bias is shown, not assumed
    generator = torch.Generator().manual_seed(0)
    logp, ref = torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    truth = oracle.categorical(logp.exp().numpy(), ref.exp().numpy())
    mean = {k: float(logp.exp() @ O.kl_estimate(logp, ref, estimator=k)) for k in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(truth, abs=1e-12)
    assert mean["k3"] == pytest.approx(truth, abs=1e-12)
    assert abs(mean["k2"] / truth - 1) > 0.01


def test_summed_over_tokens_k1_and_k3_estimate_the_sequence_kl() -> None:
    truth = world.sequence_kl(POLICY, REFERENCE)
    assert mean_value(lambda logp: O.kl_estimate(logp, LOGP_REF, estimator="k1")) == pytest.approx(
        truth, abs=1e-12
    )
    assert mean_value(lambda logp: O.kl_estimate(logp, LOGP_REF, estimator="k3")) == pytest.approx(
        truth, abs=1e-12
    )
    assert abs(mean_value(lambda logp: O.kl_estimate(logp, LOGP_REF, estimator="k2")) / truth - 1) > 0.01


def test_nothing_is_clamped_far_from_the_reference() -> None:
    logp = table([-1.0, -1.0, -31.0]).requires_grad_()
    ref = table([-31.0, -16.0, -1.0])
    for estimator, expected in [
        ("k2", [30.0, 15.0, -30.0]),
        ("k3", [1 - math.exp(-30), 1 - math.exp(-15), 1 - math.exp(30)]),
    ]:
        estimate = O.kl_estimate(logp, ref, estimator=estimator)
        assert_close(slope(estimate, logp), table(expected))


def test_k3_keeps_its_digits_near_the_reference() -> None:
    # δ = 0.001 in float32: exp(-δ) - 1 alone has 4 digits, expm1 all of them
    delta = torch.tensor([1e-3])
    assert_close(O.kl_estimate(delta, torch.zeros(1), estimator="k3"), [4.998334e-7], 1e-10)


# In the reward ------------------------------------------------------------------------------------


def test_kl_in_reward_table() -> None:
    logp, ref = table([0.5, 0.25, NAN]).log(), table([0.25, 0.5, NAN]).log()
    reward = O.kl_in_reward(logp.requires_grad_(), ref, mask_of("xx."), coef=0.1)
    assert_close(reward, table([-0.1 * math.log(2), 0.1 * math.log(2), 0.0]))
    assert not reward.requires_grad


def test_in_reward_with_reward_to_go_is_exact_for_sequences() -> None:
    def loss(logp: Tensor) -> Tensor:
        reward = O.kl_in_reward(logp, LOGP_REF, ALL, coef=0.3)
        return O.reinforce(logp, O.reward_to_go(reward, ALL), ALL).loss

    assert_close(mean_gradient(loss), 0.3 * true_gradient("sequence"), 1e-8)


def test_in_reward_without_reward_to_go_is_exact_token_by_token() -> None:
    def loss(logp: Tensor) -> Tensor:
        return O.reinforce(logp, O.kl_in_reward(logp, LOGP_REF, ALL, coef=0.3), ALL).loss

    assert_close(mean_gradient(loss), 0.3 * true_gradient("reverse"), 1e-8)
    assert distance(mean_gradient(loss), 0.3 * true_gradient("sequence")) > 0.1


def test_in_reward_off_policy_is_exact_for_one_token_only() -> None:
    def loss(logp: Tensor, columns: slice) -> Tensor:
        x, ref, old, mask = (v[:, columns] for v in (logp, LOGP_REF, LOGP_OLD, ALL))
        advantage = O.reward_to_go(O.kl_in_reward(x, ref, mask, coef=1.0), mask)
        return O.ppo_clip(x, old, advantage, mask, clip_low=1, clip_high=INF).loss

    first = mean_gradient(lambda logp: loss(logp, slice(0, 1)), SAMPLER)
    assert_close(first[0], true_gradient("reverse")[0], 1e-8)  # the empty prefix; no other has a gradient
    assert (
        distance(mean_gradient(lambda logp: loss(logp, slice(None)), SAMPLER), true_gradient("sequence"))
        > 0.05
    )


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_hold_nothing_back_near_the_reference(estimator: str) -> None:
    # the reason for the refusal: ten times closer, the KL's gradient is 10 times smaller, theirs is 100 times
    def size(epsilon: float, penalty: str) -> float:
        near = REFERENCE + epsilon * POLICY

        def loss(logp: Tensor) -> Tensor:
            paid = -O.kl_estimate(logp, LOGP_REF, estimator=penalty).detach()
            return O.reinforce(logp, paid, ALL).loss

        return float(mean_gradient(loss, near, near).norm())

    assert size(1e-2, "k1") / size(1e-3, "k1") == pytest.approx(10, rel=0.05)
    assert size(1e-2, estimator) / size(1e-3, estimator) == pytest.approx(100, rel=0.05)
    assert size(1e-3, estimator) < 1e-2 * size(1e-3, "k1")


# In the loss --------------------------------------------------------------------------------------


def test_kl_in_loss_table() -> None:
    # on-policy; δ = log 2 and -log 2, r = 1/2 and 2
    # reverse: r - 1 + δ = log 2 - 1/2, 1 - log 2;          derivative δ
    # forward: r log r - r + 1 = 1/2 - log 2 / 2, 2 log 2 - 1;   derivative 1 - r
    x = table([0.5, 0.25, NAN]).log().requires_grad_()
    ref, mask, two = table([0.25, 0.5, NAN]).log(), mask_of("xx."), math.log(2)
    reverse = O.kl_in_loss(x, ref, mask, coef=2.0)
    assert_close(reverse.loss, table([2 * two - 1, 2 - 2 * two, 0.0]))
    assert_close(slope(reverse.loss, x), table([2 * two, -2 * two, 0.0]))
    forward = O.kl_in_loss(x, ref, mask, coef=2.0, divergence="forward")
    assert_close(forward.loss, table([1 - two, 4 * two - 2, 0.0]))
    assert_close(slope(forward.loss, x), table([1.0, -2.0, 0.0]))
    assert [float(v) for v in reverse.metrics["kl"]] == pytest.approx([0.5, 2.0])
    assert [float(v) for v in forward.metrics["kl"]] == pytest.approx([1.5 * two - 0.5, 2.0])


def test_kl_in_loss_off_policy_table() -> None:
    # as above, sampled with probability 0.4 and 0.5: ρ = 1.25 and 0.5
    x = table([0.5, 0.25]).log().requires_grad_()
    ref, old, mask, two = table([0.25, 0.5]).log(), table([0.4, 0.5]).log(), mask_of("xx"), math.log(2)
    reverse = O.kl_in_loss(x, ref, mask, coef=1.0, logp_old=old)
    assert_close(reverse.loss, table([1.25 * (two - 0.5), 0.5 * (1 - two)]))
    assert_close(slope(reverse.loss, x), table([1.25 * two, -0.5 * two]))
    forward = O.kl_in_loss(x, ref, mask, coef=1.0, divergence="forward", logp_old=old)
    assert_close(slope(forward.loss, x), table([1.25 * 0.5, -0.5 * 1.0]))


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
@pytest.mark.parametrize("seed", range(2))
def test_kl_in_loss_agrees_with_oracle_and_has_its_gradient(divergence: str, seed: int) -> None:
    tokens = random_tokens(seed)
    x, ref, old, mask = (tokens[name] for name in ("logp", "logp_ref", "logp_old", "mask"))
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return O.kl_in_loss(x, ref, mask, coef=0.7, divergence=divergence, logp_old=old).loss

    pairs = [
        oracle.penalty(*(float(v.detach()[i, t].exp()) for v in (x, ref, old)), divergence)
        if mask[i, t]
        else (0.0, 0.0)
        for i, t in itertools.product(*map(range, x.shape))
    ]
    assert_close(loss(x).flatten(), [0.7 * value for value, _ in pairs])
    assert_close(slope(loss(x), x).flatten(), [0.7 * derivative for _, derivative in pairs])
    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_in_loss_on_policy_is_exact_token_by_token(divergence: str) -> None:
    def loss(logp: Tensor) -> Tensor:
        return O.kl_in_loss(logp, LOGP_REF, ALL, coef=0.3, divergence=divergence).loss

    assert_close(mean_gradient(loss), 0.3 * true_gradient(divergence), 1e-8)
    prefixes = world.prefix_probability(POLICY)
    assert mean_value(loss) == pytest.approx(
        0.3 * world.token_kl(POLICY, REFERENCE, divergence, prefixes), abs=1e-12
    )


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_in_loss_off_policy_is_exact_token_by_token(divergence: str) -> None:
    def loss(logp: Tensor) -> Tensor:
        out = O.kl_in_loss(logp, LOGP_REF, ALL, coef=0.3, divergence=divergence, logp_old=LOGP_OLD)
        return out.loss

    assert_close(mean_gradient(loss, SAMPLER), 0.3 * true_gradient(divergence, SAMPLER), 1e-8)
    prefixes = world.prefix_probability(SAMPLER)
    expected = 0.3 * world.token_kl(POLICY, REFERENCE, divergence, prefixes)
    assert mean_value(loss, SAMPLER) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_in_loss_off_policy_needs_the_ratio(divergence: str) -> None:
    def loss(logp: Tensor) -> Tensor:
        return O.kl_in_loss(logp, LOGP_REF, ALL, coef=1.0, divergence=divergence).loss

    assert distance(mean_gradient(loss, SAMPLER), true_gradient(divergence, SAMPLER)) > 0.1


def test_token_kl_table() -> None:
    kl = table([0.1, 0.5, math.nan]).requires_grad_()
    out = O.token_kl_loss(kl, mask_of("xx."), coef=2.0)
    assert_close(out.loss, table([0.2, 1.0, 0.0]))
    assert_close(slope(out.loss, kl), table([2.0, 2.0, 0.0]))
    assert [float(x) for x in out.metrics["kl"]] == pytest.approx([0.6, 2.0])


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_token_kl_is_exact_over_the_samplers_prefixes(divergence: str) -> None:
    logits = torch.tensor(POLICY, requires_grad=True)
    p, q = logits.log_softmax(dim=1), torch.tensor(REFERENCE).log_softmax(dim=1)
    one, other = (p, q) if divergence == "reverse" else (q, p)
    kl = (one.exp() * (one - other)).sum(dim=1)[world.ROWS]
    loss = O.token_kl_loss(kl, ALL, coef=0.3).loss
    chance = torch.tensor(world.sequence_probability(SAMPLER))
    gradient = slope(chance @ loss.sum(dim=1), logits)
    prefixes = world.prefix_probability(SAMPLER)
    expected = world.gradient(lambda z: world.token_kl(z, REFERENCE, divergence, prefixes), POLICY)
    assert_close(gradient, 0.3 * expected, 1e-8)


def test_forward_token_kl_on_the_references_samples_is_the_forward_kl_of_sequences() -> None:
    logits = torch.tensor(POLICY, requires_grad=True)
    p, q = logits.log_softmax(dim=1), torch.tensor(REFERENCE).log_softmax(dim=1)
    kl = (q.exp() * (q - p)).sum(dim=1)[world.ROWS]
    chance = torch.tensor(world.sequence_probability(REFERENCE))
    gradient = slope(chance @ O.token_kl_loss(kl, ALL, coef=1.0).loss.sum(dim=1), logits)
    expected = world.gradient(lambda z: world.sequence_kl(REFERENCE, z), POLICY)
    assert_close(gradient, expected, 1e-8)


def test_in_loss_is_not_exact_for_sequences() -> None:
    gradient = mean_gradient(lambda logp: O.kl_in_loss(logp, LOGP_REF, ALL, coef=1.0).loss)
    assert distance(gradient, true_gradient("sequence")) > 0.1


def test_the_equal_old_policy_changes_nothing() -> None:
    tokens = random_tokens(0)
    x, ref, mask = tokens["logp"].requires_grad_(), tokens["logp_ref"], tokens["mask"]
    for divergence in ("reverse", "forward"):
        out = [
            O.kl_in_loss(x, ref, mask, coef=1.0, divergence=divergence, logp_old=old)
            for old in (None, x.detach(), x)
        ]
        assert all(torch.equal(o.loss, out[0].loss) for o in out)
        assert all(torch.equal(slope(o.loss, x), slope(out[0].loss, x)) for o in out)


def test_estimators_as_losses_follow_the_kl_that_kl_in_loss_says() -> None:
    # sample by sample, with a ratio ρ: ρ constant times k2, ρ differentiated times k3, ρ constant times k3
    tokens = random_tokens(1)
    x, ref, old = tokens["logp"].requires_grad_(), tokens["logp_ref"], tokens["logp_old"]
    everywhere = torch.ones_like(tokens["mask"])
    rho = (x - old).exp()
    k2, k3 = (O.kl_estimate(x, ref, estimator=k) for k in ("k2", "k3"))

    def ours(**settings: str) -> Tensor:
        return slope(O.kl_in_loss(x, ref, everywhere, coef=1.0, logp_old=old, **settings).loss, x)

    assert_close(ours(estimator="k2"), slope(rho.detach() * k2, x))
    assert_close(ours(), slope(rho * k3, x))
    assert_close(ours(divergence="forward", estimator="k3"), slope(rho.detach() * k3, x))


def test_k1_as_a_loss_has_no_mean_gradient() -> None:
    # the reason for the refusal; off-policy it is a drift that has nothing to do with the reference
    def loss(logp: Tensor) -> Tensor:
        return O.kl_estimate(logp, LOGP_REF, estimator="k1")

    assert_close(mean_gradient(loss), torch.zeros(13, 3), 1e-12)
    assert mean_gradient(loss, SAMPLER).norm() > 0.1


def test_gradient_survives_where_autograd_would_not() -> None:
    # δ = -60: r is 1e26, so r·ρ - r·ρ + ρδ loses δ altogether in floats; ρδ does not
    x = torch.tensor([[-61.0]], requires_grad=True)
    out = O.kl_in_loss(x, torch.tensor([[-1.0]]), mask_of("x"), coef=1.0)
    assert slope(out.loss, x).item() == -60.0
    assert torch.isfinite(out.loss).all()


def test_gradients_of_one_position_by_hand() -> None:
    # three words, policy logits (0.5, -0.2, 1), reference (0, 0.3, -0.4)
    # KL(policy ‖ ref): pₖ(δₖ - KL); KL(ref ‖ policy): pₖ - qₖ
    logits = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(dim=0)[:, None]
    ref = torch.tensor([0.0, 0.3, -0.4], dtype=torch.float64).log_softmax(dim=0)[:, None]
    for divergence, expected in [
        ("reverse", [-0.0998, -0.2074, 0.3072]),
        ("forward", [-0.0132, -0.2891, 0.3022]),
    ]:
        out = O.kl_in_loss(logp, ref, mask_of("x", "x", "x"), coef=1.0, divergence=divergence)
        gradient = torch.autograd.grad((logp.detach().exp() * out.loss).sum(), logits, retain_graph=True)[0]
        assert_close(gradient, expected, 5e-5)
