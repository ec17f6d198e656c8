"""Policies of vectors: their numbers on the grid, and the gradients that objectives give them, against oracles."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from klent.policies.vectors.gaussian import Gaussian
from klent.policies.vectors.policy import VectorPolicy, divergence_of
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

LENGTHS, S, A = (3, 5, 1, 4), 2, 3


class Linear(nn.Module):
    """mean = W s + 0.1 place, std = exp(w)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(A, S, generator=generator))
        self.log_std = nn.Parameter(torch.linspace(-0.5, 0.5, A) + 0.1 * seed)

    def forward(self, states, place) -> Gaussian:
        return Gaussian(states @ self.w.T + 0.1 * place[:, None], self.log_std.exp())


def episodes(lengths=LENGTHS, policy: Linear | None = None, seed: int = 1) -> list[Episode]:
    policy = policy or Linear()
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate(lengths):
        states = torch.randn(length, S, generator=generator)
        law = policy(states, torch.arange(length))
        actions = law.draw(torch.randn(length, A, generator=generator)).detach()
        episode = Episode.of_actions(
            Prompt(f"p/{index // 2}", ""),
            states,
            actions,
            text="",
            logp=law.logp(actions).detach(),
            entropy=law.entropy().detach(),
        )
        made.append(episode)
    return made


def test_a_gaussian_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, std, other, wide = (torch.rand(4, 3, generator=generator) + 0.5 for _ in range(4))
    action = torch.randn(4, 3, generator=generator)
    ours, torchs = Gaussian(mean, std), Normal(mean, std)
    torch.testing.assert_close(ours.logp(action), torchs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), torchs.entropy().sum(-1))
    torch.testing.assert_close(
        ours.kl(Gaussian(other, wide)), kl_divergence(torchs, Normal(other, wide)).sum(-1)
    )
    isotropic = Gaussian(mean, torch.full((4, 1), 0.3))
    torch.testing.assert_close(isotropic.entropy(), Normal(mean, 0.3).entropy().sum(-1))


def test_numbers_stand_at_their_actions_whatever_the_lengths():
    batch = make_batch(episodes(), [1.0, 2.0, 3.0, 4.0], group_size=2)
    policy = VectorPolicy(Linear(2), reference=Linear(3))
    rows = [3, 0, 2]
    stats = policy.evaluate(batch, rows, also=["kl"])
    for place, row in enumerate(rows):
        episode = batch.episodes[row]
        alone, other = (net(episode.states, torch.arange(LENGTHS[row])) for net in (Linear(2), Linear(3)))
        count = LENGTHS[row]
        torch.testing.assert_close(stats.logp[place, :count], alone.logp(episode.actions))
        torch.testing.assert_close(stats.entropy[place, :count], alone.entropy().expand(count))
        torch.testing.assert_close(stats.kl[place, :count], alone.kl(other))
        assert not stats.logp[place, count:].any()
    assert stats.tokens == 8


def test_actions_of_the_environment_are_left_out():
    one = episodes((4,))[0]
    one.acted = torch.tensor([True, False, True, False])
    batch = make_batch([one], [1.0], group_size=1)
    stats = VectorPolicy(Linear(2)).evaluate(batch, [0])
    whole = Linear(2)(one.states, torch.arange(4)).logp(one.actions)
    torch.testing.assert_close(stats.logp[0], torch.where(one.acted, whole, 0.0))


@pytest.mark.parametrize("kind", ["reverse", "forward", "jeffreys"])
def test_the_divergence_is_the_one_named(kind):
    ours, reference = (Linear(seed)(torch.ones(2, S), torch.arange(2)) for seed in (0, 1))
    normal, other = (Normal(law.mean, law.std.expand_as(law.mean)) for law in (ours, reference))
    expected = {
        "reverse": kl_divergence(normal, other),
        "forward": kl_divergence(other, normal),
        "jeffreys": kl_divergence(normal, other) + kl_divergence(other, normal),
    }[kind].sum(-1)
    torch.testing.assert_close(divergence_of(kind)(ours, reference, torch.arange(2)), expected)


