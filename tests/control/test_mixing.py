"""Runs that sample between policy and target: what they log, and that their weights undo the sampling."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder, tiny_model

from klent.config import make_recipe
from klent.control.mixing import MEMORY, alpha_at, alpha_of, policy_reward, sample_size
from klent.control.organ import StepRecord
from klent.errors import ConfigError, DataError, ModelError
from klent.io.files import read_jsonl
from klent.models.adapter import merge_adapter
from klent.models.load import load_policy
from klent.objectives import importance_weight
from klent.rollout.memory import Rows
from klent.rollout.transformers_engine import TransformersEngine
from klent.runs import language as parts
from klent.runs import targets
from klent.runs.build import build_parts
from klent.runs.console import QuietConsole
from klent.runs.engines import build_sampler
from klent.runs.parts import Around
from klent.runs.plan import describe_plan
from klent.runs.train import train
from klent.streams.batch import make_batch
from klent.streams.prompt import Prompt
from klent.training.update import FirstPass, UpdateResult

REWARD = """
def digits(prompts, completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in t) / max(len(t), 1) for t in texts]
"""
HINT = {"model": "policy", "prompt": "{prompt} {number}"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    tiny_folder(tmp_path / "other", seed=1)
    (tmp_path / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"say {i}", "number": i} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(mixture: dict | None, **changes):
    values = {
        "name": "tiny",
        "model": "model",
        "method": "grpo",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:digits",
        "steps": 3,
        "prompts_per_step": 4,
        "group_size": 6,
        "rollout": {"max_tokens": 8, "mixture": mixture},
        "optimizer": {"lr": 0.01},
        "eval": None,
    }
    return make_recipe(values | changes)


def run(world: Path, mixture: dict | None, name: str = "run", **changes) -> tuple[list[dict], QuietConsole]:
    console = QuietConsole()
    folder = train(recipe(mixture, **changes), world / name, command="klent train tiny", console=console)
    return list(read_jsonl(folder / "metrics.jsonl")), console


def built(mixture: dict, **changes):
    around = Around(progress=lambda done, of: None, note=lambda text: None)
    return build_parts(recipe(mixture, **changes), around)


def task_prompts() -> list[Prompt]:
    return [Prompt(f"p/{i}", [{"role": "user", "content": f"say {i}"}], {"number": i}) for i in range(3)]


def test_a_run_behind_a_hint(world):
    rows, _ = run(world, {"target": HINT, "alpha": "chernoff"}, eval={"problems": 2, "samples": 1})
    for row in rows:
        assert 0.2 < row["mixture/alpha"] < 0.8
        assert row["mixture/kl_policy"] == pytest.approx(row["mixture/kl_target"], abs=1e-5)
        assert row["mixture/kl_policy"] > 1e-3
        assert 0.3 < row["mixture/ess"] < 1
        assert row["policy/logp_mismatch"] < 1e-4  # of the policy's own numbers, not of the mixture's
        assert "policy/entropy_delta" in row
        assert not {"kl/update", "policy/collision", "policy/entropy_delta_predicted"} & row.keys()


def test_a_target_that_is_the_policy_gives_the_plain_step(world):
    plain, _ = run(world, None, "plain", steps=1)
    mixed, _ = run(world, {"target": "reference", "alpha": 0.3}, "mixed", steps=1)
    assert mixed[0]["mixture/ess"] == pytest.approx(1.0, abs=1e-6)
    assert mixed[0]["mixture/kl_target"] < 1e-5
    for key in ("reward/mean", "policy/entropy", "objective/loss", "grad/norm", "completion/length"):
        assert mixed[0][key] == pytest.approx(plain[0][key], rel=1e-4, abs=1e-6), key


def test_the_ramp_ends_at_the_policy(world):
    rows, _ = run(world, {"target": "other", "alpha": {"start": 0.2, "end": 1.0, "steps": 3}}, steps=4)
    assert [row["mixture/alpha"] for row in rows] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert rows[-1]["mixture/kl_policy"] == 0.0
    assert rows[-1]["mixture/ess"] == pytest.approx(1.0)
    assert rows[0]["mixture/ess"] < 0.95


def test_degenerate_weights_are_said_to_be(world):
    mixture = {
        "target": {"model": "other", "temperature": 0.1},
        "alpha": 0.05,
        "weights": {"ratio": "sequence"},
    }
    rows, console = run(world, mixture, steps=4, group_size=16)
    assert max(row["mixture/ess"] for row in rows) < 0.1
    assert any(text.startswith("Importance weights degenerate since step 1") for text in console.warnings)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_weights_are_the_policy_over_the_mixture(world, ratio):
    made = built({"target": "other", "weights": {"ratio": ratio, "high": None, "normalise": False}})
    rollouts = made.engine.generate(task_prompts(), group_size=6, seed=0)
    batch = make_batch(rollouts, [0.0] * len(rollouts), group_size=6)
    made.organs[0].after_rollout(batch)
    log_ratio = made.updater.measure(batch, range(len(rollouts))).logp - batch.streams.logp_gen
    for row, rollout in enumerate(rollouts):
        own = log_ratio[row, : len(rollout.tokens)]
        expected = own.exp() if ratio == "token" else own.sum().exp().expand(len(own))
        torch.testing.assert_close(
            batch.streams.importance_weight[row, : len(own)], expected, rtol=2e-4, atol=1e-5
        )
    weight = log_ratio.exp()[batch.mask] if ratio == "token" else log_ratio.sum(1).exp()
    expected = float(weight.sum() ** 2 / weight.square().sum()) / len(weight)
    assert sample_size(batch, whole=ratio == "sequence") == pytest.approx(expected, rel=1e-3)


def test_the_loss_is_multiplied_by_the_weights(world):
    made = built({"target": "other", "weights": {"high": 1.5}})
    rollouts = made.engine.generate(task_prompts(), group_size=6, seed=0)
    batch = make_batch(rollouts, [float(i % 3) for i in range(len(rollouts))], group_size=6)
    made.organs[0].after_rollout(batch)
    made.objective.estimate_advantage(batch)
    logp = batch.at_sampling.logp
    streams = batch.streams.with_(logp=logp, logp_old=logp)
    weighted = made.objective.token_loss(streams).loss
    weight = importance_weight(logp, batch.streams.logp_gen, batch.mask, high=1.5, normalise=True)
    plain = made.objective.token_loss(streams.with_(importance_weight=None)).loss
    torch.testing.assert_close(weighted, plain * weight)
    assert float(weight[batch.mask].mean()) == pytest.approx(1.0)


def test_one_reference_serves_the_loss_and_the_mixture(world, monkeypatch):
    loads = []

    def load(name, **options):
        loads.append(name)
        return load_policy(name, **options)

    monkeypatch.setattr(parts, "load_policy", load)
    monkeypatch.setattr(targets, "load_policy", load)
    made = built({"target": "reference"}, loss={"kl_in_loss": {"coef": 0.1}})
    assert loads == ["model", "model"]
    assert made.reference.model is made.engine.target.loaded.model
    assert made.engine.target.loaded.model is not made.loaded.model


def test_lora_mixes_with_the_adapter_switched_off(world):
    pytest.importorskip("peft")
    rows, _ = run(world, {"target": "reference", "alpha": 0.5}, lora={"rank": 4}, steps=3)
    assert rows[0]["mixture/kl_policy"] < 1e-6  # the adapter starts at 0
    assert rows[-1]["mixture/kl_policy"] > 1e-5


def test_an_adapter_on_a_target(world):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.add_(0.2)
    adapted.save_pretrained(world / "adapter")
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        merged = merge_adapter(load_policy("model").model, "adapter", source="model")(input_ids=ids).logits
        torch.testing.assert_close(merged, adapted(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="cannot put the adapter nowhere on"):
        merge_adapter(load_policy("model").model, "nowhere", source="model")


def test_evaluation_samples_from_the_policy(world):
    settings = recipe({"target": HINT}).rollout
    assert type(build_sampler(load_policy("model"), settings)) is TransformersEngine


@pytest.mark.parametrize(
    ("mixture", "changes", "message"),
    [
        ({"target": "policy"}, {}, "target: is the policy itself"),
        ({"target": {**HINT, "adapter": "x"}}, {}, "adapter: cannot be put on the policy"),
        ({"alpha": {"criterion": "ess"}}, {}, "ess needs a `value`"),
        ({"alpha": {"criterion": "ess", "value": 2.0}}, {}, "ess is a fraction"),
        ({"alpha": {"criterion": "chernoff", "value": 2.0}}, {}, "value: is not used"),
        ({"alpha": {"fixed": 0.5, "criterion": "snr"}}, {}, "should be one of .* has criterion, fixed"),
        ({"alpha": {"start": 0.5}}, {}, "should be one of .* has start"),
        ({"alpha": {"column": "a", "value": 1.0}}, {}, "value: is not used"),
        (
            {"alpha": {"column": "a"}},
            {"task": {"gym": "chain_sum"}},
            "column: a does not exist: problems of task.gym",
        ),
        (
            {"alpha": {"start": 0.1, "until_reward": 1.0}},
            {"method": None, "reward": None, "loss": {"entropy_loss": {"coef": 1.0}}},
            "until_reward: needs a reward",
        ),
        ({"alpha": 1.5}, {}, "less than or equal to 1"),
        ({}, {"loss": {"cross_entropy": {}}}, "weights: would reweight cross_entropy to"),
    ],
)
def test_what_contradicts_itself_is_refused(mixture, changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(mixture, **changes)


def test_a_run_that_distils_and_nothing_else(world):
    mixture = {"target": "other", "alpha": 0.5, "weights": None, "distill": {"divergence": "forward"}}
    rows, _ = run(world, mixture, loss={}, method=None, reward=None, steps=8, optimizer={"lr": 0.02})
    assert rows[-1]["objective/distill"] < 0.7 * rows[0]["objective/distill"]
    assert rows[-1]["mixture/kl_policy"] < rows[0]["mixture/kl_policy"]
    assert all(row["objective/loss"] == pytest.approx(row["objective/distill"], rel=1e-4) for row in rows)
    with pytest.raises(ConfigError, match="has no term"):
        recipe({"target": "other"}, loss={}, method=None, reward=None)


def test_a_run_that_distils_from_sampled_tokens_reads_no_target_in_the_update(world):
    mixture = {"target": "other", "alpha": 1.0, "weights": None}
    changes = {"method": None, "reward": None, "steps": 8, "optimizer": {"lr": 0.02}}
    rows, _ = run(world, mixture, loss={"sampled_distill": {}}, **changes)
    assert rows[-1]["objective/reverse_kl"] < 0.9 * rows[0]["objective/reverse_kl"]
    assert rows[0]["objective/reverse_kl"] == pytest.approx(rows[0]["mixture/kl_target"], rel=1e-4)
    plan = describe_plan(recipe(mixture, loss={"sampled_distill": {}}, **changes))
    assert not any("forward pass" in line for line in plan)
    distilled = {**mixture, "distill": {"forward_above": 0.5}}
    (line,) = [x for x in describe_plan(recipe(distilled, loss={}, **changes)) if "divergence" in x]
    assert line == (
        "divergence from the target, KL(policy ‖ target), and KL(target ‖ policy) where the target's entropy is "
        "above 0.5 nats: its forward pass on every completion"
    )


def numbered(world: Path, alphas: list) -> None:
    """Write the data anew with a column of alphas; ... leaves it out."""
    rows = [{"prompt": f"say {i}", "number": i} for i in range(len(alphas))]
    rows = [row if a is ... else row | {"mine": a} for row, a in zip(rows, alphas, strict=True)]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_prompt_has_its_own_alpha(world):
    numbered(world, [0.0, 0.3, 1] * 4)
    mixture = {"target": "other", "alpha": {"column": "mine"}}
    rows, _ = run(world, mixture, prompts_per_step=12, steps=1, rollout={"max_tokens": 8, "mixture": mixture})
    assert 0.2 < rows[0]["mixture/alpha"] < 0.7
    made = built(mixture)
    made.engine.rows = Rows(12, pytest.fail)  # two batches, and rows that leave at different times
    prompts = [
        Prompt(f"p/{i}", [{"role": "user", "content": "hm"}], {"mine": a}) for i, a in enumerate([0.3, 1, 0])
    ]
    rollouts = made.engine.generate(prompts, group_size=6, seed=2)
    assert len({len(r.tokens) for r in rollouts}) > 2
    for rollout in rollouts:
        assert rollout.mixture.alpha.tolist() == pytest.approx(
            [rollout.prompt.columns["mine"]] * len(rollout.tokens)
        )
    for share in (0.3, 1.0, 0.0):  # what each prompt says is what it says with that alpha for all
        made.engine.alpha = share
        for one, other in zip(rollouts, made.engine.generate(prompts, group_size=6, seed=2), strict=True):
            if one.prompt.columns["mine"] == share:
                assert one.tokens.tolist() == other.tokens.tolist()
                torch.testing.assert_close(one.logp, other.logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (..., r"prompts.jsonl:3: column 'mine'.* is missing or empty.* Its columns: number$"),
        (None, r"prompts.jsonl:3: column 'mine'.* is missing or empty"),
        (
            1.2,
            r"prompts.jsonl:3: column 'mine', .*alpha.column names, has 1.2; expected a number in \[0, 1\]",
        ),
        ("0.5", "has '0.5'; expected a number"),
        (True, "has True; expected a number"),
        (float("nan"), "has nan; expected a number"),
    ],
)
def test_a_prompt_without_its_alpha_is_named_before_a_model_is_loaded(world, found, message, monkeypatch):
    numbered(world, [0.5, 0.5, found, 0.5])
    monkeypatch.setattr(parts, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match=message):
        run(world, {"target": "other", "alpha": {"column": "mine"}})
    assert not (world / "run" / "config.yaml").exists()
    with pytest.raises(DataError, match="Its columns: none"):
        alpha_of(Prompt("p/0", "text"), "mine")


def test_alpha_follows_the_policys_own_reward(world):
    mixture = {"target": "other", "alpha": {"start": 0.2, "until_reward": 0.25}}
    rows, _ = run(world, mixture, steps=6)
    own, memory = [row["mixture/policy_reward"] for row in rows], 0.0
    for row, reward in zip(rows, own, strict=True):
        assert row["mixture/alpha"] == pytest.approx(0.2 + 0.8 * min(memory / 0.25, 1.0))
        memory = MEMORY * memory + (1 - MEMORY) * reward
    assert rows[-1]["mixture/alpha"] > rows[0]["mixture/alpha"] == pytest.approx(0.2)


def test_the_policys_own_reward_is_what_weights_make_of_the_mixtures(world):
    made = built({"target": "other", "alpha": 0.0})
    rollouts = made.engine.generate(task_prompts(), group_size=6, seed=0)
    reward = [float(i % 4) for i in range(18)]
    reward[3] = float("nan")
    reward[6:12] = [float("nan")] * 6
    batch = make_batch(rollouts, reward, group_size=6)
    expected = []
    for group in (range(6), range(12, 18)):
        weight = {i: float((rollouts[i].mixture.logp_policy - rollouts[i].logp).sum().exp()) for i in group}
        weight.pop(3, None)
        expected.append(sum(w * reward[i] for i, w in weight.items()) / sum(weight.values()))
    assert policy_reward(batch) == pytest.approx(sum(expected) / 2, rel=1e-4)
    none = make_batch(rollouts, [float("nan")] * 18, group_size=6)
    (mixer,) = made.organs
    record = StepRecord(1, none, None, UpdateResult(FirstPass.of(none), torch.zeros(none.mask.shape)))
    assert "mixture/policy_reward" not in mixer.after_update(record)
    assert mixer.reward == 0.0


def test_many_samples_of_the_mixture_find_the_policys_reward(world):
    mixture = {"target": "other", "alpha": 0.3}
    made = built(mixture, rollout={"max_tokens": 2, "mixture": mixture})
    (prompt, *_), batches = task_prompts(), []
    theirs = made.engine.target.loaded.model
    for engine in (made.sampler, made.engine):
        rollouts = engine.generate([prompt], group_size=2000, seed=4)
        ids = torch.tensor([rollouts[0].prompt_ids])
        with torch.no_grad():  # rewarded are the tokens that the policy likes more than the target does
            ours, other = (m(input_ids=ids).logits[0, -1] for m in (made.loaded.model, theirs))
        liked = (ours.log_softmax(-1) > other.log_softmax(-1)).float()
        batches.append(
            make_batch(rollouts, [float(liked[r.tokens].mean()) for r in rollouts], group_size=2000)
        )
    plain, mixed = (float(batch.reward.mean()) for batch in batches)
    assert plain - mixed > 0.1
    assert policy_reward(batches[1]) == pytest.approx(plain, abs=0.03)


def test_the_plan_says_what_is_sampled():
    ramp = {"start": 0.2, "end": 1.0, "steps": 9}
    for mixture, said in (
        ({}, "target: reference, alpha: chernoff; weighted by policy/mixture per token"),
        ({"target": HINT, "alpha": 0.5}, "target: policy with its own prompt, alpha: 0.5; weighted"),
        (
            {"alpha": {"criterion": "ess", "value": 0.5}, "weights": None},
            "alpha: ess 0.5; used without weights",
        ),
        ({"alpha": ramp}, "alpha: 0.2 to 1.0 over 9 steps; weighted"),
        ({"alpha": {"column": "a"}}, "alpha: per prompt, from column a; weighted"),
        (
            {"alpha": {"start": 0.2, "until_reward": 0.8}},
            "alpha: 0.2 to 1 as the policy's reward reaches 0.8; weighted",
        ),
    ):
        (line,) = [line for line in describe_plan(recipe(mixture)) if line.startswith("sampled from")]
        assert said in line
    assert not any(line.startswith("sampled from") for line in describe_plan(recipe(None)))


def test_alpha_may_be_written_short():
    short = recipe({"target": "other", "alpha": 0.5}).rollout.mixture
    assert (short.target.model, alpha_at(short, 7, reward=0.0)) == ("other", 0.5)
    assert alpha_at(recipe({"alpha": "chernoff"}).rollout.mixture, 1, reward=0.0) == "chernoff"
    assert recipe({}, reference="other").reference == "other"  # which the mixture reads
