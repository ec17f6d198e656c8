"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable


def nearest(key: str, valid: Iterable[str]) -> str:
    """``; did you mean `x`?`` for the closest of ``valid``, or nothing.

    >>> nearest("temprature", ["temperature", "top_p"])
    '; did you mean `temperature`?'
    """
    close = difflib.get_close_matches(key.replace("-", "_").lower(), list(valid), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""
