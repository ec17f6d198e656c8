"""Pairs in the layouts of the field: where the prompt ends, what is refused, and what is kept."""

import json
from pathlib import Path

import pytest

from klent.errors import ConfigError, DataError
from klent.tasks import load_task
from klent.tasks.data import one_of_each
from klent.tasks.preferences import split_pair


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


ASKED = [user("2+2?")]
PAIR = ([said("4")], [said("5")])
LAYOUTS = {
    "texts": (("2+2=", "4", "5"), ("2+2=", "4", "5")),
    "texts that repeat the prompt": (("2+2=", "2+2= 4", "2+2= 5"), ("2+2=", " 4", " 5")),
    "one text that repeats the prompt is an answer": (("2+2", "2+2 is 4", "5"), ("2+2", "2+2 is 4", "5")),
    "messages": ((ASKED, *PAIR), (ASKED, *PAIR)),
    "conversations behind their prompt": ((ASKED, ASKED + PAIR[0], ASKED + PAIR[1]), (ASKED, *PAIR)),
    "a prompt of text before conversations": (("2+2?", ASKED + PAIR[0], ASKED + PAIR[1]), (ASKED, *PAIR)),
    "a prompt of text before answers": (("2+2?", *PAIR), ("2+2?", *PAIR)),
    "conversations": ((None, ASKED + PAIR[0], ASKED + PAIR[1]), (ASKED, *PAIR)),
    "conversations of several turns": (
        (
            None,
            [*ASKED, said("4"), user("sure?"), said("yes")],
            [*ASKED, said("4"), user("sure?"), said("no")],
        ),
        ([*ASKED, said("4"), user("sure?")], [said("yes")], [said("no")]),
    ),
    "a conversation that goes on": (
        (None, [*ASKED, said("4")], [*ASKED, said("4"), user("sure?"), said("no")]),
        (ASKED, [said("4")], [said("4"), user("sure?"), said("no")]),
    ),
    "a transcript": (
        (None, "\n\nHuman: 2+2?\n\nAssistant: It is 4", "\n\nHuman: 2+2?\n\nAssistant: It is 5"),
        ("\n\nHuman: 2+2?\n\nAssistant:", " It is 4", " It is 5"),
    ),
    "texts that part inside a word": ((None, "say sunny", "say sunday"), ("say", " sunny", " sunday")),
    "one text goes on": ((None, "say it", "say it twice"), ("say", " it", " it twice")),
}


