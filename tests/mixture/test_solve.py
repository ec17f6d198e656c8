"""The solver against sums in float64 with scipy's root, and the answers that have no root."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import mixture as oracle
from torch import Tensor

from klent import mixture as M

INF = math.inf
SIZES = [2, 17, 5000]  # the last goes through the cache


def pair(rows: int, size: int, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, size, generator=generator)
    return logits[0], logits[1] + 3


def peaked(rows: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Nearly all mass on a token or two, as a language model puts it; they agree in part."""
    policy, target = pair(rows, size, seed=seed)
    policy[:, 0] += 20
    target[:, :2] += 18
    return policy, target


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [pair, peaked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chernoff_is_scipys_root(size: int, make: object, dtype: torch.dtype) -> None:
    policy, target = (x.to(dtype) for x in make(6, size))  # type: ignore[operator]
    solution = M.solve_alpha(policy, target)
    close = 1e-5 if dtype == torch.float32 else 1e-9
    assert solution.converged.all()
    assert solution.iterations.max() < 20
    for row in range(6):
        a, b = policy[row].double().numpy(), target[row].double().numpy()
        alpha = oracle.chernoff(a, b)
        q = oracle.mixture(a, b, alpha)
        assert solution.alpha[row].item() == pytest.approx(alpha, abs=20 * close)
        np.testing.assert_allclose(solution.log_q[row].exp().numpy(), q, atol=10 * close)
        information = -oracle.log_affinity(a, b, alpha)
        assert solution.kl_policy[row].item() == pytest.approx(information, abs=close * 10)
        assert solution.kl_target[row].item() == pytest.approx(information, abs=close * 10)


def test_chernoff_is_the_least_affinity() -> None:
    policy, target = pair(1, 12)
    a, b = policy[0].numpy(), target[0].numpy()
    alpha = M.solve_alpha(policy, target).alpha.item()
    best = oracle.log_affinity(a, b, alpha)
    assert all(oracle.log_affinity(a, b, other) > best for other in (alpha - 0.01, alpha + 0.01))


@pytest.mark.parametrize("size", [17, 5000])
def test_kl_budget(size: int) -> None:
    policy, target = pair(4, size, scale=1.0)
    solution = M.solve_alpha(policy, target, criterion="kl_budget", value=0.05)
    assert solution.converged.all()
    for row in range(4):
        q = oracle.mixture(policy[row].numpy(), target[row].numpy(), solution.alpha[row].item())
        assert oracle.kl(q, policy[row].double().softmax(-1).numpy()) == pytest.approx(0.05, abs=1e-4)
    too_much = M.solve_alpha(policy, target, criterion="kl_budget", value=1e3)
    assert not too_much.converged.any()
    assert (too_much.alpha == 0).all()
    torch.testing.assert_close(too_much.log_q, target.log_softmax(-1))


@pytest.mark.parametrize("size", SIZES)
def test_ess(size: int) -> None:
    policy, target = pair(4, size, scale=1.0)
    solution = M.solve_alpha(policy, target, criterion="ess", value=0.7)
    chi = M.chi_squared(policy.double().softmax(-1), target.double().softmax(-1))
    for row in range(4):
        if 1 / (1 + chi[row]) > 0.7:
            assert solution.alpha[row] == 0
            assert not solution.converged[row]
            continue
        q = oracle.mixture(policy[row].numpy(), target[row].numpy(), solution.alpha[row].item())
        second = np.sum(policy[row].double().softmax(-1).numpy() ** 2 / q)
        assert solution.converged[row]
        assert 1 / second == pytest.approx(0.7, abs=1e-4)
    all_of_them = M.solve_alpha(policy, target, criterion="ess", value=1.0)
    torch.testing.assert_close(all_of_them.alpha, torch.ones(4), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_entropy(size: int) -> None:
    policy, target = pair(4, size, scale=1.0)
    target = 3 * target
    for p, t in zip(policy, target, strict=True):
        high, low = (-(x.log_softmax(-1) * x.softmax(-1)).sum() for x in (p, t))
        solution = M.solve_alpha(p, t, criterion="entropy", value=float(high + low) / 2)
        assert solution.converged
        entropy = -(solution.log_q.exp() * solution.log_q).sum()
        assert entropy.item() == pytest.approx(float(high + low) / 2, abs=1e-4)
    unreachable = M.solve_alpha(policy, target, criterion="entropy", value=50.0)
    assert not unreachable.converged.any()


def test_entropy_takes_the_crossing_nearest_to_the_policy() -> None:
    policy, target = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    solution = M.solve_alpha(policy, target, criterion="entropy", value=0.4)
    assert solution.converged.all()
    assert solution.alpha.item() > 0.5
    assert -(solution.log_q.exp() * solution.log_q).sum().item() == pytest.approx(0.4, abs=1e-5)


def test_entropy_missed_alike_at_both_ends_is_on_policy() -> None:
    policy, _ = pair(20, 70)
    solution = M.solve_alpha(policy, policy.flip(-1), criterion="entropy", value=0.1)
    assert solution.alpha.tolist() == [1] * 20
    assert not solution.converged.any()


def test_snr_is_the_best_of_a_fine_grid() -> None:
    policy, target = (x.double() for x in pair(5, 8, scale=1.0))
    reward = torch.randn(5, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    solution = M.solve_alpha(policy, target, criterion="snr", reward=reward)
    p, t = policy.softmax(-1), target.softmax(-1)
    for alpha in torch.linspace(0, 1, 201):
        q = M.geometric_mixture(policy, target, float(alpha)).exp()
        best = M.progress_terms(p, t, solution.log_q.exp(), reward).snr
        assert (M.progress_terms(p, t, q, reward).snr <= best + 1e-6).all()
    assert len(solution.alpha.unique()) > 1


def test_snr_where_every_mixture_goes_backwards_is_the_least_bad() -> None:
    policy, target = (x.double() for x in pair(5, 8, scale=1.0))
    reward = policy.log_softmax(-1) - target.log_softmax(-1)
    solution = M.solve_alpha(policy, target, criterion="snr", reward=reward)
    p, t = policy.softmax(-1), target.softmax(-1)
    best = M.progress_terms(p, t, solution.log_q.exp(), reward).snr
    assert (best < 0).all()
    for alpha in torch.linspace(0, 1, 201):
        q = M.geometric_mixture(policy, target, float(alpha)).exp()
        assert (M.progress_terms(p, t, q, reward).snr <= best + 1e-6).all()


def test_snr_of_the_log_ratio_is_on_policy() -> None:
    solution = M.solve_alpha(*pair(20, 30), criterion="snr")
    torch.testing.assert_close(solution.alpha, torch.ones(20))


EDGES = {
    "equal": ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], 0.5, True),
    "one token": ([3.0], [-1.0], 0.5, True),
    "one-hot, the same": ([0.0, -INF], [0.0, -INF], 0.5, True),
    "one-hot policy": ([0.0, -INF], [0.0, 0.0], 0.0, False),
    "one-hot target": ([0.0, 0.0], [0.0, -INF], 1.0, False),
    "disjoint": ([0.0, -INF], [-INF, 0.0], 1.0, False),
    "no equal point": ([0.4, 0.0, -INF], [0.0, -INF, 4.6], 0.0, False),
}  # fmt: skip


@pytest.mark.parametrize("size", [0, 5000])
@pytest.mark.parametrize("name", EDGES)
def test_edges_have_the_documented_answer(name: str, size: int) -> None:
    """Padded with tokens that neither knows, the same rows go through the cache first."""
    policy, target, alpha, converged = EDGES[name]
    padding = [-INF] * max(size - len(policy), 0)
    a, b = torch.tensor([policy + padding]), torch.tensor([target + padding])
    solution = M.solve_alpha(a, b)
    assert solution.alpha.item() == pytest.approx(alpha)
    assert solution.converged.item() is converged
    for value in (solution.log_q, solution.kl_policy, solution.kl_target, solution.residual):
        assert not value.isnan().any()
    assert solution.log_q.exp().sum().item() == pytest.approx(1)
    if name == "disjoint":
        assert solution.kl_target.item() == solution.residual.item() == INF
        torch.testing.assert_close(solution.log_q, a.log_softmax(-1))


def test_partial_support_has_a_root_exactly_under_its_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        policy, target = 3 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
        policy[3], target[0] = -INF, -INF
        p, t = policy.softmax(-1).numpy(), target.softmax(-1).numpy()
        common, a, b = slice(1, 3), t[1:3].sum(), p[1:3].sum()
        t_in, p_in = t[common] / a, p[common] / b
        inside = -oracle.kl(t_in, p_in) <= math.log(a / b) <= oracle.kl(p_in, t_in)
        solution = M.solve_alpha(policy, target)
        assert solution.converged.item() is bool(inside)
        assert (solution.alpha.item() in (0, 1)) is not bool(inside)
        assert solution.log_q[[0, 3]].tolist() == [-INF, -INF]
        seen.add(inside)
    assert len(seen) == 2


@pytest.mark.parametrize(("criterion", "value"), [("kl_budget", 0.1), ("ess", 0.5)])
def test_what_the_target_cannot_support_is_left_to_the_policy(criterion: str, value: float) -> None:
    policy, target = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, -INF]])
    solution = M.solve_alpha(policy, target, criterion=criterion, value=value)  # type: ignore[arg-type]
    assert solution.alpha.item() == 1
    assert not solution.converged.item()
    torch.testing.assert_close(solution.log_q, policy.log_softmax(-1))
    assert solution.kl_policy.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    policy, target = (x.to(dtype) for x in pair(3, 5000))
    half, full = M.solve_alpha(policy, target), M.solve_alpha(policy.float(), target.float())
    assert half.log_q.dtype == half.alpha.dtype == torch.float32
    torch.testing.assert_close(half.log_q, full.log_q)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    policy, target = peaked(130, 4096)
    policy[7, 5:] = -INF  # a row that goes the plain way
    whole = M.solve_alpha(policy.view(13, 10, -1), target.view(13, 10, -1))
    assert whole.alpha.shape == (13, 10)
    alone = M.solve_alpha(policy[7], target[7])
    torch.testing.assert_close(whole.log_q.view(130, -1)[7], alone.log_q)
    torch.testing.assert_close(whole.alpha.flatten()[7], alone.alpha)
    one = M.solve_alpha(policy[100:101], target[100:101])
    torch.testing.assert_close(whole.alpha.flatten()[100:101], one.alpha)


