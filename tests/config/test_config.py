"""Recipes: what is read, what is refused, and in which words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klent.config import (
    DatasetRollout,
    DataSettings,
    GymSettings,
    Thermostat,
    TransformersRollout,
    dump_recipe,
    load_recipe,
    make_recipe,
)
from klent.config.thermostat import STEERED, EntropyTarget
from klent.errors import ConfigError

BASE = """\
model: some/model
method: grpo
task: {gym: chain_sum, config: {min_terms: 2}}
reward: gym
steps: 15
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def refusal(write):
    """The message with which a recipe (BASE and more lines) or its overrides are refused."""

    def refusal(lines: str = "", *overrides: str, base: str = BASE) -> str:
        with pytest.raises(ConfigError) as caught:
            load_recipe(write(base + lines), overrides)
        return str(caught.value)

    return refusal


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("lora: {rank: 2}", "lora"),
        ("update: {distance: tv}\nloss: {dppo: {}}", "update.distance"),
        ("rollout: {staleness: 1}", "rollout.staleness"),
        ("rollout: {engine: vllm}", "rollout.engine=vllm"),
        ("rollout: {decoding: graph}", "rollout.decoding=graph"),
        ("rollout: {mixture: {target: {model: other}}}", "rollout.mixture"),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_refused(refusal, write, line, name):
    said = refusal(f"distributed: fsdp\n{line}\n")
    assert f"fsdp does not go with {name}:" in said
    assert "distributed: ddp" in said
    assert load_recipe(write(BASE + "distributed: fsdp\n")).text_rollout.decoding == "eager"


def test_defaults_and_method_are_filled_in(write):
    recipe = load_recipe(write(BASE))
    assert recipe.name == "my"
    assert recipe.task == GymSettings(gym="chain_sum", config={"min_terms": 2})
    assert recipe.loss == {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2, "ratio": "token"}}
    assert recipe.advantage == {"group_advantage": {"scale": "std"}}
    assert recipe.reduce.over == "sequences"
    assert [(r.fn, r.weight) for r in recipe.reward] == [("gym", 1.0)]


def test_layers_override_one_another(write):
    path = write(BASE + "optimizer: {lr: 1e-4, eps: 1e-6}\nreduce: {over: tokens}\n")
    recipe = load_recipe(path, ["optimizer.lr=3e-4", "seed=1", "seed=2"])
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.seed) == (3e-4, 1e-6, 2)
    assert recipe.reduce.over == "tokens"  # the recipe's, over the method's `sequences`


