"""Figures, checked by the data that can be read back out of them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from klent.kit.svg import ROLES
from klent.report import figures, rlhf
from klent.report.curves import DRAWN_AT_MOST, SMOOTH_ABOVE, smooth
from klent.report.fit import fit_run, reward_entropy
from klent.report.read import RunData, read_run

from .fake_run import write_run
from .svg_data import group, marker, path

CURVES = [
    (figures.reward, "reward/mean"),
    (figures.reward, "group/zero_variance"),
    (figures.entropy, "policy/entropy"),
    (figures.entropy, "policy/entropy_delta"),
    (figures.entropy, "policy/entropy_delta_predicted"),
    (figures.kl, "kl/update"),
    (figures.kl, "kl/reference"),
    (figures.length, "completion/length"),
    (figures.length, "completion/truncated"),
    (figures.gradient, "grad/norm"),
    (figures.gradient, "objective/zero_fraction"),
    (figures.agreement, "policy/logp_mismatch"),
    (figures.speed, "tokens/rollout_per_second"),
    (figures.speed, "tokens/train_per_second"),
]
EVERY = [
    figures.reward,
    figures.entropy,
    figures.kl,
    figures.length,
    figures.gradient,
    figures.agreement,
    figures.speed,
    figures.time,
    figures.accuracy,
    lambda run: reward_entropy(run, fit_run(run)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "quickstart"))


def rows(values: dict[str, list[float | None]], **config: object) -> RunData:
    """A run of nothing but some columns."""
    count = len(next(iter(values.values())))
    made = [{"step": i + 1} | {name: column[i] for name, column in values.items()} for i in range(count)]
    return RunData(Path("r"), rows=made, config=dict(config))


def assert_line_shows(heights: list[float], values: list[float]) -> None:
    """Pixels are an affine picture of the values, larger values higher up."""
    slope, offset = np.polyfit(values, heights, 1)
    assert slope < 0
    np.testing.assert_allclose(heights, slope * np.array(values) + offset, atol=0.02)


@pytest.mark.parametrize(("figure", "metric"), CURVES)
def test_a_curve_shows_every_step_at_its_height(run: RunData, figure, metric: str) -> None:
    drawn = figure(run)
    (points,) = path(drawn.svg, f"{drawn.name}.{metric.replace('/', '-')}")
    steps, values = run.series(metric)
    assert_line_shows([y for _, y in points], values)
    np.testing.assert_allclose([x for x, _ in points], drawn.x, atol=0.06)
    assert drawn.steps == steps
    key = next(key for key in drawn.keys if key.metric == metric)
    assert len(key.values) == len(steps)
    assert f"stroke: var(--{key.role});" in group(drawn.svg, f"{drawn.name}.{metric.replace('/', '-')}")
    assert ("stroke-dasharray" in group(drawn.svg, f"{drawn.name}.{metric.replace('/', '-')}")) == (
        key.mark == "dash"
    )


def test_a_gap_breaks_the_line() -> None:
    drawn = figures.reward(rows({"reward/mean": [0.1, 0.2, math.nan, 0.3, None, 0.5, 0.6]}))
    pieces = path(drawn.svg, "reward.reward-mean")
    assert [len(piece) for piece in pieces] == [2, 1, 2]
    assert group(drawn.svg, "reward.reward-mean").count("<use") == 5
    assert drawn.keys[0].values == ["0.100", "0.200", "–", "0.300", "–", "0.500", "0.600"]


def test_what_was_not_measured_is_not_drawn() -> None:
    only = rows({"kl/update": [0.1, 0.2]})
    assert [figure(only) is not None for figure in EVERY] == [False, False, True, *[False] * 7]
    drawn = figures.kl(only)
    assert [key.metric for key in drawn.keys] == ["kl/update"]
    assert "from the reference" not in drawn.svg
    assert all(figure(RunData(Path("r"))) is None for figure in EVERY)


MIXTURE = {
    "mixture/alpha": [0.2, 0.5, 1.0],
    "mixture/ess": [0.3, 0.6, 0.9],
    "mixture/kl_policy": [0.5, 0.2, 0.1],
    "mixture/kl_target": [0.1, 0.3, 0.7],
}


def test_a_mixture_has_a_figure_of_its_own_and_no_other_run_has(run: RunData) -> None:
    drawn = figures.mixture(rows(MIXTURE))
    assert [key.metric for key in drawn.keys] == list(MIXTURE)
    for metric, values in MIXTURE.items():
        (points,) = path(drawn.svg, f"mixture.{metric.replace('/', '-')}")
        assert_line_shows([y for _, y in points], values)
    tops = [path(drawn.svg, f"mixture.mixture-{name}")[0][2][1] for name in ("alpha", "kl_target")]
    assert tops[0] < tops[1]  # alpha 1 is at the top of the upper panel
    assert "between the target (alpha 0) and the policy (alpha 1)" in drawn.caption
    assert figures.mixture(run) is None


def test_a_critic_has_a_figure_of_its_own_and_no_other_run_has(run: RunData) -> None:
    assert rlhf.critic(run) is None
    rows = [
        {"step": step, "value/mean": 0.1 * step, "value/explained": -0.1 * step, "value/error": 0.2}
        for step in (1, 2)
    ]
    figure = rlhf.critic(RunData(Path(), rows=rows))
    assert figure is not None
    assert {key.metric for key in figure.keys} == {"value/mean", "value/explained", "value/error"}


def test_the_policys_own_reward_stands_beside_the_mixtures() -> None:
    values = {"reward/mean": [0.5, 0.6], "mixture/policy_reward": [0.1, 0.3]}
    drawn = figures.reward(rows(values))
    assert [(key.metric, key.mark) for key in drawn.keys] == [
        ("reward/mean", "line"),
        ("mixture/policy_reward", "dash"),
    ]
    (own,), (mixed,) = (path(drawn.svg, f"reward.{name.replace('/', '-')}") for name in reversed(values))
    assert own[0][1] > mixed[0][1]  # lower on the page


def test_one_step_is_a_point() -> None:
    drawn = figures.reward(rows({"reward/mean": [0.4]}))
    assert drawn.steps == [1]
    assert group(drawn.svg, "reward.reward-mean").count("<use") == 1


def test_loss_is_drawn_only_where_there_is_no_reward() -> None:
    assert figures.loss(rows({"objective/loss": [2.0, 1.0]})) is not None
    assert figures.loss(rows({"objective/loss": [2.0, 1.0], "reward/mean": [0.1, 0.2]})) is None


def test_a_long_run_is_smoothed_and_says_so() -> None:
    values = [math.sin(i) for i in range(SMOOTH_ABOVE + 1)]
    drawn = figures.reward(rows({"reward/mean": values}))
    (bold,) = path(drawn.svg, "reward.reward-mean")
    assert_line_shows([y for _, y in bold], smooth(values, 5))
    (faint,) = path(drawn.svg, "reward.reward-mean-raw")
    assert_line_shows([y for _, y in faint], values)
    assert "Faint: each step; bold: mean of 5 steps." in drawn.caption


def test_a_gap_in_a_long_run_stays_a_gap() -> None:
    values: list[float | None] = [1.0] * 60 + [None] * 20 + [1.0] * 60
    drawn = figures.reward(rows({"reward/mean": values}))
    first, second = path(drawn.svg, "reward.reward-mean-raw")
    ends = [first[0][0], first[-1][0], second[0][0], second[-1][0]]
    np.testing.assert_allclose(ends, [drawn.x[place] for place in (0, 59, 80, 139)], atol=0.06)


def test_the_drawing_of_a_very_long_run_does_not_grow() -> None:
    short, long = (
        rows(
            {
                "reward/mean": [math.sin(i) for i in range(n)],
                "policy/entropy": [2 + math.cos(i) for i in range(n)],
            }
        )
        for n in (DRAWN_AT_MOST * 2, DRAWN_AT_MOST * 20)
    )
    assert len(figures.reward(long).svg) < 1.2 * len(figures.reward(short).svg)
    assert len(figures.reward(long).steps) <= DRAWN_AT_MOST
    assert figures.reward(long).steps[-1] == DRAWN_AT_MOST * 20
    relation = reward_entropy(long, fit_run(long))
    assert relation.svg.count("<use") < 700


def test_fractions_keep_the_same_axis() -> None:
    low, high = (figures.length(rows({"completion/truncated": [0.01, share]})) for share in (0.02, 0.9))
    (a,), (b,) = (path(drawn.svg, "length.completion-truncated") for drawn in (low, high))
    assert a[0] == pytest.approx(b[0], abs=0.02)


def test_time_is_stacked_from_rollout_up(run: RunData) -> None:
    drawn = figures.time(run)
    heights = {}
    for name in ("rollout", "score", "train", "rest"):
        (corners,) = path(drawn.svg, f"time.time-{name}-3")
        ys = [y for _, y in corners]
        heights[name] = (max(ys), max(ys) - min(ys))
    row = run.rows[2]
    seconds = [row["time/rollout"], row["time/score"], row["time/train"]]
    seconds.append(row["time/step"] - sum(seconds))
    pixel = heights["rollout"][1] / seconds[0]
    np.testing.assert_allclose(
        [tall for _, tall in heights.values()], [s * pixel for s in seconds], atol=0.05
    )
    bottoms = [bottom for bottom, _ in heights.values()]
    stacked = np.cumsum([0.0, *(tall for _, tall in heights.values())])[:-1]
    np.testing.assert_allclose(bottoms, bottoms[0] - stacked, atol=0.1)


def test_rest_is_never_negative() -> None:
    parts = figures.time_parts(
        rows({"time/step": [1.0, 2.0], "time/rollout": [1.5, 0.5], "time/train": [0.2, None]})
    )
    assert parts == {"rollout": [1.5, 0.5], "train": [0.2, 0.0], "rest": [0.0, 1.5]}


def test_accuracy_stands_inside_its_interval_on_one_scale(run: RunData) -> None:
    drawn = figures.accuracy(run)
    pixels, values = [], []
    for row in run.heldout:
        (ends,) = path(drawn.svg, f"accuracy.interval-{row['step']}")
        pixels += [ends[0][0], marker(drawn.svg, f"accuracy.accuracy-{row['step']}")[0], ends[1][0]]
        values += [row["low"], row["accuracy"], row["high"]]
    slope, offset = np.polyfit(values, pixels, 1)
    assert slope > 0
    np.testing.assert_allclose(pixels, slope * np.array(values) + offset, atol=0.05)
    assert drawn.caption == "n = 64 held-out problems, 2 samples per problem; 95% intervals."
    assert ">before<" in drawn.svg
    assert ">after<" in drawn.svg


def test_many_evaluations_become_a_curve_over_steps(run: RunData) -> None:
    evals = [
        {"step": 10 * i, "split": "heldout", "accuracy": i / 10, "problems": 5, "samples": 1}
        for i in range(8)
    ]
    drawn = figures.accuracy(RunData(Path("r"), evals=evals))
    points = [marker(drawn.svg, f"accuracy.accuracy-{row['step']}") for row in evals]
    assert_line_shows([y for _, y in points], [row["accuracy"] for row in evals])
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_reward_against_entropy_places_steps_curve_and_ceiling(run: RunData) -> None:
    fit = fit_run(run)
    drawn = reward_entropy(run, fit)
    spots = [marker(drawn.svg, f"reward-entropy.step-{row['step']}") for row in run.rows]
    entropies, rewards = run.series("policy/entropy")[1], run.series("reward/mean")[1]
    across = np.polyfit(entropies, [x for x, _ in spots], 1)
    up = np.polyfit(rewards, [y for _, y in spots], 1)
    assert across[0] > 0 > up[0]
    x, y = marker(drawn.svg, "reward-entropy.ceiling")
    assert x == pytest.approx(np.polyval(across, 0.0), abs=0.05)
    assert y == pytest.approx(np.polyval(up, fit.ceiling), abs=0.05)
    (seen,) = path(drawn.svg, "reward-entropy.fit-seen")
    (beyond,) = path(drawn.svg, "reward-entropy.fit-beyond")
    for px, py in [*seen, *beyond]:
        h = (px - across[1]) / across[0]
        assert py == pytest.approx(np.polyval(up, -fit.a * math.exp(h) + fit.b), abs=0.1)
    assert beyond[0][0] == pytest.approx(np.polyval(across, 0.0), abs=0.05)
    assert beyond[-1] == pytest.approx(seen[0], abs=0.02)


def test_a_poor_fit_shows_no_ceiling() -> None:
    noise = rows({"policy/entropy": [2.0, 1.0, 1.5, 0.5, 1.2], "reward/mean": [0.5, 0.1, 0.6, 0.5, 0.2]})
    fit = fit_run(noise)
    assert fit.poor
    assert "ceiling" not in reward_entropy(noise, fit).svg


@pytest.mark.parametrize("figure", EVERY)
def test_a_drawing_can_be_inlined(run: RunData, figure) -> None:
    drawn = figure(run)
    svg = drawn.svg
    assert svg.startswith("<svg viewBox=")
    assert not re.search(r"https?:|<image|<script|<style|<metadata|<!--|<\?xml|font-family", svg)
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"{drawn.name}.") for name in ids)
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
    assert {a or b for a, b in used} <= set(ids)
    assert not re.search(r"(?:fill|stroke): (?!none|var\(--)", svg), "a colour that the page cannot change"
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(ROLES)
    assert re.search(r"<text [^>]*>[^<]*(nats|reward|accuracy|seconds|tokens|norm)[^<]*</text>", svg)
    assert drawn.caption.startswith("n = ")
    json.dumps(drawn.x)
