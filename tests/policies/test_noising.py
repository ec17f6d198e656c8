"""Noised images: against Bayes' rule, quadrature, and the network's own answer; one noise for a whole update."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from klent.config import make_recipe
from klent.control.noising import Noising
from klent.errors import ConfigError, DataError
from klent.policies.denoiser.actor import DenoisingActor
from klent.policies.denoiser.forward import noised
from klent.policies.denoiser.network import Denoiser, DenoiserConfig
from klent.policies.denoiser.policy import DenoiserPolicy
from klent.policies.denoiser.sampler import Steps, flow_steps, make_steps
from klent.rollout.denoising_engine import DenoisingEngine
from klent.streams.batch import make_batch
from klent.tasks import load_task
from klent.tasks.images import read_images

HIGH, LOW, COUNT = 2.0, -5.0, 5
CONFIG = DenoiserConfig(
    size=1, hidden=8, layers=1, means=((-2.0,), (1.0,)), stds=(0.3, 0.6), weights=(0.3, 0.7)
)
TABLES = {
    "ddim": make_steps("ddim", COUNT, high=HIGH, low=LOW),
    "eta": make_steps("ddim", COUNT, high=HIGH, low=LOW, eta=0.4),
    "ddpm": make_steps("ddpm", COUNT, high=HIGH, low=LOW),
    "flow": flow_steps(COUNT, high=HIGH, low=LOW),
}


def actor(steps: Steps, *, moved: float = 0.0, config: DenoiserConfig = CONFIG) -> DenoisingActor:
    """The exact denoiser of a mixture, or one whose weights are shifted."""
    net = Denoiser(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in net.parameters():
            p += moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return DenoisingActor(net, steps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def density(x, signal):
    """Of the mixture, noised so that ``signal`` of the variance is left."""
    parts = zip(CONFIG.means, CONFIG.stds, CONFIG.weights, strict=True)
    total = 0.0
    for (mean,), std, weight in parts:
        variance = signal * std**2 + 1 - signal
        total = total + weight * np.exp(-((x - np.sqrt(signal) * mean) ** 2) / (2 * variance)) / np.sqrt(
            variance
        )
    return total


@pytest.mark.parametrize("clean", [True, False], ids=["data", "sampled"])
@pytest.mark.parametrize("name", TABLES)
def test_the_noise_of_a_noised_image_has_the_mean_that_the_exact_network_predicts(name, clean):
    """E[noise | x_t] over images at their own log-SNR, by quadrature: DiffusionNFT's v_old is exact."""
    own = actor(TABLES[name])
    level = 1.0 if clean else sigmoid(HIGH)
    image = np.linspace(-8, 8, 40001)  # of variance-preserving noise
    prior = density(image, level)
    end = 1.0
    if name == "flow" and not clean:  # a flow's image is (1 - t) x_0 + t noise
        t = 1 / (1 + math.exp(HIGH / 2))
        end = math.hypot(1 - t, t)
    for place in range(COUNT):
        signal = sigmoid(float(own.log_snr[place]))
        keep = signal / level
        for x in (-1.3, 0.4):
            draws = (x - np.sqrt(keep) * image) / np.sqrt(1 - keep)
            images = torch.tensor(image * end, dtype=torch.float32)[:, None]
            at = torch.full((len(image),), place)
            states, noise = noised(
                own, images, at, torch.tensor(draws, dtype=torch.float32)[:, None], clean=clean
            )
            torch.testing.assert_close(
                own.scale[place] * states, torch.full_like(states, x), rtol=0, atol=2e-4
            )
            weight = prior * np.exp(-(draws**2) / 2)
            mean = (weight @ noise[:, 0].double().numpy()) / weight.sum()
            assert own.noise(states[:1], at[:1]).item() == pytest.approx(mean, abs=2e-3)


def test_the_loss_on_data_is_the_kl_of_each_step_from_the_posterior_by_bayes_rule():
    """With eta 1: KL(q(x_s | x_t, x_0) ‖ policy's step), whose sum over steps is the KL of noised paths."""
    moved = actor(TABLES["ddim"], moved=0.3)
    data = torch.tensor([[0.7], [-1.1]])
    policy = DenoiserPolicy(moved, data=data)
    batch = episodes(moved, count=6)
    policy.noise_again(batch, seed=4)
    found = policy.evaluate(batch, range(6), also=["denoising_data"]).denoising_data
    level = sigmoid(np.linspace(LOW, HIGH, COUNT + 1))
    made = policy._of_data
    seen = set()
    for row in range(6):
        for step, (at, to) in enumerate(pairwise(level)):
            x, noise = float(made.states[row, step, 0]), float(made.noise[row, step, 0])
            x0 = (x - np.sqrt(1 - at) * noise) / np.sqrt(at)
            seen.add(round(x0, 3))
            keep = at / to
            precision = keep / (1 - keep) + 1 / (1 - to)
            mean = (np.sqrt(keep) * x / (1 - keep) + np.sqrt(to) * x0 / (1 - to)) / precision
            law = moved(made.states[row, step][None], torch.tensor([step]))
            kl = (mean - law.mean.item()) ** 2 * precision / 2
            assert found[row, step].item() == pytest.approx(kl, rel=1e-2, abs=1e-5)
    assert seen == {0.7, -1.1}


