"""Reads data back out of a drawing, so that figures are checked by what they show."""

import re
from html.parser import HTMLParser

NUMBER = r"-?\d+(?:\.\d+)?"


def group(svg: str, gid: str) -> str:
    """The inside of one ``<g id=...>``."""
    start = svg.index(f'id="{gid}"')
    depth, place = 1, svg.index(">", start)
    for tag in re.finditer(r"<g\b[^>]*?(/?)>|</g>", svg[place:]):
        depth += -1 if tag[0] == "</g>" else 0 if tag[1] else 1
        if depth == 0:
            return svg[place : place + tag.start()]
    raise AssertionError(f"{gid} does not end")


def path(svg: str, gid: str) -> list[list[tuple[float, float]]]:
    """The pieces of a line, in pixels: a new piece begins where the pen was lifted."""
    found = re.search(r'<path d="([^"]*)"', group(svg, gid))
    assert found, f"{gid} draws no path"
    pieces = []
    for piece in found[1].split("M")[1:]:
        pairs = re.findall(rf"({NUMBER})\s+({NUMBER})", piece)
        pieces.append([(float(x), float(y)) for x, y in pairs])
    return pieces


def marker(svg: str, gid: str) -> tuple[float, float]:
    """Where a single point stands, in pixels."""
    found = re.search(rf'<use [^>]*x="({NUMBER})" y="({NUMBER})"', group(svg, gid))
    assert found, f"{gid} draws no point"
    return float(found[1]), float(found[2])


class Page(HTMLParser):
    """Every tag of a page with its attributes, every text, and whether tags close in the order they open."""

    VOID = frozenset({"meta", "br", "img", "input", "link", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
