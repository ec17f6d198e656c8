"""The notebook of examples/ runs from top to bottom, on a tiny model; progress is one output drawn again."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_folder

from klent.runs.notebook import NotebookConsole, in_notebook

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_run.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = [str(Path(__file__).parents[1] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings.source = f"MODEL, STEPS = {str(tiny_folder(tmp_path / 'model'))!r}, 2"
    client(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    (bar,) = (o for o in outputs if "<progress" in str(o.get("data", {}).get("text/html")))
    assert "step 2 of 2" in bar["data"]["text/html"]
    assert not [output for output in outputs if "\x1b" in str(output.get("text"))]  # no live line beside it
    assert any("policy/entropy" in str(o.get("data", {}).get("text/plain")) for o in outputs)
    rows = (tmp_path / "runs" / "notebook" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) > 8
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def test_only_a_notebook_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shells = {name: type(name, (), {})() for name in ("ZMQInteractiveShell", "TerminalInteractiveShell")}
    seen = {}
    for name, shell in shells.items():
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        seen[name] = in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert seen == {"ZMQInteractiveShell": True, "TerminalInteractiveShell": False}
    assert not in_notebook()


def test_a_step_draws_the_same_output_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step makes an output, the others replace it; in it stand the last rows and the filled columns."""
    drawn: list[tuple[str, str]] = []

    def display(output: dict[str, str], **options: object) -> SimpleNamespace:
        drawn.append(("new", output["text/html"]))
        return SimpleNamespace(display_id="7")

    def update_display(output: dict[str, str], *, display_id: str, **options: object) -> None:
        drawn.append((display_id, output["text/html"]))

    face = SimpleNamespace(display=display, update_display=update_display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=face))
    monkeypatch.setitem(sys.modules, "IPython.display", face)
    console = NotebookConsole()
    console.start("a run", [], steps=12)
    for step in range(1, 12):
        console.step({"step": step, "reward/mean": step / 100, "policy/entropy": None, "time/step": 2.0})
    assert [name for name, _ in drawn] == ["new"] + ["7"] * 10
    last = drawn[-1][1]
    assert 'value="11" max="12"' in last
    assert "2.0s left" in last
    assert "<td>0.110</td>" in last
    assert "<td>0.030</td>" not in last
    assert last.count("<tr>") == 9
    assert "entropy" not in last
