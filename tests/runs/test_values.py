"""Values learnt from logged play: whole runs of the tiny model, and each target against full logits."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import END, TURN_END, VOCABULARY, tiny_folder, tiny_model, tiny_tokenizer

from klent.config import load_recipe, make_recipe
from klent.control.bellman import BellmanTargets, Scale
from klent.errors import ConfigError, ModelError, RunError
from klent.io.files import read_jsonl
from klent.models.load import LoadedModel, load_policy
from klent.objectives import qsft_target
from klent.policies.causal_lm.beside import add_dummy_action
from klent.policies.causal_lm.best_next import BestNext
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.runs.console import QuietConsole
from klent.runs.train import train
from klent.streams.batch import make_batch
from klent.tasks import load_task

EPISODES = [
    [("go", "ab", -1.0), ("on", "a", 2.0)],
    [("go", "b", 0.0)],
    [("go", "ab", -1.0), ("on", "ba", -1.0), ("up", "c", 3.0)],
    [("go", "a", 1.0), ("on", "a", 0.0)],
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    rows = [
        {"turns": [{"observation": o, "action": a, "reward": r} for o, a, r in turns]} for turns in EPISODES
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(**changes: object):
    values = {
        "name": "n",
        "model": "model",
        "method": "qsft",
        "task": {"trajectories": "log.jsonl", "discount": 0.5},
        "steps": 3,
        "prompts_per_step": 4,
        "optimizer": {"lr": 0.01},
        "bellman": {"rate": 0.5, "min_behaviour": 0.0},
        "checkpoint": {"every": 1, "keep": 9},
    }
    return make_recipe({**values, **changes})


def run(name: str, **changes: object) -> Path:
    return train(recipe(**changes), Path("runs") / name, command="c", console=QuietConsole())


def rows_of(folder: Path) -> list[dict[str, float]]:
    skipped = ("time/", "memory/")
    return [
        {k: v for k, v in row.items() if not k.startswith(skipped) and not k.endswith("per_second")}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_interrupted(world):
    whole, cut = run("whole"), run("cut", steps=2)
    extended = load_recipe(cut / "config.yaml", ["steps=3"])
    train(extended, cut, command="c", resume=True, console=QuietConsole())
    assert rows_of(cut) == rows_of(whole)
    for file in ("model.safetensors", "bellman.safetensors"):
        one, other = (folder / "checkpoints/000003" / file for folder in (cut, whole))
        assert one.read_bytes() == other.read_bytes()


def test_the_target_network_follows_the_policy_and_is_in_the_checkpoint(world):
    folder = run("n", steps=2)
    weights = [load_file(folder / f"checkpoints/00000{step}/model.safetensors") for step in (1, 2)]
    targets = [load_file(folder / f"checkpoints/00000{step}/bellman.safetensors") for step in (1, 2)]
    assert targets[0].keys() == weights[0].keys()
    for name, now in weights[1].items():
        torch.testing.assert_close(targets[1][name], (targets[0][name] + now) / 2)
    assert any(not torch.equal(targets[1][name], now) for name, now in weights[1].items())


def test_the_model_has_one_row_more_and_its_folder_says_so(world):
    final = run("n", steps=1) / "final"
    assert load_policy(str(final)).rows == len(VOCABULARY) + 1
    assert load_policy("model").rows == len(VOCABULARY)


def test_the_dummy_takes_what_bad_actions_lose_and_good_ones_keep(world):
    """One state, two actions, each half of the data: p is their value times what the data's model says."""
    rows = [{"turns": [{"observation": "s", "action": a, "reward": r}]} for a, r in (("a", 1.0), ("b", 0.0))]
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    task = {"trajectories": "log.jsonl"}
    run("data", method="sft", bellman=None, task=task, steps=40, optimizer={"lr": 0.02})
    folder = run("values", model="runs/data/final", steps=40, optimizer={"lr": 0.02}, bellman={"rate": 0.2})
    ids = torch.tensor([tiny_tokenizer()("s", add_special_tokens=False).input_ids])
    behaviour, value = (
        load_policy(str(path)).model(input_ids=ids).logits[0, -1].detach().softmax(-1)
        for path in ("runs/data/final", folder / "final")
    )
    good, bad = (tiny_tokenizer().convert_tokens_to_ids(token) for token in "ab")
    assert behaviour[good] == pytest.approx(0.5, abs=0.1)
    assert value[good] / behaviour[good] > 0.85
    assert value[bad] / behaviour[bad] < 0.15
    assert value[-1] == pytest.approx(float(behaviour[bad]), abs=0.1)
    last = rows_of(folder)[-1]
    assert (last["bellman/least"], last["bellman/most"], last["bellman/clipped"]) == (0.0, 1.0, 0.0)