# What is refused: the lines added to BASE (they begin on line 6), and what the message must say.
REFUSED = {
    "unknown key": ("stepz: 3\n", "my.yaml:6: stepz: unknown key; did you mean `steps`?"),
    "unknown nested key": (
        "rollout:\n  temprature: 1.0\n",
        "my.yaml:7: rollout.temprature: unknown key; did you mean `temperature`?",
    ),
    "key in the wrong section": (
        "lr: 1e-5\n",
        "my.yaml:6: lr: unknown key here; did you mean `optimizer.lr`?",
    ),
    "another trainer's name": (
        "num_generations: 4\n",
        "num_generations: unknown key; klent calls it `group_size`",
    ),
    "nothing like it": ("zzz: 4\n", "zzz: unknown key; valid here: name, model"),
    "wrong type": ("seed: ten\n", "my.yaml:6: seed: should be a valid integer; got 'ten'"),
    "a number for a text": ("name: 3\n", "my.yaml:6: name: should be a valid string; got 3"),
    "true for a number": ("seed: true\n", "seed: should be a valid integer; got True"),
    "null where none is allowed": (
        "seed: null\n",
        "seed: should be a valid integer; got null (leave the key out",
    ),
    "too small": ("prompts_per_step: 0\n", "prompts_per_step: should be greater than or equal to 1; got 0"),
    "too large": ("rollout: {top_p: 1.5}\n", "rollout.top_p: should be less than or equal to 1; got 1.5"),
    "greedy": ("rollout: {temperature: 0.0}\n", "rollout.temperature: should be greater than 0; got 0.0"),
    "not finite": ("optimizer: {lr: .nan}\n", "optimizer.lr: should be a finite number"),
    "two in one": (
        "lora: {target_modules: 3}\n",
        "lora.target_modules: should be a valid string or should be a list",
    ),
    "a path for a name": ("name: a/b\n", "name: should hold only letters, digits"),
    "no such method's key": (
        "loss: {ppo_clip: {clip_lo: 0.1}}\n",
        "ppo_clip has no such setting; did you mean `clip_low`?",
    ),
    "a choice that nothing makes": (
        "loss: {clip_cov: {}}\n",
        "my.yaml:6: loss.clip_cov: reads `dropped`, a choice of tokens that nothing makes; add  "
        "select: {dropped: {clip_cov_tokens: {}}}",
    ),
    "a choice that nothing reads": (
        "loss: {clip_cov: {}}\nselect: {droped: {clip_cov_tokens: {}}}\n",
        "my.yaml:7: select.droped: is read by no term: the loss (ppo_clip, clip_cov) reads `dropped`",
    ),
    "two selectors for one name": (
        "select: {mask: {random_tokens: {fraction: 0.1}, high_entropy_tokens: {}}}\n",
        "select.mask: takes one selector, has 2",
    ),
    "a loss as a selector": (
        "select: {mask: {ppo_clip: {}}}\n",
        "ppo_clip does not go under select but under `loss`; valid here: clip_cov_exact_tokens, ",
    ),
    "a weight as a selector": (
        "select: {mask: {steer_weight: {}}}\n",
        "steer_weight does not go under select but under `weigh.TERM`",
    ),
    "a selector as a weight": (
        "weigh: {ppo_clip: {random_tokens: {fraction: 0.1}}}\n",
        "random_tokens does not go under weigh but under `select.NAME`; valid here: steer_weight",
    ),
    "a weight of no term": (
        "weigh: {cispo: {steer_weight: {}}}\n",
        "weigh.cispo: is no term of the loss, which has ppo_clip; put the weight under the term",
    ),
    "a weight of whole sequences": (
        "loss: {sequence_entropy: {coef: 0.1}}\nweigh: {sequence_entropy: {steer_weight: {}}}\n",
        "weigh.sequence_entropy: sequence_entropy is exact for whole sequences, which weights of tokens would",
    ),
    "a weight's setting": (
        "weigh: {ppo_clip: {steer_weight: {lowest: 2.0}}}\n",
        "weigh.ppo_clip.steer_weight.lowest: lowest is 2.0, expected a number in (0, 1]",
    ),
    "a selector as a loss": (
        "loss: {high_entropy_tokens: {}}\n",
        "high_entropy_tokens does not go under loss but under `select.NAME`",
    ),
    "a selector's setting": (
        "select: {mask: {random_tokens: {share: 0.2}}}\n",
        "select.mask.random_tokens.share: random_tokens has no such setting",
    ),
    "a selector's setting out of range": (
        "select: {mask: {random_tokens: {fraction: 20}}}\n",
        "select.mask.random_tokens.fraction: fraction is 20, expected a number in (0, 1]",
    ),
    "a count without a choice": ("reduce: {count: all}\n", "reduce.count: is not used: without select.mask"),
    "a count of nothing": (
        "reduce: {over: constant, count: all}\nselect: {mask: high_entropy_tokens}\n",
        "reduce.count: is not used with over: constant",
    ),
    "a thermostat without a target": ("thermostat: {steer: bonus}\n", "`target` is missing; set it"),
    "half a ramp": (
        "thermostat: {target: {start: 2.0, end: 1.0}}\n",
        "thermostat.target: should be one of a number, {fraction:} or {start:, end:, steps:}; has end, start",
    ),
    "a target below 0": ("thermostat: {target: -1.0}\n", "should be greater than 0; got -1.0"),
    "a thermostat beside its term": (
        "loss: {entropy_loss: {coef: 0.1}}\nthermostat: {target: 0.5}\n",
        "my.yaml:6: loss.entropy_loss: is the term that the thermostat adds and sets",
    ),
    "clip_high with one update": (
        "thermostat: {target: 0.5, steer: clip_high}\n",
        "thermostat.steer: clip_high has no effect with one optimizer step per step",
    ),
    "clip_high without a clip": (
        "loss: {ppo_clip: null, reinforce: {}}\nthermostat: {target: 0.5, steer: clip_high}\n",
        "clip_high cannot be adjusted: no term of the loss has such a setting; use ppo_clip",
    ),
    "kl_cov_fraction without kl_cov_tokens": (
        "thermostat: {target: 0.5, steer: kl_cov_fraction}\n",
        "kl_cov_fraction cannot be adjusted: there is none; add  select: {penalised: {kl_cov_tokens: {}}}",
    ),
    "forward KL added to forward KL": (
        "rollout: {mixture: {target: t, distill: {divergence: jeffreys, forward_above: 1.0}}}\n",
        "rollout.mixture.distill.forward_above: is not used: jeffreys has the forward KL at every token",
    ),
    "a sampled divergence without a target": (
        "loss: {ppo_clip: null, sampled_distill: {}}\nadvantage: null\n",
        "loss.sampled_distill: reads logp_target, which there is only with a target; set rollout.mixture",
    ),
    "a thermostat by sign without a band": (
        "thermostat: {steer: sign}\n",
        "thermostat: `band` is missing; set it, e.g. band: {low: 0.4, high: 0.5}",
    ),
    "a target of a thermostat by sign": (
        "thermostat: {steer: sign, target: 0.5, band: {low: 0.4, high: 0.5}}\n",
        "thermostat.target: is not used: steer sign holds a band; set target: null",
    ),
    "a band of another thermostat": (
        "thermostat: {target: 0.5, band: {low: 0.4, high: 0.5}}\n",
        "thermostat.band: is not used: only steer sign holds a band; set band: null",
    ),
    "half an edge": (
        "thermostat: {steer: sign, band: {low: {start: 0.4}, high: 0.5}}\n",
        "thermostat.band.low: should be one of a number, {fraction:} or {start:, end:, steps:}; has start",
    ),
    "edges that cross": (
        "thermostat: {steer: sign, band: {low: 0.4, high: {start: 0.7, end: 0.3, steps: 9}}}\n",
        "thermostat.band: low (0.4) should lie below high (0.3), and does not at step 9",
    ),
    "a gain of a thermostat by sign": (
        "thermostat: {steer: sign, gain: 2.0, band: {low: 0.4, high: 0.5}}\n",
        "thermostat.gain: is not used: steer sign has no gains or bounds; remove it",
    ),
    "signs without advantages": (
        "loss: {ppo_clip: null, entropy_loss: {coef: 1.0}}\nadvantage: null\n"
        "thermostat: {steer: sign, band: {low: 0.4, high: 0.5}}\n",
        "thermostat.steer: sign chooses among advantages, and no term of the loss (entropy_loss) reads them",
    ),
    "a thermostat's start out of bounds": (
        "thermostat: {target: 0.5, start: 2.0}\n",
        "thermostat: start (2) should lie between low (-0.5) and high (1)",
    ),
    "a fraction above 1": (
        "thermostat: {target: 0.5, steer: temperature, low: 0.0}\n",
        "thermostat.low: 0 must be > 0: temperature is scaled multiplicatively",
    ),
    "no such loss": ("loss: {ppo: {}}\n", "my.yaml:6: loss.ppo: klent.objectives has no such function"),
    "an estimator as a loss": (
        "loss: {kl_in_reward: {coef: 1}}\n",
        "does not go under loss but under `token_reward`",
    ),
    "k1 as a loss": (
        "loss: {kl_estimate: {estimator: k1}}\n",
        "kl_estimate is an estimator: it makes numbers for an update or a log",
    ),
    "a setting missing": ("loss: {entropy_loss: {}}\n", "my.yaml:6: loss.entropy_loss: needs `coef`; set it"),
    "a setting's type": (
        "loss: {entropy_loss: {coef: hi}}\n",
        "loss.entropy_loss.coef: should be a valid number; got 'hi'",
    ),
    "a setting's choice": (
        "loss: {ppo_clip: {ratio: word}}\n",
        "loss.ppo_clip.ratio: should be 'token' or 'sequence'",
    ),
    "data as a setting": (
        "loss: {kl_in_loss: {coef: 1, logp_old: 3}}\n",
        "logp_old: is data that the trainer gives to",
    ),
    "an empty section": ("rollout:\n", "my.yaml:6: rollout: "),
    "not a section": ("optimizer: adam\n", "optimizer: should be a mapping; got 'adam'"),
    "an unknown reward": ("reward_: gym\n", "reward_: unknown key; did you mean `reward`?"),
    "unused denominator": (
        "reduce: {denominator: 5.0}\n",
        "reduce.denominator: is not used with over: sequences",
    ),
    "unused reference": (
        "reference: other/model\n",
        "my.yaml:6: reference: is not used: no term reads logp_ref",
    ),
    "group too small": (
        "group_size: 1\n",
        "my.yaml:6: group_size: 1 leaves group_advantage no other completion",
    ),
    "uneven minibatches": (
        "update: {minibatches: 3}\n",
        "update.minibatches: 3 does not divide prompts_per_step (8)",
    ),
    "two estimators": (
        "advantage: {leave_one_out: {}, group_advantage: {}}\n",
        "advantage.group_advantage: does not change what leave_one_out gives; keep one of the two",
    ),
    "no loss": ("loss: {ppo_clip: null}\n", "my.yaml:6: loss: has no term; name one"),
    "removing what does not exist": (
        "loss: {reinforce: null}\n",
        "my.yaml:6: loss.reinforce is null, which removes it, but loss has no such entry "
        "(it has ppo_clip); to add it, write reinforce: {}",
    ),
    "another engine": (
        "rollout: {engine: sglang}\n",
        "rollout: `engine` is transformers, vllm, dataset (replay) or policy",
    ),
    "a tracker": (
        "track: [mlflow]\n",
        "my.yaml:6: track: should be 'tensorboard', 'trackio' or 'wandb'; got 'mlflow'",
    ),
    "a duplicate": ("steps: 3\n", "my.yaml:6: `steps` is written twice (first on line 5)"),
    "a nested duplicate": (
        "optimizer:\n  lr: 1e-5\n  lr: 1e-6\n",
        "my.yaml:8: `optimizer.lr` is written twice (first on line 7)",
    ),
    "a tag": ("name: !!python/name:os.system x\n", "my.yaml:6: the YAML tag"),
    "broken YAML": ("stop: [a\n", "my.yaml:7: not valid YAML"),
    "a list as a key": ("? [a]\n: 1\n", "my.yaml:6: a key must be plain text"),
}


