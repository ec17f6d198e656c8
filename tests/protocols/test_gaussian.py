"""A Gaussian policy in the loop that trains language models: same objectives, batch, organs, checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from klent.control.organ import Organ
from klent.kit.seeds import derive_seed
from klent.runs.console import QuietConsole
from klent.runs.evaluation import Evaluations
from klent.runs.folder import RunFolder
from klent.runs.loop import Loop
from klent.runs.recorder import Recorder
from klent.runs.state import RunState
from klent.streams.batch import Batch, Stats
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scores
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

GOAL, LENGTH = 2.0, 3  # of each motor command of an episode


class GaussianPolicy(nn.Module):
    """Every motor command is drawn from one normal distribution; a klent.policies.policy.Policy."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.log_std = nn.Parameter(torch.zeros(()))

    @property
    def distribution(self) -> Normal:
        return Normal(self.mean, self.log_std.exp())

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def microbatches(self, batch: Batch, rows) -> list[list[int]]:
        return [[row] for row in rows]  # one at a time: the cut must not matter

    def evaluate(self, batch: Batch, rows, *, also=()) -> Stats:
        actions = torch.stack([batch.episodes[row].tokens for row in rows])
        logp = self.distribution.log_prob(actions)
        return Stats(logp, self.distribution.entropy().expand_as(logp), tokens=logp.numel())


class Bandit:
    """Engine and source in one: episodes of three commands, each worth minus its squared distance to a goal."""

    group_size = 16

    def __init__(self, policy: GaussianPolicy, seed: int = 0) -> None:
        self.policy = policy
        self.seed = seed

    def sync(self, policy: object) -> None:
        assert policy is self.policy

    def generate(self, prompts, *, group_size: int, seed: int) -> list[Episode]:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            normal = self.policy.distribution
            noise = torch.randn(len(prompts) * group_size, LENGTH, generator=generator)
            actions = normal.mean + normal.stddev * noise
            logp, entropy = normal.log_prob(actions), normal.entropy().expand(LENGTH)
        return [
            Episode(prompts[i // group_size], [], a, "", "stop", logp=p, entropy=entropy)
            for i, (a, p) in enumerate(zip(actions, logp, strict=True))
        ]

    def collect(self, step: int, version: int) -> list[Episode]:
        seed = derive_seed(self.seed, "rollout", step)
        return self.generate([Prompt("arm", "move")], group_size=self.group_size, seed=seed)

    def score(self, episodes) -> Scores:
        return Scores([-float(((e.tokens - GOAL) ** 2).mean()) for e in episodes], {}, {})


class Commands:
    """What stands for a tokenizer: commands as text."""

    def decode(self, actions) -> str:
        return f"{actions[0]:.2f}"


class Counter(Organ):
    """An organ with a state."""

    name = "counter"

    def __init__(self) -> None:
        self.steps = 0

    def after_update(self, step) -> dict[str, float]:
        self.steps += 1
        return {"counter/steps": float(self.steps)}

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]


class NoTrackers:
    def log(self, row) -> None: ...

    def close(self) -> None: ...


def loop_of(folder: RunFolder, steps: int, loss: dict) -> Loop:
    policy, console, counter = GaussianPolicy(), QuietConsole(), Counter()
    bandit = Bandit(policy)
    updater = Updater(
        policy,
        torch.optim.Adam(policy.parameters(), lr=0.05),
        Objective(loss, {"group_advantage": {"scale": "std"}}, None),
        learning_rate=lambda step: 0.05,
        reduction=Reduction("tokens"),
        minibatches=1,
        epochs=2,
    )
    evaluations = Evaluations(
        folder, [], every=0, early_stop=None, keep_best=lambda: None, show=lambda row: None
    )
    return Loop(
        source=bandit,
        engine=bandit,
        updater=updater,
        reference=None,
        organs=[counter],
        evaluations=evaluations,
        recorder=Recorder(folder, Commands(), NoTrackers(), console),
        state=RunState(folder, updater, [counter, evaluations], keep=2, on_damage=print),
        console=console,
        floor=None,
        steps=steps,
        checkpoint_every=5,
        seed=0,
    )


PPO = {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}}


def trained(path: Path, steps: int, loss: dict = PPO) -> Loop:
    with RunFolder.create(path) as folder:
        (path / "config.yaml").write_text("name: bandit\n")
        loop = loop_of(folder, steps, loss)
        loop.restore()
        loop.fit()
    return loop


def test_the_loop_moves_a_gaussian_to_the_goal(tmp_path):
    loop = trained(tmp_path / "run", 60)
    policy, rows = loop.updater.policy, loop.console.rows
    assert policy.mean.item() == pytest.approx(GOAL, abs=0.4)
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 2
    assert rows[-1]["policy/entropy"] < rows[0]["policy/entropy"]
    assert rows[-1]["counter/steps"] == 60
    assert [row["step"] for row in rows] == list(range(1, 61))


def test_the_entropy_of_a_gaussian_is_exact_and_its_term_widens_it(tmp_path):
    loop = trained(tmp_path / "run", 5, {"entropy_loss": {"coef": -1.0}})
    rows = loop.console.rows
    assert rows[0]["policy/entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e))
    assert loop.updater.policy.log_std.item() > 0.2
    assert loop.updater.policy.mean.item() == 0.0  # an entropy does not depend on it


def test_a_stopped_gaussian_run_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole", 12)
    trained(tmp_path / "cut", 5)
    with RunFolder.open(tmp_path / "cut") as folder:
        rest = loop_of(folder, 12, PPO)
        assert rest.restore() == 5
        rest.fit()
    assert [p.item() for p in rest.updater.parameters] == [p.item() for p in whole.updater.parameters]
    assert rest.console.rows[-1]["counter/steps"] == 12
