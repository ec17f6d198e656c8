"""Prints the table of streams in docs/notation.md from the registry: ``python -m klent.streams.page``.

The table stands between two comments; the rest of the page is written by hand.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from klent.io.files import write_atomic
from klent.streams.registry import REGISTRY, Stream

BEGIN = "<!-- table: streams, written by python -m klent.streams.page -->\n"
END = "\n<!-- end -->"


def markdown(streams: Iterable[Stream] = tuple(REGISTRY.values())) -> str:
    """The streams as a Markdown table, one row per stream, in the order given.

    >>> print(markdown([Stream("logp", "[B, T]", "nats", "of the action", "policy", "always")]))
    | stream | shape | unit | what it is | made by | when |
    |---|---|---|---|---|---|
    | `logp` | `[B, T]` | nats | of the action | policy | always |
    """
    rows = [
        ("stream", "shape", "unit", "what it is", "made by", "when"),
        *((f"`{s.name}`", f"`{s.shape}`", s.unit, s.meaning, s.producer, s.when) for s in streams),
    ]
    header, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *body])


def with_table(page: str, table: str) -> str:
    """The page with the table between its two comments replaced.

    >>> with_table(f"{BEGIN}old{END}, and what follows", "new").splitlines()[1:]
    ['new', '<!-- end -->, and what follows']

    Raises:
        ValueError: the page does not have the two comments exactly once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"expected {BEGIN.strip()!r} once, followed by {END.strip()!r}")
    return before + BEGIN + table + END + after


def main(path: Path) -> None:
    """Bring the table of a page up to date."""
    write_atomic(path, with_table(path.read_text(encoding="utf-8"), markdown()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/notation.md"))
