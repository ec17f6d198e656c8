"""The thermostat: it reaches a target from either side, holds it, and remembers where it was."""

import itertools
import json
import math
import random

import pytest
import torch

from klent.config import EntropyTarget, Thermostat, make_recipe
from klent.control.band import SignControl
from klent.control.thermostat import Controller, State, build_thermostat, knob
from klent.runs.plan import describe_plan
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.objective import Objective

VALUES = {"model": "m", "method": "grpo", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}


def controller(target: object = 0.5, turn=lambda value: None, **settings: object) -> Controller:
    return Controller(Thermostat(target=target, **settings), turn)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


# a reward that never rests needs a quick integral
BANDIT = {"gain": 0.3, "integral": 0.06, "derivative": 2.4}


def bandit(thermostat: Controller | None, *, steps: int, peak: float = 0.0, seed: int = 0) -> list[float]:
    """Policy gradient on 8 bandits of 20 arms under Adam; their mean entropy at each step.

    The thermostat is told of it with 15% of noise. Rewards keep on drawing entropy down: without a thermostat
    it is spent.
    """
    generator = torch.Generator().manual_seed(seed)
    reward = 0.3 * torch.randn(8, 20, generator=generator)
    logits = (peak * torch.randn(8, 20, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1, betas=(0.9, 0.95))
    coef = {"value": 0.0}
    if thermostat:
        thermostat.turn = lambda value: coef.update(value=value)
    seen = []
    for step in range(1, steps + 1):
        if thermostat:
            thermostat.before_step(1)
        logp = logits.log_softmax(-1)
        arms = torch.multinomial(logp.detach().exp(), 32, replacement=True, generator=generator)
        gain = reward.gather(1, arms)
        gain = gain - gain.mean(1, keepdim=True)
        entropy = entropy_of(logits).mean()
        optimizer.zero_grad()
        (-(gain * logp.gather(1, arms)).mean() - coef["value"] * entropy).backward()
        optimizer.step()
        seen.append(float(entropy.detach()))
        if thermostat:
            noise = math.exp(0.15 * float(torch.randn((), generator=generator)))
            change = float(entropy_of(logits.detach()).mean()) - seen[-1]
            thermostat.read(step, noise * seen[-1], change)
    return seen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("peak", [0.0, 8.0], ids=["from above", "from below"])
def test_it_reaches_the_target_and_holds_it(peak, seed):
    seen = bandit(controller(1.0, **BANDIT), steps=160, peak=peak, seed=seed)
    assert abs(seen[0] - 1.0) > 0.3  # it starts far off
    held = torch.tensor(seen[-60:])
    assert abs(float(held.mean()) - 1.0) < 0.05
    assert float(held.unfold(0, 10, 1).mean(1).sub(1.0).abs().max()) < 0.1


def test_without_it_the_bandits_spend_their_entropy():
    assert bandit(None, steps=160)[-1] < 0.2


@pytest.mark.parametrize(
    "mistake", [{"gain": 0.0, "integral": 0.0}, {"low": -1e-9, "high": 1e-9}], ids=["deaf", "bound"]
)
def test_a_thermostat_that_cannot_answer_does_not_hold(mistake):
    seen = bandit(controller(1.0, **BANDIT | mistake), steps=160)
    assert abs(seen[-1] - 1.0) > 0.3


def test_a_thermostat_of_the_wrong_sign_runs_away():
    wrong = controller(1.0, **BANDIT)
    answer = wrong._answer
    wrong._answer = lambda target, *entropies: answer(1.0, *(1.0 / max(h, 1e-6) for h in entropies))
    assert abs(bandit(wrong, steps=160)[-1] - 1.0) > 0.5


def test_it_pushes_both_ways():
    low, high = controller(), controller()
    low.read(1, 0.1, 0.0)
    high.read(1, 2.0, 0.0)
    assert low.state.value > 0.0 > high.state.value
    level = controller()
    level.read(1, 0.5, 0.0)
    assert level.state.value == 0.0


def test_it_brakes_before_the_target_is_passed():
    slow, fast = controller(), controller()
    slow.read(1, 0.8, 0.0)
    fast.read(1, 0.8, -0.2)  # the update has just taken 0.2 nats: 0.6 are expected of the next step
    assert slow.state.value < fast.state.value


def test_the_integral_leaves_no_error():
    """A plant that needs a constant value of 0.2 to stay where it is, and is never at rest."""
    thermostat, chance, seen = controller(0.5), random.Random(0), [0.5]
    for step in range(1, 1000):
        change = seen[-1] * (0.3 * (thermostat.state.value - 0.2) + 0.01 * chance.gauss())
        thermostat.read(step, seen[-1], change)
        seen.append(seen[-1] + change)
    assert sum(seen[-500:]) / 500 == pytest.approx(0.5, rel=0.01)
    assert thermostat.state.integral == pytest.approx(0.2, abs=0.03)
    deaf = controller(0.5, gain=0.25, integral=0.0)
    entropy = 0.5
    for step in range(1, 1000):
        change = entropy * 0.3 * (deaf.state.value - 0.2)
        deaf.read(step, entropy, change)
        entropy += change
    assert entropy < 0.3  # the gain alone settles where it answers 0.2


def test_the_integral_waits_at_a_bound():
    thermostat = controller(0.5)
    for step in range(1, 400):
        thermostat.read(step, 0.05, 0.0)
    assert thermostat.state.value == 1.0
    assert thermostat.state.integral < 1.0  # and not 399 times 0.03
    for step in range(400, 406):
        thermostat.read(step, 1.0, 0.0)
    assert thermostat.state.value < 0.5


def test_the_integral_waits_while_the_error_is_on_its_way_out():
    thermostat, entropy = controller(0.5), 3.0
    for step in range(1, 28):
        thermostat.read(step, entropy, -0.05 * entropy)
        entropy *= 0.95
    assert entropy > 0.7
    assert thermostat.state.integral == 0.0
    stuck = controller(0.5)
    for step in range(1, 28):
        stuck.read(step, 0.55, -1e-5)
    assert stuck.state.integral < 0.0


@pytest.mark.parametrize("entropy", [0.0, -0.1, math.nan, math.inf])
def test_an_entropy_that_has_no_logarithm_does_no_harm(entropy):
    thermostat = controller(0.5)
    for step in range(1, 9):
        thermostat.read(step, entropy, 0.0)
    assert math.isfinite(thermostat.state.value)
    assert thermostat.state.value >= 0.0


def test_targets():
    assert EntropyTarget(value=0.7).at(9, 2.0) == 0.7
    assert EntropyTarget(fraction=0.3).at(9, 2.0) == pytest.approx(0.6)
    ramp = EntropyTarget(start=1.5, end=0.5, steps=11)
    assert [ramp.at(step, 2.0) for step in (1, 6, 11, 99)] == pytest.approx([1.5, 1.0, 0.5, 0.5])
    assert Thermostat(target=0.7).target == EntropyTarget(value=0.7)


def test_a_fraction_is_of_the_first_step():
    thermostat = controller({"fraction": 0.25})
    rows = [thermostat.read(step, entropy, 0.0) for step, entropy in ((1, 2.0), (2, 1.0))]
    assert [row["thermostat/target"] for row in rows] == [0.5, 0.5]
    assert [row["thermostat/error"] for row in rows] == [-1.5, -0.5]
    assert rows[0]["thermostat/value"] == 0.0  # that of the step itself, before the answer
    assert rows[1]["thermostat/value"] < 0.0


def test_its_memory_survives_a_checkpoint_bit_for_bit():
    one = controller({"fraction": 0.3})
    for step in range(1, 8):
        one.read(step, 2.0 / step, -0.1 / step)
    other = controller({"fraction": 0.3})
    other.state = State(**json.loads(json.dumps(vars(one.state))))
    for step in range(8, 20):
        assert one.read(step, 0.4, 0.01) == other.read(step, 0.4, 0.01)
    assert one.state == other.state


STEERED = {
    "bonus": {},
    "clip_high": {"update": {"minibatches": 2}},
    "kl_cov_fraction": {"method": "kl_cov"},
    "temperature": {},
}


@pytest.mark.parametrize("steer", STEERED)
def test_it_turns_what_the_recipe_names(steer):
    recipe = make_recipe(VALUES | STEERED[steer] | {"thermostat": {"target": 0.5, "steer": steer}})
    heard = []
    loss = recipe.loss | ({"entropy_loss": {"coef": 0.0}} if steer == "bonus" else {})
    objective = Objective(loss, recipe.advantage, None, recipe.select)
    assert recipe.thermostat is not None
    thermostat = Controller(recipe.thermostat, knob(recipe.thermostat, objective, heard.append))
    start = recipe.thermostat.start
    thermostat.before_step(1)
    for step in range(1, 5):
        thermostat.read(step, 0.1, 0.0)
    thermostat.before_step(1)
    value = thermostat.state.value
    assert value > start
    found = {
        "bonus": lambda: -objective.named("entropy_loss")[0].settings["coef"],
        "clip_high": lambda: objective.named("ppo_clip")[0].settings["clip_high"],
        "kl_cov_fraction": lambda: objective.named("kl_cov_tokens")[0].settings["fraction"],
        "temperature": lambda: heard[-1],
    }[steer]()
    assert found == value
    if steer == "temperature":
        assert heard[0] == start


def by_sign(low: object = 0.4, high: object = 0.6, **loss: object) -> tuple[SignControl, Objective]:
    """A thermostat that steers by sign, and the objective that it tells."""
    settings = VALUES | {"loss": loss or {"reinforce": {}}, "reduce": {"over": "tokens"}}
    recipe = make_recipe(settings | {"thermostat": {"steer": "sign", "band": {"low": low, "high": high}}})
    objective = Objective(recipe.loss, recipe.advantage, None)
    assert recipe.thermostat is not None
    organ = build_thermostat(recipe.thermostat, objective, lambda value: None)
    assert isinstance(organ, SignControl)
    return organ, objective


def group_of(entropy: float, rewards: list[float]) -> Batch:
    """Completions of two tokens to one prompt, every token drawn at this entropy."""
    numbers = torch.full((2,), -1.0), torch.full((2,), entropy)
    prompt = Prompt("p/0", [{"role": "user", "content": "?"}])
    episodes = [
        Episode(prompt, [1], torch.tensor([1, 2]), "", "stop", logp=numbers[0], entropy=numbers[1])
        for _ in rewards
    ]
    return make_batch(episodes, rewards, group_size=len(rewards))


# entropy, and the advantages of rewards 1, 0, 0, 1 less their mean that are trained on
@pytest.mark.parametrize(
    ("entropy", "value", "error", "kept"),
    [
        (0.7, 1, -0.1, [0.5, 0, 0, 0.5]),
        (0.6, 0, 0.0, [0.5, -0.5, -0.5, 0.5]),  # an edge belongs to the band
        (0.5, 0, 0.0, [0.5, -0.5, -0.5, 0.5]),
        (0.4, 0, 0.0, [0.5, -0.5, -0.5, 0.5]),
        (0.3, -1, 0.1, [0, -0.5, -0.5, 0]),
        (math.nan, 0, math.nan, [0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_out_of_its_band_one_sign_alone_is_trained_on(entropy, value, error, kept):
    control, objective = by_sign()
    group = {"group_advantage": {"scale": "none"}}
    objective.estimators = Objective({"reinforce": {}}, group, None).estimators
    batch = group_of(entropy, [1.0, 0.0, 0.0, 1.0])
    control.before_step(3)
    control.after_rollout(batch)  # in the step that was measured, and not in the next one
    objective.estimate_advantage(batch)
    assert batch.streams.advantage[:, 0].tolist() == pytest.approx(kept, abs=1e-6)
    assert objective.active_rows(batch) == [row for row in range(4) if kept[row]]
    row = control.after_update(None)
    assert (row["thermostat/value"], row["thermostat/low"], row["thermostat/high"]) == (value, 0.4, 0.6)
    assert row["thermostat/error"] == pytest.approx(error, abs=1e-6, nan_ok=True)


def test_the_plan_says_what_the_thermostat_holds():
    band = {"low": {"start": 0.6, "end": 0.4, "steps": 9}, "high": 0.7}
    for settings, line in (
        ({"target": 0.5}, "thermostat: 0.5 nats, by the coefficient of an entropy bonus between -0.5 and 1"),
        (
            {"steer": "sign", "band": band},
            "thermostat: a band, low 0.6 to 0.4 nats over 9 steps, high 0.7 nats; positive advantages alone "
            "above it, negative ones alone below",
        ),
    ):
        assert line in describe_plan(make_recipe(VALUES | {"thermostat": settings}))


def test_signs_leave_other_terms_and_unscorable_completions_alone():
    control, objective = by_sign(reinforce={}, entropy_loss={"coef": -0.1})
    batch = group_of(0.1, [1.0, 0.0, math.nan, 1.0])
    control.after_rollout(batch)
    objective.estimate_advantage(batch)
    assert objective.active_rows(batch) == [0, 1, 2, 3]  # the entropy term has a gradient everywhere
    advantage = batch.streams.advantage[:, 0]
    assert [float(x) for x in advantage.sign()] == [0, -1, 0, 0]


def test_a_band_falls_and_may_be_a_fraction_of_the_first_step():
    control, _ = by_sign({"start": 0.6, "end": 0.4, "steps": 11}, {"start": 0.7, "end": 0.5, "steps": 11})
    rows = [control.read(step, 0.55) for step in (1, 6, 11, 99)]
    edges = [tuple(row[f"thermostat/{key}"] for key in ("low", "high", "value")) for row in rows]
    assert edges == [pytest.approx(x) for x in [(0.6, 0.7, -1), (0.5, 0.6, 0), (0.4, 0.5, 1), (0.4, 0.5, 1)]]
    control, _ = by_sign({"fraction": 0.5}, {"fraction": 0.75})
    for step, entropy, value in ((1, 2.0, 1), (2, 1.2, 0), (3, 0.9, -1)):
        row = control.read(step, entropy)
        assert (row["thermostat/low"], row["thermostat/high"], row["thermostat/value"]) == (1.0, 1.5, value)


def test_the_first_entropy_survives_a_checkpoint():
    one, _ = by_sign({"fraction": 0.5}, {"fraction": 0.75})
    one.load_state_dict(json.loads(json.dumps(one.state_dict())))  # before any step
    one.read(1, 2.1)
    other, objective = by_sign({"fraction": 0.5}, {"fraction": 0.75})
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.read(2, 0.9) == one.read(2, 0.9)
    assert objective.sign == -1


def test_signs_do_not_turn_the_mean_gradient_of_a_prompt_with_a_binary_reward():
    """Every group of 3 answers out of 4, enumerated: what a sign leaves is the same direction, and shorter."""
    logp = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log().requires_grad_()
    p, reward = logp.detach().exp(), torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = []
    for sign in (0, 1, -1):
        _, objective = by_sign()
        objective.train_on(sign)
        mean = torch.zeros(4, dtype=torch.float64)
        for answers in itertools.product(range(4), repeat=3):
            batch = group_of(0.5, reward[list(answers)].tolist())
            objective.estimate_advantage(batch)
            chance = p[list(answers)].prod()
            for answer, advantage in zip(answers, batch.streams.advantage[:, 0].double(), strict=True):
                mean += chance * advantage * (torch.eye(4, dtype=torch.float64)[answer] - p)
        found.append(mean)
    everything, positive, negative = found
    torch.testing.assert_close(positive + negative, everything)
    for part in (positive, negative):
        share = float(part.norm() / everything.norm())
        assert 0.1 < share < 0.9
        torch.testing.assert_close(part, share * everything)
