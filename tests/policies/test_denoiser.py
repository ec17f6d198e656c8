"""The denoiser: its samplers against Bayes' rule, its exact network against quadrature, its folder."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from klent.config import make_recipe
from klent.errors import ConfigError, ModelError
from klent.policies.denoiser.actor import DenoisingActor, noise_difference, over_time
from klent.policies.denoiser.network import Denoiser, DenoiserConfig, load_denoiser, save_denoiser
from klent.policies.denoiser.sampler import flow_steps, make_steps
from klent.policies.vectors.policy import VectorPolicy
from klent.rollout.denoising_engine import DenoisingEngine
from klent.streams.batch import make_batch
from klent.tasks import load_task

MIXTURE = DenoiserConfig(
    size=2, hidden=16, layers=1, means=((-2.0, 0.0), (1.0, 1.0)), stds=(0.3, 0.6), weights=(0.3, 0.7)
)


def network(config: DenoiserConfig = MIXTURE, *, moved: float = 0.0, seed: int = 0) -> Denoiser:
    """A network; ``moved`` shifts every weight, so that it is not the one that it starts as."""
    net = Denoiser(config, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in net.parameters():
            p += moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + 1))
    return net


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_the_mean_is_that_of_the_posterior_by_bayes_rule(kind):
    """q(x_s | x_t, x_0) from the product of two Gaussians, written without the formulas of either paper."""
    count, high, low = 7, 6.0, -5.0
    steps = make_steps(kind, count, high=high, low=low)
    level = sigmoid(np.linspace(low, high, count + 1))
    for i, (at, to) in enumerate(pairwise(level)):
        x0, noise = 0.7, -1.3
        x = np.sqrt(at) * x0 + np.sqrt(1 - at) * noise
        keep = (
            at / to
        )  # x_t = sqrt(keep) x_s + sqrt(1 - keep) fresh noise; x_s = sqrt(to) x_0 + sqrt(1 - to) noise
        precision = keep / (1 - keep) + 1 / (1 - to)
        mean = (np.sqrt(keep) * x / (1 - keep) + np.sqrt(to) * x0 / (1 - to)) / precision
        assert float(steps.a[i]) * x + float(steps.b[i]) * noise == pytest.approx(mean, abs=1e-5)
        variance = 1 / precision if kind == "ddim" else 1 - keep
        assert float(steps.std[i]) ** 2 == pytest.approx(variance, rel=1e-4)


def test_a_smaller_eta_keeps_the_marginals():
    """a² and b² with the noise drawn: x_s has the forward process' variance for every eta."""
    for eta in (0.3, 1.0):
        steps = make_steps("ddim", 5, high=5.0, low=-5.0, eta=eta)
        level = sigmoid(np.linspace(-5.0, 5.0, 6))
        for i, (at, to) in enumerate(pairwise(level)):
            a, b, std = (float(column[i]) for column in (steps.a, steps.b, steps.std))
            assert a * np.sqrt(at) == pytest.approx(np.sqrt(to), rel=1e-5)  # of x_0
            assert (a * np.sqrt(1 - at) + b) ** 2 + std**2 == pytest.approx(1 - to, rel=1e-3)


def test_a_flows_step_is_that_of_its_equation():
    """Flow-GRPO's sde_step_with_logprob, from the velocity; one factor of time is left out of its penalty."""
    count, high, low, level = 8, 5.0, -5.0, 0.7
    steps = flow_steps(count, high=high, low=low, noise_level=level)
    times = np.linspace(1 / (1 + np.exp(low / 2)), 1 / (1 + np.exp(high / 2)), count + 1)
    for i, (t, after) in enumerate(pairwise(times)):
        z, noise = 0.4, -1.3
        x0 = (z - t * noise) / (1 - t)
        v, dt, sigma = noise - x0, after - t, level * np.sqrt(t / (1 - t))
        mean = z * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
        assert float(steps.a[i]) * z + float(steps.b[i]) * noise == pytest.approx(mean, abs=1e-5)
        assert float(steps.std[i]) == pytest.approx(sigma * np.sqrt(-dt), rel=1e-5)
        own = float(steps.scale[i]) * z  # of variance-preserving noise, at this log-SNR
        signal = sigmoid(float(steps.log_snr[i]))
        assert own == pytest.approx(np.sqrt(signal) * x0 + np.sqrt(1 - signal) * noise, abs=1e-5)
    actor, reference = (DenoisingActor(network(moved=moved), steps) for moved in (0.2, 0.0))
    states, place = torch.randn(count, 2), torch.arange(count)
    ours, theirs = actor(states, place), reference(states, place)
    sigma = torch.tensor(level * np.sqrt(times[:-1] / (1 - times[:-1]))).float()
    released = (ours.mean - theirs.mean).square().mean(dim=1) / (2 * sigma.square())
    torch.testing.assert_close(over_time(actor)(ours, theirs, place), released, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, -0.5, 1.5])