def test_rows_that_need_more_sweeps_lie_among_others() -> None:
    easy, hard = pair(6, 5000), peaked(6, 5000, seed=1)
    policy, target = (torch.stack([a, b], 1).view(12, 5000) for a, b in zip(easy, hard, strict=True))
    solution = M.solve_alpha(policy, target)
    assert (solution.iterations[::2] < solution.iterations[1::2]).all()
    exact = M.solve_alpha(policy.double(), target.double())
    torch.testing.assert_close(solution.alpha.double(), exact.alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(solution.kl_policy.double(), exact.kl_policy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(solution.log_q.double(), exact.log_q, atol=1e-4, rtol=1e-5)


def test_cache_and_plain_way_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, target = peaked(40, 4096, seed=3)
    quick = M.solve_alpha(policy, target)
    assert quick.iterations.median() <= 6
    assert quick.iterations.max() <= 12
    monkeypatch.setattr("klent.mixture.solve._LONG", 10**9)
    plain = M.solve_alpha(policy, target)
    torch.testing.assert_close(quick.alpha, plain.alpha, atol=1e-3, rtol=0)
    torch.testing.assert_close(quick.kl_policy, plain.kl_policy, atol=1e-5, rtol=1e-5)


def test_long_rows_keep_float32s_accuracy() -> None:
    """The normaliser of torch's own log-softmax is off by 1e-5 on such rows."""
    generator = torch.Generator().manual_seed(2)
    common = -1.5 * (torch.randperm(150_000, generator=generator) + 1.0).log()
    noise = torch.randn(2, 150_000, generator=generator)
    policy, target = common + 0.5 * noise[0], common + 1.5 * noise[1]
    solution = M.solve_alpha(policy, target)
    a, b = policy.double().numpy(), target.double().numpy()
    alpha = oracle.chernoff(a, b)
    assert solution.alpha.item() == pytest.approx(alpha, abs=2e-6)
    assert solution.kl_policy.item() == pytest.approx(-oracle.log_affinity(a, b, alpha), abs=2e-6)


def test_output_is_written_where_asked() -> None:
    policy, target = pair(3, 5000)
    out = torch.empty(3, 5000)
    assert M.solve_alpha(policy, target, out=out).log_q is out
    with pytest.raises(ValueError, match=r"out is torch\.float64"):
        M.solve_alpha(policy, target, out=out.double())


def test_empty_batch() -> None:
    assert M.solve_alpha(torch.zeros(0, 5), torch.zeros(0, 5)).log_q.shape == (0, 5)
    assert M.solve_alpha(torch.zeros(0, 5000), torch.zeros(0, 5000)).alpha.shape == (0,)


LOGIT = st.sampled_from([-INF, -30.0, -2.0, 0.0, 1.0, 40.0])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(LOGIT, LOGIT), min_size=4, max_size=4),
        min_size=1, max_size=3,
    ),
    criterion=st.sampled_from(["chernoff", "kl_budget", "entropy", "ess", "snr"]),
)  # fmt: skip
def test_no_input_gives_nan(rows: list[list[tuple[float, float]]], criterion: str) -> None:
    logits = torch.tensor(rows)
    policy, target = logits[..., 0].contiguous(), logits[..., 1].contiguous()
    policy[:, 0], target[:, 3] = 0.0, 0.0
    value = {"kl_budget": 0.1, "entropy": 0.3, "ess": 0.5}.get(criterion)
    solution = M.solve_alpha(policy, target, criterion=criterion, value=value)  # type: ignore[arg-type]
    for number in (solution.alpha, solution.log_q, solution.kl_policy, solution.kl_target, solution.residual):
        assert not number.isnan().any()
    assert ((solution.alpha >= 0) & (solution.alpha <= 1)).all()
    torch.testing.assert_close(solution.log_q.exp().sum(-1), torch.ones(len(rows)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), size=st.sampled_from([3, 4100]))
