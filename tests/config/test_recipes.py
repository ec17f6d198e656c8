"""The recipes and methods that klent ships."""

import re
from pathlib import Path

import pytest
import yaml

from klent.config import dump_recipe, load_recipe, make_recipe, recipes_folder
from klent.config.binding import hyperparameters_of, resolve
from klent.config.yaml_text import RecipeLoader
from klent.errors import ConfigError

FOLDER = recipes_folder()
RECIPES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
METHODS = sorted(file.stem for file in (FOLDER / "methods").glob("*.yaml"))
GYM = {"model": "m", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}
DATA = {"model": "m", "task": {"data": "a.jsonl"}, "steps": 2}


PAIRS = {**DATA, "task": {"pairs": "pairs.jsonl"}}
NEEDS = {
    "sft": DATA,
    **dict.fromkeys(("dpo", "ipo", "cdpo", "simpo", "orpo", "reward_model"), PAIRS),
    **{key: {**DATA, "task": {"trajectories": "log.jsonl"}} for key in ("qsft", "ilql")},
    "distill": {**GYM, "rollout": {"mixture": {"target": "teacher"}}},
    **{
        key: {**GYM, "task": {"noise": 1}, "reward": "a.b:c"}
        for key in ("ddpo", "dpok", "dpok_released", "flow_grpo", "diffusion_nft")
    },
    "ddrl": {**GYM, "task": {"noise": 1, "images": "images.npy"}, "reward": "a.b:c"},
}  # more than GYM


def clip(low: float, high: float, ratio: str = "token") -> dict:
    return {"ppo_clip": {"clip_low": low, "clip_high": high, "ratio": ratio}}


def clip_dapo() -> dict:
    return {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.28, "ratio": "token", "dual_clip": 10.0}}


def group(scale: str) -> dict:
    return {"group_advantage": {"scale": scale}}


