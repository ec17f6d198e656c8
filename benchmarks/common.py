"""Shared by the benchmarks: the machine's name, the date, writing tables. Not a benchmark itself."""

import csv
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def device_name() -> str:
    """The processor's model name and its widest vectors, which decide what a float32 product costs."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    widest = next((shown for flag, shown in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in text), None)
    return f"{name}, {widest}" if widest else name


def today() -> str:
    """The date, UTC, as ISO 8601."""
    return datetime.now(UTC).date().isoformat()


def write(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write a table as CSV, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def show(table: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print a table, with columns as wide as their widest cell."""
    cells = [list(columns), *([str(row.get(name, "")) for name in columns] for row in table)]
    width = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    for row in cells:
        print("  ".join(cell.rjust(width[k]) for k, cell in enumerate(row)), flush=True)