def test_laws(seed: int, shift: float, size: int) -> None:
    """Exchange turns alpha round; constants on the logits and the order of the tokens change nothing."""
    policy, target = pair(2, size, seed=seed)
    before = policy.clone()
    solution, turned = M.solve_alpha(policy, target), M.solve_alpha(target, policy)
    torch.testing.assert_close(turned.alpha, 1 - solution.alpha, atol=1e-4, rtol=0)
    torch.testing.assert_close(M.solve_alpha(policy + shift, target).alpha, solution.alpha, atol=1e-4, rtol=0)
    flipped = M.solve_alpha(policy.flip(-1), target.flip(-1))
    torch.testing.assert_close(flipped.alpha, solution.alpha, atol=1e-4, rtol=0)
    assert torch.equal(policy, before)
    mixed = M.geometric_mixture(policy, target, solution.alpha)
    torch.testing.assert_close(mixed, solution.log_q, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "kl"}, "criterion is 'kl', expected one of 'chernoff'"),
        ({"criterion": "ess"}, r"'ess' needs a value in \(0, 1\]"),
        ({"criterion": "ess", "value": 2.0}, "value is 2.0, expected"),
        ({"value": 1.0}, "criterion 'chernoff' takes none"),
        ({"reward": torch.zeros(2, 3)}, "does not look at rewards"),
        ({"criterion": "snr", "reward": torch.zeros(3)}, r"reward has shape \[3\], expected \[2, 3\]"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M.solve_alpha(torch.zeros(2, 3), torch.zeros(2, 3), **changes)


def test_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits_target has shape \[2, 4\], expected \[2, 3\]"):
        M.solve_alpha(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"logits_policy has dtype torch\.int64"):
        M.geometric_mixture(torch.zeros(3, dtype=torch.int64), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"expected \[..., V\]"):
        M.solve_alpha(torch.zeros(2, 0), torch.zeros(2, 0))


def test_geometric_mixture_is_the_normalised_product() -> None:
    policy, target = pair(2, 6)
    for alpha in (0.0, 0.3, 1.0):
        q = M.geometric_mixture(policy, target, alpha)
        for row in range(2):
            expected = oracle.mixture(policy[row].numpy(), target[row].numpy(), alpha)
            np.testing.assert_allclose(q[row].exp().numpy(), expected, atol=1e-6)
    each = M.geometric_mixture(policy, target, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(each, torch.stack([target[0], policy[1]]).log_softmax(-1))


def test_geometric_mixture_at_the_borders_of_support() -> None:
    policy, target = torch.tensor([0.0, 0.0, -INF]), torch.tensor([-INF, 0.0, 0.0])
    assert M.geometric_mixture(policy, target, 0.5).exp().tolist() == [0, 1, 0]
    assert M.geometric_mixture(policy, target, 1.0).exp().tolist() == [0.5, 0.5, 0]
    assert M.geometric_mixture(policy, target, 0.0).exp().tolist() == [0, 0.5, 0.5]
    apart = M.geometric_mixture(torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]), 0.5)
    assert apart.exp().tolist() == [1, 0]


def test_the_seeds_entry() -> None:
    policy, target = (x.softmax(-1) for x in pair(3, 6))
    q, alpha = M.optimal_sampling_distribution(policy, target)
    solution = M.solve_alpha(policy.log(), target.log())
    torch.testing.assert_close(q, solution.log_q.exp())
    torch.testing.assert_close(alpha, solution.alpha)
    _, on_policy = M.optimal_sampling_distribution(policy, target, method="snr")
    assert on_policy.tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="method is 'newton'"):
        M.optimal_sampling_distribution(policy, target, method="newton")  # type: ignore[arg-type]
