"""The documentation: generated pages are up to date and complete, and the site builds strictly and loads nothing."""

import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from klent.cli import app, reference
from klent.cli import page as commands
from klent.config import describe_fields, page
from klent.config.base import Settings
from klent.config.recipe import Recipe
from klent.config.shape_checks import SYNONYMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_page_of_keys_is_up_to_date() -> None:
    assert (DOCS / "recipe-keys.md").read_text(encoding="utf-8") == page.markdown(), "run `make docs`"


def test_every_key_is_on_the_page_with_its_meaning() -> None:
    """Counted without the generator: each key of each section that a recipe can have, and each has a sentence."""
    text = page.markdown()
    keys = {(key, meaning) for key, _, meaning in describe_fields() if not key.startswith("eval.reward.")}
    assert len(keys) > 150
    for key, meaning in keys:
        assert len(meaning.split()) > 1, key
        row = rf"^\| `{re.escape(key.rpartition('.')[2])}` \|.*\| {re.escape(' '.join(meaning.split()))} \|$"
        assert re.search(row.replace(r"\|", r"\|"), text.replace("\\|", "|"), flags=re.M), key


def test_a_key_without_a_meaning_is_refused() -> None:
    class Section(Settings):
        speed: int = 1

    with pytest.raises(ValueError, match=r"Section\.speed has no description"):
        page.rows(Section)
    assert page.rows(Recipe)


def test_every_setting_of_an_objective_is_described() -> None:
    named = {name: settings for section in page.SECTIONS for name, _, settings in page.terms(section)}
    assert len(named) > 40
    assert named["ppo_clip"][0][:2] == ("clip_low", "0.2")
    assert not [name for name, settings in named.items() if not all(meaning for _, _, meaning in settings)]


@pytest.mark.parametrize("module", reference.MODULES)
def test_the_reference_is_complete_and_up_to_date(module: str) -> None:
    """Every public name has a heading, its arguments are there by name, and the page is the generator's."""
    written = (DOCS / "api" / f"{module.removeprefix('klent.')}.md").read_text(encoding="utf-8")
    loaded = importlib.import_module(module)
    headings = re.findall(r"^## (\w+)$", written, flags=re.M)
    public = [name for name in loaded.__all__ if not isinstance(getattr(loaded, name), types.ModuleType)]
    assert headings == public
    for name in public:
        value = getattr(loaded, name)
        entry = written.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for argument in inspect.signature(value).parameters if inspect.isfunction(value) else ():
            assert argument in entry, f"{name}: {argument}"
    assert written == reference.page(module), "run `make docs`"


def test_the_page_of_commands_is_complete_and_up_to_date() -> None:
    """Every verb and each of its options, as its own --help has them, and the page is the generator's."""
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == commands.markdown(), "run `make docs`"
    verbs = commands.verbs()
    assert re.findall(r"^## klent (.+)$", written, flags=re.M) == list(verbs)
    assert {"train", "export", "models pull", "recipes show", "doctor"} <= verbs.keys()
    for name in verbs:
        entry = written.partition(f"\n## klent {name}\n")[2].partition("\n## ")[0]
        said = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, [*name.split(), "--help"]).output
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", said.partition("Options")[2])) - {
            "--help",
            "--debug",
        }
        for option in options:
            assert re.search(rf"^\| `[^`]*{option}[ `]", entry, flags=re.M), f"{name}: {option}"


def test_the_reference_misses_nothing_that_klent_names() -> None:
    """Every public module has a page, and of every page one entry per public name: a coverage of 1."""
    import klent

    modules = {f"klent.{name}" for name in klent.__all__ if inspect.ismodule(getattr(klent, name))}
    assert modules <= set(reference.MODULES)
    named = {module: set(reference.names(module)) for module in reference.MODULES}
    assert sum(map(len, named.values())) > 100
    for module, listed in named.items():
        page_of = (DOCS / "api" / f"{module.removeprefix('klent.')}.md").read_text(encoding="utf-8")
        assert listed == set(re.findall(r"^## (\w+)$", page_of, flags=re.M)), module