def episodes(own: DenoisingActor, count: int):
    """A batch of images of a denoiser."""
    task = load_task({"noise": own.size}, seed=0, heldout=0)
    return make_batch(
        DenoisingEngine(own).generate([task.train(0)], group_size=count, seed=1), None, group_size=count
    )


def test_own_images_are_noised_once_for_the_update_and_compared_with_the_policy_of_then():
    own = actor(TABLES["ddim"], moved=0.2)
    policy, batch = DenoiserPolicy(own), episodes(own, 4)
    organ = Noising(policy, seed=3)
    organ.before_step(7)
    organ.after_rollout(batch)
    old = batch.streams.denoising_old
    asked = ["denoising", "denoising_kl"]
    first = policy.evaluate(batch, range(4), also=asked)
    torch.testing.assert_close(first.denoising, old)
    assert torch.equal(first.denoising_kl, torch.zeros_like(old))
    later = policy.evaluate(batch, [2, 0], also=asked)  # another cut of the step
    torch.testing.assert_close(later.denoising, old[[2, 0]])
    with torch.no_grad():
        before = {name: value.clone() for name, value in own.named_parameters()}
        for p in own.parameters():
            p += 0.05
    moved = policy.evaluate(batch, range(4), also=asked)
    law = own(policy._own.states.flatten(0, 1), torch.arange(COUNT).repeat(4))
    with torch.no_grad():
        for name, p in own.named_parameters():
            p.copy_(before[name])
        was = own(policy._own.states.flatten(0, 1), torch.arange(COUNT).repeat(4))
    torch.testing.assert_close(moved.denoising_kl, law.kl(was).view(4, COUNT), rtol=1e-3, atol=1e-6)
    assert (moved.denoising - old).abs().max() > 1e-3
    organ.before_step(8)
    organ.after_rollout(batch)
    assert not torch.equal(batch.streams.denoising_old, old)
    organ.before_step(7)
    organ.after_rollout(batch)
    torch.testing.assert_close(batch.streams.denoising_old, old)


def test_what_was_not_noised_is_said():
    own = actor(TABLES["ddim"])
    with pytest.raises(ValueError, match="no image was noised for this step; call noise_again first"):
        DenoiserPolicy(own).evaluate(episodes(own, 2), [0], also=["denoising"])


RECIPE = {"name": "toy", "model": "net", "task": {"noise": 2}, "reward": "random", "steps": 1}
REFUSED = {
    "no data": ({"method": "ddrl"}, r"task.images: is missing: the loss reads denoising_data"),
    "data that nothing reads": (
        {"method": "ddpo", "task": {"noise": 2, "images": "a.npy"}},
        r"task.images: is not used: no term of the loss reads denoising_data; remove it, or add denoising",
    ),
    "language": (
        {"loss": {"diffusion_nft": {}}, "task": {"gym": "chain_sum"}, "reward": "gym"},
        r"policy.kind: causal_lm makes no images, and the loss reads denoising; set policy",
    ),
    "a robot": (
        {"loss": {"denoising": {"coef": 1.0}}, "task": {"segments": "x"}, "policy": {"kind": "gaussian"}},
        r"reads denoising_data, which a gaussian does not give",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_recipes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(RECIPE | changes)


def test_files_of_images(tmp_path):
    def refused(file: str, array=None, *, text: str = "") -> str:
        if array is not None:
            np.save(tmp_path / file, array, allow_pickle=True)
        elif text:
            (tmp_path / file).write_text(text)
        with pytest.raises(DataError) as found:
            read_images(str(tmp_path / file), 4)
        return str(found.value)

    np.save(tmp_path / "good.npy", np.ones((3, 4), dtype=np.uint8))
    good = read_images(str(tmp_path / "good.npy"), 4)
    assert good.dtype == torch.float32
    assert good.shape == (3, 4)
    assert "there is no file at" in refused("none.npy")
    assert "Write it with numpy.save" in refused("text.npy", text="no array")
    assert "Write it with numpy.save" in refused("objects.npy", np.array([{}], dtype=object))
    assert "has shape [3, 2, 2], expected [M, 4]" in refused("square.npy", np.ones((3, 2, 2)))
    assert "has shape [0, 4]" in refused("empty.npy", np.ones((0, 4)))
    assert "not finite" in refused("nan.npy", np.full((2, 4), np.nan))
    assert "dtype complex128" in refused("complex.npy", np.ones((2, 4), dtype=complex))
