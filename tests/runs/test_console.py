"""What a run prints, in a terminal and in a log."""

import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from klent.config import make_recipe
from klent.runs.console import QuietConsole, TrainConsole
from klent.runs.plan import describe_plan, title_of

RECIPE = make_recipe(
    {"name": "r", "model": "m", "method": "grpo", "task": {"gym": "chain_sum"}, "reward": "gym", "steps": 3}
)


def row(step: int, **values: float) -> dict:
    return {
        "step": step,
        "reward/mean": 0.25 * step,
        "policy/entropy": 2.0,
        "kl/update": 3e-4,
        "grad/norm": 1.5,
        "tokens/rollout_per_second": 412.3,
        "time/step": 20.0,
    } | values


def play(console: TrainConsole, steps: int = 3) -> None:
    console.start(title_of(RECIPE), describe_plan(RECIPE), steps=RECIPE.steps)
    before = {
        "step": 0,
        "accuracy": 0.2,
        "low": 0.1,
        "high": 0.3,
        "problems": 50,
        "seconds": 3.0,
        "entropy": 2.0,
    }
    console.eval(before)
    for step in range(1, steps + 1):
        console.phase("rollout", 8, 64)
        console.phase("train")
        console.step(row(step))
    after = {**before, "step": 3, "accuracy": 0.75, "low": 0.6, "high": 0.85}
    console.finish(Path("runs/r"), before, after if steps == 3 else None)


@pytest.fixture
def log() -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False)
    play(TrainConsole(console))
    return console.file.getvalue()


@pytest.fixture
def terminal() -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, highlight=False)
    play(TrainConsole(console))
    return console.file.getvalue()


def test_a_log_has_one_plain_line_per_step(log):
    lines = [line for line in log.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert lines[1] == (
        "step 2/3 reward/mean=0.500 policy/entropy=2.000 kl/update=0.0003 grad/norm=1.5 "
        "tokens/rollout_per_second=412 time/step=20.0s left=20.0s"
    )
    assert "\x1b" not in log
    assert "\r" not in log


def test_a_log_begins_with_the_plan_and_ends_with_the_report(log):
    assert log.splitlines()[0] == "r · grpo · m"
    assert "each step: 8 prompts of chain_sum x 8 completions" in log
    assert log.splitlines()[-1] == "report: runs/r/report.html"
    assert "before" in log
    assert "0.600 to 0.850" in log
    assert "held-out accuracy before training: 0.200 (95% interval 0.100 to 0.300) on 50 problems, 3 s" in log


def test_a_terminal_has_a_table_and_a_live_line(terminal):
    table = [
        line
        for line in re.sub(r"\r|\x1b\[2K", "\n", terminal).splitlines()
        if "2/3" in line and "0.500" in line
    ]
    assert any(
        line.split() == ["2/3", "0.500", "2.000", "0.0003", "-", "1.5", "412", "20.0s"] for line in table
    )
    assert "reward 0.500 · entropy 2.000 · KL 0.0003 · tok/s 412" in terminal
    assert "20.0s left" in terminal


def test_the_live_line_says_what_the_step_is_doing():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3)
    train.phase("rollout", 8, 64)
    train.warn("printing draws the live line again")
    train.phase("saving")
    train.warn("and again")
    train.close()
    assert "step 1/3 rollout 8/64" in console.file.getvalue()
    assert "step 1/3 saving" in console.file.getvalue()


def test_the_live_line_goes_away_when_closed():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3)
    train.close()
    train.close()
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")


def test_kl_to_the_reference_comes_before_kl_of_the_update():
    console = Console(file=io.StringIO(), width=100)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3)
    train.step(row(1, **{"kl/reference": 0.5}))
    assert "kl/reference=0.5" in console.file.getvalue()


def test_values_that_are_missing_or_not_finite_are_left_out():
    console = Console(file=io.StringIO(), width=100)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3)
    train.step({"step": 1, "reward/mean": math.nan, "policy/entropy": None, "time/step": 1.0})
    assert "step 1/3 time/step=1.0s left=2.0s" in console.file.getvalue()


def test_a_stop_says_which_step_is_finished_and_how_to_continue():
    console = Console(file=io.StringIO(), width=100)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3)
    train.step(row(1))
    train.stopping()
    assert "finishing step 2, saving, then stopping; press again to stop now" in console.file.getvalue()
    train.step(row(2))
    train.finish(Path("runs/r"), None, None)
    assert "stopped after step 2 of 3; continue: klent resume runs/r" in console.file.getvalue()
    assert "runs/r/final" not in console.file.getvalue()


