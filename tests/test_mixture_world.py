"""The enumerable world of examples/mixture_world: its arithmetic against autograd, what its arms follow."""

import csv
import importlib.util
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

CURVES = Path(__file__).parents[1] / "examples" / "mixture_world" / "curves.py"
RESULTS = CURVES.parent / "results"
MIXTURE = CURVES.parents[2] / "docs" / "mixture.md"
RARE = "rare success, good teacher"


@pytest.fixture(scope="module")
def curves() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("curves", CURVES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_prefix_has_one_row_and_a_world_its_chances(curves: types.ModuleType) -> None:
    prefixes = {
        (t, tuple(sequence[:t].tolist())): int(states[t])
        for sequence, states in zip(curves.SEQUENCES, curves.STATES, strict=True)
        for t in range(curves.LENGTH)
    }
    assert sorted(prefixes.values()) == list(range(curves.PREFIXES))
    for name, world in curves.WORLDS.items():
        policy, teacher = (curves.sequence_logp(x.log_softmax(-1)).exp() for x in curves.start(world, [0, 1]))
        assert torch.allclose(policy.sum(-1), torch.ones(16, dtype=policy.dtype)), name
        assert torch.allclose(policy[:, curves.RIGHT], torch.tensor(world.policy, dtype=policy.dtype))
        assert torch.allclose(teacher[:, world.favourite], torch.tensor(world.teacher, dtype=policy.dtype))


def test_the_gradient_is_autograds(curves: types.ModuleType) -> None:
    policy, _ = curves.start(curves.WORLDS[RARE], [3])
    drawn = torch.randint(256, (curves.PROBLEMS, 5))
    coefficient = torch.randn(drawn.shape, dtype=policy.dtype)
    leaf = policy.clone().requires_grad_()
    total = (coefficient * curves.sequence_logp(leaf.log_softmax(-1)).gather(1, drawn)).sum()
    (expected,) = torch.autograd.grad(total, leaf)
    assert torch.allclose(curves.gradient(policy.softmax(-1), drawn, coefficient), expected, atol=1e-12)


def moments(curves: types.ModuleType, arm: str, *, weighted: bool) -> tuple[Tensor, Tensor]:
    """Mean of a sample's gradient over all 256 sequences, and its variance summed over coordinates."""
    policy, teacher = curves.start(curves.WORLDS[RARE], [0])
    logp = policy.log_softmax(-1)
    log_p, log_q = curves.sequence_logp(logp), curves.proposal(arm, policy, teacher)
    advantage = torch.zeros_like(log_p).index_fill(1, torch.tensor(curves.RIGHT), 1.0)
    advantage = advantage - log_p[:, curves.RIGHT : curves.RIGHT + 1].exp()
    coefficient = advantage * (log_p - log_q).exp() if weighted else advantage
    q = log_q.exp()
    every = torch.arange(256).expand(curves.PROBLEMS, 256)
    mean = curves.gradient(logp.exp(), every, q * coefficient)
    each = torch.stack(
        [
            curves.gradient(logp.exp(), every[:, [i]], coefficient[:, [i]]).flatten(1).square().sum(1)
            for i in range(256)
        ],
        dim=1,
    )
    return mean, (q * each).sum(1) - mean.flatten(1).square().sum(1)


def test_weights_make_every_arm_follow_one_gradient_and_the_best_q_has_the_least_noise(
    curves: types.ModuleType,
) -> None:
    own, own_noise = moments(curves, "on-policy", weighted=True)
    noise = {"on-policy": own_noise}
    for arm in ("teacher, weights", "alpha 0.5", "Chernoff", "ESS", "least variance"):
        mean, noise[arm] = moments(curves, arm, weighted=True)
        assert torch.allclose(mean, own, atol=1e-12), arm
    for arm, value in noise.items():
        assert (noise["least variance"] <= value + 1e-12).all(), arm
    biased, _ = moments(curves, "alpha 0.5, unweighted", weighted=False)
    assert (biased - own).norm() > 10 * own.norm()


def test_training_in_it(curves: types.ModuleType, tmp_path: Path) -> None:
    world = curves.WORLDS[RARE]
    found = {arm: curves.Curve(64.0, *curves.train(arm, world, 64.0, range(2), 10)) for arm in curves.ARMS}
    assert found["alpha 0.5, unweighted"].reward[-1].min() > 0.9
    assert found["imitation"].reward[-1].max() < 0.9
    assert found["on-policy"].ess == pytest.approx([1.0, 1.0])
    assert found["teacher, weights"].ess.max() < 0.3
    assert found["alpha 0.5, unweighted"].samples_to_goal().max() < found["on-policy"].samples_to_goal().min()
    curves.write(tmp_path, {RARE: found})
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(curves.ARMS)
    curves.draw_picture(tmp_path / "curves.png", {RARE: found, "again": found})
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_rates_that_end_at_an_arms_best_are_refused(
    curves: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = curves.WORLDS["able policy, good teacher"]
    monkeypatch.setattr(curves, "RATES", (1.0, 4.0, 16.0))  # ten steps want a larger one
    with pytest.raises(ValueError, match="is 16, where the grid ends"):
        curves.best_curve("on-policy", world, 2, 10)
    monkeypatch.setattr(curves, "RATES", (4.0, 16.0, 64.0, 256.0, 1024.0))
    assert 4 < curves.best_curve("on-policy", world, 2, 10).rate < 1024


def test_a_rate_is_given_up_only_where_it_cannot_be_the_best(curves: types.ModuleType) -> None:
    world = curves.WORLDS["able policy, good teacher"]
    full, _, score = curves.train("on-policy", world, 16.0, range(2), 10)
    assert score == pytest.approx(full.mean().item())
    again = curves.train("on-policy", world, 16.0, range(2), 10, to_beat=score - 1e-9)
    assert torch.equal(full, again[0])
    given_up = curves.train("on-policy", world, 16.0, range(2), 10, to_beat=0.999)
    assert len(given_up[0]) < len(full)
    assert score < given_up[2] < 0.999  # a bound: what follows counts as 1


def test_imitation_is_tuned_by_its_likeness_to_the_teacher(curves: types.ModuleType) -> None:
    world = curves.WORLDS["able policy, misleading teacher"]
    reward, _, score = curves.train("imitation", world, 4.0, range(2), 10)
    assert reward[-1].mean() < reward[0].mean()  # by its reward no rate would be the best one
    assert score > curves.train("imitation", world, 0.25, range(2), 10)[2]


def test_no_committed_rate_is_at_an_end_of_the_grid(curves: types.ModuleType) -> None:
    with (RESULTS / "summary.csv").open(newline="") as file:
        rates = {float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert rates <= set(curves.RATES[1:-1])


def test_the_table_in_docs_is_that_of_the_committed_results(curves: types.ModuleType) -> None:
    assert curves.table(RESULTS / "summary.csv") in MIXTURE.read_text(encoding="utf-8")


def test_the_committed_ratios_are_those_of_the_means() -> None:
    with (RESULTS / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = {row["world"]: float(row["samples_to_goal"]) for row in rows if row["arm"] == "on-policy"}
    for row in rows:
        means = own[row["world"]] / float(row["samples_to_goal"])
        assert float(row["on_policy_over_it"]) == pytest.approx(means, abs=1e-3), row["arm"]


def test_intervals_are_students(curves: types.ModuleType) -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert curves.interval(values) == pytest.approx((3.0, 3 - 1.9630, 3 + 1.9630), abs=1e-3)


def test_the_goal_is_reached_when_the_reward_stays_there(curves: types.ModuleType) -> None:
    reward = torch.tensor([[0.1, 0.1, 0.9], [0.9, 0.2, 0.9], [0.7, 0.3, 0.9], [0.9, 0.4, 0.9]])
    curve = curves.Curve(1.0, reward, torch.ones(3))
    assert curve.samples_to_goal().tolist() == [3 * curves.SAMPLES, 3 * curves.SAMPLES, 0.0]
