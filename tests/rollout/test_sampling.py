"""Sampling against a float64 oracle that writes the definition out token by token."""

import numpy as np
import pytest
import torch

from klent.errors import DivergenceError
from klent.rollout.sampling import sample_tokens


def truncated(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """The distribution meant by temperature, then top-k, then top-p, as sets and sums."""
    p = np.exp(logits / temperature - (logits / temperature).max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda v: -p[v])
    if top_k:
        order = order[:top_k]
    kept, reached = [], 0.0
    mass = sum(p[v] for v in order)
    for v in order:
        if reached >= top_p:
            break
        kept.append(v)
        reached += p[v] / mass
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.5, 0.7, 0), (1.0, 1.0, 3), (0.8, 0.6, 5)],
)
def test_every_token_comes_up_as_often_as_its_probability_and_reports_it(temperature, top_p, top_k):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=9) * 2
    q = truncated(logits, temperature, top_p, top_k)
    # A fine grid of uniforms visits each token in proportion to its probability: no statistics needed.
    count = 20_000
    uniform = (torch.arange(count) + 0.5) / count
    drawn = sample_tokens(
        torch.tensor(logits).float().expand(count, -1),
        uniform,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    share = np.bincount(drawn.token.numpy(), minlength=9) / count
    np.testing.assert_allclose(share, q, atol=2 / count)
    assert not share[q == 0].any()
    np.testing.assert_allclose(drawn.logp, np.log(q[drawn.token]), atol=1e-5)
    np.testing.assert_allclose(drawn.entropy, -np.sum(q[q > 0] * np.log(q[q > 0])), atol=1e-5)
    np.testing.assert_allclose(drawn.renyi, -np.log(np.sum(q * q)), atol=1e-5)
    np.testing.assert_allclose(drawn.collision_logp, np.sum(q[q > 0] ** 2 * np.log(q[q > 0])), atol=1e-5)


def test_zero_temperature_is_greedy_with_no_entropy():
    drawn = sample_tokens(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.99]), temperature=0.0)
    assert (drawn.token.item(), drawn.logp.item(), drawn.entropy.item()) == (1, 0.0, 0.0)
    assert (drawn.renyi.item(), drawn.collision_logp.item()) == (0.0, 0.0)


def test_the_largest_uniform_never_reaches_a_token_of_probability_zero():
    logits = torch.full((1, 50_000), float("-inf"))
    logits[0, :3] = torch.tensor([0.0, 1.0, 2.0])
    largest = torch.tensor([1.0 - 2**-24])
    drawn = sample_tokens(logits, largest)
    assert drawn.token.item() == 2
    assert torch.isfinite(drawn.entropy).all()


def test_the_smallest_uniform_never_takes_a_leading_token_of_probability_zero():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0]])
    assert sample_tokens(logits, torch.tensor([0.0])).token.item() == 1


def test_logits_are_left_as_they_were():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    sample_tokens(logits, torch.full((4,), 0.3), temperature=0.7, top_p=0.9, top_k=4)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 2}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_logits_of_no_distribution_are_refused_in_words(bad, settings):
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    if bad is None:
        logits[3] = float("-inf")
    else:
        logits[3, 7] = bad
    with pytest.raises(DivergenceError, match=r"the logits of 1 of 5 rows are not finite.*optimizer\.lr"):
        sample_tokens(logits, torch.full((5,), 0.5), **settings)
