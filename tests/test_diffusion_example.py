"""examples/diffusion: the truth on a grid, against sampling and against what is known of it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from klent.control.path_kl import step_kl
from klent.policies.denoiser.actor import DenoisingActor
from klent.policies.denoiser.network import Denoiser, DenoiserConfig
from klent.policies.denoiser.sampler import make_steps
from klent.policies.vectors.policy import VectorPolicy
from klent.rollout.denoising_engine import DenoisingEngine
from klent.streams.batch import make_batch
from klent.tasks import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "diffusion"))

import plane
import truth
from mixture import WORLDS

CONFIG = DenoiserConfig(
    size=1,
    hidden=16,
    layers=1,
    high=5.0,
    low=-6.0,
    means=((-1.5,), (1.5,)),
    stds=(0.4, 0.4),
    weights=(0.7, 0.3),
)
REWARD = np.exp(-((truth.GRID - 2.0) ** 2) / 0.5)


def actor(moved: float) -> DenoisingActor:
    net = Denoiser(CONFIG, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in net.parameters():
            p += moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return DenoisingActor(net, make_steps("ddim", 12, high=CONFIG.high, low=CONFIG.low))


def test_the_grid_and_the_run_measure_one_divergence_of_paths():
    """PathKL's mean over sampled episodes, against the chain of transition matrices."""
    ours, reference = actor(0.15), actor(0.0)
    end, path_kl = truth.follow(truth.chain_of(ours), truth.chain_of(reference))
    task = load_task({"noise": 1}, seed=0, heldout=0)
    made = DenoisingEngine(ours).generate([task.train(0)], group_size=3000, seed=1)
    kl = step_kl(VectorPolicy(ours, reference=reference), make_batch(made, None, group_size=3000)).sum(dim=1)
    error = float(kl.std()) / 3000**0.5
    assert path_kl > 0.05
    assert float(kl.mean()) == pytest.approx(path_kl, abs=4 * error)
    images = torch.stack([episode.actions[-1] for episode in made]).numpy()
    assert float(images.mean()) == pytest.approx(end @ truth.GRID, abs=4 * float(images.std()) / 3000**0.5)


def test_no_chain_is_better_than_the_tilted_truth_and_its_steps_cost_at_least_their_end():
    reference = truth.chain_of(actor(0.0))
    start, none = truth.follow(reference, reference)
    assert none == 0
    assert start @ truth.GRID == pytest.approx(0.7 * -1.5 + 0.3 * 1.5, abs=0.1)
    for beta in (0.1, 0.3, 1.0):
        ideal, best = truth.tilted(reference, REWARD, beta)
        assert best == pytest.approx(ideal @ REWARD - beta * truth.kl(ideal, start), abs=1e-9)
        chain = truth.best_of_gaussians(reference, REWARD, beta)
        end, path_kl = truth.follow(chain, reference)
        value = end @ REWARD - beta * path_kl
        assert start @ REWARD < value < best
        assert truth.kl(end, start) <= path_kl + 1e-9
        worse = truth.Chain(chain.mean + 0.05, chain.std)
        end, path_kl = truth.follow(worse, reference)
        assert end @ REWARD - beta * path_kl < value


def of_world(name: str, moved: float) -> DenoisingActor:
    world = WORLDS[name]
    net = Denoiser(world.config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in net.parameters():
            p += moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return world.actor(net)


def test_in_the_plane_the_grid_and_the_run_measure_one_divergence_too():
    ours, reference = of_world("plane", 0.1), of_world("plane", 0.0)
    end, path_kl = plane.follow(plane.chain_of(ours), plane.chain_of(reference))
    task = load_task({"noise": 2}, seed=0, heldout=0)
    made = DenoisingEngine(ours).generate([task.train(0)], group_size=3000, seed=1)
    kl = step_kl(VectorPolicy(ours, reference=reference), make_batch(made, None, group_size=3000)).sum(dim=1)
    assert path_kl > 0.02
    assert float(kl.mean()) == pytest.approx(path_kl, abs=4 * float(kl.std()) / 3000**0.5)
    points = torch.stack([episode.actions[-1] for episode in made]).numpy()
    error = 4 * points.std(axis=0) / 3000**0.5
    assert (np.abs(points.mean(axis=0) - end @ plane.GRID) < error).all()
    corner = np.exp(-((points - np.array([2.0, 1.8])) ** 2).sum(1) / 0.72)
    assert corner.mean() == pytest.approx(end @ WORLDS["plane"].values, abs=4 * corner.std() / 3000**0.5)


def test_the_reference_of_the_plane_is_its_mixture_with_the_noise_that_is_left():
    world = WORLDS["plane"]
    start, none = plane.follow(*[plane.chain_of(of_world("plane", 0.0))] * 2)
    assert none == 0
    assert start.sum() == pytest.approx(1)
    mean = np.array(world.config.weights) @ np.array(world.config.means)
    assert np.abs(start @ plane.GRID - mean).max() < 0.15
    drawn = world.draw(20000)
    assert np.abs(drawn.mean(0) - mean).max() < 0.05
    ideal, best = plane.tilted(plane.chain_of(of_world("plane", 0.0)), world.values, 0.3)
    assert best == pytest.approx(ideal @ world.values - 0.3 * truth.kl(ideal, start), abs=1e-9)


def test_a_mean_between_points_is_found_as_on_a_finer_grid():
    after = np.exp(-((plane.GRID - np.array([1.03, -0.47])) ** 2).sum(1) / 2).reshape(plane.EDGE, plane.EDGE)
    mean_ref = np.array([[0.2, 0.1], [0.9, -0.6], [-1.5, 2.0]])
    mean, best = plane.refined(after, mean_ref, 0.7)
    offsets = np.linspace(-0.1, 0.1, 201)
    for found, value, start in zip(mean, best, mean_ref, strict=True):
        one, other = np.meshgrid(found[0] + offsets, found[1] + offsets, indexing="ij")
        gain = np.exp(-((one - 1.03) ** 2 + (other + 0.47) ** 2) / 2)
        gain -= 0.7 * ((one - start[0]) ** 2 + (other - start[1]) ** 2)
        place = np.unravel_index(gain.argmax(), gain.shape)
        assert np.abs(np.array([offsets[i] for i in place])).max() <= 0.004
        assert value == pytest.approx(gain.max(), abs=1e-4)


def test_no_distribution_beside_the_data_is_better_than_the_one_computed():
    reference = truth.chain_of(actor(0.0))
    start, _ = truth.follow(reference, reference)

    def value(p):
        return p @ REWARD - 0.3 * truth.kl(start, p)

    best = truth.beside_data(start, REWARD, 0.3)
    assert best.sum() == pytest.approx(1)
    for other in (start, truth.tilted(reference, REWARD, 0.3)[0], best * (1 + 0.05 * np.sin(truth.GRID))):
        assert value(best) > value(other / other.sum())