def test_a_name_without_a_docstring_is_refused() -> None:
    with pytest.raises(ValueError, match="bare is public and has no docstring"):
        reference._summary("bare", lambda: None)


def test_the_way_from_trl_leads_to_keys_that_exist() -> None:
    """Each key in the second column is a recipe's or a function's, and no name that klent answers to is forgotten."""
    text = (DOCS / "from-trl.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| `([\w.]+)` \|", text, flags=re.M)
    keys = {key for key, _, _ in describe_fields()} | {"reward.weight", "select.mask"}
    terms = {
        f"{section}.{name.removesuffix('_loss')}.{setting}"
        for section in page.SECTIONS
        for name, _, settings in page.terms(section)
        for setting, _, _ in settings
    }
    assert len(rows) > 35
    renamed = {f"{a}.{b}_loss.{c}": f"{a}.{b}.{c}" for a, b, c in (term.split(".") for term in terms)}
    unknown = [key for _, key in rows if renamed.get(key, key) not in keys | terms]
    assert unknown == []
    for foreign, key in rows:
        for name in re.findall(r"`(\w+)`", foreign):
            if name in SYNONYMS and name not in ("torch_dtype",):
                assert SYNONYMS[name] == key, name


@pytest.fixture(scope="module")
def hooks() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "_site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_outside_of_docs_becomes_a_page(hooks: types.ModuleType) -> None:
    text = "[a](../src/klent/io/files.py) [b](faq.md) [c](https://x.y/../z)\n```\n[d](../LICENSE)\n```\n"
    assert hooks.links_of(text, "log.md", DOCS) == [ROOT / "src/klent/io/files.py"]
    assert (
        hooks.outside("../../examples/own_task", "tutorials/my-data.md", DOCS) == ROOT / "examples/own_task"
    )
    assert hooks.shown_as(ROOT / "README.md", DOCS) == "files/README.md.md"
    folder = hooks.shown(ROOT / "examples" / "own_task", DOCS)
    assert "- [reward.py](../../../examples/own_task/reward.py)" in folder
    assert hooks.shown(ROOT / "examples/own_task/reward.py", DOCS).startswith(
        "# examples/own_task/reward.py\n\n````python\n"
    )


ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=\"?https?:|<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]*https?:|"
    r"url\([\"']?https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed: klent[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "-f",
        ROOT / "mkdocs.yml",
        "-d",
        folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    """Strict: a broken link or anchor, or a page that is not in the navigation, fails the build."""
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 100
    assert not [f for f in pages if ELSEWHERE.search(f.read_text(encoding="utf-8"))]
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "_static/worker.js" in home
    shown = site / "files" / "src" / "klent" / "runs" / "loop.py.html"
    assert "class" in shown.read_text(encoding="utf-8")


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for file in DOCS.rglob("*.md"):
        address = file.relative_to(DOCS).with_suffix(".html").as_posix()
        assert f'href="{address}"' in home, address


SEARCH = """
addEventListener("load", () => setTimeout(() => {
  const field = document.querySelector(".md-search__input");
  field.focus(); field.value = "thermostat"; field.dispatchEvent(new Event("keyup", { bubbles: true }));
  field.dispatchEvent(new Event("input", { bubbles: true }));
}, 500));
"""


def test_the_search_works_from_files_without_a_network(site: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser is installed")
    home = (site / "index.html").read_text(encoding="utf-8")
    (site / "probe.html").write_text(home.replace("</body>", f"<script>{SEARCH}</script></body>"))
    command = [
        *(
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
        ),
        *(f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
        *("--virtual-time-budget=8000", "--dump-dom", (site / "probe.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert [line for line in re.findall(r"CONSOLE[^\n]*", done.stderr) if "rror" in line] == []
    results = done.stdout.partition('class="md-search-result__list"')[2]
    assert "tutorials/hold-entropy.html" in results
