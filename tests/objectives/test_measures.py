"""Full distributions: entropy, cross-entropy, KL, and the gradients of SFT and REINFORCE."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import measures as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, slope, table

INF = math.inf
BASE = {"nats": math.e, "bits": 2.0}


def logits(seed: int, rows: int = 4, actions: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, actions, generator=generator, dtype=torch.float64)


def test_measures_table() -> None:
    # 1/2, 1/4, 1/4: 1.5 bits. Coded with 1/4, 1/2, 1/4: 1/2·2 + 1/4·1 + 1/4·2 = 1.75, so 0.25 bits too many
    p, q = table([0.5, 0.25, 0.25]).log(), table([0.25, 0.5, 0.25]).log()
    assert_close(O.categorical_entropy(p, unit="bits"), [1.5])
    assert_close(O.categorical_cross_entropy(p, q, unit="bits"), [1.75])
    assert_close(O.categorical_kl(p, q, unit="bits"), [0.25])
    assert_close(O.categorical_entropy(p), [1.5 * math.log(2)])
    assert_close(O.categorical_cross_entropy(p, q), [1.75 * math.log(2)])
    assert_close(O.categorical_kl(p, q), [0.25 * math.log(2)])


def test_measures_where_probabilities_are_zero() -> None:
    # 1/2 log 2 + 1/2 log 1 + 0; the second row is its own reference; the third is not covered
    p = table([0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]).log()
    q = table([0.25, 0.5, 0.25], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]).log()
    assert_close(O.categorical_kl(p, q), [math.log(2) / 2, 0.0, INF])
    assert_close(O.categorical_cross_entropy(p, q)[[0, 2]], [1.5 * math.log(2), INF])
    assert_close(O.categorical_entropy(p)[0], math.log(2))
    assert_close(O.categorical_entropy(table([1.0, 0.0]).log()), [0.0])


def test_measures_have_gradients_where_probabilities_are_zero() -> None:
    # d/dlogp of p(logp - logq) = p(logp - logq + 1): log 2 / 2 + 1/2 and 1/2; d/dlogq = -p
    p = table([0.5, 0.5, 0.0]).log().requires_grad_()
    q = table([0.25, 0.5, 0.25]).log().requires_grad_()
    kl = O.categorical_kl(p, q)
    assert_close(slope(kl, p), table([math.log(2) / 2 + 0.5, 0.5, 0.0]))
    assert_close(slope(kl, q), table([-0.5, -0.5, 0.0]))
    assert_close(slope(O.categorical_cross_entropy(p, q), q), table([-0.5, -0.5, 0.0]))
    assert_close(slope(O.categorical_entropy(p), p), table([(math.log(2) - 1) / 2] * 2 + [0.0]))


@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_measures_agree_with_oracles_and_have_their_gradients(unit: str) -> None:
    x, y = logits(0).requires_grad_(), logits(1).requires_grad_()
    p, q = (z.detach().softmax(dim=1).numpy() for z in (x, y))
    base = BASE[unit]

    def entropy(x: Tensor) -> Tensor:
        return O.categorical_entropy(x.log_softmax(dim=1), unit=unit)

    assert_close(entropy(x), [oracle.entropy(a, base) for a in p])
    assert torch.autograd.gradcheck(entropy, x)
    for ours, theirs in [
        (O.categorical_cross_entropy, oracle.cross_entropy),
        (O.categorical_kl, oracle.kl),
    ]:

        def divergence(x: Tensor, y: Tensor, ours=ours) -> Tensor:  # type: ignore[no-untyped-def]
            return ours(x.log_softmax(dim=1), y.log_softmax(dim=1), unit=unit)

        assert_close(divergence(x, y), [theirs(a, b, base) for a, b in zip(p, q, strict=True)])
        assert torch.autograd.gradcheck(divergence, (x, y))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), unit=st.sampled_from(["nats", "bits"]))
def test_cross_entropy_is_entropy_and_kl(seed: int, unit: str) -> None:
    p, q = logits(seed).log_softmax(dim=1), logits(seed + 1).log_softmax(dim=1)
    parts = O.categorical_entropy(p, unit=unit) + O.categorical_kl(p, q, unit=unit)
    assert_close(O.categorical_cross_entropy(p, q, unit=unit), parts)
    assert (O.categorical_kl(p, q) >= 0).all()
    assert (O.categorical_entropy(p) <= math.log(5)).all()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(O.categorical_kl(p[:, order], q[:, order]), O.categorical_kl(p, q))


# What SFT and REINFORCE do to the logits ------------------------------------------------------------


def test_logit_gradients_table() -> None:
    # π = 1/2, 1/4, 1/4. SFT on the second token: π - onehot. REINFORCE with A = 0, 1, 0: E[A] = 1/4
    logp = table([0.5, 0.25, 0.25]).log()
    assert_close(O.sft_logit_gradient(logp, table([0.0, 1.0, 0.0]).log()), table([0.5, -0.75, 0.25]))
    gradient = O.reinforce_logit_gradient(logp, table([0.0, 1.0, 0.0]))
    assert_close(gradient, table([0.125, -0.1875, 0.0625]))


def test_logit_gradients_are_those_of_the_losses() -> None:
    # one sample: cross_entropy, and reinforce with A, differentiated through a softmax
    z = logits(0, 1).requires_grad_()
    p, mask = z.detach().softmax(dim=1), mask_of("x")
    for action in range(5):
        onehot = torch.eye(5, dtype=torch.float64)[action : action + 1]
        token = z.log_softmax(dim=1)[:, action : action + 1]
        sft = O.sft_logit_gradient(p.log(), onehot.log())
        assert_close(slope(O.cross_entropy(token, mask).loss, z), sft)
        assert_close(sft, [oracle.one_sample_gradient(p[0].numpy(), action, 1.0)])
        advantage = table([-1.7])
        assert_close(slope(O.reinforce(token, advantage, mask).loss, z), -1.7 * sft)


def test_means_of_one_sample_gradients() -> None:
    p = oracle.softmax(logits(0, 1)[0].numpy())
    q, advantage = oracle.softmax(logits(1, 1)[0].numpy()), logits(2, 1)[0].numpy()
    logp = torch.tensor(p).log()
    sft = sum(q[a] * oracle.one_sample_gradient(p, a, 1.0) for a in range(5))
    assert_close(O.sft_logit_gradient(logp, torch.tensor(q).log()), sft)
    pg = sum(p[a] * oracle.one_sample_gradient(p, a, advantage[a]) for a in range(5))
    assert_close(O.reinforce_logit_gradient(logp, torch.tensor(advantage)), pg)


def test_sft_follows_one_kl_and_reinforce_the_other() -> None:
    z, logq = logits(0).requires_grad_(), logits(1).log_softmax(dim=1)
    logp = z.log_softmax(dim=1)
    assert_close(slope(O.categorical_kl(logq, logp), z), O.sft_logit_gradient(logp.detach(), logq))
    advantage = logq - logp.detach()
    assert_close(slope(O.categorical_kl(logp, logq), z), O.reinforce_logit_gradient(logp.detach(), advantage))
    assert torch.autograd.gradcheck(lambda z: O.reinforce_logit_gradient(z.log_softmax(dim=1), advantage), z)
    assert torch.autograd.gradcheck(lambda z: O.sft_logit_gradient(z.log_softmax(dim=1), logq), z)


def test_reinforce_does_not_move_what_is_never_sampled() -> None:
    # a token of probability 1e-9 that is worth much: SFT pulls with strength 1, REINFORCE with 1e-9
    logp = table([1 - 1e-9, 1e-9]).log()
    sft = O.sft_logit_gradient(logp, table([0.0, 1.0]).log())
    pg = O.reinforce_logit_gradient(logp, table([0.0, 1.0]))
    np.testing.assert_allclose(sft[0, 1], -1, rtol=1e-6)
    np.testing.assert_allclose(pg[0, 1], -1e-9, rtol=1e-6)
