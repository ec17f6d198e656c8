"""Which runs a comparison has, what they are called, and what is refused."""

import pytest

from klent.config import load_recipe
from klent.errors import ConfigError
from klent.studies.compare.plan import describe, differences, make_arms, split_values
from studies.compare.fake import fake_plan, finish


def test_arms_are_every_combination_and_runs_go_seed_by_seed(tmp_path):
    plan = fake_plan(tmp_path, "method=grpo,rloo", "optimizer.lr=1e-5,2e-5", seeds=2)
    assert [arm.name for arm in plan.arms] == ["grpo-lr1e-5", "grpo-lr2e-5", "rloo-lr1e-5", "rloo-lr2e-5"]
    assert [(run.arm, run.seed) for run in plan.runs[3:5]] == [("rloo-lr2e-5", 0), ("grpo-lr1e-5", 1)]
    last = plan.runs[-1].recipe
    assert (last.method, last.optimizer.lr, last.seed, last.name) == ("rloo", 2e-5, 1, "rloo-lr2e-5-seed1")
    assert plan.runs[-1].folder == tmp_path / "runs" / "my-compare" / "rloo-lr2e-5-seed1"


def test_a_name_is_the_whole_name_and_seeds_count_from_the_recipes_own(tmp_path):
    plan = fake_plan(tmp_path, overrides=("name=mine", "seed=5"))
    assert (plan.folder, plan.seeds) == (tmp_path / "runs" / "mine", (5, 6, 7))


def test_commas_inside_brackets_and_quotes_stay():
    assert split_values("{a: 1, b: [2, 3]},x,'p,q'") == ["{a: 1, b: [2, 3]}", "x", "'p,q'"]
    (arm, other) = make_arms(["loss.ppo_clip={clip_low: 0.2, clip_high: 0.3},null"])
    assert arm.overrides == ("loss.ppo_clip={clip_low: 0.2, clip_high: 0.3}",)
    assert other.name == "ppo_clipnull"


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("method", "write --over KEY=VALUE,VALUE"),
        ("method=grpo,", "write --over KEY=VALUE,VALUE"),
        ("seed=1,2", "use --seeds for the number of seeds"),
        ("name=a,b", "named by their arm"),
        ("method=grpo,grpo", "two arms would be called grpo"),
        ("method=grpo,gprlo", "there is no method `gprlo`"),
        ("optimizer.lr=2e-5,0.00002", "resolve to the same recipe"),
    ],
)
def test_what_is_refused(tmp_path, over, said):
    with pytest.raises(ConfigError, match=said):
        fake_plan(tmp_path, over)


def test_a_recipe_that_sets_over_its_methods_makes_them_one(tmp_path):
    with pytest.raises(ConfigError, match="arms grpo and dapo resolve to the same recipe"):
        fake_plan(
            tmp_path, "method=grpo,dapo", overrides=("loss.ppo_clip.clip_high=0.2", "reduce.over=tokens")
        )


def test_a_recipe_without_evaluation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no `eval` section"):
        fake_plan(tmp_path, overrides=("eval=null",))


def test_arms_that_would_stop_at_different_steps_are_refused(tmp_path):
    early = ("eval.every=1", "eval.early_stop={signal: entropy}")
    with pytest.raises(ConfigError, match=r"eval\.early_stop would give the arms different numbers of steps"):
        fake_plan(tmp_path, overrides=early)


def test_a_folder_that_is_a_single_run_is_left_alone(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="is a single run"):
        fake_plan(tmp_path, overrides=("name=mine",))


def test_a_finished_run_with_other_settings_is_an_error_that_says_which(tmp_path):
    finish(fake_plan(tmp_path), lambda arm, seed: 0.5)
    with pytest.raises(
        ConfigError, match=r"grpo-seed0 was made with other settings \(steps: 4 there, 9 now\)"
    ):
        fake_plan(tmp_path, overrides=("steps=9",))


def test_more_arms_and_more_seeds_keep_what_is_done(tmp_path):
    finish(fake_plan(tmp_path, "method=grpo,rloo", seeds=2), lambda arm, seed: 0.5)
    plan = fake_plan(tmp_path, "method=grpo,rloo,dapo", seeds=3)
    assert [run.state for run in plan.runs].count("done") == 4
    assert "about 5 min 0 s for the 5 remaining runs" in describe(plan)[-1]


def test_a_run_without_its_last_evaluation_is_only_started(tmp_path):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: 0.5, only=1)
    evals = plan.runs[0].folder / "eval.jsonl"
    evals.write_text("".join(evals.read_text().splitlines(keepends=True)[:-1]))
    assert plan.runs[0].state == "started"


def test_unequal_budgets_are_said(tmp_path):
    plan = fake_plan(tmp_path, "steps=4,8")
    assert "the arms have different budgets: steps is 4, 8" in describe(plan)


def test_differences_name_dotted_keys(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model: m\nmethod: grpo\ntask: {gym: chain_sum}\nreward: gym\nsteps: 2\n"
    )
    one = load_recipe(tmp_path / "a.yaml")
    other = load_recipe(tmp_path / "a.yaml", ["rollout.temperature=0.7"])
    assert differences(one, other) == {"rollout.temperature": ("1.0", "0.7")}