def test_resuming_says_where():
    console = Console(file=io.StringIO(), width=100)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3, done=2)
    assert "resuming after step 2\n" in console.file.getvalue()
    train.step(row(3))
    assert "step 3/3" in console.file.getvalue()


def test_resuming_a_finished_run_says_how_to_go_on():
    console = Console(file=io.StringIO(), width=100)
    TrainConsole(console).start(title_of(RECIPE), describe_plan(RECIPE), steps=3, done=3)
    assert "resuming after step 3; all are done, and steps=+20 would add 20" in console.file.getvalue()


def test_text_in_brackets_is_printed_as_it_is():
    console = Console(file=io.StringIO(), width=100)
    TrainConsole(console).warn("reward [red] raised")
    assert "warning: reward [red] raised" in console.file.getvalue()


def test_the_quiet_console_remembers(capsys):
    console = QuietConsole()
    console.warn("careful")
    play(console)
    assert [r["step"] for r in console.rows] == [1, 2, 3]
    assert [r["step"] for r in console.evals] == [0]
    assert console.warnings == ["careful"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3s"), (75, "1:15"), (3661, "1:01:01"), (math.nan, "-")]
)
def test_times(seconds, text):
    from klent.runs.console import clock

    assert clock(seconds) == text


def plain(*rows: dict, finish: bool = False) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False, markup=False)
    train = TrainConsole(console)
    train.start(title_of(RECIPE), describe_plan(RECIPE), steps=3, done=3)
    for each in rows:
        train.eval({"problems": 50, "samples": 2, "entropy": 2.0} | each)
    if finish:
        train.finish(Path("runs/r"), rows[0], rows[-1])
    return console.file.getvalue()


def test_graded_rewards_are_shown_by_their_mean():
    before = {"step": 0, "reward": 0.0, "reward_low": 0.0, "reward_high": 0.07, "accuracy": 0.0}
    after = {"step": 3, "reward": 0.3, "reward_low": 0.2, "reward_high": 0.4}
    text = plain(before, after, finish=True)
    assert "held-out mean reward after step 3: 0.300 (95% interval 0.200 to 0.400) on 50 problems" in text
    title, heads, *lines = text[text.rindex("held-out mean reward") :].splitlines()
    assert heads.split() == ["mean", "reward", "95%", "interval", "entropy,", "nats"]
    assert lines[0].split()[:2] == ["before", "0.000"]
    assert lines[1].split()[:2] == ["after", "0.300"]
    assert "accuracy" not in title + heads + "".join(lines)


def test_every_temperature_is_shown():
    values = {"temperature": 1.0, "accuracy": 0.1, "low": 0.05, "high": 0.2}
    before = {"step": 0, **values, "accuracy@0": 0.4, "low@0": 0.3, "high@0": 0.5}
    text = plain(before, {**before, "step": 3, "accuracy@0": 0.7}, finish=True)
    assert "before training: 0.100 (95% interval 0.050 to 0.200) at temperature 1, 0.400" in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "after, greedily 0.700 0.300 to 0.500" in rows
    assert any(line.startswith("after, at temperature 1 0.100 0.050 to 0.200") for line in rows)


def test_pairs_that_were_compared_are_shown_though_nothing_was_rewarded():
    before = {"step": 0, "preference/accuracy": 0.5, "preference/low": 0.4, "preference/high": 0.6}
    after = {**before, "step": 3, "preference/accuracy": 0.75, "preference/low": 0.6, "preference/high": 0.9}
    text = plain(before, after, finish=True)
    assert "held-out accuracy on pairs after step 3: 0.750 (95% interval 0.600 to 0.900) on 50 pairs" in text
    lines = [
        " ".join(line.split()) for line in text[text.rindex("held-out accuracy on pairs") :].splitlines()
    ]
    assert "before 0.500 0.400 to 0.600 -" in lines
    assert "after 0.750 0.600 to 0.900 -" in lines


def test_what_could_not_be_scored_is_said_and_has_no_number():
    row = {"step": 3, "reward": None, "unscorable_why": {"f raised ValueError: no (my.py, line 2)": 100}}
    text = plain(row)
    assert "held-out mean reward after step 3: no completion could be scored on 50 problems" in text
    assert "warning: held out, 100 completions unscorable: f raised ValueError: no (my.py, line 2)" in text
    assert "interval" not in text
