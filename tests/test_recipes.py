"""The recipes and methods that klent ships."""

import re

import pytest

from klent.config import dump_recipe, load_recipe, make_recipe, recipes_folder

FOLDER = recipes_folder()
RECIPES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
METHODS = sorted(file.stem for file in (FOLDER / "methods").glob("*.yaml"))
GYM = {"model": "m", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}
DATA = {"model": "m", "task": {"data": "a.jsonl"}, "steps": 2}


def clip(low: float, high: float, ratio: str = "token") -> dict:
    return {"ppo_clip": {"clip_low": low, "clip_high": high, "ratio": ratio}}


def group(scale: str) -> dict:
    return {"group_advantage": {"scale": scale}}


# method -> loss, advantage, what the reduction divides by
EXPECTED = {
    "sft": ({"cross_entropy": {}}, None, "tokens"),
    "reinforce": ({"reinforce": {}}, None, "constant"),
    "rloo": ({"reinforce": {}}, {"leave_one_out": {}}, "constant"),
    "grpo": (clip(0.2, 0.2), group("std"), "sequences"),
    "dr_grpo": (clip(0.2, 0.2), group("none"), "constant"),
    "dapo": (clip(0.2, 0.28), group("std"), "tokens"),
    "gspo": (clip(3e-4, 4e-4, "sequence"), group("std"), "sequences"),
}


def test_the_methods_are_those_expected():
    assert set(METHODS) == set(EXPECTED)
    assert {"quickstart", "sft", "grpo_kl_reward", "grpo_kl_loss"} <= set(RECIPES)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_what_its_paper_says(method):
    loss, advantage, over = EXPECTED[method]
    recipe = make_recipe({**(DATA if method == "sft" else GYM), "method": method})
    assert (recipe.loss, recipe.advantage, recipe.reduce.over) == (loss, advantage, over)
    assert recipe.token_reward is None


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