# what papers say, method -> loss, advantage, what the reduction divides by; a new method needs no entry
EXPECTED = {
    "sft": ({"cross_entropy": {}}, None, "tokens"),
    "distill": ({}, None, "tokens"),
    "qsft": ({"weighted_cross_entropy": {}}, None, "tokens"),
    "ilql": ({"ilql": {"tau": 0.7, "conservative": 0.01}}, None, "tokens"),
    "reinforce": ({"reinforce": {}}, None, "constant"),
    "rloo": ({"reinforce": {}}, {"leave_one_out": {}}, "constant"),
    "grpo": (clip(0.2, 0.2), group("std"), "sequences"),
    "dr_grpo": (clip(0.2, 0.2), group("none"), "constant"),
    "dapo": (clip(0.2, 0.28), group("std"), "tokens"),
    "em": ({"entropy_loss": {"coef": 1.0}}, None, "tokens"),
    "em_released": ({"entropy_loss": {"coef": 1.0}}, None, "tokens"),
    "empo": (clip(0.2, 0.2), group("std"), "sequences"),
    "gspo": (clip(3e-4, 4e-4, "sequence"), group("std"), "sequences"),
    "clip_higher": (clip(0.2, 0.28), group("std"), "tokens"),
    "clip_wide": (clip(1.0, 1.0), group("std"), "tokens"),
    "clip_cov": ({"clip_cov": {"clip_low": 1.0, "clip_high": 1.0}}, group("std"), "tokens"),
    "random_dropped": ({"clip_cov": {"clip_low": 1.0, "clip_high": 1.0}}, group("std"), "tokens"),
    "kl_cov": ({"kl_cov": {"coef": 1.0, "penalty": "absolute"}}, group("std"), "tokens"),
    "kl_cov_true": ({"kl_cov": {"coef": 1.0, "penalty": "kl"}}, group("std"), "tokens"),
    "top20": (clip_dapo(), group("std"), "tokens"),
    "random20": (clip_dapo(), group("std"), "tokens"),
    "bottom80": (clip_dapo(), group("std"), "tokens"),
    "entropy_bonus": (clip(0.2, 0.2) | {"entropy_loss": {"coef": -5e-3}}, group("std"), "tokens"),
    "entropy_shaped": (
        {"entropy_shaped": {"alpha": 0.4, "kappa": 2.0, "clip_low": 0.2, "clip_high": 0.28}},
        group("std"),
        "tokens",
    ),
    "entropy_ratio_clip": (
        {"entropy_ratio_clip": {"low": 0.05, "high": 0.05, "clip_low": 0.2, "clip_high": 0.28}},
        group("std"),
        "tokens",
    ),
    "thermostat": (clip(0.2, 0.2), group("std"), "sequences"),
    "dppo": ({"dppo": {"threshold": 0.2, "ratio_max": 20.0}}, group("std"), "tokens"),
    "dppo_exact": ({"dppo": {"threshold": 0.2, "ratio_max": 20.0}}, group("std"), "tokens"),
    "drpo": ({"drpo": {"threshold": 0.2, "ratio_max": 20.0}}, group("std"), "tokens"),
    "ce_gppo": (
        {"ce_gppo": {"clip_low": 0.2, "clip_high": 0.28, "keep_low": 0.75, "keep_high": 1.0}},
        group("std"),
        "tokens",
    ),
    "maxrl": (clip(0.2, 0.2), group("mean"), "constant"),
    "reinforce_pp": (clip(0.2, 0.2), {"reinforce_pp": {}}, "tokens"),
    "clip_cov_exact": ({"clip_cov": {"clip_low": 1.0, "clip_high": 1.0}}, group("std"), "tokens"),
    "kl_cov_exact": ({"kl_cov": {"coef": 1.0, "penalty": "absolute"}}, group("std"), "tokens"),
    "steer": (clip(0.2, 0.28), group("std"), "tokens"),
    "entrocraft": (clip(0.2, 0.2), group("std"), "tokens"),
    "ddpo": (clip(0.2, 0.2), group("std"), "tokens"),
    "diffusion_nft": ({"diffusion_nft": {"beta": 1.0, "advantage_max": 5.0}}, group("std"), "tokens"),
    "ddrl": (
        {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2, "ratio": "token"}, "denoising": {"coef": 0.1}},
        group("std"),
        "tokens",
    ),
    "dpok": ({"reinforce": {}, "token_kl": {"coef": 0.01}}, {"leave_one_out": {}}, "constant"),
    "dpok_released": ({"reinforce": {}, "token_kl": {"coef": 0.01}}, {"leave_one_out": {}}, "constant"),
}
# method -> the tokens that it chooses
CHOICES = {
    "clip_cov": {"dropped": {"clip_cov_tokens": {"fraction": 2e-4, "low": 1.0, "high": 5.0}}},
    "random_dropped": {"dropped": {"random_tokens": {"fraction": 2e-4}}},
    "kl_cov": {"penalised": {"kl_cov_tokens": {"fraction": 2e-3}}},
    "kl_cov_true": {"penalised": {"kl_cov_tokens": {"fraction": 2e-3}}},
    "clip_cov_exact": {"dropped": {"clip_cov_exact_tokens": {"fraction": 2e-4, "pool": 2e-3}}},
    "kl_cov_exact": {"penalised": {"kl_cov_exact_tokens": {"fraction": 2e-3}}},
    "top20": {"mask": {"high_entropy_tokens": {"fraction": 0.2}}},
    "random20": {"mask": {"random_tokens": {"fraction": 0.2}}},
    "bottom80": {"mask": {"low_entropy_tokens": {"fraction": 0.8}}},
}


def test_the_methods_that_papers_pin_are_there():
    assert set(EXPECTED) <= set(METHODS)
    assert {"quickstart", "sft", "grpo_kl_reward", "grpo_kl_loss"} <= set(RECIPES)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_what_its_file_says_and_takes_the_rest_from_signatures(method):
    said = yaml.load((FOLDER / "methods" / f"{method}.yaml").read_text(), RecipeLoader)
    recipe = make_recipe({**NEEDS.get(method, GYM), "method": method})
    for section in ("loss", "advantage", "token_reward"):
        terms = said.get(section) or {}
        assert (getattr(recipe, section) or {}) == {
            name: settled(name, given) for name, given in terms.items()
        }
    chosen = {
        stream: {name: settled(name, given) for name, given in choice.items()}
        for stream, choice in (said.get("select") or {}).items()
    }
    assert (recipe.select or {}) == chosen
    weights = {
        term: {name: settled(name, given) for name, given in weight.items()}
        for term, weight in (said.get("weigh") or {}).items()
    }
    assert (recipe.weigh or {}) == weights
    assert recipe.reduce.over == (said.get("reduce") or {}).get("over", "tokens")


def settled(name, given):
    """The settings of a term, with the defaults of its function's signature."""
    parameters = hyperparameters_of(resolve(name)).items()
    defaults = {key: p.default for key, p in parameters if p.default not in (p.empty, None)}
    return defaults | (given or {})


