"""The house: imports point down, no file is in a circle, files and functions stay small, the guide is true."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import klent

ROOT = Path(klent.__file__).parent
REPO = ROOT.parents[1]

FLOORS = [
    "cli",
    "claims",
    "studies",
    "integrations",
    "runs",
    "report",
    "measure",
    "control",
    "training",
    "rollout",
    "policies",
    "tasks",
    "audit",
    "config",
    "environments",
    "models",
    "mixture",
    "streams",
    "head",
    "objectives",
    "kit",
    "io",
    "errors",
]
"""From top to bottom: a package imports those below it, and itself."""

FACES = {"klent", "klent.__main__"}  # the public face names everything, and is imported by nothing


PAGES = sorted(REPO / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")) + sorted(
    [*(REPO / "docs").rglob("*.md"), *(REPO / "examples").rglob("*.md")]
)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module."""
    named = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of klent that a file imports as it runs, also inside functions; not those for types alone."""
    yield from _imports(ast.parse(file.read_text(encoding="utf-8")), known)


def _imports(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, known)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in known)
        elif isinstance(child, ast.ImportFrom) and child.module in known:
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                yield submodule if submodule in known else child.module
        else:
            yield from _imports(child, known)


def arrows() -> list[tuple[str, str]]:
    """(importing module, imported module), of all of klent but its face."""
    known = modules()
    return [
        (name, target)
        for name, file in known.items()
        if name not in FACES
        for target in imports(file, known)
        if target not in FACES
    ]


def floor(module: str) -> int:
    """The floor of a module's package, 0 at the top."""
    return FLOORS.index(module.split(".")[1])


def test_every_package_has_a_floor():
    assert {name.split(".")[1] for name in modules() if name not in FACES} == set(FLOORS)


def test_imports_point_down():
    upward = [f"{name} -> {target}" for name, target in arrows() if floor(target) < floor(name)]
    assert not upward, "\n".join(upward)


def test_no_file_is_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name, target in arrows():
        if target != name and not name.startswith(target + "."):  # a package's face names its own files
            graph.setdefault(name, set()).add(target)
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_the_graph_test_sees_lazy_imports_and_not_those_for_types(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from klent.cli import app\n"
        "def later():\n    from klent.runs import loop\n    import klent.report.page\n"
    )
    assert list(imports(file, modules())) == ["klent.runs.loop", "klent.report.page"]


FILES = sorted(ROOT.rglob("*.py"))


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """(name, lines of code under the docstring) of every function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            yield node.name, (node.end_lineno or 0) - (start or 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    long = [(name, lines) for name, lines in functions(file) if lines > 60]
    assert not long


def test_the_median_function_is_small():
    lines = [count for file in FILES for _, count in functions(file)]
    assert statistics.median(lines) <= 9


def test_any_is_scarce():
    uses = sum(len(re.findall(r"\bAny\b", file.read_text(encoding="utf-8"))) for file in FILES)
    assert uses <= 172, f"Any stands {uses} times: give things their types"


def test_nobody_asks_for_the_class_of_a_section():
    """Sections answer for themselves; outside config only code that chooses between engines may look."""
    import klent.config as config

    sections = {name for name in config.__all__ if isinstance(getattr(config, name), type)}
    asked = re.compile(r"isinstance\([^)]*\b(" + "|".join(sorted(sections)) + r")\b")
    outside = [file for file in FILES if "config" not in file.relative_to(ROOT).parts]
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in outside
        for match in asked.finditer(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


ROOTS = {
    f"runs/{name}.py"
    for name in (
        *(
            "api",
            "build",
            "critics",
            "denoisers",
            "evaluate",
            "exams",
            "judges",
            "language",
            "objective",
            "parts",
        ),
        *(
            "needs",
            "plan",
            "play",
            "replayed",
            "results",
            "reward_models",
            "robots",
            "rollout_check",
            "targets",
            "train",
            "updaters",
        ),
    )
}
WHOLE_RECIPE = {"config", "studies", "cli"}


def test_parts_take_sections_and_not_the_recipe():
    """A whole recipe is known to config, to the composition root, and to studies, which make many runs of it."""
    found = []
    for file in FILES:
        path = file.relative_to(ROOT)
        if path.parts[0] in WHOLE_RECIPE or path.as_posix() in ROOTS:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg) and node.annotation and "Recipe" in ast.unparse(node.annotation):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found, "\n".join(found)


def test_nothing_is_dumped_to_be_validated_again():
    """A typed section is passed on as it is; a dump is for writing it down."""
    allowed = {"config", "runs", "studies", "cli"}
    found = [
        str(file.relative_to(ROOT))
        for file in FILES
        if "model_dump(" in file.read_text(encoding="utf-8")
        and file.relative_to(ROOT).parts[0] not in allowed
    ]
    assert not found


GUIDE = REPO / "docs" / "how-it-works.md"
LINK = re.compile(r"\]\((\.\./[^)#]+)\)")


def test_the_guide_names_files_that_exist():
    text = GUIDE.read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert len(links) > 20
    missing = [link for link in links if not (GUIDE.parent / link).exists()]
    assert not missing


def test_the_guide_names_functions_that_are_there():
    """Every row of the step's table: what it says is called stands in one of the files it names."""
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    step = [row.split("|") for row in rows if re.match(r"\| \d* ?\|", row) and len(row.split("|")) == 6]
    assert len(step) >= 11
    for _, _, _, files, called, _ in step:
        linked = [GUIDE.parent / link for link in LINK.findall(files)]
        sources = [file.read_text(encoding="utf-8") for file in linked if file.is_file()]
        for name in re.findall(r"`([A-Za-z_.]+)`", called):
            last = name.rpartition(".")[2]
            assert any(re.search(rf"\bdef {last}\b", source) for source in sources), name


def test_the_guide_lists_the_floors_in_order():
    text = GUIDE.read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+) {2,}\S", text, flags=re.M)
    assert [name for name in listed if name in FLOORS] == FLOORS


def test_importing_klent_loads_nothing_heavy():
    code = "import klent, sys; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines of a page, numbered, without code and tables."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        code ^= line.startswith("```")
        if not code and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_lines_of_prose_are_short(page):
    assert [number for number, line in prose(page) if len(line) > 118] == []
