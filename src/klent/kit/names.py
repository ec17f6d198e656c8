"""Names that nearly are the right ones, for messages."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """``; did you mean `x`?`` for the closest of ``valid``, or nothing.

    >>> nearest("temprature", ["temperature", "top_p"])
    '; did you mean `temperature`?'
    >>> nearest("zzz", ["temperature", "top_p"])
    ''
    """
    close = closest(name.replace("-", "_").lower(), valid)
    return f"; did you mean `{close}`?" if close else ""


def closest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``valid`` that ``name`` most likely means, or None.

    It is the one with the largest ratio of :mod:`difflib`, at least ``cutoff``. That ratio does not tell two letters
    that changed places from a letter that is wrong and one that is missing; between equal ratios the fewest edits
    decide.

    >>> closest("gpro", ["grpo", "gspo"])
    'grpo'
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=max(len(names), 1), cutoff=cutoff)
    best = [other for other in close if _ratio(name, other) == _ratio(name, close[0])]
    return min(best, key=lambda other: edits(name, other), default=None)


def edits(one: str, other: str) -> int:
    """Letters to insert, delete or replace, or neighbours to swap, between two names (optimal string alignment).

    >>> edits("gpro", "grpo"), edits("gpro", "gspo")
    (1, 2)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], last[j - 2] + 1)
    return row[-1]


def _ratio(name: str, other: str) -> float:
    """In the order in which ``get_close_matches`` compares: the ratio is not symmetric."""
    return difflib.SequenceMatcher(None, other, name).ratio()
