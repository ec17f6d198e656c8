"""Run folder -> page: metrics, figures, facts and samples in one HTML file that opens anywhere, offline."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klent.report.page import write_report as write_report
    from klent.report.read import RunData as RunData
    from klent.report.read import read_run as read_run

_MODULES = {
    "write_report": "klent.report.page",
    "read_run": "klent.report.read",
    "RunData": "klent.report.read",
}
__all__ = ["RunData", "read_run", "write_report"]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'klent.report' has no attribute {name!r}")
