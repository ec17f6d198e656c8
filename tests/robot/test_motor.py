"""The Gaussian policy: density, entropy, exact KL to the behaviour, and the gradient of PPL through all of it."""

import itertools
import math

import pytest
import torch
from oracles import regret as preference
from oracles import robot as oracle
from torch import Tensor

from klent.config.collection import CollectionSettings
from klent.errors import ModelError
from klent.policies.motor.labels import BehaviourKL
from klent.policies.motor.network import UNIT_STD, MotorConfig, MotorNetwork, load_motor, save_motor
from klent.policies.motor.policy import MotorPolicy
from klent.rollout.segment_engine import SegmentEngine
from klent.streams.batch import make_batch
from klent.streams.prompt import Prompt
from klent.tasks.segments import Segments
from klent.training.objective import Objective

T, D, A, PARTS, AGAIN = 6, 3, 2, 2, 3


def segments_of(seed: int = 0, count: int = 4, *, branched: bool = True) -> Segments:
    """Segments of random numbers, each of a behaviour policy of its own."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    std = 0.2 + torch.rand(count, generator=generator, dtype=torch.float64)
    mean = drawn(count, T, A) / 2
    settings = CollectionSettings(task="reach", segments=count, length=T)
    branches = {}
    if branched:
        branches["branch_time"] = torch.tensor([[1, 5], [0, 3], [2, 4], [1, 3]])[:count]
        branches["branch_observation"] = drawn(count, PARTS, AGAIN, T, D)
        branches["branch_mean"] = drawn(count, PARTS, AGAIN, T, A) / 2
    worth = {"regret": drawn(count), "return": drawn(count), "success": torch.ones(count)}
    action = mean + std[:, None, None] * drawn(count, T, A)
    return Segments(
        settings, list(range(10, 10 + count)), drawn(count, T, D), action, mean, std, worth, **branches
    )


def network_of(form: str, seed: int = 0, **settings) -> MotorNetwork:
    generator = torch.Generator().manual_seed(seed)
    config = MotorConfig(D, A, hidden=5, layers=2, form=form, **settings)
    return MotorNetwork(config, generator=generator).double()


def batch_of(segments: Segments, pairs: list[tuple[int, int]]):
    prompts = [Prompt(f"pair/{number}", "", {"segments": list(pair)}) for number, pair in enumerate(pairs)]
    episodes = SegmentEngine(segments).generate(prompts, group_size=2, seed=0)
    return make_batch(episodes, None, group_size=2, whole_groups=True)


def law(network: MotorNetwork, seen: list[float]) -> tuple[list[float], list[float]]:
    """Mean and deviation of an action as plain numbers."""
    linear = [layer for layer in network.layers if isinstance(layer, torch.nn.Linear)]
    out = oracle.perceptron([(layer.weight.tolist(), layer.bias.tolist()) for layer in linear], seen)
    if network.config.form == "tanh":
        return [math.tanh(value) for value in out], [network.config.std] * A
    low, high = math.log(0.05), math.log(2.0)
    return out[:A], [math.exp(low + (high - low) / (1 + math.exp(-raw))) for raw in out[A:]]


def score(
    network: MotorNetwork, segments: Segments, place: int, label: str, alpha: float, gamma: float
) -> float:
    """S of a segment as plain numbers."""
    laws = [law(network, seen) for seen in segments.observation[place].tolist()]
    logp = [
        oracle.gaussian_logp(a, *one) for a, one in zip(segments.action[place].tolist(), laws, strict=True)
    ]
    std = float(segments.std[place])
    if label == "realised":
        kl = [
            oracle.gaussian_kl(m, std, *one)
            for m, one in zip(segments.mean[place].tolist(), laws, strict=True)
        ]
        return preference.score(logp, kl, alpha, gamma, label)
    if label != "expected":
        return preference.score(logp, logp, alpha, gamma, label)
    kl = [0.0] * T
    for part, time in enumerate(segments.branch_time[place].tolist()):
        every = [
            [
                oracle.gaussian_kl(mean, std, *law(network, seen))
                for mean, seen in zip(means.tolist(), states.tolist(), strict=True)
            ]
            for means, states in zip(
                segments.branch_mean[place, part], segments.branch_observation[place, part], strict=True
            )
        ]
        for t in range(part * T // PARTS, (part + 1) * T // PARTS):
            kl[t] = gamma ** (time - t) * oracle.future(every, time, gamma)
    return preference.score(logp, kl, alpha, gamma, label)


@pytest.mark.parametrize("form", ["tanh", "gaussian"])
def test_density_entropy_and_kl_are_those_of_plain_numbers(form):
    segments, network = segments_of(), network_of(form)
    policy = MotorPolicy(network, behaviour=BehaviourKL(segments, "realised", 1.0))
    stats = policy.evaluate(batch_of(segments, [(11, 13), (12, 10)]), [1, 2], also=("kl",))
    for row, place in enumerate((3, 2)):
        for t in range(T):
            mean, std = law(network, segments.observation[place, t].tolist())
            entropy = sum(math.log(s) + 0.5 * math.log(2 * math.pi * math.e) for s in std)
            behaviour = segments.mean[place, t].tolist(), float(segments.std[place])
            assert stats.logp[row, t].item() == pytest.approx(
                oracle.gaussian_logp(segments.action[place, t].tolist(), mean, std)
            )
            assert stats.entropy[row, t].item() == pytest.approx(entropy)
            assert stats.kl[row, t].item() == pytest.approx(oracle.gaussian_kl(*behaviour, mean, std))


def test_the_unit_deviation_makes_the_released_score():
    """log-density = -pi |a - mean|^2: the code's -|a - mean|^2 with alpha / pi."""
    segments, network = segments_of(), network_of("tanh", std=UNIT_STD)
    stats = MotorPolicy(network).evaluate(batch_of(segments, [(11, 13)]), [0])
    mean = network(segments.observation[1]).mean
    assert stats.kl is None
    assert torch.allclose(stats.logp[0], -math.pi * (segments.action[1] - mean).square().sum(-1))