def test_implicit_q_learning_gives_each_action_its_value_as_a_logit(world):
    """One state, two actions, each half of the data: logits are 1 and 0, and the state their expectile."""
    rows = [{"turns": [{"observation": "s", "action": a, "reward": r}]} for a, r in (("a", 1.0), ("b", 0.0))]
    Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    loss = {"ilql": {"tau": 0.9, "conservative": 0.0}}
    bellman = {"target": "value", "rate": 0.2, "form": "logit"}
    folder = run("q", method="ilql", loss=loss, bellman=bellman, steps=80, optimizer={"lr": 0.02})
    ids = torch.tensor([tiny_tokenizer()("s", add_special_tokens=False).input_ids])
    logits = load_policy(str(folder / "final")).model(input_ids=ids).logits[0, -1].detach()
    good, bad = (float(logits[tiny_tokenizer().convert_tokens_to_ids(token)]) for token in "ab")
    assert good == pytest.approx(1.0, abs=0.1)
    assert bad == pytest.approx(0.0, abs=0.1)
    first, last = rows_of(folder)[0], rows_of(folder)[-1]
    assert first["bellman/error"] > 0.2 > 0.01 > last["bellman/error"]
    # at the action logits are 1 and 0 and the state is worth their expectile, 0.9; behind it nothing is open
    assert last["bellman/advantage"] == pytest.approx(((0.5 - 0.9) + 0.0) / 2, abs=0.08)
    assert first["bellman/apart"] > 0.03 > last["bellman/apart"] > 0  # two heads, which come to agree


def test_the_second_head_is_trained_and_kept_and_resumed_and_is_not_in_the_model(world):
    """It begins small and random, by the run's seed, and has a target of its own."""
    bellman = {"rate": 0.5}
    whole, cut = (run(name, method="ilql", bellman=bellman, steps=n) for name, n in (("w", 3), ("c", 2)))
    train(
        load_recipe(cut / "config.yaml", ["steps=3"]), cut, command="c", resume=True, console=QuietConsole()
    )
    assert rows_of(cut) == rows_of(whole)
    for file in ("model.safetensors", "bellman.safetensors"):
        one, other = (load_file(folder / "checkpoints/000003" / file) for folder in (cut, whole))
        second = one["critic.actions"]
        assert second.shape == (len(VOCABULARY), 32)
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    steps = [load_file(whole / f"checkpoints/00000{n}/model.safetensors")["critic.actions"] for n in (1, 3)]
    assert (steps[0] - steps[1]).abs().max() > 0.005
    unseen = tiny_tokenizer().convert_tokens_to_ids("~")
    assert 0.001 < float(steps[1][unseen].std()) < 0.1  # what the log never has stays as it began
    assert "critic.actions" not in load_file(whole / "final/model.safetensors")


