"""The tables in ``docs/audit.md`` are those that the auditor writes today."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from klent.audit.candidates import MEANING
from klent.audit.table import own_tables, peer_table, replace_table

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
#: numbers that another machine rounds differently
NUMBER = re.compile(r"\d+\.\d+(?:e-\d+)?")


def compare(name: str, table: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = page.split(f"<!-- table: {name} -->\n")[1].split("\n<!-- end -->")[0]
    assert NUMBER.sub("#", written) == NUMBER.sub("#", table), "run python -m klent.audit.table"
    for one, other in zip(NUMBER.findall(written), NUMBER.findall(table), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.02)


def test_tables_are_up_to_date() -> None:
    for name, table in own_tables().items():
        compare(name, table)


@pytest.mark.parametrize("package", ["trl", "verl"])
def test_tables_of_peers_are_up_to_date(package: str) -> None:
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if f"\n{package} {installed}\n" not in PAGE.read_text(encoding="utf-8"):
        pytest.skip(f"the page is about another version of {package}")
    compare(package, peer_table(package))


def test_every_candidate_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in MEANING:
        assert f"`{name}`" in text or name.endswith("_old")


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="0 tables named x"):
        replace_table("no table", "x", "new")