@pytest.mark.parametrize(("lines", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(refusal, lines, message):
    assert message in refusal(lines)


REFUSED_OVERRIDES = {
    "unknown": (
        ["optimiser.lr=1"],
        "command line: optimiser.lr=1: optimiser: unknown key; did you mean `optimizer`?",
    ),
    "no value": (["steps"], "command line: `steps` should be key=value"),
    "no key": (["=3"], "command line: `=3` should be key=value"),
    "a flag": (["--steps=3"], "--steps=3: unknown key; did you mean `steps`?"),
    "type": (["steps=many"], "command line: steps=many: should be a valid integer; got 'many'"),
    "lora switched on": (
        ["lora=true"],
        "command line: lora=true: should be a mapping; got True. Write lora={} for the defaults, or set a "
        "key of it: lora.KEY=VALUE",
    ),
    "lora as a number": (["lora=16"], "got 16. Write lora={} for the defaults, or set a key of it"),
    "lora as a word": (["lora=yes"], "got 'yes'. Write lora={} for the defaults"),
    "a tracker that there is not": (
        ["track=none"],
        "got 'none'. Name some of tensorboard, trackio, wandb, e.g. track=[tensorboard], or none: track=[]",
    ),
    "trackers switched on": (["track=true"], "got True. Name some of tensorboard, trackio, wandb"),
    "another name of the trackers": (["wandb=true"], "wandb=true: unknown key; klent calls it `track`"),
    "GPUs by number": (["num_gpus=2"], "torchrun --nproc-per-node N -m klent train"),
    "another program's flag": (["use_vllm=true"], "what samples is `rollout.engine`"),
    "peft's name of the rank": (["lora.r=8"], "lora.r=8: unknown key; klent calls it `lora.rank`"),
    "one tracker as text": (
        ["track=tensorboard"],
        "track=tensorboard: should be a list; got 'tensorboard'. Write track=[tensorboard]",
    ),
    "a wrong value in the second member of a union": (
        ["task.data=a.jsonl", "task.split=3"],
        "command line: task.split=3: should be a valid string; got 3",
    ),
    "one number for a list": (
        ["eval.temperatures=0.5"],
        "should be a list; got 0.5. Write eval.temperatures=[0.5]",
    ),
    "one number for two": (["optimizer.betas=0.9"], "optimizer.betas=0.9: should be a list; got 0.9"),
    "a device": (["device=gpu"], "device=gpu: should be auto, cpu, cuda or cuda:N; got 'gpu'"),
    "several devices": (["device_map=auto"], "a run is on one device: set device: cuda:N"),
    "the type of earlier versions": (
        ["dtype=bfloat16"],
        "dtype=bfloat16: unknown key; klent calls it `precision`",
    ),
    "another program's type": (["bf16=true"], "bf16=true: unknown key; klent calls it `precision`"),
    "a type that there is not": (
        ["precision.compute=float16"],
        "precision.compute=float16: should be 'auto', 'float32' or 'bfloat16'; got 'float16'",
    ),
    "digits that the weights do not have": (
        ["precision.weights=bfloat16", "precision.compute=float32"],
        "precision.compute=float32: float32 arithmetic on weights that were rounded to bfloat16 costs time",
    ),
    "no rows": (["rollout.rows=0"], "rollout.rows=0: should be"),
    "another program's engine": (
        ["rollout.engine=sglang"],
        "got 'sglang'. klent samples with transformers (remove rollout.engine) or with vllm",
    ),
    "a section switched off by false": (
        ["eval=false"],
        "eval=false: should be a mapping; got False. Write eval=null to switch it off",
    ),
    "broken YAML": (["rollout.stop=[a"], "command line: rollout.stop=[a: not valid YAML"),
    "method": (
        ["method=grppo"],
        "command line: method=grppo: there is no method `grppo`; did you mean `grpo`?",
    ),
    "setting under another method": (
        ["method=rloo", "loss.reinforce.clip_low=0.1"],
        "command line: loss.reinforce.clip_low=0.1: reinforce has no such setting; it has none",
    ),
    "refused by the function": (
        ["loss.kl_in_loss.coef=0.1", "loss.kl_in_loss.estimator=k1"],
        "as a loss the mean gradient of k1 is zero",
    ),
    "k2 in the reward": (
        ["token_reward.kl_in_reward.coef=0.1", "token_reward.kl_in_reward.estimator=k2"],
        "command line: token_reward.kl_in_reward.estimator=k2: ",
    ),
    "range of the function": (["loss.ppo_clip.clip_low=-0.1"], "command line: loss.ppo_clip.clip_low=-0.1: "),
    "both kinds of task": (["task.gym=chain_sum", "task.data=a.jsonl"], "name one source: {gym: GENERATOR}"),
    "key of the other task": (
        ["task.split=test"],
        "task.split=test: is not used by a gym task, only by a data task",
    ),
    "two held-out sets": (
        ["task.data=a.jsonl", "task.heldout=5", "task.heldout_data=b.jsonl"],
        "is not used beside heldout_data",
    ),
    "advantage without a loss for it": (
        ["loss.ppo_clip=null", "loss.cross_entropy={}"],
        "methods/grpo.yaml:6: advantage: is not used: no term of the loss (cross_entropy) reads an advantage",
    ),
    "no reward": (["reward=null"], "command line: reward=null: is missing: the loss (ppo_clip)"),
    "unknown reward": (["reward=gmy"], "command line: reward=gmy: unknown name 'gmy'; did you mean `gym`?"),
    "eval without a reward": (
        ["method=em", "reward=null", "eval.problems=5"],
        "eval.problems=5: eval: needs a reward to tell right from wrong",
    ),
    "sampling from a dataset": (
        ["method=sft", "task.data=a.jsonl", "reward=null", "rollout.temperature=0.5"],
        "is not used by a dataset engine, only by a transformers engine",
    ),
    "groups from a dataset": (
        ["method=sft", "task.data=a.jsonl", "reward=null", "group_size=4"],
        "command line: group_size=4: 4 must be 1: engine dataset has one completion per prompt",
    ),
    "a dataset engine without data": (
        ["method=sft"],
        "my.yaml:3: task.gym: has no completions that engine dataset",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED_OVERRIDES.values(), ids=REFUSED_OVERRIDES.keys())
def test_refused_overrides(refusal, overrides, message):
    assert message in refusal("", *overrides)


def test_all_problems_are_listed_in_the_order_of_the_file(refusal):
    message = refusal("lr: 1\nseed: x\nloss: {ppo: {}}\n", "stepz=1")
    lines = message.splitlines()
    assert lines[0] == "4 problems in the recipe:"
    places = [line.split(": ")[0].split("/")[-1].strip() for line in lines[1:]]
    assert places == ["my.yaml:6", "my.yaml:7", "my.yaml:8", "command line"]


def test_unused_keys_are_found_beside_unknown_ones(refusal):
    message = refusal("stepz: 1\nreference: other/model\n")
    assert "my.yaml:6: stepz" in message
    assert "my.yaml:7: reference: is not used" in message


@pytest.mark.parametrize("key", ["model", "task", "steps"])
def test_missing_keys(write, key):
    text = "".join(line for line in BASE.splitlines(keepends=True) if not line.startswith(key))
    with pytest.raises(ConfigError, match=rf"my.yaml: `{key}` is missing; set it"):
        load_recipe(write(text))


def test_a_recipe_needs_a_loss(write):
    with pytest.raises(ConfigError, match="`loss` is missing; name a method"):
        load_recipe(write(BASE.replace("method: grpo\n", "")))


def test_files_that_cannot_be_read(write, tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(BASE)
    for path, message in (
        (write("", "empty.yaml"), "a recipe is a list of `key: value` lines; this file has none"),
        (write("- a\n", "list.yaml"), "a recipe is a list of `key: value` lines"),
        (tmp_path / "bytes.yaml", "bytes.yaml: cannot be read"),
        (tmp_path / "run", "is a run folder; continue it with `klent resume"),
        (tmp_path, "is a folder; a recipe is a .yaml file"),
        ("quikstart", "quikstart: no such recipe; did you mean `quickstart`?"),
        (tmp_path / "none.yaml", "none.yaml: no such recipe"),
        ("grpo", "grpo is a method, not a recipe: klent train quickstart method=grpo"),
        ("methods/rloo.yaml", "rloo is a method, not a recipe"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E3", 1000.0), ("1.", 1.0), (".5", 0.5), ("3", 3.0), ("2.0e-5", 2e-5)],
)
def test_numbers_are_those_of_yaml_1_2(write, text, value):
    assert load_recipe(write(BASE), [f"optimizer.weight_decay={text}"]).optimizer.weight_decay == value


@pytest.mark.parametrize("word", ["on", "off", "no", "yes", "12:30:00", "2024-01-01", "1_000", "0x1f"])
def test_text_that_yaml_1_1_takes_for_something_else(write, word):
    assert load_recipe(write(BASE), [f"task.system={word}"]).task.system == word


def test_packing_takes_on_and_off_as_text(write):
    assert load_recipe(write(BASE + "update: {packing: off}\n")).update.packing == "off"


def test_terms_are_added_and_removed(write):
    path = write(BASE + "loss:\n  kl_in_loss: {coef: 0.1}\n")
    assert list(load_recipe(path).loss) == ["ppo_clip", "kl_in_loss"]
    recipe = load_recipe(path, ["loss.ppo_clip=null", "loss.reinforce={}", "loss.kl_in_loss.coef=0.2"])
    assert set(recipe.loss) == {"reinforce", "kl_in_loss"}
    assert recipe.loss["kl_in_loss"]["coef"] == 0.2


def test_choices_replace_one_another(write):
    path = write(BASE)
    assert load_recipe(path, ["advantage=leave_one_out"]).advantage == {"leave_one_out": {}}
    assert load_recipe(path, ["advantage.group_advantage.scale=none"]).advantage == {
        "group_advantage": {"scale": "none"}
    }
    assert load_recipe(path, ["advantage=null"]).advantage is None
    weighted = write(BASE.replace("reward: gym", "reward: {gym: 1.0, last_number: 0.5}"))
    assert [r.weight for r in load_recipe(weighted, ["reward.last_number=2"]).reward] == [1.0, 2.0]
    assert [r.fn for r in load_recipe(weighted, ["reward=exact"]).reward] == ["exact"]
    assert [r.fn for r in load_recipe(weighted, ["reward.gym=null"]).reward] == ["last_number"]


@pytest.mark.parametrize(
    ("below", "overrides", "fn", "timeout"),
    [
        ("gym", ["reward.timeout=60"], "gym", 60.0),
        ("gym", ["reward=my.py:fn", "reward.timeout=60"], "my.py:fn", 60.0),
        ("gym", ["reward.timeout=60", "reward=my.py:fn"], "my.py:fn", 60.0),
        ("{gym: 2.0}", ["reward.timeout=60"], "gym", 60.0),
        ("{fn: gym, timeout: 5}", ["reward.timeout=60"], "gym", 60.0),
        ("[{fn: gym, timeout: 5}]", ["reward.timeout=60"], "gym", 60.0),
        ("[exact, gym]", ["reward=gym", "reward.timeout=60"], "gym", 60.0),
        ("{fn: exact, timeout: 5}", ["reward=gym"], "gym", 10.0),
        ("gym", ["reward=[exact]", "reward.timeout=60"], "exact", 60.0),
    ],
)
def test_options_beside_a_reward_given_by_name_are_its_own(write, below, overrides, fn, timeout):
    (reward,) = load_recipe(write(BASE.replace("reward: gym", f"reward: {below}")), overrides).reward
    assert (reward.fn, reward.timeout) == (fn, timeout)


def test_options_of_one_reward_among_several_are_refused(write):
    several = write(BASE.replace("reward: gym", "reward: [gym, exact]"))
    for overrides in (["reward.timeout=60"], ["reward=[gym, exact]", "reward.timeout=60"]):
        with pytest.raises(ConfigError, match="belongs to one reward, and there are 2"):
            load_recipe(several, overrides)


def test_a_function_given_by_name_stays_beside_what_is_set_below_its_key(write):
    recipe = load_recipe(write(BASE), ["eval.reward=exact", "eval.reward.workers=2", "eval.problems=3"])
    assert [(r.fn, r.workers) for r in recipe.eval.reward] == [("exact", 2)]
    assert recipe.eval.problems == 3
    recipe = load_recipe(write(BASE), ["loss=reinforce", "loss.kl_in_loss.coef=0.1"])
    assert {"reinforce", "kl_in_loss"} <= set(recipe.loss)


def test_another_task_starts_anew_and_keeps_the_system_prompt(write):
    path = write(BASE.replace("{gym: chain_sum,", "{gym: chain_sum, system: Be brief.,"))
    assert load_recipe(path, ["task.config.max_terms=3"]).task.config == {"min_terms": 2, "max_terms": 3}
    assert load_recipe(path, ["task.gym=leg_counting"]).task == GymSettings(
        gym="leg_counting", system="Be brief."
    )
    assert load_recipe(path, ["task.config.a=1", "task.gym=leg_counting"]).task.config == {"a": 1}
    assert load_recipe(path, ["task.data=a.jsonl"]).task == DataSettings(data="a.jsonl", system="Be brief.")


def test_sft_replays_data(write):
    recipe = load_recipe(write("model: m\nmethod: sft\ntask: {data: a.jsonl}\nsteps: 3\n"))
    assert recipe.rollout == DatasetRollout(engine="dataset")
    assert (recipe.group_size, recipe.reward, recipe.eval) == (1, None, None)


def test_sections_answer_for_themselves(write):
    """Nobody outside the configuration asks for the class of a section."""
    mixture = "rollout: {temperature: 0.7, max_tokens: 9, mixture: {target: {model: b/b}}}\n"
    sampled = load_recipe(write(BASE + mixture))
    replayed = load_recipe(write("model: m\nmethod: sft\ntask: {data: a.jsonl}\nsteps: 3\n"))
    assert (sampled.rollout.sampled, replayed.rollout.sampled) == (True, False)
    assert replayed.task.completions == ("completion",)
    assert (sampled.rollout.temperature, replayed.rollout.temperature) == (0.7, 1.0)
    assert (sampled.rollout.mixture.target.model, replayed.rollout.mixture) == ("b/b", None)
    assert (sampled.task.source, replayed.task.source) == ("chain_sum", "a.jsonl")
    assert (sampled.task.generated, replayed.task.generated) == (True, False)
    alone = sampled.rollout.for_evaluation()
    assert alone == TransformersRollout(temperature=0.7, max_tokens=9)
    assert alone.for_evaluation() is alone
    assert replayed.rollout.for_evaluation() == TransformersRollout(max_tokens=replayed.rollout.max_tokens)
    assert set(replayed.rollout.model_dump()) == {"engine", "max_tokens"}


def test_a_thermostat_has_the_defaults_of_what_it_steers():
    assert Thermostat(target=0.5) == Thermostat(target={"value": 0.5}, steer="bonus")
    for steer, defaults in STEERED.items():
        thermostat = Thermostat(target=0.5, steer=steer)
        assert {key: getattr(thermostat, key) for key in defaults} == defaults
    assert Thermostat(target=0.5, steer="temperature", low=0.5, gain=None).gain == 0.1


def test_an_edge_of_another_kind_replaces_a_bands_edge_whole(write):
    set_to = ["method=entrocraft", "thermostat.band.low={fraction: 0.5}", "thermostat.band.high.end=0.6"]
    band = load_recipe(write(BASE), set_to).thermostat.band
    assert band.low == EntropyTarget(fraction=0.5)
    assert band.high == EntropyTarget(start=0.7, end=0.6, steps=100)


def test_a_method_of_ones_own(write, tmp_path):
    method = write("loss: {reinforce: {}}\nadvantage: {leave_one_out: {}}\n", "mine.yaml")
    recipe = load_recipe(write(BASE), [f"method={method}"])
    assert recipe.loss == {"reinforce": {}}
    method.write_text(method.read_text() + "stepz: 1\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: stepz: unknown key"):
        load_recipe(write(BASE), [f"method={method}"])


def test_paths_are_found_beside_the_recipe(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    write("", "rewards.py")
    write("", "prompts.jsonl")
    lines = BASE.replace("{gym: chain_sum, config: {min_terms: 2}}", "{data: prompts.jsonl}")
    recipe = load_recipe(write(lines.replace("reward: gym", 'reward: {"rewards.py:score": 1.0}')))
    assert recipe.task.data == str(tmp_path / "prompts.jsonl")
    assert recipe.reward[0].fn == f"{tmp_path / 'rewards.py'}:score"
    write("", "digits.npy")
    images = (
        "method: ddrl\nmodel: m\ntask: {noise: 64, images: digits.npy}\nreward: rewards.py:score\nsteps: 1\n"
    )
    assert load_recipe(write(images, "images.yaml")).task.images == str(tmp_path / "digits.npy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("prompts.jsonl").touch()  # the working folder comes first
    assert load_recipe("../my.yaml").task.data == "prompts.jsonl"


def test_a_loaded_recipe_cannot_change(write):
    recipe = load_recipe(write(BASE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3


ROUND_TRIPS = [
    [],
    ["method=rloo", "reward={gym: 1, last_number: 0.25}"],
    ["method=gspo", "update.epochs=2", "rollout.stop=['\\n', 'no', '2e-5']", "optimizer.max_grad_norm=null"],
    ["loss.ppo_clip=null", "loss.cispo={}", "token_reward.kl_in_reward.coef=0.1"],
    ["method=sft", "task.data=a.jsonl", "reward=null", "task.heldout=12"],
    [
        "method=dr_grpo",
        "lora.rank=4",
        "lora.target_modules=[q_proj]",
        "reduce.denominator=7",
        "track=[wandb]",
    ],
    ["method=top20", "select.mask=random_tokens", "select.mask.random_tokens.fraction=0.3"],
    ["method=top20", "select=null", "reduce.count=null"],
    ["method=clip_cov", "select.dropped=null", "loss.clip_cov=null", "loss.ppo_clip={}"],
    ["thermostat.target=0.5", "thermostat.steer=temperature", "thermostat.low=0.5"],
    [
        "method=thermostat",
        "thermostat.target.start=2.0",
        "thermostat.target={start: 2.0, end: 1.0, steps: 9}",
    ],
    ["method=thermostat", "thermostat=null"],
    ["method=ppo", "advantage.whiten=null", "adaptive_kl.target=2.0"],
    ["method=ppo", "advantage=group_advantage", "loss.value=null", "critic=null"],
    ["method=entrocraft", "thermostat.band.low=0.2"],
    ["method=entrocraft", "thermostat.steer=bonus", "thermostat.band=null", "thermostat.target=0.2"],
    ["method=null", "loss.reinforce={}", "advantage=null", "reduce.over=constant", "eval=null"],
]


@pytest.mark.parametrize("overrides", ROUND_TRIPS)
def test_a_dumped_recipe_loads_as_itself(write, overrides):
    recipe = load_recipe(write(BASE), overrides)
    text = dump_recipe(recipe)
    again = load_recipe(write(text, "config.yaml"))
    assert again == recipe
    assert dump_recipe(again) == text


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12), st.floats(1e-12, 1e3)
)
def test_any_text_and_number_survive_a_dump(text, number):
    import yaml

    from klent.config.yaml_text import RecipeDumper, RecipeLoader

    dumped = yaml.dump([text, number], Dumper=RecipeDumper, allow_unicode=True)
    assert yaml.load(dumped, RecipeLoader) == [text, number]


def test_make_recipe_from_a_mapping():
    values = {"model": "m", "method": "rloo", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}
    recipe = make_recipe(values, ["seed=3"])
    assert (recipe.seed, recipe.loss) == (3, {"reinforce": {}})
    with pytest.raises(ConfigError, match="recipe: stepz: unknown key; did you mean `steps`"):
        make_recipe({**values, "stepz": 1})


SCORES = {"model": "m", "task": {"pairs": "pairs.jsonl"}, "method": "reward_model", "steps": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"policy": {"kind": "causal_lm"}},
            "policy.kind: causal_lm gives texts no score, and the loss",
        ),
        ({"loss": {"dpo": {"beta": 0.1}}}, "loss: reads logp, and a reward model has no actions"),
        (
            {"loss": {"bradley_terry": None, "dpo": {"beta": 0.1}}},
            "policy.kind: reward_model is trained by a loss of scores, and there is none (dpo)",
        ),
        ({"lora": {"rank": 4}}, "lora: is not used: a reward model samples nothing"),
        ({"reference": "m"}, "reference: is not used: a reward model samples nothing"),
        ({"reward": "exact"}, "reward: is not used: a reward model samples nothing"),
        (
            {"eval": {"temperatures": [0.0]}},
            "eval.temperatures: is not used: a reward model is measured on held-out",
        ),
        ({"loss": {"bradley_terry": {"margin": -1.0}}}, "margin"),
        ({"loss": {"bradley_terry": {"margin": "big"}}}, "should be a valid number"),
    ],
)
def test_what_a_reward_model_does_not_have(values, message):
    with pytest.raises(ConfigError) as refused:
        make_recipe({**SCORES, **values})
    assert message in str(refused.value)


def test_a_reward_model_is_evaluated_without_a_reward():
    recipe = make_recipe(SCORES)
    assert recipe.policy.scores
    assert recipe.eval is not None
    with pytest.raises(
        ConfigError,
        match=r"policy.centre_on: is not used by a causal_lm policy, only by",
    ):
        make_recipe({**SCORES, "method": "dpo", "policy": {"centre_on": "a.jsonl"}})


def test_a_reward_model_takes_the_place_of_a_recipes_reward():
    values = {"model": "m", "task": {"gym": "chain_sum"}, "method": "grpo", "steps": 1, "reward": "gym"}
    (reward,) = make_recipe(values, ["reward={model: runs/rm/final, process: true}"]).reward
    assert reward.model_folder == "runs/rm/final"
    assert reward.process