def test_a_step_without_density_is_refused(eta):
    with pytest.raises(
        ValueError, match=r"expected a number in \(0, 1\]: a step without noise has no density"
    ):
        make_steps("ddim", 5, high=5.0, low=-5.0, eta=eta)


def test_the_exact_network_is_the_mean_noise_by_quadrature():
    config = DenoiserConfig(size=1, means=((-2.0,), (1.0,)), stds=(0.3, 0.6), weights=(0.3, 0.7))
    net = network(config)
    x0 = np.linspace(-6, 6, 20001)
    density = sum(
        w / s * np.exp(-((x0 - m[0]) ** 2) / (2 * s**2))
        for m, s, w in zip(config.means, config.stds, config.weights, strict=True)
    )
    for log_snr in (-3.0, 0.0, 2.0):
        for x in (-1.7, 0.2, 1.5):
            signal = sigmoid(log_snr)
            noise = (x - np.sqrt(signal) * x0) / np.sqrt(1 - signal)
            weight = density * np.exp(-(noise**2) / 2)
            expected = (weight * noise).sum() / weight.sum()
            found = net(torch.tensor([[x]], dtype=torch.float32), torch.tensor([log_snr]))
            assert found.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "flow"])
def test_sampling_the_exact_network_gives_the_mixture(sampler):
    config = DenoiserConfig(size=1, means=((-2.0,), (1.0,)), stds=(0.3, 0.6), weights=(0.3, 0.7))
    table = {"ddim": make_steps("ddim", 100, high=8.0, low=-8.0), "flow": flow_steps(200, high=8.0, low=-6.0)}
    actor = DenoisingActor(network(config), table[sampler])
    task = load_task({"noise": 1}, seed=0, heldout=0)
    made = DenoisingEngine(actor).generate([task.train(0)], group_size=4000, seed=3)
    images = torch.stack([episode.actions[-1] for episode in made]).flatten().numpy()
    assert images.mean() == pytest.approx(0.3 * -2 + 0.7 * 1, abs=0.1)
    assert (images < -0.7).mean() == pytest.approx(0.3, abs=0.03)
    assert images[images < -0.7].std() == pytest.approx(0.3, abs=0.03)


def test_the_engine_reports_the_density_that_it_drew_from_and_the_policy_agrees():
    actor = DenoisingActor(network(moved=0.2), make_steps("ddpm", 6, high=6.0, low=-6.0))
    task = load_task({"noise": 2}, seed=0, heldout=0)
    engine = DenoisingEngine(actor)
    made = engine.generate([task.train(0), task.train(1)], group_size=3, seed=5)
    batch = make_batch(made, None, group_size=3)
    stats = VectorPolicy(actor).evaluate(batch, range(6))
    torch.testing.assert_close(stats.logp, batch.streams.logp_gen)
    torch.testing.assert_close(stats.entropy, batch.streams.entropy_gen)
    first = made[0]
    assert torch.equal(first.states[1:], first.actions[:-1])  # what one step drew is what the next reads
    alone = engine.generate([task.train(0)], group_size=1, seed=5)[0]
    torch.testing.assert_close(alone.actions, first.actions)
    assert not torch.equal(engine.generate([task.train(0)], group_size=1, seed=6)[0].actions, first.actions)


def test_the_penalty_of_released_code_is_the_difference_of_noise():
    actor, reference = (
        DenoisingActor(network(moved=moved), make_steps("ddim", 6, high=6.0, low=-6.0))
        for moved in (0.2, 0.0)
    )
    task = load_task({"noise": 2}, seed=0, heldout=0)
    batch = make_batch(
        DenoisingEngine(actor).generate([task.train(0)], group_size=2, seed=5), None, group_size=2
    )
    policy = VectorPolicy(actor, reference=reference, compare=noise_difference(actor))
    found = policy.evaluate(batch, [0, 1], also=["kl"]).kl
    for row, episode in enumerate(batch.episodes):
        ours, theirs = (one.net(episode.states, actor.log_snr) for one in (actor, reference))
        torch.testing.assert_close(found[row], (ours - theirs).square().mean(-1), rtol=1e-3, atol=1e-7)


