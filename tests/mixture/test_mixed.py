"""The mixture at a given alpha: one number or a number a row, against the NumPy oracle."""

import numpy as np
import pytest
import torch
from oracles import mixture as oracle

from klent import mixture as M
from klent.mixture import mixed as module

ALPHAS = [0.0, 1e-3, 0.3, 0.5, 0.9, 1.0]


def pair(rows: int, size: int, *, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    made = [spread * torch.randn(rows, size, generator=generator) for _ in range(2)]
    return made[0] + 40.0, made[1] - 7.0  # logits are known up to a constant


def check(policy: torch.Tensor, target: torch.Tensor, alpha, mixed: M.Mixed, atol: float = 1e-5) -> None:
    for r, share in enumerate(np.broadcast_to(alpha, len(policy))):
        policy_row, target_row = policy[r].double().numpy(), target[r].double().numpy()
        q = oracle.mixture(policy_row, target_row, float(share))
        np.testing.assert_allclose(mixed.log_q[r].double().exp(), q, atol=1e-6)
        p, t = (np.exp(oracle.normalise(x)) for x in (policy_row, target_row))
        assert float(mixed.kl_policy[r]) == pytest.approx(oracle.kl(q, p), abs=atol, rel=1e-4)
        assert float(mixed.kl_target[r]) == pytest.approx(oracle.kl(q, t), abs=atol, rel=1e-4)
        assert float(mixed.alpha[r]) == pytest.approx(float(share))


@pytest.mark.parametrize("size", [1, 7, 3000])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_alpha_for_all_rows(size, alpha, monkeypatch):
    monkeypatch.setattr(module, "TILE", 6000)  # two rows of 3000 in a tile, five rows in all
    policy, target = pair(5, size)
    check(policy, target, alpha, M.mix(policy, target, alpha=alpha))


def test_an_alpha_for_each_row(monkeypatch):
    monkeypatch.setattr(module, "TILE", 6000)
    policy, target = pair(len(ALPHAS), 3000)
    given = torch.tensor(ALPHAS)
    check(policy, target, ALPHAS, M.mix(policy, target, alpha=given))
    mixed = M.mix(policy.view(3, 2, -1), target.view(3, 2, -1), alpha=given.view(3, 2))
    assert mixed.kl_policy.shape == (3, 2)
    assert mixed.alpha.flatten().tolist() == given.tolist()


def test_a_row_with_words_that_one_side_lacks_is_right_beside_others():
    policy, target = pair(4, 50)
    policy[1, :20] = -torch.inf
    target[2, 30:] = -torch.inf
    alpha = [0.4, 0.4, 0.6, 0.2]
    mixed = M.mix(policy, target, alpha=torch.tensor(alpha))
    check(policy, target, alpha, mixed)
    assert M.mix(policy, target, alpha=1.0).kl_target[2] == torch.inf
    assert M.mix(policy, target, alpha=0.0).kl_policy[1] == torch.inf


def test_rows_that_agree_on_no_likely_word_do_not_underflow():
    policy, target = torch.zeros(1, 4), torch.zeros(1, 4)
    policy[0, 0] = target[0, 1] = 400.0  # the mixture's likeliest tokens are 200 nats below either top
    mixed = M.mix(policy, target, alpha=0.5)
    torch.testing.assert_close(mixed.log_q.exp(), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert mixed.kl_policy.item() == pytest.approx(200 - np.log(2), abs=1e-3)


def test_the_inputs_are_left_alone_and_the_ends_are_exact():
    policy, target = pair(3, 3000)
    before = policy.clone(), target.clone()
    for alpha, name in ((1.0, "kl_policy"), (0.0, "kl_target")):
        mixed = M.mix(policy, target, alpha=alpha)
        assert getattr(mixed, name).tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(policy, before[0])
    assert torch.equal(target, before[1])
    double = M.mix(policy.double(), target.double(), alpha=0.5)
    assert double.log_q.dtype == double.kl_policy.dtype == torch.float64
    check(policy, target, 0.5, double, atol=1e-10)
