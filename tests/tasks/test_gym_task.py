"""reasoning-gym generators as tasks."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klent.config import GymSettings
from klent.errors import ConfigError, DataError, TooLong
from klent.tasks import GymTask, load_task
from klent.tasks.generator import items
from klent.tasks.process import Worker

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="module")
def generator() -> Iterator[Worker]:
    worker = Worker("klent.tasks.generator:items")
    yield worker
    worker.close()


@pytest.fixture
def make(generator: Worker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a GymTask, with one generator process for all, since each takes a second to start."""
    monkeypatch.setattr("klent.tasks.gym.Worker", lambda target: generator)

    def make_task(
        name: str,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        system: str | None = None,
        heldout: int = 0,
        too_long: str = "refuse",
    ) -> GymTask:
        section = GymSettings(gym=name, config=config or {}, system=system, too_long=too_long)
        return GymTask(section, seed=seed, heldout=heldout)

    return make_task


def questions(prompts: list[Any]) -> list[str]:
    return [prompt.columns["question"] for prompt in prompts]


def test_problems_that_do_not_fit_are_refused_at_the_start_or_others_are_drawn(make: Any) -> None:
    config = {**ONE_DIGIT, "max_terms": 6}

    def check(prompt: Any) -> None:
        if len(prompt.columns["question"]) > 75:
            raise TooLong("too long")

    whole = make("chain_sum", config, heldout=8)
    before = [whole.train(position).columns["question"] for position in range(40)]
    with pytest.raises(TooLong):
        whole.fit(check, lambda prompt: None)
    with pytest.raises(TooLong):
        make("chain_sum", config, heldout=8).fit(None, check)
    task = make("chain_sum", config, heldout=8, too_long="drop")
    assert task.fit(check, check) > 0
    after = [task.train(position).columns["question"] for position in range(40)]
    assert max(map(len, after)) <= 75 < max(map(len, before))
    assert [new for old, new in zip(before, after, strict=True) if len(old) <= 75] == [
        old for old in before if len(old) <= 75
    ]
    kept = task.heldout(8)
    assert 0 < len(kept) < 8
    assert [prompt.id for prompt in kept] == [
        p.id for p in whole.heldout(8) if len(p.columns["question"]) <= 75
    ]
    again = make("chain_sum", config, heldout=8, too_long="drop")
    again.fit(check, check)
    assert again.train(39).columns["question"] == after[39]


def test_a_problem_has_messages_the_answer_and_its_source(make: Any) -> None:
    prompt = make("chain_sum", ONE_DIGIT, 0, "Only the number.").train(3)
    assert prompt.id == "chain_sum/3"
    assert prompt.prompt[0] == {"role": "system", "content": "Only the number."}
    assert prompt.prompt[1] == {"role": "user", "content": prompt.columns["question"]}
    left, sign, right = prompt.columns["question"].rstrip(" =").split(": ")[1].split()
    assert int(prompt.columns["answer"]) == int(left) + int(sign + right)
    assert json.loads(json.dumps(prompt.columns)) == prompt.columns


def test_without_a_system_message_there_is_none(make: Any) -> None:
    assert [m["role"] for m in make("chain_sum", ONE_DIGIT).train(0).prompt] == ["user"]


@pytest.mark.parametrize("count", [0, 1, 40, 150])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_heldout_and_train_never_share_a_question(make: Any, count: int, seed: int) -> None:
    # two one-digit terms and two operators: 200 questions; at 150, train steps aside for most of its draws
    task = make("chain_sum", ONE_DIGIT, seed, heldout=count)
    kept_out = questions(task.heldout(count))
    assert len(set(kept_out)) == count
    drawn = questions([task.train(position) for position in range(120)])
    assert not set(kept_out) & set(drawn)
    assert len(set(drawn)) > 20


def test_positions_may_be_asked_in_any_order(make: Any) -> None:
    first = make("chain_sum", ONE_DIGIT, 7, heldout=50)
    second = make("chain_sum", ONE_DIGIT, 7, heldout=50)
    order = [1203, 0, 499, 500, 3]
    backwards = {position: second.train(position) for position in reversed(order)}
    assert second.heldout(50) == first.heldout(50)
    assert {position: first.train(position) for position in order} == backwards


def test_fewer_heldout_problems_are_a_prefix(make: Any) -> None:
    task = make("chain_sum", ONE_DIGIT, heldout=20)
    assert task.heldout(5) == task.heldout(20)[:5]
    assert task.heldout(20)[:5] == make("chain_sum", ONE_DIGIT, heldout=5).heldout(5)
    with pytest.raises(DataError, match="20 problems held out, not 21"):
        task.heldout(21)


