"""Whole runs of the tiny model: they learn, they stop, they go on, and they leave what they promise."""

import json
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_folder, tiny_tokenizer
from transformers import AutoModelForCausalLM

from klent.config import make_recipe
from klent.errors import ConfigError, DataError, ModelError, RunError
from klent.io.files import read_jsonl
from klent.policies.causal_lm import policy as causal_lm
from klent.policies.causal_lm.packing import pack
from klent.runs.console import QuietConsole
from klent.runs.loop import Loop
from klent.runs.train import train
from klent.tasks import load_task

REWARD = '''
def digits(prompts, completions, **columns):
    """The share of digits in a completion."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in t) / max(len(t), 1) for t in texts]

def nothing(prompts, completions, **columns):
    return [None] * len(completions)

def not_the_third(prompts, completions, **columns):
    if len(completions) == 1 and columns["number"][0] % 3 == 0:
        raise RuntimeError("three")
    if len(completions) > 1:
        raise RuntimeError("one at a time, please")
    return digits(prompts, completions)
'''
PINNED = [
    "step",
    "reward/mean",
    "reward/unscorable",
    "completion/length",
    "policy/entropy",
    "policy/entropy_delta",
    "policy/entropy_delta_predicted",
    "policy/covariance",
    "objective/zero_fraction",
    "grad/norm",
    "time/step",
    "time/rollout",
    "time/train",
    "tokens/rollout_per_second",
    "tokens/train_per_second",
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch):
    """A folder with a tiny model, a file of prompts and a file of rewards."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"say {i}", "number": i, "completion": f"{i}"} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(**changes):
    values = {
        "name": "tiny",
        "model": "model",
        "method": "grpo",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:digits",
        "steps": 4,
        "prompts_per_step": 4,
        "group_size": 6,
        "rollout": {"max_tokens": 8},
        "optimizer": {"lr": 0.01},
        "eval": None,
    }
    return make_recipe({key: value for key, value in (values | changes).items() if value != "absent"})


def run(world: Path, *overrides, resume: bool = False, name: str = "run", **changes):
    console = QuietConsole()
    folder = train(
        recipe(**changes), world / name, command="klent train tiny", resume=resume, console=console
    )
    return folder, console


def metrics(folder: Path) -> list[dict]:
    return list(read_jsonl(folder / "metrics.jsonl"))


def timeless(rows: list[dict]) -> list[dict]:
    """Rows without what the clock and the machine say."""
    return [
        {
            k: v
            for k, v in row.items()
            if not k.startswith(("time/", "memory/")) and not k.endswith("per_second")
        }
        for row in rows
    ]


def test_reward_rises_and_the_run_folder_holds_what_is_promised(world):
    folder, _ = run(world, steps=25, eval={"problems": 3, "samples": 2})
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, 26))
    first, last = (sum(row["reward/mean"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.2
    assert rows[0].keys() >= set(PINNED)
    before, after = read_jsonl(folder / "eval.jsonl")
    assert (before["step"], after["step"]) == (0, 25)
    assert after["reward"] > before["reward"]
    for name in ("config.yaml", "run.json", "samples.jsonl", "report.html", "final/model.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert sorted(p.name for p in (folder / "checkpoints").glob("0*")) == ["000020", "000025"]
    sample = next(read_jsonl(folder / "samples.jsonl"))
    assert (
        len(sample["tokens"]) == len(sample["entropy"]) == len(sample["logp"]) == len(sample["coefficient"])
    )
    assert "".join(sample["tokens"]).removesuffix("<|im_end|>") == sample["completion"]


def test_the_trained_model_is_a_plain_hugging_face_folder(world):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = run(world, steps=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert AutoTokenizer.from_pretrained(folder / "final").chat_template
    saved = load_file(folder / "checkpoints/000002/model.safetensors")
    for name, value in model.named_parameters():
        assert torch.equal(value, saved[name])


METHODS = {
    "sft": {"reward": "absent", "group_size": 1, "rollout": {"engine": "dataset", "max_tokens": 8}},
    "reinforce": {},
    "rloo": {},
    "grpo": {"update": {"epochs": 2, "minibatches": 2}},
    "dr_grpo": {},
    "dapo": {"update": {"epochs": 2}},
    "gspo": {"update": {"minibatches": 2}},
    "clip_cov": {"select": {"dropped": {"clip_cov_tokens": {"fraction": 0.02}}}},
    "kl_cov": {"update": {"minibatches": 2}},
    "top20": {},
    "random20": {},
    "entropy_shaped": {},
    "entropy_ratio_clip": {"update": {"minibatches": 2}},
    "thermostat": {"thermostat": {"target": {"fraction": 0.9}}},
    "entrocraft": {"thermostat": {"band": {"low": {"fraction": 0.5}, "high": {"fraction": 0.9}}}},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(world, method):
    folder, console = run(world, method=method, steps=12, optimizer={"lr": 0.01}, **METHODS[method])
    rows = metrics(folder)
    assert len(rows) == 12
    measure = "objective/loss" if method == "sft" else "reward/mean"
    sign = -1 if method == "sft" else 1
    assert sign * (rows[-1][measure] + rows[-2][measure]) > sign * (rows[0][measure] + rows[1][measure])
    assert [
        text for text in console.warnings if " since step " not in text
    ] == []  # findings are news, no faults


KL_TERMS = {
    "reward": {"token_reward": {"kl_in_reward": {"coef": 0.5}}},
    "loss": {"loss": {"kl_in_loss": {"coef": 0.5}}},
    "forward": {"loss": {"kl_in_loss": {"coef": 0.5, "divergence": "forward"}}},
}


def test_a_kl_term_holds_the_policy_near_its_reference(world):
    free, _ = run(world, name="free", steps=15, loss={"kl_in_loss": {"coef": 0.0}})
    for name, changes in KL_TERMS.items():
        held, _ = run(world, name=name, steps=15, **changes)
        assert metrics(held)[0]["kl/reference"] == pytest.approx(0.0, abs=1e-6), name
        assert metrics(held)[-1]["kl/reference"] < 0.7 * metrics(free)[-1]["kl/reference"], name


def test_supervised_rows_claim_nothing_about_samples_that_were_not_drawn(world):
    changes = METHODS["sft"] | {"reward": "reward.py:digits", "eval": {"problems": 2, "samples": 1}}
    folder, _ = run(
        world, method="sft", steps=4, **changes
    )  # a reward for evaluation does not score the data
    for row in metrics(folder):
        assert row["policy/entropy_delta"] != 0.0
        assert not row.keys() & {
            "reward/mean",
            "policy/entropy_delta_predicted",
            "kl/update",
            "policy/covariance",
        }


def test_the_sampler_and_the_trainer_agree_on_log_probs(world):
    folder, _ = run(world, rollout={"max_tokens": 8, "temperature": 0.6})
    assert max(row["policy/logp_mismatch"] for row in metrics(folder)) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}, "optimizer": {"lr": 0.05}}])
def test_now_and_then_the_trainer_is_compared_with_a_row_read_alone(world, changes):
    folder, _ = run(world, rollout={"max_tokens": 8, "temperature": 0.6}, steps=5, **changes)
    mismatch = {
        row["step"]: row["policy/row_mismatch"] for row in metrics(folder) if "policy/row_mismatch" in row
    }
    assert list(mismatch) == [1, 2, 4]
    assert max(mismatch.values()) < 1e-5


def test_a_trainer_that_is_wrong_in_the_run_is_said_to_be(world, monkeypatch):
    def shifted(groups, *, shared):  # each completion one position later than it stands
        rows = pack(groups, shared=shared)
        return replace(rows, position_ids=rows.position_ids + (rows.owner > 0))

    def fit(loop):  # after what is asked of a model before the first step
        monkeypatch.setattr(causal_lm, "pack", shifted)
        whole(loop)

    whole = Loop.fit
    monkeypatch.setattr(Loop, "fit", fit)
    folder, console = run(world, steps=2)
    (said,) = [line for line in console.warnings if "read alone" in line]
    assert "update.packing=off" in said
    assert metrics(folder)[0]["policy/row_mismatch"] > 1e-3


def test_the_mismatch_leaves_out_what_a_steps_own_updates_did(world):
    folder, _ = run(world, update={"minibatches": 4}, steps=2)
    rows = metrics(folder)
    assert max(row["kl/update"] for row in rows) > 1e-3
    assert max(row["policy/logp_mismatch"] for row in rows) < 1e-5


def test_lora_trains_adapters_only_and_uses_itself_as_reference(world):
    folder, _ = run(
        world, steps=3, lora={"rank": 4}, loss={"kl_in_loss": {"coef": 0.1}}, optimizer={"lr": 0.02}
    )
    saved = load_file(folder / "checkpoints/000003/model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    rows = metrics(folder)
    assert rows[0]["kl/reference"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["kl/reference"] > 1e-6
    assert (folder / "final/model.safetensors").exists()


SEQUENCES = {"sequence_kl": {"coef": 0.1}, "sequence_entropy": {"coef": -0.01}}


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_the_kl_of_sequences_is_held_to_the_model_as_it_was(world, lora):
    far = {}
    for coef in (0.1, 3.0):
        folder, _ = run(
            world,
            name=f"coef{coef}",
            method="dr_grpo",
            loss={**SEQUENCES, "sequence_kl": {"coef": coef}},
            optimizer={"lr": 5e-3 if lora else 2e-3},
            update={"epochs": 2, "minibatches": 2},
            lora=lora,
        )
        rows = metrics(folder)
        assert all(
            0 < row["sequence/ess"] < 1 for row in rows
        )  # three of four optimizer steps are off-policy
        assert all(row["policy/sequence_entropy"] > 0 for row in rows)
        far[coef] = sum(row["kl/sequence"] for row in rows[1:])
    assert 0 < far[3.0] < 0.5 * far[0.1]


def test_one_update_on_what_was_just_sampled_has_weights_of_one(world):
    folder, _ = run(world, method="dr_grpo", loss=SEQUENCES, steps=1)
    (row,) = metrics(folder)
    assert row["sequence/ess"] == pytest.approx(1.0, abs=1e-4)
    assert row["sequence/chi2"] == pytest.approx(0.0, abs=1e-4)
    assert row["kl/sequence"] == pytest.approx(0.0, abs=1e-5)


def test_completions_of_a_data_set_are_held_to_another_model_by_the_forward_kl(world):
    tiny_folder(world / "other", seed=1)
    folder, _ = run(
        world,
        method="sft",
        reward="absent",
        group_size=1,
        rollout={"engine": "dataset", "max_tokens": 8},
        loss={"cross_entropy": None, "token_kl": {"coef": 1.0}},
        update={"kl": {"divergence": "forward"}},
        reference="other",
        steps=12,
        prompts_per_step=8,
    )
    far = [row["objective/kl"] for row in metrics(folder)]
    assert min(far) > 0
    assert far[-1] < 0.7 * far[0]


def test_joined_prompts_train_the_same_weights_on_fewer_tokens(world, monkeypatch):
    """`update.packing: full` against rows of their own; the tokens that the model computes are counted."""
    rows = [{"prompt": "x" * (i % 7 + 1), "completion": "y" * (i % 5 + 1)} for i in range(40)]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {}
    for packing in ("off", "full"):
        folder, console = run(
            world,
            name=packing,
            method="sft",
            reward="absent",
            group_size=1,
            prompts_per_step=8,
            rollout={"engine": "dataset", "max_tokens": 8},
            update={"packing": packing},
        )
        assert not console.warnings
        final = load_file(folder / "final/model.safetensors")
        answers[packing] = (
            [[row[key] for row in metrics(folder)] for key in ("objective/loss", "tokens/train")],
            final,
        )
    ((loss, padded), left), ((other, computed), right) = answers.values()
    assert other == pytest.approx(loss, rel=1e-4)
    assert sum(computed) < 0.9 * sum(padded)
    for name, weight in left.items():
        torch.testing.assert_close(right[name], weight, atol=1e-3, rtol=0)


def test_a_run_without_rewards_ends_by_its_held_out_loss_and_keeps_the_best_model(world):
    """The loss is that of each held-out completion alone, from all logits; the report shows it."""
    letters = random.Random(0)  # nothing to learn but the rows by heart
    rows = [
        {"prompt": f"say {i}", "completion": "".join(letters.choices("abcdefghij", k=6))} for i in range(12)
    ]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "method": "sft",
        "reward": "absent",
        "group_size": 1,
        "task": {"data": "prompts.jsonl", "heldout": 4},
        "prompts_per_step": 8,
        "steps": 30,
        "rollout": {"engine": "dataset", "max_tokens": 8},
        "optimizer": {"lr": 0.03},
        "eval": {"problems": 4, "every": 1, "early_stop": {"signal": "loss", "patience": 2}},
    }
    folder, _ = run(world, **settings)
    rows = list(read_jsonl(folder / "eval.jsonl"))
    losses = [row["loss"] for row in rows]
    assert len(rows) < 31
    assert len(metrics(folder)) == len(rows) - 1
    assert losses.index(min(losses)) == len(rows) - 3
    prompts = load_task(recipe(**settings).task, seed=0, heldout=4).heldout(4)
    for weights, expected in ((world / "model", losses[0]), (folder / "final", min(losses))):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(weights), tiny_tokenizer()
        total, count = 0.0, 0
        for prompt in prompts:
            before = tokenizer(prompt.prompt).input_ids
            answer = [*tokenizer(prompt.columns["completion"]).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            total -= float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
            count += len(answer)
        assert expected == pytest.approx(total / count, rel=1e-4)
    assert rows[0]["perplexity"] == pytest.approx(math.exp(losses[0]))
    page = (folder / "report.html").read_text()
    assert "By held-out loss, step" in page
    assert "Worst tokens" in page


def test_two_runs_of_one_recipe_are_bit_identical_and_the_seed_matters(world):
    first, second, other = (
        run(world, name=name, seed=seed)[0] for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert timeless(metrics(first)) == timeless(metrics(second))
    assert (first / "final/model.safetensors").read_bytes() == (
        second / "final/model.safetensors"
    ).read_bytes()
    assert timeless(metrics(first)) != timeless(metrics(other))


def interrupt_after(step: int, console: QuietConsole) -> None:
    told = console.step

    def press_ctrl_c(row):
        told(row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    console.step = press_ctrl_c


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.2}], ids=["full", "lora"])
def test_ctrl_c_saves_and_resume_ends_bit_identical(world, lora):
    changes = {"steps": 6, "lora": lora, "update": {"epochs": 2, "minibatches": 2}, "eval": {"problems": 2}}
    changes["loss"] = {"kl_in_loss": {"coef": 0.05}}
    whole, _ = run(world, name="whole", **changes)
    console = QuietConsole()
    interrupt_after(3, console)
    cut = train(recipe(**changes), world / "cut", command="c", console=console)
    assert [row["step"] for row in metrics(cut)] == [1, 2, 3]
    assert not (cut / "final").exists()
    train(recipe(**changes), cut, command="c", resume=True, console=QuietConsole())
    assert timeless(metrics(cut)) == timeless(metrics(whole))
    assert (cut / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (cut / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    rewards = [[row["rewards"] for row in read_jsonl(f / "eval.jsonl")] for f in (cut, whole)]
    assert rewards[0] == rewards[1]


CONTROLLED = {
    "bonus": {
        "thermostat": {"target": 2.0, "gain": 0.25},
        "select": {"mask": {"random_tokens": {"fraction": 0.5}}},
    },
    "fraction": {
        "method": "kl_cov",
        "update": {"minibatches": 2},
        "thermostat": {"target": {"fraction": 0.5}, "steer": "kl_cov_fraction"},
    },
    "temperature": {"thermostat": {"target": {"fraction": 0.5}, "steer": "temperature"}},
    "sign": {
        "thermostat": {
            "steer": "sign",
            "band": {"low": {"fraction": 0.9}, "high": {"start": 9.0, "end": 0.1, "steps": 5}},
        },
    },
    "mixture": {
        "rollout": {
            "max_tokens": 8,
            "mixture": {
                "target": {"model": "policy", "prompt": "{prompt} {number}"},
                "alpha": {"start": 0.2, "until_reward": 0.5},
                "weights": {"ratio": "sequence"},
                "distill": {"coef": 0.1},
            },
        },
    },
}


@pytest.mark.parametrize("steer", CONTROLLED)
def test_a_run_with_controls_resumed_ends_bit_identical(world, steer):
    changes = {"steps": 6, "update": {"epochs": 2}} | CONTROLLED[steer]
    whole, _ = run(world, name="whole", **changes)
    console = QuietConsole()
    interrupt_after(3, console)
    cut = train(recipe(**changes), world / "cut", command="c", console=console)
    train(recipe(**changes), cut, command="c", resume=True, console=QuietConsole())
    assert timeless(metrics(cut)) == timeless(metrics(whole))
    assert (cut / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (cut / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    turned = {"mixture": "mixture/alpha", "sign": "thermostat/high"}.get(steer, "thermostat/value")
    assert len({row[turned] for row in metrics(whole)}) == (5 if steer == "sign" else 6)


def test_a_thermostat_brings_a_models_entropy_down_to_its_target(world):
    held, _ = run(world, name="held", steps=30, prompts_per_step=8, thermostat={"target": 1.0})
    entropy = [row["policy/entropy"] for row in metrics(held)]
    assert entropy[0] > 4
    assert sum(entropy[-10:]) / 10 == pytest.approx(1.0, rel=0.1)


def test_a_thermostat_brings_a_models_entropy_up_again(world):
    target = {"start": 1.0, "end": 2.5, "steps": 25}
    held, _ = run(world, name="held", steps=45, prompts_per_step=8, thermostat={"target": target})
    entropy = [row["policy/entropy"] for row in metrics(held)]
    assert min(entropy[:20]) < 2
    assert sum(entropy[-10:]) / 10 == pytest.approx(2.5, rel=0.1)


def test_a_temperature_thermostat_samples_and_trains_at_its_temperature(world):
    changes = {"thermostat": {"target": {"fraction": 0.5}, "steer": "temperature"}}
    folder, _ = run(world, steps=6, **changes)
    rows = metrics(folder)
    assert 0.3 < rows[-1]["thermostat/value"] < 1.0
    assert max(row["policy/logp_mismatch"] for row in rows) < 1e-5


def test_rows_of_samples_name_the_chosen_tokens(world):
    folder, _ = run(world, steps=1, method="top20")
    (row,) = metrics(folder)
    assert row["select/mask"] == pytest.approx(0.2, abs=0.02)
    samples = list(read_jsonl(folder / "samples.jsonl"))
    for sample in samples:
        pushed = [i for i, c in enumerate(sample["coefficient"]) if c]
        assert set(pushed) <= set(sample["chosen"]["mask"])
    assert any(sample["chosen"]["mask"] for sample in samples)


def test_rows_written_after_the_last_checkpoint_are_taken_back(world):
    whole, _ = run(world, name="whole")
    cut, _ = run(world, name="cut", checkpoint={"every": 2}, steps=2)
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "reward/mean": 99.0}\n{"step": 4, "rew')
    train(recipe(), cut, command="c", resume=True, console=QuietConsole())
    assert timeless(metrics(cut)) == timeless(metrics(whole))


def test_a_damaged_checkpoint_is_passed_over_and_said(world):
    whole, _ = run(world, name="whole")
    cut, _ = run(world, name="cut", checkpoint={"every": 1, "keep": 3})
    with open(cut / "checkpoints/000004/model.safetensors", "r+b") as file:
        file.seek(2000)
        file.write(b"\x00\x01\x02\x03")
    console = QuietConsole()
    train(recipe(checkpoint={"every": 1, "keep": 3}), cut, command="c", resume=True, console=console)
    assert any("000004" in text and "000003" in text for text in console.warnings)
    assert timeless(metrics(cut)) == timeless(metrics(whole))


def test_unscorable_completions_are_left_out_and_counted(world):
    folder, console = run(world, reward="reward.py:not_the_third", steps=3, prompts_per_step=6)
    rows = metrics(folder)
    assert all(0 < row["reward/unscorable"] < 1 for row in rows)
    assert any("three" in text for text in console.warnings)


def test_a_reward_that_scores_nothing_ends_the_run_after_a_few_steps(world):
    with pytest.raises(RunError, match=r"no completion could be scored for 3 steps in a row \(step 3\)"):
        run(world, reward="reward.py:nothing", steps=9)
    assert [row["reward/unscorable"] for row in metrics(world / "run")] == [1.0] * 3
    assert metrics(world / "run")[0]["reward/mean"] is None


def test_an_evaluation_that_scores_nothing_ends_the_run_before_it_begins(world):
    changes = {"eval": {"problems": 2, "samples": 1, "reward": "reward.py:nothing"}}
    with pytest.raises(
        RunError, match="no completion of the 2 held-out problems could be scored: nothing returned"
    ):
        run(world, **changes)
    assert not (world / "run" / "metrics.jsonl").exists() or metrics(world / "run") == []
    with pytest.raises(RunError, match="no completion of the 2 held-out problems"):
        run(world, resume=True, **changes)  # and not taken for done


def test_greedy_answers_are_measured_beside_and_move_no_training_number(world):
    without, _ = run(world, name="without", steps=2, eval={"problems": 2, "samples": 2})
    beside, _ = run(world, name="beside", steps=2, eval={"problems": 2, "samples": 2, "temperatures": [0]})
    assert timeless(metrics(beside)) == timeless(metrics(without))
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (without, beside)]
    assert weights[0] == weights[1]
    rows = [timeless(list(read_jsonl(folder / "eval.jsonl"))) for folder in (without, beside)]
    for plain, both in zip(*rows, strict=True):
        assert both["temperature"] == 1.0
        assert "reward@0" in both
        assert {k: v for k, v in both.items() if "@0" not in k} | {"seconds": 0} == plain | {"seconds": 0}


def test_gradients_that_are_never_finite_end_the_run_and_leave_the_weights(world, monkeypatch):
    norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: norm(gradients) * float("nan"))
    with pytest.raises(RunError, match=r"not finite for 3 steps in a row .*Lower optimizer.lr"):
        run(world, steps=9)
    rows = metrics(world / "run")
    assert [row["update/skipped"] for row in rows] == [1, 1, 1]
    # The same weights read in other rows: the square of float32's rounding, where one update gives 1e-3.
    assert rows[-1]["kl/update"] == pytest.approx(0.0, abs=1e-12)


def test_an_existing_run_is_not_overwritten(world):
    run(world, steps=1)
    with pytest.raises(RunError, match="already holds a run"):
        run(world, steps=1)


def test_a_step_that_teaches_nothing_has_every_metric_too(world):
    (world / "one.py").write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    folder, _ = run(world, steps=1, reward="one.py:one")
    (row,) = metrics(folder)
    assert row.keys() >= set(PINNED)
    assert (row["group/zero_variance"], row["objective/zero_fraction"], row["kl/update"]) == (1.0, 1.0, 0.0)


def test_a_recipe_that_cannot_start_leaves_its_name_free(world):
    with pytest.raises(ConfigError, match="no function 'digit'"):
        run(world, steps=1, reward="reward.py:digit")
    with pytest.raises(ModelError, match="modle"):
        run(world, steps=1, model="./modle")
    run(world, steps=1)


def test_supervised_data_without_completions_is_refused_with_its_line(world):
    (world / "bare.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(DataError, match=r"bare\.jsonl:2.*completion"):
        run(world, method="sft", task={"data": "bare.jsonl"}, **METHODS["sft"])


def test_what_rewards_print_is_kept_out_of_the_terminal(world, capfd):
    with open(world / "reward.py", "a") as file:
        file.write("\nprint('imported')\n")
    folder, _ = run(world, steps=1)
    assert "imported" in (folder / "rewards.log").read_text()
    assert "imported" not in "".join(capfd.readouterr())


def test_a_finished_run_resumed_does_nothing_more(world):
    folder, _ = run(world, steps=2)
    before = (folder / "metrics.jsonl").read_bytes()
    run(world, steps=2, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_tracker_gets_every_row(world):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, _ = run(world, steps=3, track=["tensorboard"])
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("reward/mean")]
    assert logged == pytest.approx([row["reward/mean"] for row in metrics(folder)])