def test_at_equal_steps_of_the_log_snr_the_penalties_differ_by_a_constant():
    """KL = (SNR_s/SNR_t - 1)/2 |eps - eps_ref|^2 with the posterior's variance; with the forward one not."""
    posterior = make_steps("ddim", 9, high=5.0, low=-6.0)
    factor = posterior.b.square() / (2 * posterior.std.square())
    torch.testing.assert_close(factor, torch.full((9,), (np.exp(11 / 9) - 1) / 2, dtype=torch.float32))
    forward = make_steps("ddpm", 9, high=5.0, low=-6.0)
    factor = forward.b.square() / (2 * forward.std.square())
    assert factor.max() > 2 * factor.min()


def test_a_folder_gives_back_the_network(tmp_path):
    net = network(moved=0.2)
    save_denoiser(net, tmp_path / "net")
    again = load_denoiser(tmp_path / "net")
    assert again.config == net.config
    x, log_snr = torch.randn(5, 2), torch.linspace(-3, 3, 5)
    assert torch.equal(again(x, log_snr), net(x, log_snr))
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | {"hidden": 8}))
    with pytest.raises(ModelError, match="cannot load a denoiser"):
        load_denoiser(tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"does not hold a denoiser: its config.json has model_type 'llama'"):
        load_denoiser(tmp_path / "net")


RECIPE = {
    "name": "toy",
    "model": "net",
    "policy": {"kind": "denoiser"},
    "task": {"noise": 2},
    "reward": "random",
    "loss": {"ppo_clip": {}},
    "rollout": {"engine": "policy", "actions": 6},
    "steps": 1,
}
REFUSED = {
    "no noise": ({"policy": {"kind": "denoiser", "eta": 0}}, r"policy.eta: 0 draws no noise, so a step"),
    "eta of another sampler": (
        {"policy": {"kind": "denoiser", "sampler": "ddpm", "eta": 0.5}},
        r"policy.eta: is not used by sampler ddpm, only by ddim; remove it",
    ),
    "penalty of another sampler": (
        {"policy": {"kind": "denoiser", "penalty": "flow_grpo"}},
        r"penalty: flow_grpo is in steps of a flow's time, and ddim has none",
    ),
    "text": ({"task": {"gym": "chain_sum"}}, r"task: gives text, and a denoiser begins from noise"),
    "noise for text": ({"policy": {"kind": "causal_lm"}}, r"task: gives noise, and a causal_lm begins from"),
    "engine": ({"rollout": {"engine": "transformers"}}, r"set rollout: \{engine: policy\}"),
    "engine of vectors": (
        {"policy": {}, "task": {"gym": "chain_sum"}},
        r"policy draws actions that are vectors, and a causal_lm reads texts",
    ),
    "adapter": ({"lora": {}}, r"lora: is not used: a denoiser has no tokens; remove it"),
    "packing": ({"update": {"packing": "on"}}, r"update.packing: is not used: a denoiser has no tokens"),
    "vocabulary": ({"loss": {"ilql": {}}}, r"a denoiser does not give"),
    "skew": (
        {"loss": {"token_kl": {"coef": 1.0}}, "update": {"kl": {"skew": 0.1}}},
        r"update.kl.skew: mixes distributions",
    ),
    "kind": ({"policy": {"kind": "gan"}}, r"`kind` is causal_lm .*; got 'gan'|`kind` is causal_lm"),
    "key": (
        {"policy": {"kind": "denoiser", "centre_on": "x"}},
        r"not used by a denoiser policy, only by a rew",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_recipes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(RECIPE | changes)


def test_a_policy_section_of_before_is_read_as_before():
    """config.yaml of earlier runs says ``centre_on: null`` of every kind."""
    recipe = make_recipe(
        {
            "model": "m",
            "method": "grpo",
            "task": {"gym": "chain_sum"},
            "reward": "gym",
            "steps": 1,
            "policy": {"kind": "causal_lm", "centre_on": None},
        }
    )
    assert recipe.policy.kind == "causal_lm"
