"""MetaWorld's tasks, where they are installed: success, seeds, and going back to a state to the last bit."""

import importlib.util

import numpy as np
import pytest

from klent.environments.robot import TASKS, make_simulator
from klent.errors import ConfigError

INSTALLED = importlib.util.find_spec("metaworld") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="metaworld is not installed: pip install 'klent[robot]'")


@pytest.fixture(scope="module", params=TASKS if INSTALLED else ["drawer-open"])
def simulator(request):
    return make_simulator(request.param)


@needed
def test_the_scripted_policy_solves_it(simulator):
    solved = 0
    for seed in range(3):
        seen = simulator.reset(seed)
        assert seen.shape == (simulator.observations,)
        outcomes = [simulator.step(simulator.scripted()) for _ in range(simulator.horizon)]
        assert all(0 <= outcome.reward <= 1.01 for outcome in outcomes)
        solved += any(outcome.success for outcome in outcomes)
    assert solved >= 1


@needed
def test_a_seed_begins_one_episode(simulator):
    first, second, again = simulator.reset(1), simulator.reset(2), simulator.reset(1)
    assert np.array_equal(first, again)
    assert not np.allclose(first[:3], second[:3], atol=0.01)  # the hand is displaced


@needed
def test_a_state_is_gone_back_to_bit_for_bit(simulator):
    generator = np.random.default_rng(0)
    simulator.reset(3)
    for _ in range(90):
        seen = simulator.step(simulator.scripted() + 0.3 * generator.standard_normal(4)).observation
    state = simulator.save()
    actions = [simulator.scripted() + 0.5 * generator.standard_normal(4) for _ in range(60)]
    whole = [simulator.step(action) for action in actions]
    for _ in range(2):
        assert np.array_equal(simulator.load(state), seen)
        for outcome, action in zip(whole, actions, strict=True):
            again = simulator.step(action)
            assert np.array_equal(again.observation, outcome.observation)
            assert again[1:] == outcome[1:]


@needed
def test_a_task_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"MetaWorld has no task 'drawer-opem'; it has .*drawer-open"):
        make_simulator("drawer-opem")


def test_without_metaworld_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ConfigError, match=r"needs metaworld: pip install 'klent\[robot\]'"):
        make_simulator("drawer-open")
