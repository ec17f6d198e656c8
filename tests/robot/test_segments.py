"""What a segment was worth, held against plain numbers; and what the behaviour policy might have done instead."""

import numpy as np
import pytest
from oracles import robot as oracle

from klent.environments.robot import Reach
from klent.environments.robot.behaviour import Behaviour
from klent.environments.robot.segments import Segment, record_segment
from klent.errors import ConfigError

LENGTH = 12
BEHAVIOURS = [Behaviour(0.1), Behaviour(0.3), Behaviour(1.0), Behaviour.named("random")]


class Forgetful(Reach):
    """It does not go back: a mutant."""

    def load(self, state: object):
        return self._observe()


def labels(segment: Segment) -> tuple[float, float, bool]:
    """Regret, return and success as the oracle has them."""
    hand, goal = (tuple(map(float, part)) for part in np.split(segment.observation[0], 2))
    actions = [tuple(map(float, action)) for action in segment.action]
    return oracle.regret(hand, goal, actions, Reach.horizon - segment.start)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_regret_return_and_success_are_those_of_plain_numbers(behaviour):
    seen = set()
    for seed in range(30):
        segment = record_segment(Reach(), behaviour, seed, length=LENGTH, branches=3)
        regret, earned, success = labels(segment)
        assert segment.regret == pytest.approx(regret, abs=2e-5)
        assert segment.earned == pytest.approx(earned, abs=2e-5) == pytest.approx(float(segment.reward.sum()))
        assert segment.success == success
        seen.add((segment.start, success))
    assert len({start for start, _ in seen}) > 5  # anywhere in the episode
    assert abs(regret) > 1e-4  # the last one is worth something


def test_a_simulator_that_does_not_go_back_is_noticed():
    segment = record_segment(Forgetful(), BEHAVIOURS[2], 0, length=LENGTH)
    assert abs(segment.regret - labels(segment)[0]) > 0.1


def test_the_behaviour_is_the_gaussian_that_is_written_down():
    segments = [record_segment(Reach(), Behaviour(0.3), seed, length=LENGTH) for seed in range(200)]
    noise = np.concatenate([(one.action - one.mean) / one.std for one in segments]).ravel()
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.03
    for one in segments:  # the mean is the scripted policy's, state by state
        hand, goal = np.split(one.observation, 2, axis=1)
        assert np.allclose(one.mean, np.clip((goal - hand) / 0.1, -1, 1), atol=1e-5)


def test_branches_go_on_from_what_the_segment_did_and_with_fresh_noise():
    for seed in range(5):
        segment = record_segment(Reach(), Behaviour(0.5), seed, length=LENGTH, branches=4, continuations=2)
        branches = segment.branches
        assert branches.observation.shape == (4, 2, LENGTH, 4)
        assert branches.mean.shape == (4, 2, LENGTH, 2)
        for part, time in enumerate(branches.time):
            assert part * 3 <= time < part * 3 + 3  # one of each quarter
            assert not branches.observation[part, :, : time + 1].any()
            if time + 1 == LENGTH:
                continue
            after = branches.observation[part]
            assert np.array_equal(after[0, time + 1], segment.observation[time + 1])
            assert np.array_equal(after[1, time + 1], segment.observation[time + 1])
            hand, goal = np.split(after[:, time + 1 :], 2, axis=-1)
            assert np.allclose(
                branches.mean[part, :, time + 1 :], np.clip((goal - hand) / 0.1, -1, 1), atol=1e-5
            )
            if time + 2 < LENGTH:
                assert not np.allclose(after[0, time + 2], after[1, time + 2])
                assert not np.allclose(after[0, time + 2], segment.observation[time + 2])


def test_branches_change_nothing_of_the_segment():
    plain, branched, again = (
        record_segment(Reach(), Behaviour(0.5), 3, length=LENGTH, branches=branches) for branches in (0, 4, 0)
    )
    assert plain.branches is None
    for other in (branched, again):
        assert all(np.array_equal(a, b) for a, b in zip(plain[:-1], other[:-1], strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 41}, "length: a segment of 41 steps is longer than an episode, 40 steps"),
        ({"length": 0}, "length: a segment of 0 steps"),
        ({"length": 12, "branches": 5}, "branches: 5 does not divide 12 steps evenly"),
    ],
)
def test_segments_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        record_segment(Reach(), Behaviour(0.3), 0, **settings)
