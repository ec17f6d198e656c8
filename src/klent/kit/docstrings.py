"""Docstrings as data and as Markdown: their text, their sections, and the meaning of each argument."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

WIDTH = 112
_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Note|Notes|Example|Examples|References):[ ]*$", re.M
)
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w, *]*): +(.*)$")
_LISTS = ("Args", "Attributes", "Raises")
_BLOCKS = ("Note", "Notes", "Example", "Examples")


class Docstring(NamedTuple):
    """What stands before the first section, and each section's body without its indent."""

    text: str
    sections: dict[str, str]

    @property
    def summary(self) -> str:
        """The first paragraph in one line."""
        return " ".join(self.text.partition("\n\n")[0].split())


def read_docstring(docstring: str | None) -> Docstring:
    """Split a docstring at its sections.

    >>> read_docstring("Sum.\\n\\nArgs:\\n    a: first.\\n        Nats.\\n").sections
    {'Args': 'a: first.\\n    Nats.'}
    """
    pieces = _SECTION.split(inspect.cleandoc(docstring or ""))
    bodies = (textwrap.dedent(body.strip("\n")).strip() for body in pieces[2::2])
    return Docstring(pieces[0].strip(), dict(zip(pieces[1::2], bodies, strict=True)))


def arguments(body: str) -> dict[str, str]:
    """Each argument's meaning, in one line; arguments that share an entry share the meaning.

    >>> arguments("a: first.\\n    Nats.\\nb, c: others.")
    {'a': 'first. Nats.', 'b': 'others.', 'c': 'others.'}
    """
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in body.splitlines():
        item = _ITEM.match(line)
        if item:
            names = [name.strip() for name in item[1].split(",")]
            meanings |= dict.fromkeys(names, item[2])
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}".strip() for name in names}
    return meanings


def as_markdown(docstring: str | None) -> str:
    """A docstring as Markdown: formulas and examples as code, arguments as lists.

    >>> print(as_markdown("Sum.\\n\\nArgs:\\n    a: first.\\n\\nReturns:\\n    A number.\\n"))
    Sum.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `a`: first.
    <BLANKLINE>
    **Returns**
    <BLANKLINE>
    A number.
    """
    read = read_docstring(docstring)
    parts = [_prose(read.text)]
    for name, body in read.sections.items():
        listed = name in _LISTS and arguments(body)
        items = (_wrapped(f"- `{key}`: {_plain(meaning)}", "  ") for key, meaning in (listed or {}).items())
        if name == "References":
            items = (_wrapped(f"- {_plain(line)}", "  ") for line in _entries(body))
        text = "\n".join(items)
        parts += [f"**{name}**", text or _prose(body)]
    return "\n\n".join(part for part in parts if part)


def _entries(body: str) -> list[str]:
    """References, one a line; an indented line goes on with the one before."""
    entries: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    return entries


def _prose(text: str) -> str:
    """Paragraphs; what is indented is a formula, and what begins with >>> is an example."""
    return "\n\n".join(_paragraphs(text))


def _paragraphs(text: str) -> Iterator[str]:
    code: list[str] = []
    for block in re.split(r"\n[ ]*\n", text):
        if not block.strip():
            continue
        lines = block.splitlines()
        start = next((i for i, line in enumerate(lines) if _is_code(line)), len(lines))
        if start and code:
            yield _fenced(code)
            code = []
        if start:
            yield _wrapped(_plain(" ".join(line.strip() for line in lines[:start])))
        if lines[start:]:
            code += ([""] if code else []) + lines[start:]
    if code:
        yield _fenced(code)


def _is_code(line: str) -> bool:
    return line.startswith((" ", ">>>", "```"))


def _fenced(lines: list[str]) -> str:
    inner = textwrap.dedent("\n".join(line for line in lines if not line.startswith("```")))
    language = "python" if ">>>" in inner else "text"
    return f"```{language}\n{inner.rstrip()}\n```"


def _plain(text: str) -> str:
    """Without Sphinx's roles, and with what HTML would read as a tag written out."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    pieces = re.split(r"(``.*?``|`[^`]*`)", text)
    pieces[::2] = [re.sub(r"<(?=[\w/!])", "&lt;", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