@pytest.mark.parametrize("form", ["tanh", "gaussian"])
@pytest.mark.parametrize("label", ["expected", "realised", "pseudo", "none"])
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_loss_of_pairs_and_its_gradient_are_those_of_plain_numbers(form, label, gamma):
    segments, network = segments_of(), network_of(form)
    settings = {"alpha": 0.07, "gamma": gamma, "rejected_weight": 0.9}
    term = (
        {"cpl": settings} if label == "none" else {"policy_labeled_preference": {**settings, "label": label}}
    )
    kl = BehaviourKL(segments, label, gamma) if label in ("expected", "realised") else None
    policy, objective = MotorPolicy(network, behaviour=kl), Objective(term, None, None)
    assert objective.reads("kl") == (kl is not None)
    pairs = [(11, 13), (12, 10)]
    batch = batch_of(segments, pairs)

    def loss() -> Tensor:
        stats = policy.evaluate(batch, range(4), also=("kl",) if kl else ())
        return objective.token_loss(
            batch.streams.with_(logp=stats.logp, entropy=stats.entropy, kl=stats.kl)
        ).loss.sum()

    def plain() -> float:
        return sum(
            preference.loss(*(score(network, segments, n - 10, label, 0.07, gamma) for n in pair), 0.9)
            for pair in pairs
        )

    value = loss()
    assert value.item() == pytest.approx(plain(), rel=1e-9)
    value.backward()
    step = 1e-6
    for parameter in network.parameters():
        for index in (0, parameter.numel() - 1):
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)[index].item()
            before = flat[index].item()
            flat[index] = before + step
            above = plain()
            flat[index] = before - step
            below = plain()
            flat[index] = before
            assert gradient == pytest.approx((above - below) / (2 * step), abs=2e-7, rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_branches_of_every_part_have_the_right_mean(gamma):
    """Over all actions that could have been branched from, the sum of gamma^t F_t is that of every action."""
    base, network = segments_of(count=1), network_of("gaussian")
    seen, mean = torch.randn(T, D, dtype=torch.float64), torch.randn(T, A, dtype=torch.float64)
    discount = torch.tensor([gamma**t for t in range(T)], dtype=torch.float64)
    sums = []
    for times in itertools.product(range(3), range(3, 6)):
        branched = Segments(
            **{
                **vars(base),
                "branch_time": torch.tensor([times]),
                "branch_observation": seen.expand(1, PARTS, AGAIN, T, D),
                "branch_mean": mean.expand(1, PARTS, AGAIN, T, A),
            }
        )
        policy = MotorPolicy(network, behaviour=BehaviourKL(branched, "expected", gamma))
        kl = policy.evaluate(batch_of(branched, [(10, 10)]), [0], also=("kl",)).kl[0]
        sums.append(float((discount * kl.detach()).sum()))
    every = [
        oracle.gaussian_kl(m.tolist(), float(base.std), *law(network, s.tolist()))
        for s, m in zip(seen, mean, strict=True)
    ]
    exact = sum(gamma**t * oracle.future([every], t, gamma) for t in range(T))
    assert sum(sums) / len(sums) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    assert gamma == 0 or exact > 0.1


def test_expected_labels_need_branches():
    with pytest.raises(ValueError, match=r"the collection has none\. Record it again with branches=8"):
        BehaviourKL(segments_of(branched=False), "expected", 1.0)


def test_observations_are_scaled_and_the_folder_keeps_it(tmp_path):
    network = MotorNetwork(
        MotorConfig(D, A, hidden=5, form="gaussian"), generator=torch.Generator().manual_seed(1)
    )
    seen = torch.randn(500, D) * torch.tensor([10.0, 0.1, 0.0]) + torch.tensor([5.0, -3.0, 7.0])
    network.scale_to(seen)
    scaled = (seen - network.centre) / network.scale
    assert scaled.mean(0).abs().max() < 1e-4
    assert torch.allclose(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    save_motor(network, tmp_path / "policy")
    again = load_motor(tmp_path / "policy")
    assert again.config == network.config
    assert all(torch.equal(a, b) for a, b in zip(network(seen), again(seen), strict=True))
    (tmp_path / "policy" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        ModelError, match=r"does not hold a motor policy: its config\.json has model_type 'llama'"
    ):
        load_motor(tmp_path / "policy")
