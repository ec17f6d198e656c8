"""Recipes of preferences: keys that need each other, and what would not be what its reader expects."""

import pytest

from klent.config import load_recipe, make_recipe
from klent.errors import ConfigError
from klent.runs.plan import describe_plan

PAIRS = {"model": "m", "method": "dpo", "task": {"pairs": "p.jsonl"}, "steps": 2}
ONLINE = {"model": "m", "method": "online_dpo", "task": {"data": "p.jsonl"}, "reward": "exact", "steps": 2}
STOP = {"every": 2, "early_stop": {"signal": "entropy"}}

REFUSED = {
    "imitation of both": (PAIRS, {"loss": {"cross_entropy": {}}}, "imitates the worse answers of pairs too"),
    "pairs twice": (PAIRS, {"rollout": {"engine": "transformers", "pairs": "best_worst"}}, "rollout.pairs"),
    "early stop": (PAIRS, {"eval": STOP}, "held-out pairs are compared without any"),
    "no reward": (ONLINE, {"reward": None}, "rollout.pairs compares completions by it"),
    "one completion": (ONLINE, {"group_size": 1}, "leaves nothing to compare a completion with"),
    "no pairs": (
        ONLINE,
        {"rollout": {"pairs": None}},
        "rollout.pairs: best_worst for pairs of sampled answers",
    ),
    "two masks": (
        ONLINE,
        {"select": {"mask": {"random_tokens": {"fraction": 0.5}}}},
        "and so does rollout.pairs",
    ),
    "nothing compares": (
        {**ONLINE, "method": "grpo"},
        {"rollout": {"pairs": "best_worst"}},
        "makes pairs that no term of the loss (ppo_clip) compares",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    base, change, reason = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        make_recipe(base | change)
    assert reason in " ".join(str(error.value).split())


def test_held_out_pairs_need_no_reward_and_the_plan_says_what_is_measured():
    plan = "\n".join(describe_plan(make_recipe(PAIRS)))
    assert "evaluation: 64 held-out pairs, before, after" in plan
    assert "each answer is measured once, and kept" in plan
    plan = "\n".join(describe_plan(make_recipe({**PAIRS, "reward": "exact"})))
    assert "evaluation: 64 held-out pairs, 64 held-out problems x 2, before" in plan


def test_sampled_pairs_are_in_the_plan():
    recipe = make_recipe(ONLINE)
    assert recipe.rollout.for_evaluation().pairs is None
    assert "the best by reward against the worst" in "\n".join(describe_plan(recipe))


def test_pairs_take_the_place_of_a_recipes_own_problems():
    given = ["method=dpo", "task.pairs=p.jsonl", "reward=null"]
    task = load_recipe("sft", given).task
    assert (task.source, task.paired, task.heldout) == ("p.jsonl", True, None)
