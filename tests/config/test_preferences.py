"""Recipes of preferences: keys that need each other, and what would not be what its reader expects."""

from types import SimpleNamespace

import pytest

from klent.config import Critic, load_recipe, make_recipe
from klent.config.preference_checks import critic_problems
from klent.errors import ConfigError
from klent.runs.plan import describe_plan

PAIRS = {"model": "m", "method": "dpo", "task": {"pairs": "p.jsonl"}, "steps": 2}
ONLINE = {"model": "m", "method": "online_dpo", "task": {"data": "p.jsonl"}, "reward": "exact", "steps": 2}
GRPO = {"model": "m", "method": "grpo", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 2}
SFT = {"model": "m", "method": "sft", "task": {"data": "p.jsonl"}, "steps": 2}
RANDOM = {"random_tokens": {"fraction": 0.5}}
UNANSWERED = "is not used: without a reward no held-out problem is answered; set eval.reward"
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
    "a mask of replayed pairs": (
        PAIRS,
        {"select": {"mask": RANDOM}},
        "select.mask: takes tokens out, and dpo compares whole answers; remove it",
    ),
    "weights of tokens": (
        PAIRS,
        {"weigh": {"dpo": {"steer_weight": {}}}},
        "weigh.dpo: weighs tokens, and dpo compares whole answers; remove it",
    ),
    "a correction of tokens": (
        ONLINE,
        {"rollout": {"mismatch": "icepop"}},
        "rollout.mismatch: weighs or drops tokens, and dpo compares whole answers; remove it",
    ),
    "weights of a mixture": (
        ONLINE,
        {"rollout": {"mixture": {"target": "t", "alpha": 0.5}}},
        "rollout.mixture.weights: weighs tokens, and dpo compares whole answers; set weights: null",
    ),
    "nothing to whiten": (
        GRPO,
        {"advantage": {"whiten": {}}},
        "advantage.whiten: changes advantages, and nothing before it gives any; put an estimator before whiten",
    ),
    "samples of nothing": (PAIRS, {"eval": {"samples": 4}}, f"eval.samples: {UNANSWERED}"),
    "temperatures of nothing": (PAIRS, {"eval": {"temperatures": [0]}}, f"eval.temperatures: {UNANSWERED}"),
    "votes on nothing": (SFT, {"eval": {"same": "number"}}, f"eval.same: {UNANSWERED}"),
    "logits of nothing": (SFT, {"eval": {"logits": True}}, f"eval.logits: {UNANSWERED}"),
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
    assert "evaluation: at most 64 held-out pairs, before, after" in plan
    assert "each answer is measured once, and kept" in plan
    plan = "\n".join(describe_plan(make_recipe({**PAIRS, "reward": "exact"})))
    assert "evaluation: at most 64 held-out pairs, at most 64 held-out problems x 2, before" in plan


def test_what_an_evaluation_samples_needs_something_that_judges_it():
    measures = {"samples": 4, "temperatures": [0], "same": "number", "logits": True}
    for values in (PAIRS, SFT):
        plan = "\n".join(describe_plan(make_recipe({**values, "eval": {**measures, "reward": "exact"}})))
        assert "held-out problems x 4" in plan
        assert "; also greedily" in plan


def test_advantages_of_turns_may_be_whitened():
    task = {"gym": "chain_sum"}
    recipe = make_recipe({**GRPO, "task": task, "advantage": {"group_advantage": {}, "whiten": {}}})
    credit = SimpleNamespace(credit="turn")
    by_turn = recipe.model_copy(update={"task": credit})
    assert not list(critic_problems(by_turn))
    token_by_token = {"advantage": {"gae": {}, "whiten": {}}, "critic": Critic()}
    (problem,) = critic_problems(by_turn.model_copy(update={**token_by_token, "loss": {"value": {}}}))
    assert "gae gives it token by token" in problem.message


def test_sampled_pairs_are_in_the_plan():
    recipe = make_recipe(ONLINE)
    assert recipe.rollout.for_evaluation().pairs is None
    assert "the best by reward against the worst" in "\n".join(describe_plan(recipe))


def test_pairs_take_the_place_of_a_recipes_own_problems():
    given = ["method=dpo", "task.pairs=p.jsonl", "reward=null"]
    task = load_recipe("sft", given).task
    assert (task.source, task.paired, task.heldout) == ("p.jsonl", True, None)