def test_the_seed_decides_the_problems(make: Any) -> None:
    one, two = make("chain_sum", {}, 1), make("chain_sum", {}, 2)
    assert questions([one.train(i) for i in range(5)]) != questions([two.train(i) for i in range(5)])


def test_too_few_questions_to_hold_out(make: Any) -> None:
    with pytest.raises(
        DataError, match=r"about (19\d|200) distinct questions, and 250 .* lower eval.problems"
    ):
        make("chain_sum", ONE_DIGIT, heldout=250)


def test_nothing_left_to_train_on(make: Any) -> None:
    bits = {"min_terms": 1, "max_terms": 1, "min_digits": 1, "max_digits": 1}  # the ten questions 0 to 9
    with pytest.raises(DataError, match="almost no question besides the 10 held out"):
        make("chain_sum", bits, heldout=10)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chainsum", {}, r"no generator 'chainsum'; did you mean `chain_sum`"),
        ("chain_sum", {"min_term": 2}, r"no parameter 'min_term'; did you mean `min_terms`\?.*max_digits=4"),
        (
            "chain_sum",
            {"min_terms": 5, "max_terms": 2},
            r"max_terms must be >= min_terms; parameters of .*min_terms=2",
        ),
        ("chain_sum", {"min_terms": "two"}, r"refuses: .*str.*; parameters of chain_sum"),
        ("chain_sum", {"seed": 3}, r"remove 'seed'"),
        ("composite", {"datasets": [{"name": "chain_summ"}]}, r"composite refuses: .*chain_summ"),
    ],
)
def test_what_the_recipe_got_wrong(make: Any, name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, config)


def test_a_generator_that_always_fails(make: Any) -> None:
    # its word list has none so long
    with pytest.raises((ConfigError, DataError), match=r"spell_backward.*parameters of spell_backward"):
        make("spell_backward", {"min_word_len": 60, "max_word_len": 61})


def test_a_mixture_of_generators(make: Any) -> None:
    members = [{"name": "chain_sum", "weight": 1}, {"name": "gcd", "weight": 1}]
    task = make("composite", {"datasets": members}, heldout=4)
    text = " ".join(questions([task.train(i) for i in range(20)]))
    assert "arithmetic problem" in text
    assert "Greatest Common Divisor" in text


def test_problems_do_not_depend_on_global_random_state() -> None:
    # one of list_functions draws from it
    drawn = []
    for state in range(3):
        random.seed(state)
        items.__globals__["_entry"].cache_clear()
        drawn.append(items("list_functions", {}, [12345] * 3, [0, 1, 2]))
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_problems_do_not_depend_on_this_process_hash_seed(make: Any, hash_seed: str) -> None:
    # ransom_note's questions follow the order of a set
    code = (
        "from klent.tasks import load_task; "
        "print(load_task({'gym': 'ransom_note'}, seed=0, heldout=0).train(0).columns['question'])"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    seen = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == make("ransom_note").train(0).columns["question"].strip()


def test_reasoning_gym_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(DataError, match=r"pip install 'klent\[tasks\]'"):
        load_task({"gym": "chain_sum"}, seed=0, heldout=0)


def test_a_section_and_a_mapping_give_the_same_task(make: Any) -> None:
    config = {"gym": "chain_sum", "config": ONE_DIGIT, "system": None}
    task = load_task(config, seed=3, heldout=10)
    assert task.name == "chain_sum"
    assert task.heldout(10) == make("chain_sum", ONE_DIGIT, 3, heldout=10).heldout(10)
    section = GymSettings(gym="chain_sum", config=ONE_DIGIT, seed=3)
    assert load_task(section, seed=9, heldout=10).heldout(10) == task.heldout(10)  # its own seed counts


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "task: name one source: "),
        ({"gym": "chain_sum", "data": "x.jsonl"}, "task: name one source: "),
        ({"gym": "chain_sum", "confg": {}}, r"task\.confg: unknown key; did you mean `config`\?"),
        (
            {"gym": "chain_sum", "prompt_column": "x"},
            r"task\.prompt_column: .*only by a data task; remove it",
        ),
        ({"data": "x.jsonl", "config": {}}, r"task\.config: .*only by a gym task; remove it"),
        ({"data": 3}, r"task\.data: should be a valid string; got 3"),
        ({"data": "x.jsonl", "seed": -1, "only": []}, r"task\.only: .*; task\.seed: "),
    ],
)
def test_load_task_refuses(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(config, seed=0, heldout=0)


def test_generated_problems_have_no_completions() -> None:
    with pytest.raises(ConfigError, match=r"no completion; use task\.data"):
        load_task({"gym": "chain_sum"}, seed=0, heldout=0, needed=("completion",))
