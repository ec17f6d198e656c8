"""The worlds: everything is listed once, probabilities sum to one, slopes are autograd's."""

import pytest
import torch

from klent.audit.candidates import MEANING, RARE, candidate_gradients, concerned
from klent.audit.names import TRAINED
from klent.audit.worlds import (
    Scene,
    build_world,
    equal_lengths,
    far_apart,
    one_position,
    sample,
    two_tokens,
    unequal_lengths,
)

FAMILIES = (one_position, equal_lengths, two_tokens, unequal_lengths, far_apart)
SCENES = [scene for family in FAMILIES for scene in family()]


def test_what_is_listed() -> None:
    world = build_world(3, 3)
    assert world.tokens.shape == (27, 3)
    assert len({tuple(row) for row in world.tokens.tolist()}) == 27
    assert world.mask.all()
    assert world.visits.shape == (27, 13)
    stopping = build_world(3, 3, stop=True)
    sequences = [tuple(row[keep].tolist()) for row, keep in zip(stopping.tokens, stopping.mask, strict=True)]
    assert len(set(sequences)) == len(sequences) == 1 + 2 + 12
    assert all(0 not in sequence[:-1] for sequence in sequences)
    assert all(sequence[-1] == 0 or len(sequence) == 3 for sequence in sequences)


@pytest.mark.parametrize("scene", SCENES)
def test_probabilities_sum_to_one(scene: Scene) -> None:
    for parameters in scene.policy, scene.reference, scene.behaviour:
        assert scene.sequence_logp(parameters).exp().sum().item() == pytest.approx(1)
        lengths = scene.world.mask.sum(dim=1).double()
        mean_length = scene.sequence_logp(parameters).exp() @ lengths
        assert scene.prefix_probability(parameters).sum().item() == pytest.approx(mean_length.item())


@pytest.mark.parametrize("scene", SCENES)
def test_slopes_are_autograds(scene: Scene) -> None:
    listed = sample(scene)
    parameters = scene.policy.clone().requires_grad_()
    logp = scene.token_logp(parameters)
    p, q = scene.log_probs(parameters), scene.log_probs(scene.reference)
    middle = (0.1 * p.exp() + 0.9 * q.exp()).log()
    of_prefix = {
        "entropy": -(p.exp() * p),
        "kl": p.exp() * (p - q),
        "forward_kl": q.exp() * (q - p),
        "jeffreys_kl": (p.exp() - q.exp()) * (p - q),
        "skewed_kl": p.exp() * (p - middle),
    }
    expected_values = {name: value.sum(dim=1)[scene.world.prefix] for name, value in of_prefix.items()}
    expected_values |= {"logp": logp}
    assert set(expected_values) == set(listed.slope) == set(TRAINED)
    for name, whole in expected_values.items():
        values, slopes = torch.where(scene.world.mask, whole, 0.0), listed.slope[name]
        torch.testing.assert_close(listed.streams[name], values.detach())
        weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view_as(values)
        (expected,) = torch.autograd.grad((values * weights).sum(), parameters, retain_graph=True)
        found = torch.einsum("bt,btp->p", weights, slopes)
        torch.testing.assert_close(found, expected.flatten(), rtol=1e-9, atol=1e-12)


def test_the_distance_is_the_total_variation_to_the_sampler() -> None:
    for scene in SCENES:
        streams = sample(scene).streams
        of_prefix = (scene.log_probs(scene.policy).exp() - scene.log_probs(scene.behaviour).exp()).clamp(
            min=0
        )
        expected = torch.where(scene.world.mask, of_prefix.sum(dim=1)[scene.world.prefix], 0.0)
        torch.testing.assert_close(streams["distance"], expected)
        assert sample(scene.on_policy()).streams["distance"].abs().max() == 0


def test_log_ratios_are_those_of_a_run() -> None:
    for family in (one_position, equal_lengths, two_tokens, unequal_lengths):
        for scene in family():
            streams = sample(scene).streams
            mask = streams["mask"]
            assert (streams["logp"] - streams["logp_ref"])[mask].abs().max() < 2.4
            assert 0.18 < (streams["logp"] - streams["logp_old"])[mask].abs().max() < 1.2
    far = [(s["logp"] - s["logp_ref"]).abs().max().item() for s in (sample(x).streams for x in far_apart())]
    assert max(far) > 40
    assert min(far) > 20


def test_nothing_leaks_from_the_padding() -> None:
    streams = sample(unequal_lengths()[0]).streams
    assert not streams["mask"].all()
    for name, stream in streams.items():
        assert (stream[~streams["mask"]] == 0).all(), name


def test_on_policy_the_behaviour_is_the_policy() -> None:
    listed = sample(equal_lengths()[0].on_policy())
    assert torch.equal(listed.streams["logp"], listed.streams["logp_old"])
    mean = listed.probability @ listed.streams["advantage"][:, 0]
    assert mean.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_candidates_are_independent(off_policy: bool, pairs: bool) -> None:
    """No usual candidate can be written in terms of others, so that a combination has one reading."""
    listed = (*two_tokens(), *unequal_lengths()[:2]) if pairs else (*equal_lengths(), *unequal_lengths())
    scenes = [scene if off_policy else scene.on_policy() for scene in listed]
    reads = concerned(("logp", "logp_ref", "advantage"))
    found = [candidate_gradients(scene, reads) for scene in scenes]
    usual = [name for name in found[0] if name.removesuffix("@behaviour") not in RARE]
    basis = torch.stack([torch.cat([f[name] for f in found]) for name in usual], dim=1)
    basis = basis / basis.norm(dim=0)
    assert torch.linalg.cond(basis) < 2000
    assert {name.removesuffix("@behaviour") for name in found[0]} <= set(MEANING)