def row(prompt, chosen, rejected, **more):
    return {**({} if prompt is None else {"prompt": prompt}), "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_cut_where_the_answers_begin(name):
    given, expected = LAYOUTS[name]
    found = split_pair(row(*given, margin=1.5), "prompt", "p.jsonl:1")
    assert (found["prompt"], found["chosen"], found["rejected"]) == expected
    assert found["margin"] == 1.5
    if isinstance(given[1], str) and given[0] is None:  # nothing of a whole text is lost
        assert (expected[0] + expected[1], expected[0] + expected[2]) == given[1:]


REFUSED = {
    "equal": (("q", "a", "a"), "'chosen' and 'rejected' are the same, so neither is preferred"),
    "empty": (("q", "a", " "), "'rejected' is empty"),
    "nothing behind the prompt": (("q", "q a", "q "), "'rejected' has no answer after the prompt"),
    "an empty message": (
        (ASKED, PAIR[0], [said("")]),
        "'rejected', message 1: the assistant's message is empty",
    ),
    "two kinds": (("q", "a", PAIR[1]), "one of 'chosen' and 'rejected' is text and the other messages"),
    "a number": (("q", "a", 5), "'rejected' must be text or a list of messages, not int"),
    "the user's message": ((ASKED, PAIR[0], [user("x")]), "ends with a message of role 'user'"),
    "no shared beginning": ((None, "yes", "no"), "share no beginning that could be one ('yes', 'no')"),
    "no shared message": (
        (None, [user("a"), said("x")], [user("b"), said("y")]),
        "begin with different messages",
    ),
    "another prompt": (("3+3?", ASKED + PAIR[0], ASKED + PAIR[1]), "'prompt' is not how both"),
    "one conversation": ((ASKED, ASKED + PAIR[0], PAIR[1]), "'prompt' is not how both"),
    "the user differs": (
        (None, [*ASKED, said("4"), user("a"), said("x")], [*ASKED, said("4"), user("b"), said("y")]),
        "differ first in a message of role 'user'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused_with_its_place(name):
    given, reason = REFUSED[name]
    with pytest.raises(DataError) as error:
        split_pair(row(*given), "prompt", "p.jsonl:7")
    assert str(error.value).startswith("p.jsonl:7: ")
    assert reason in str(error.value)


def task(folder: Path, *rows, **keys):
    (folder / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    section = {"pairs": "p.jsonl", **keys}
    return load_task(section, seed=0, heldout=0, needed=("chosen", "rejected"), base=folder)


def test_a_task_of_pairs_reads_them_and_keeps_the_other_columns(tmp_path):
    given = row(*LAYOUTS["conversations"][0], score_chosen=9.0, margin=2.0)
    found = task(tmp_path, given).train(0)
    assert found.prompt == ASKED
    assert found.columns == {"chosen": PAIR[0], "rejected": PAIR[1], "score_chosen": 9.0, "margin": 2.0}


@pytest.mark.parametrize(
    ("given", "keys", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, {}, "p.jsonl:1: no 'rejected'; columns are: prompt, chosen"),
        (row(None, "a b", "a c"), {"prompt_column": "question"}, "no 'question'; columns are"),
        ({"prompt": "q", "chosen": "a", "rejectd": "b"}, {}, "no 'rejected'; did you mean `rejectd`?"),
    ],
)
def test_missing_columns_are_named(tmp_path, given, keys, reason):
    with pytest.raises(DataError) as error:
        task(tmp_path, given, **keys)
    assert reason in str(error.value)


def test_pairs_of_one_prompt_stay_on_one_side(tmp_path):
    rows = [row(f"question {i % 5}", f"a{i}", f"b{i}") for i in range(20)]
    found = task(tmp_path, *rows, heldout=2)
    held = {prompt.prompt for prompt in found.heldout(9)}
    trained = {found.train(i).prompt for i in range(len(found))}
    assert (len(held), len(trained), held & trained) == (2, 3, set())


@pytest.mark.parametrize("apart", [False, True])
def test_every_pair_of_a_held_out_prompt_is_measured_one_of_each_first(tmp_path, apart):
    rows = [row(f"question {i % 5}", f"a{i}", f"b{i}") for i in range(20)]
    (tmp_path / "apart.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    keys = {"heldout_data": "apart.jsonl"} if apart else {"heldout": 2}
    found = task(tmp_path, *([row("another", "a", "b")] if apart else rows), **keys)
    held = found.heldout(1000)
    count = 5 if apart else 2
    assert len({prompt.prompt for prompt in held[:count]}) == count
    assert len({prompt.columns["chosen"] for prompt in held}) == len(held) == 4 * count
    assert one_of_each(held) == held[:count]


def test_of_prompts_alone_one_of_each_is_held_out(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"{i % 5}"}) + "\n" for i in range(20)))
    found = load_task({"data": "p.jsonl", "heldout": 2}, seed=0, heldout=0, base=tmp_path)
    assert len(found.heldout(1000)) == 2


@pytest.mark.parametrize(
    ("keys", "named"),
    [({}, "task.pairs"), ({"pairs": "p.jsonl", "heldout_data": "no.jsonl"}, "task.heldout_data")],
)
def test_a_file_that_is_not_there_is_named_by_the_key_that_names_it(tmp_path, keys, named):
    (tmp_path / "p.jsonl").write_text(json.dumps(row("q", "a", "b")) + "\n")
    with pytest.raises(ConfigError, match=f"{named}: there is no file no.jsonl"):
        load_task({"pairs": "no.jsonl", **keys}, seed=0, heldout=0, base=tmp_path)
