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
