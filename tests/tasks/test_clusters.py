"""Answers that mean the same: a partition, whatever the order, and what counts as no answer."""

from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klent.errors import ConfigError, ModelError
from klent.tasks.clusters import (
    NO_ANSWER,
    Equivalence,
    find_answer,
    find_clusters,
    is_copy,
    load_equivalence,
)

NEAR = Equivalence(lambda text: text or None, lambda a, b: abs(int(a) - int(b)) <= 1)  # not transitive


def partition(texts: list[str], labels: list[int]) -> set[frozenset[str]]:
    groups: dict[int, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        groups.setdefault(label, []).append(text)
    return {frozenset(group) for group in groups.values()}


def one_pass(texts: list[str]) -> list[int]:
    """As released code goes about it: a text without a cluster opens one and takes all that are near it."""
    labels = [NO_ANSWER] * len(texts)
    for place, text in enumerate(texts):
        if labels[place] == NO_ANSWER:
            labels[place] = place
            for later in range(place + 1, len(texts)):
                if NEAR.same(text, texts[later]):
                    labels[later] = place
    return labels


def test_a_later_cluster_steals_members_in_one_pass_and_not_here():
    assert one_pass(["1", "3", "2"]) == [0, 1, 1]  # 2 was of 1's cluster until 3 came
    assert len({frozenset(partition(list(o), one_pass(list(o)))) for o in permutations("123")}) > 1
    assert find_clusters(["1", "3", "2"], NEAR) == [0, 0, 0]


@given(st.lists(st.integers(0, 30).map(str), max_size=7), st.randoms())
def test_the_order_does_not_matter_and_the_relation_is_closed(texts, generator):
    shuffled = list(texts)
    generator.shuffle(shuffled)
    labels = find_clusters(texts, NEAR)
    assert partition(texts, labels) == partition(shuffled, find_clusters(shuffled, NEAR))
    numbers = sorted({int(text) for text in texts})  # on a line, components are runs without a gap
    runs = 1 + sum(b - a > 1 for a, b in pairwise(numbers)) if numbers else 0
    assert len(set(labels)) == runs
    assert all(labels[label] == label for label in labels)


def test_a_relation_that_holds_one_way_is_enough():
    one_way = Equivalence(lambda text: text, lambda a, b: a < b)
    assert find_clusters(["a", "b"], one_way) == find_clusters(["b", "a"], one_way) == [0, 0]


def test_equal_answers_are_not_compared():
    def refuse(a: str, b: str) -> bool:
        raise AssertionError

    assert find_clusters(["x", "x", "x"], Equivalence(lambda text: text, refuse)) == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>a</answer> no, <ANSWER> The  Cat.</ANSWER>", "the cat"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1{,}000.0} it is", "1000"),
        ("because\n#### 72.", "72"),
        ("−5.0", "-5"),
        ("Ｃａｔ", "cat"),
        (r"\boxed{never closed", r"\boxed{never closed"),
        ("  ", None),
        ("<answer></answer>", None),
        ("1 2", "1 2"),
    ],
)
def test_where_the_answer_stands(text, answer):
    assert find_answer(text) == answer


def test_no_answer_is_a_cluster_of_nobody():
    question = "How much is 4 + 5 ?"
    texts = ["9", "", "how much is 4 + 5 ?", "It is 9", "I say"]
    labels = find_clusters(texts, load_equivalence("number"), question)
    assert labels == [0, NO_ANSWER, NO_ANSWER, 0, NO_ANSWER]
    assert not is_copy("4 + 5", question)  # three words may be an answer
    assert not is_copy("4 + 5 ? 9", question)


def test_math_reads_expressions():
    pytest.importorskip("math_verify")
    texts = [r"$\frac{1}{2}$", "0.5", "$x^2+1$", "no idea", "$1+x^2$"]
    assert find_clusters(texts, load_equivalence("math")) == [0, 0, 2, NO_ANSWER, 2]


def test_a_function_of_the_user(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def same(a, b):\n    return a[0] == b[0]\n")
    relation = load_equivalence(f"{tmp_path / 'mine.py'}:same")
    assert find_clusters(["cat", "dog", "cow", " "], relation) == [0, 1, 0, NO_ANSWER]


def test_what_is_refused(monkeypatch, tmp_path: Path):
    with pytest.raises(ConfigError, match="'numbr' is neither one of text, number, math, meaning nor path"):
        load_equivalence("numbr")
    with pytest.raises(ValueError, match="threshold must be a cosine"):
        load_equivalence("meaning", threshold=1.5)
    monkeypatch.setenv("KLENT_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="klent models pull minilm"):
        load_equivalence("meaning")


@pytest.mark.real
def test_meanings():
    from klent.models.pull import pull

    pull("minilm")
    texts = ["The capital of France is Paris.", "Paris is the capital of France.", "It is Berlin.", "Lyon."]
    assert find_clusters(texts, load_equivalence("meaning")) == [0, 0, 2, 3]
