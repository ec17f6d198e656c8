"""What an update did, on distributions small enough to know the answer."""

import pytest
import torch
from helpers_training import batch

from klent.measure.change import distribution_change, probe_rows
from klent.streams.batch import Stats, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.update import FirstPass, UpdateResult


def world(scale: float, count: int = 400_000) -> tuple[dict[str, float], float, float]:
    """Tokens of six categories, an update of the logits: the estimates, the exact change and the KL."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64) * 1.5
    change = scale * torch.randn(6, generator=generator, dtype=torch.float64)
    old, new = logits.log_softmax(0), (logits + change).log_softmax(0)
    tokens = torch.multinomial(old.exp(), count, replacement=True, generator=generator)
    entropy_old, entropy_new = (-(x.exp() * x).sum() for x in (old, new))

    episode = Episode(Prompt("p", ""), [], tokens, "", "stop", logp=old[tokens], entropy=old[tokens])
    rows = make_batch([episode], None, group_size=1)
    before = Stats(old[tokens][None], entropy_old.expand(1, count))
    after = Stats(new[tokens][None], entropy_new.expand(1, count))
    kl = (old.exp() * (old - new)).sum()
    return distribution_change(rows, [0], before, after), float(entropy_new - entropy_old), float(kl)


def test_a_small_update_is_predicted_by_the_covariance_theorem():
    found, exact, _ = world(0.01)
    assert found["policy/entropy_delta"] == pytest.approx(exact, rel=1e-9)
    assert found["policy/entropy_delta_predicted"] == pytest.approx(exact, rel=0.05)


def test_a_large_update_leaves_the_first_order_behind():
    found, exact, kl = world(2.0)
    assert abs(found["policy/entropy_delta_predicted"] - exact) > 0.2 * abs(exact)
    assert found["kl/update"] == pytest.approx(kl, rel=0.02)


def test_the_probe_is_made_of_the_first_prompts_that_were_computed():
    rows = batch()
    result = UpdateResult(FirstPass.of(rows), torch.zeros(rows.mask.shape))
    result.before.known = torch.tensor([False] * 4 + [True, False, True, True] + [True] * 4)
    assert probe_rows(rows, result, prompts=1) == [4, 6, 7]
    assert probe_rows(rows, result, prompts=2) == [4, 6, 7, 8, 9, 10, 11]
    result.before.known[:] = False
    assert probe_rows(rows, result, prompts=2) == []


def test_without_an_update_nothing_changed():
    rows = batch()
    nothing = FirstPass.of(rows)
    found = distribution_change(rows, [], nothing, nothing)
    assert set(found.values()) == {0.0}
    assert len(found) == 3


def pushed_world(step: float, seed: int = 0) -> tuple[dict[str, float], float]:
    """Positions with logits of their own, each moved by the gradient of its own token: found, and the change."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(40, 12, generator=generator, dtype=torch.float64)
    logp = logits.log_softmax(-1)
    tokens = torch.multinomial(logp.exp(), 1, generator=generator)[:, 0]
    push = torch.randn(40, generator=generator, dtype=torch.float64)
    moved = push[:, None] * (torch.nn.functional.one_hot(tokens, 12) - logp.exp())
    new = (logits + step * moved).log_softmax(-1)
    entropy, entropy_new = (-(x.exp() * x).sum(-1) for x in (logp, new))
    at = torch.arange(40)
    squares = logp.exp().square()
    episode = Episode(
        Prompt("p", ""),
        [],
        tokens,
        "",
        "stop",
        logp=logp[at, tokens],
        entropy=entropy,
        renyi=-squares.sum(-1).log(),
        collision_logp=(squares * logp).sum(-1),
    )
    rows = make_batch([episode], None, group_size=1)
    before = Stats(logp[at, tokens][None], entropy[None])
    after = Stats(new[at, tokens][None], entropy_new[None])
    found = distribution_change(rows, [0], before, after, coefficient=7.0 * push[None])
    return found, float((entropy_new - entropy).mean())


def test_exact_effects_foretell_a_small_update_whatever_the_unit_of_the_coefficients():
    for seed in range(5):
        found, measured = pushed_world(1e-4, seed)
        assert found["policy/entropy_delta_exact"] == pytest.approx(measured, rel=1e-2)
    errors = [
        abs(found["policy/entropy_delta_predicted"] / measured - 1)
        for found, measured in [pushed_world(1e-4)]
    ]
    assert errors[0] > 0.05  # the covariance is of one sampled token


def test_exact_effects_need_the_samplers_sums_and_a_coefficient():
    rows = batch()
    before = FirstPass.of(rows)
    names = {"policy/entropy_delta", "policy/entropy_delta_predicted", "kl/update"}
    pushed = torch.ones(rows.mask.shape)
    assert distribution_change(rows, [0], before, before).keys() == names
    found = distribution_change(rows, [0], before, before, pushed)
    assert found.keys() == names | {"policy/entropy_delta_exact"}
    assert found["policy/entropy_delta_exact"] == 0.0
    assert distribution_change(rows, [0], before, before, 0 * pushed)["policy/entropy_delta_exact"] == 0.0
    rows.streams.collision_gen = None
    assert distribution_change(rows, [0], before, before, pushed).keys() == names
