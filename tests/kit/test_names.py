"""The name that was meant: swaps, misspellings, and no guess where nothing is near."""

import itertools

import pytest

from klent.kit.names import closest, edits, nearest

METHODS = ["dpo", "dppo", "dr_grpo", "empo", "grpo", "gspo", "ipo", "ppo", "reinforce", "rloo", "thermostat"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpro", "grpo"),
        ("rgpo", "grpo"),
        ("grop", "grpo"),
        ("gsop", "gspo"),
        ("pop", "ppo"),
        ("grppo", "grpo"),
        ("reinforse", "reinforce"),
        ("thermotsat", "thermostat"),
    ],
)
@pytest.mark.parametrize("names", [METHODS, METHODS[::-1]])
def test_two_letters_that_changed_places_count_as_one_mistake(
    name: str, meant: str, names: list[str]
) -> None:
    assert closest(name, names) == meant
    assert nearest(name.upper(), names) == f"; did you mean `{meant}`?"


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    assert closest("transformers", METHODS) is None
    assert closest("grpo", []) is None
    assert nearest("transformers", METHODS) == ""


def by_recursion(one: str, other: str) -> int:
    """The definition of the optimal string alignment, word for word."""
    if not one or not other:
        return len(one) + len(other)
    least = min(
        by_recursion(one[:-1], other) + 1,
        by_recursion(one, other[:-1]) + 1,
        by_recursion(one[:-1], other[:-1]) + (one[-1] != other[-1]),
    )
    if one[-2:] == other[-2:][::-1] and len(one) > 1:
        least = min(least, by_recursion(one[:-2], other[:-2]) + 1)
    return least


def test_edits_are_those_of_the_definition() -> None:
    words = ["".join(word) for size in range(4) for word in itertools.product("ab", repeat=size)]
    words += ["gpro", "grpo", "gspo", "acb", "cab"]
    for one, other in itertools.product(words, words):
        assert edits(one, other) == by_recursion(one, other), (one, other)