@pytest.mark.parametrize("method", EXPECTED)
def test_a_method_sets_what_its_paper_says(method):
    loss, advantage, over = EXPECTED[method]
    recipe = make_recipe({**NEEDS.get(method, GYM), "method": method})
    assert (recipe.loss, recipe.advantage, recipe.reduce.over) == (loss, advantage, over)
    assert recipe.token_reward is None
    assert recipe.select == CHOICES.get(method)


@pytest.mark.parametrize(
    "method",
    ["clip_cov", "random_dropped", "top20", "thermostat", "entrocraft", "kl_cov_true", "distill", "steer"],
)
def test_a_method_with_controls_survives_a_dump(method, tmp_path):
    recipe = make_recipe({**NEEDS.get(method, GYM), "name": "x", "method": method})
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_distillation_samples_from_the_policy_and_asks_for_a_target():
    mixture = make_recipe({**NEEDS["distill"], "method": "distill"}).rollout.mixture
    assert (mixture.target.model, mixture.alpha.fixed, mixture.weights) == ("teacher", 1.0, None)
    assert mixture.distill.divergence == "reverse"
    for target in ({}, {"target": "reference"}):
        with pytest.raises(ConfigError, match="there is nothing to distil; name a model"):
            make_recipe({**GYM, "method": "distill", "rollout": {"mixture": target}})
    hinted = {"target": {"model": "policy", "prompt": "{prompt} ({answer})"}}
    assert make_recipe({**GYM, "method": "distill", "rollout": {"mixture": hinted}}).loss == {}
    assert make_recipe({**GYM, "method": "distill", "reference": "other"}).reference == "other"


def test_a_control_differs_from_its_method_in_the_choice_alone():
    pairs = [("clip_cov", "random_dropped"), ("top20", "random20"), ("top20", "bottom80")]
    for method, control in pairs:
        one, other = (make_recipe({**GYM, "method": name}) for name in (method, control))
        assert {key for key, value in one if getattr(other, key) != value} == {"method", "select"}
    one, other = (make_recipe({**GYM, "method": name}) for name in ("kl_cov", "kl_cov_true"))
    assert {key for key, value in one if getattr(other, key) != value} == {"method", "loss"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_its_resolved_form_is_the_same(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_command_hardware_minutes_and_number(name):
    header = re.match(r"(#.*\n)+", (FOLDER / f"{name}.yaml").read_text())[0]
    for part in (f"klent train {name}", "hardware:", "minutes:", "expect:"):
        assert part in header


@pytest.mark.parametrize("name", METHODS)
def test_a_method_begins_with_its_name_and_formula(name):
    first, second = (FOLDER / "methods" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert re.search(r"[LA]_?i? = ", second)


def test_the_kl_recipes_differ_from_the_quickstart_in_the_kl_alone():
    base = load_recipe("quickstart")
    for name, field in (("grpo_kl_reward", "token_reward"), ("grpo_kl_loss", "loss")):
        other = load_recipe(name)
        differ = {key for key, value in base if getattr(other, key) != value}
        assert differ == {"name", field}
    assert "kl_in_reward" in load_recipe("grpo_kl_reward").token_reward
    assert set(load_recipe("grpo_kl_loss").loss) == {"ppo_clip", "kl_in_loss"}


def test_the_example_loads(request):
    recipe = load_recipe(request.config.rootpath / "examples" / "own_task" / "recipe.yaml")
    assert recipe.task.data.endswith("examples/own_task/prompts.jsonl")


def test_the_keys_that_newcomers_ask_for_are_in_the_docs_and_work():
    page = (Path(__file__).parents[2] / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
    section = page.partition("### Adapters, GPU, precision, trackers")[2].partition("\n## ")[0]
    given = re.findall(r"^\| `(\S+=\S+)`", section, flags=re.M)
    assert {key.partition("=")[0] for key in given} == {
        "lora",
        "device",
        "precision.compute",
        "track",
        "attention",
    }
    recipe = load_recipe("quickstart", given)
    assert recipe.lora is not None
    assert (recipe.device, recipe.precision.compute, recipe.track) == ("cuda:1", "bfloat16", ("tensorboard",))
    for word in ("recipes show quickstart --fields", "CUDA_VISIBLE_DEVICES", "klent doctor"):
        assert word in section
    assert "rewards.log" in page
