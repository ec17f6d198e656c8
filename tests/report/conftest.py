"""Pages that several tests read, each made once; no test may change them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from klent.report import write_report

from .fake_run import write_run
from .ugly import UGLY


@pytest.fixture(scope="session")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of 15 steps."""
    return write_report(write_run(tmp_path_factory.mktemp("pages") / "quickstart"))


@pytest.fixture(scope="session")
def ugly_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a run in ``UGLY`` -> its page."""
    return cache(lambda name: write_report(UGLY[name](tmp_path_factory.mktemp("ugly") / "r")))
