"""Each signature has a run that triggers it alone, and a healthy one that does not."""

import pytest

from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.measure.findings.signatures import SIGNATURES
from klent.measure.watch import Watch

from .runs import ONSET, SICK, N, healthy


def table(**changes):
    return Table.of(healthy() | changes)


def test_a_healthy_run_has_no_finding():
    assert diagnose(table()) == []
    assert diagnose(Table([])) == []


def test_every_signature_has_a_run():
    assert {signature.__name__ for signature in SIGNATURES} == set(SICK) == set(ONSET)


@pytest.mark.parametrize("name", SICK)
def test_its_run_triggers_it_and_nothing_else(name):
    (found,) = diagnose(table(**SICK[name]))
    assert found.name == name
    assert found.until is None
    first, last = ONSET[name]
    assert first <= found.onset <= last, found
    assert 0 < found.severity <= 1
    assert found.evidence.endswith(".")
    assert found.remedy.endswith(".")


@pytest.mark.parametrize("name", SICK)
def test_without_its_columns_it_is_silent(name):
    """A log of another trainer may lack any of them."""
    assert diagnose(Table.of({"optimizer/lr": [1e-5] * N})) == []
    kept = {column: values for column, values in healthy().items() if column not in SICK[name]}
    assert diagnose(Table.of(kept)) == []


@pytest.mark.parametrize("name", SICK)
def test_the_console_is_told_once_when_it_starts(name):
    rows = table(**SICK[name]).rows
    watch, told = Watch(), []
    for row in rows:
        watch.see(dict(row))
        told += [(row["step"], line) for line in watch.news()]
    (when, line), *rest = told
    assert rest == []
    # Half of the form's gain so far comes earlier than half of the whole gain; its signature needs ten steps.
    first = 10 if name == "format_gaming" else ONSET[name][0] - 1
    assert when >= first
    assert " since step " in line


def test_the_gravest_comes_first():
    found = diagnose(table(**SICK["throughput_decay"], **SICK["nonfinite"]))
    assert [finding.name for finding in found] == ["nonfinite", "throughput_decay"]
    assert found[0].grave
    assert not found[1].grave


def test_what_is_over_says_so_and_weighs_less():
    blown = [0.01] * 10 + [1.5] * 5 + [0.01] * 15
    (found,) = diagnose(table(**{"kl/update": blown}))
    assert (found.onset, found.until) == (12, 16)
    assert found.severity < diagnose(table(**SICK["kl_blowup"]))[0].severity


def test_one_noisy_step_is_no_finding():
    for name, columns in SICK.items():
        if name in ("nonfinite", "entropy_collapse"):
            continue
        spiked = {}
        for column, values in columns.items():
            spiked[column] = [*healthy()[column]]
            spiked[column][15] = values[-1]
        assert diagnose(table(**spiked)) == [], name


def test_slower_because_there_is_less_to_do_is_no_decay():
    """Tokens a second fall with the tokens of a step where overhead is all that is left."""
    less = {"tokens/rollout": [6400 - 180 * i for i in range(N)]}
    speed = {"tokens/rollout_per_second": [1000 - 26 * i for i in range(N)]}
    assert diagnose(table(**less, **speed)) == []
    assert [f.name for f in diagnose(table(**speed))] == ["throughput_decay"]


def test_a_resumed_watch_goes_on_as_if_it_had_not_stopped():
    rows = table(**SICK["entropy_collapse"]).rows
    whole = Watch()
    law = [whole.see(dict(row)) for row in rows]
    again = Watch(dict(row) for row in rows[:20])
    assert again.news() == []
    assert [again.see(dict(row)) for row in rows[20:]] == law[20:]
    assert "law/entropy_spent" in law[-1]
    assert any("law/floor_step" in metrics for metrics in law[20:-1])


def test_groups_that_were_not_scored_are_not_groups_with_equal_rewards():
    nothing = {
        "group/zero_variance": [1.0] * N,
        "reward/mean": [None] * N,
        "reward/std": [None] * N,
        "reward/unscorable": [1.0] * N,
    }
    assert [finding.name for finding in diagnose(table(**nothing))] == ["unscorable"]
    mostly = {"group/zero_variance": [1.0] * N, "reward/unscorable": [0.9] * N}
    assert [finding.name for finding in diagnose(table(**mostly))] == ["unscorable"]


def test_a_log_without_rewards_gets_no_mean():
    (found,) = diagnose(Table.of({"group/zero_variance": [0.9] * N}))
    assert found.name == "zero_variance"
    assert "get the same reward, so" in found.evidence


def test_the_cost_of_a_step_does_not_grow_with_the_run(monkeypatch):
    """Rows read by looks, divided by steps, is bounded; every step of a shorter run is looked at."""
    from klent.measure import watch

    read = []
    monkeypatch.setattr(watch, "law_metrics", lambda rows: read.append(len(rows)) or {"law/r2": 1.0})
    monkeypatch.setattr(watch, "diagnose", lambda table: read.append(len(table.rows)) or [])
    watching = Watch()
    seen = []
    for step in range(1, 8001):
        seen.append(watching.see({"step": step}))
        watching.news()
    assert all(seen[:511])  # and so in every golden
    late = sum(count for count in read if count > 4000) / 4000
    assert late <= 2 * 2 * watch.LOOKS
    again = Watch({"step": step} for step in range(1, 7001))
    assert [again.see({"step": step}) for step in range(7001, 8001)] == seen[7000:]