def test_values_are_not_learnt_on_top_of_values_and_what_else_is_done_with_them_is_said(world):
    """The head would be lost, or have a second dummy; its run can be resumed, which the first test does."""
    first, config = run("first", steps=1) / "final", "config.json"
    assert json.loads((first / config).read_text())["klent_values"] is True
    for method, bellman in (("qsft", {}), ("ilql", {})):
        with pytest.raises(ModelError, match=r"model: .*first.final already holds values .*klent resume RUN"):
            run(f"again {method}", model=str(first), method=method, bellman=bellman)
    with pytest.raises(ModelError, match=r"reference: .*first.final already holds values"):
        run("on top", reference=str(first))
    console = QuietConsole()
    imitated = recipe(
        model=str(first), method="sft", bellman=None, task={"trajectories": "log.jsonl"}, steps=1
    )
    train(imitated, Path("runs/imitated"), command="c", console=console)
    assert [text for text in console.warnings if "holds values (method qsft or ilql)" in text]
    assert "klent_values" not in json.loads(
        (
            run("p", method="sft", bellman=None, task={"trajectories": "log.jsonl"}, steps=1)
            / "final"
            / config
        ).read_text()
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"bellman": {"target": "bellman", "form": "ratio"}},
            "a term of the loss learns logits that are values",
        ),
        ({"bellman": {"form": "ratio"}}, r"form: is ratio with target: value; set form: logit"),
        ({"critic": None}, "critic: is missing"),
        ({"method": "qsft", "bellman": {"target": "value", "form": "logit"}}, "use method ilql"),
        ({"method": "qsft", "bellman": {"form": "logit"}}, r"is logit with target: bellman; set form: ratio"),
    ],
)
def test_logits_that_are_values_need_their_target_and_player(world, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        recipe(**{"method": "ilql", "bellman": {}, **changes})


@pytest.mark.parametrize("least", [0.0, 0.006])
def test_each_target_is_that_of_full_logits(world, least):
    """In float64, from the models' own logits: the turn's reward at its last token, and the best that follows."""
    task = load_task({"trajectories": "log.jsonl", "discount": 0.5}, seed=0, heldout=0)
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (END, TURN_END))
    engine = TrajectoryEngine(loaded, max_tokens=99, columns=("trajectory",))
    episodes = engine.generate([task.train(i) for i in range(4)], group_size=1, seed=0)
    batch = make_batch(episodes, None, group_size=1)
    model, other = tiny_model(1), tiny_model(0)
    add_dummy_action(model)
    policy, behaviour = CausalPolicy(model, temperature=1.0), CausalPolicy(other, temperature=1.0)
    kept = KeptWeights(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)  # the target network is as it was
    scale = Scale(-1.0, 3.0, 0.5)
    organ = BellmanTargets(
        scale, BestNext(policy, kept, behaviour, min_behaviour=least), rate=0.1, names=policy.trainable()
    )
    organ.after_rollout(batch)
    target = tiny_model(1)
    add_dummy_action(target)
    for number, episode in enumerate(episodes):
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        log_p, log_q = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in (target, other))
        acted = episode.acted.nonzero()[:, 0].tolist()
        for place, token in enumerate(acted):
            turn = int(episode.turn[token])
            following = acted[place + 1] if place + 1 < len(acted) else None
            ends = following is None or int(episode.turn[following]) != turn
            width = len(VOCABULARY)
            at = len(episode.prompt_ids) + (following or 1) - 1
            value = log_p[at, :width] if following is not None else torch.full((width,), -math.inf)
            # rewards on the scale: r' + gamma V' is (r + gamma V - least) / span
            gamma = 0.5 if ends else 1.0
            reward = (episode.rewards[turn] if ends else 0.0) + (
                gamma * -1.0 if following is not None else 0.0
            )
            expected = qsft_target(
                torch.tensor([(reward + 1.0) / 4.0]).double(),
                value[None].detach(),
                log_q[at, :width][None].detach(),
                gamma=gamma,
                min_behaviour=least,
            )
            assert batch.streams.weight is not None
            assert float(batch.streams.weight[number, token]) == pytest.approx(float(expected), abs=2e-6)
    assert "bellman/unsupported" in organ.row


def test_returns_as_targets_need_no_second_model(world):
    folder = run("n", steps=1, bellman={"target": "returns"})
    row = rows_of(folder)[0]
    sums = [[-1 + 0.5 * 2, 2.0], [0.0], [-1 - 0.5 + 0.25 * 3, -1 + 1.5, 3.0], [1.0, 0.0]]
    lengths = [[3, 2], [2], [3, 3, 2], [2, 2]]
    least, most = -0.75, 3.0
    tokens = [
        (value - least) / (most - least)
        for values, counts in zip(sums, lengths, strict=True)
        for value, count in zip(values, counts, strict=True)
        for _ in range(count)
    ]
    assert row["bellman/target"] == pytest.approx(sum(tokens) / len(tokens))
    assert (row["bellman/least"], row["bellman/most"]) == (least, most)
    assert not (folder / "checkpoints/000001/bellman.safetensors").exists()


def test_the_papers_spread_has_no_dummy_and_knows_its_vocabulary(world):
    loss = {"weighted_cross_entropy": None, "uniform_cross_entropy": {"actions": len(VOCABULARY)}}
    final = run("n", steps=1, loss=loss) / "final"
    assert load_policy(str(final)).rows == len(VOCABULARY)
    with pytest.raises(RunError, match=f"actions is 7, and the model's head has {len(VOCABULARY)} rows"):
        run("other", loss={**loss, "uniform_cross_entropy": {"actions": 7}})


REFUSED = {
    "no target": ({"bellman": None}, "bellman: is missing: the loss reads weight"),
    "no reader": ({"method": "sft"}, "reads weight; remove it, or use method qsft"),
    "no log": ({"task": {"data": "d.jsonl"}}, "needs logged play to learn from"),
    "adapters": ({"lora": {}}, "which adapters do not train"),
    "a sampler": ({"rollout": {"engine": "transformers"}}, "trajectories are replayed; set engine: dataset"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_need_each_other(case):
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        recipe(**changes)