def test_the_reference_is_not_trained_and_not_among_the_weights():
    policy = VectorPolicy(Linear(0), reference=Linear(1))
    assert set(policy.trainable()) == {"w", "log_std"}
    assert set(policy.state_dict()) == {"actor.w", "actor.log_std"}


def test_micro_batches_keep_units_whole_and_within_the_budget():
    batch = make_batch(episodes(), [1.0] * 4, group_size=2)
    policy = VectorPolicy(Linear(), budget=8)
    assert policy.microbatches(batch, [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    batch.unit = torch.tensor([0, 1, 1, 0])
    assert VectorPolicy(Linear(), budget=1).microbatches(batch, [0, 1, 2, 3]) == [[0, 3], [1, 2]]


def test_an_episode_of_tokens_is_refused():
    text = Episode(Prompt("p", ""), [], torch.tensor([1]), "", "stop")
    with pytest.raises(ValueError, match=r"an episode has tokens, not states and actions; make it"):
        VectorPolicy(Linear()).evaluate(make_batch([text], None, group_size=1), [0])


def stepped(loss: dict, budget: int) -> dict[str, np.ndarray]:
    """The gradient of one optimizer step over all episodes."""
    policy = VectorPolicy(Linear(2), reference=Linear(3), budget=budget)
    updater = Updater(
        policy,
        torch.optim.SGD(policy.trainable().values(), lr=0.0),
        Objective(loss, None, None),
        learning_rate=lambda step: 0.0,
        reduction=Reduction("constant", denominator=1.0),
    )
    batch = make_batch(episodes(), [1.0, -2.0, 0.5, 3.0], group_size=2)
    batch.streams.logp_old = batch.streams.logp_gen
    updater.objective.estimate_advantage(batch)
    updater.run(batch, seed=0)
    return {name: p.grad.double().numpy() for name, p in policy.trainable().items()}


def oracle(rewards, kl_coef: float, clip: float | None) -> dict[str, np.ndarray]:
    """The same by hand in NumPy float64: ratio times advantage, clipped, and the step's KL."""
    w, log_std = (p.detach().double().numpy() for p in Linear(2).parameters())
    w_ref, log_std_ref = (p.detach().double().numpy() for p in Linear(3).parameters())
    var, var_ref = np.exp(2 * log_std), np.exp(2 * log_std_ref)
    grad_w, grad_s = np.zeros_like(w), np.zeros_like(log_std)
    for episode, reward in zip(episodes(), rewards, strict=True):
        for t in range(len(episode.tokens)):
            s, a = episode.states[t].double().numpy(), episode.actions[t].double().numpy()
            mean, mean_ref = w @ s + 0.1 * t, w_ref @ s + 0.1 * t
            logp = -0.5 * np.sum((a - mean) ** 2 / var + 2 * log_std + math.log(2 * math.pi))
            ratio, weight = np.exp(logp - float(episode.logp[t])), 1.0
            if clip is None:
                weight = reward
            else:
                inside = ratio * reward <= np.clip(ratio, 1 - clip, 1 + clip) * reward
                weight = ratio * reward if inside else 0.0
            grad_w -= weight * np.outer((a - mean) / var, s)
            grad_s -= weight * ((a - mean) ** 2 / var - 1)
            grad_w += kl_coef * np.outer((mean - mean_ref) / var_ref, s)
            grad_s += kl_coef * (var / var_ref - 1)
    count = len(LENGTHS)
    return {"w": grad_w / count, "log_std": grad_s / count}


@pytest.mark.parametrize("budget", [1, 4096])
@pytest.mark.parametrize(
    ("loss", "kl_coef", "clip"),
    [
        ({"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}}, 0.0, 0.2),
        ({"reinforce": {}, "token_kl": {"coef": 0.7}}, 0.7, None),
    ],
    ids=["ddpo", "dpok"],
)
def test_gradients_are_those_of_the_formula(loss, kl_coef, clip, budget):
    found = stepped(loss, budget)
    expected = oracle([1.0, -2.0, 0.5, 3.0], kl_coef, clip)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=2e-4, atol=2e-5)
    wrong = oracle([1.0, -2.0, 0.5, 3.0], kl_coef + 0.1, clip)
    assert not np.allclose(found["w"], wrong["w"], rtol=1e-2)
