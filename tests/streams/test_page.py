"""docs/notation.md shows the registry of streams as it is."""

from pathlib import Path

import pytest

from klent.streams.page import BEGIN, END, main, markdown, with_table
from klent.streams.registry import REGISTRY, Stream

PAGE = Path(__file__).parents[2] / "docs" / "notation.md"


def test_the_committed_table_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, markdown()) == page, "run: python -m klent.streams.page"


def test_every_stream_has_one_row_with_all_that_the_registry_says() -> None:
    rows = markdown().splitlines()[2:]
    assert len(rows) == len(REGISTRY)
    for row, stream in zip(rows, REGISTRY.values(), strict=True):
        name, shape, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert (name, shape) == (f"`{stream.name}`", f"`{stream.shape}`")
        assert cells == list(stream[2:])


@pytest.mark.parametrize("stream", REGISTRY.values(), ids=REGISTRY)
def test_a_stream_fits_a_table(stream: Stream) -> None:
    assert all(stream), "a field is empty"
    assert not any(character in text for text in stream for character in "|\n")
    assert stream.shape in ("[B, T]", "[B]")


def test_writing_changes_the_table_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{BEGIN}old{END}\n\nbelow\n")
    main(page)
    main(page)
    assert page.read_text() == f"above\n\n{BEGIN}{markdown()}{END}\n\nbelow\n"


@pytest.mark.parametrize("page", ["", f"{BEGIN}no end", f"{BEGIN}{END}{BEGIN}{END}", f"{END}{BEGIN}"])
def test_a_page_without_the_two_comments_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        with_table(page, "table")
