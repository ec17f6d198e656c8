"""The adaptive KL: Ziegler's rule by hand, what it measures, and what it refuses."""

import math

import pytest
import torch

from klent.config import AdaptiveKL as Settings
from klent.config import make_recipe
from klent.control.adaptive_kl import AdaptiveKL, completion_kl
from klent.control.organ import StepRecord
from klent.control.shared_trunk import SharedTrunk
from klent.errors import ConfigError
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.objective import Objective
from klent.training.update import FirstPass, UpdateResult

VALUES = {"model": "m", "method": "ppo", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}


def batch(ratios: list[list[float]]) -> Batch:
    """Completions whose tokens have these log-ratios to the reference."""
    episodes = [
        Episode(
            prompt=Prompt(f"p/{row}", "x"),
            prompt_ids=[1],
            tokens=torch.ones(len(values), dtype=torch.long),
            text="",
            finish="stop",
            logp=torch.full((len(values),), -1.0),
            entropy=torch.ones(len(values)),
        )
        for row, values in enumerate(ratios)
    ]
    rows = make_batch(episodes, [0.0] * len(ratios), group_size=1)
    rows.streams.logp_ref = torch.full(rows.mask.shape, 9.0)  # off the mask nothing is read
    for row, values in enumerate(ratios):
        rows.streams.logp_ref[row, : len(values)] = -1.0 - torch.tensor(values)
    return rows


def record(rows: Batch, **row: float) -> StepRecord:
    result = UpdateResult(FirstPass.of(rows), torch.zeros(rows.mask.shape))
    return StepRecord(1, rows, None, result, dict(row))


def steered(target: float, horizon: int) -> tuple[AdaptiveKL, Objective]:
    objective = Objective({"reinforce": {}}, None, {"kl_in_reward": {"coef": 0.1}})
    return AdaptiveKL(Settings(target=target, horizon=horizon), objective.token_rewards, 0.1), objective


def test_zieglers_rule_by_hand() -> None:
    """Two completions of 3 and 1 nats: 2 nats. 10 % above a target of 20/11, and far above and below others."""
    rows = batch([[1.0, 2.0], [1.0]])
    for target, error in ((20 / 11, 0.1), (0.5, 0.2), (40.0, -0.2)):
        organ, objective = steered(target, horizon=10)
        organ.before_step(1)
        row = organ.after_update(record(rows))
        assert row == {"kl/coef": 0.1, "kl/completion": pytest.approx(2.0)}
        organ.before_step(2)
        assert objective.token_rewards[0].settings["coef"] == pytest.approx(0.1 * (1 + error * 2 / 10))


def test_exact_where_it_is_at_hand_and_still_where_nothing_is_known() -> None:
    rows = batch([[1.0, 2.0], [1.0]])
    assert completion_kl(rows, {"kl/sequence": 0.5}) == 0.5
    rows.streams.logp_ref = None
    assert completion_kl(rows, {}) is None
    organ, _ = steered(1.0, horizon=10)
    assert organ.after_update(record(rows)) == {"kl/coef": 0.1}
    assert organ.after_update(record(rows, **{"kl/sequence": math.nan})) == {"kl/coef": 0.1}
    assert organ.coef == 0.1


def test_it_remembers_its_coefficient() -> None:
    organ, _ = steered(1.0, horizon=10)
    organ.after_update(record(batch([[1.0, 2.0], [1.0]])))
    other, objective = steered(1.0, horizon=10)
    other.load_state_dict(organ.state_dict())
    other.before_step(2)
    assert objective.token_rewards[0].settings["coef"] == organ.coef != 0.1


def test_it_finds_the_coefficient_that_holds_the_target() -> None:
    """A world whose KL is 1/coef: the coefficient settles at 1/target, from either side."""
    for start in (0.01, 4.0):
        organ = AdaptiveKL(Settings(target=2.0, horizon=4), [], start)
        for _ in range(200):
            organ.after_update(record(batch([[0.0]]), **{"kl/sequence": 1 / organ.coef}))
        assert organ.coef == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_reward": None}, "one KL to the reference, and there is none; add e.g. token_reward"),
        ({"loss": {"kl_in_loss": {"coef": 0.1}}}, "there are 2: loss.kl_in_loss, token_reward.kl_in_reward"),
        ({"token_reward": {"kl_in_reward": {"coef": 0}}}, "is 0, and adaptive_kl multiplies it"),
        ({"adaptive_kl": {"target": 1.0, "horizon": 63}}, "63 is less than a step's 64 completions"),
        ({"token_reward": None, "loss": {"token_kl": {"coef": 0.1}}}, "token_kl measures none: tokens alone"),
    ],
)
def test_refusals(changes: dict[str, object], reason: str) -> None:
    make_recipe(VALUES | {"adaptive_kl": {"target": 1.0}})
    with pytest.raises(ConfigError, match=reason):
        make_recipe(VALUES | {"adaptive_kl": {"target": 1.0}} | changes)


def test_the_share_of_a_gradient() -> None:
    organ = SharedTrunk(iter([(9.0, 9.0), (9.0, 16.0), (0.0, 0.0)]).__next__)
    organ.before_step(1)  # what evaluations left behind is thrown away
    assert organ.after_update(record(batch([[0.0]]))) == {"value/gradient_share": pytest.approx(4 / 7)}
    assert organ.after_update(record(batch([[0.0]]))) == {}
