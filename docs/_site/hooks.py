"""What the pages link to outside of docs/ becomes a page of the site: it is read there without a clone or a network.

mkdocs calls the functions whose names begin with ``on_``. A link to ``../src/klent/cli/run.py`` leads to a page with
that file's text, one to a folder to the list of its files.
"""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```.*?^```)", re.M | re.S)
SHOWN = "files"
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".jsonl": "json",
    ".json": "json",
    ".toml": "toml",
}


def outside(link: str, page: str, docs: Path) -> Path | None:
    """The file of the repository that a page links to outside of docs/; None for any other link.

    >>> outside("../README.md", "faq.md", Path("/repo/docs")).as_posix()
    '/repo/README.md'
    >>> outside("faq.md", "index.md", Path("/repo/docs")) is None
    True
    """
    if ":" in link or link.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return docs.parent / path.removeprefix("../") if path.startswith("../") else None


def shown_as(file: Path, docs: Path) -> str:
    """The page of the site, from docs/, that shows a file of the repository."""
    return f"{SHOWN}/{file.relative_to(docs.parent).as_posix()}.md"


def links_of(text: str, page: str, docs: Path) -> list[Path]:
    """The files outside of docs/ that a page links to, code left out."""
    links = (match[2] for match in LINK.finditer(FENCE.sub("", text)))
    return [file for link in links if (file := outside(link, page, docs)) is not None]


def on_files(files: "Files", *, config: "MkDocsConfig") -> "Files":
    """Add a page for every file of the repository that a page links to, and for what those link to."""
    from mkdocs.structure.files import File

    docs = Path(config.docs_dir)
    waiting = [
        file
        for page in files.documentation_pages()
        for file in links_of(page.content_string, page.src_uri, docs)
    ]
    done: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file in done or not file.exists():  # a missing one stays a broken link, which mkdocs refuses
            continue
        done.add(file)
        text = shown(file, docs)
        files.append(File.generated(config, shown_as(file, docs), content=text))
        waiting += links_of(text, shown_as(file, docs), docs)
    return files


def shown(file: Path, docs: Path) -> str:
    """A file's page: Markdown as it reads, a folder as a list, anything else as code."""
    name = file.relative_to(docs.parent).as_posix()
    up = "../" * (name.count("/") + 2)  # from files/... to the repository
    if file.is_dir():
        entries = sorted(path for path in file.iterdir() if not path.name.startswith(("__", ".")))
        return f"# {name}\n\n" + "".join(f"- [{path.name}]({up}{name}/{path.name})\n" for path in entries)
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".md":
        return _moved(text, posixpath.dirname(name), up)
    return f"# {name}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"


def _moved(text: str, folder: str, up: str) -> str:
    """A Markdown file's links as they are from where its page is."""

    def link(match: re.Match[str]) -> str:
        if ":" in match[2]:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        return f"{match[1]}{up}{target}{match[3] or ''}{match[4]}"

    return _outside_code(text, LINK, link)


def _outside_code(text: str, pattern: re.Pattern[str], replacement) -> str:
    """Replace in prose alone, not in fenced code."""
    pieces = FENCE.split(text)
    pieces[::2] = [pattern.sub(replacement, piece) for piece in pieces[::2]]
    return "".join(pieces)


def on_page_markdown(markdown: str, *, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Lead links to files outside of docs/ to the pages that show them."""
    docs = Path(config.docs_dir)
    uri = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        file = outside(match[2], uri, docs)
        if file is None:
            return match[0]
        name = file.relative_to(docs.parent).as_posix()
        target = name.removeprefix("docs/") if name.startswith("docs/") else shown_as(file, docs)
        return (
            f"{match[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[3] or ''}{match[4]}"
        )

    return _outside_code(markdown, LINK, link)


SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'


def _without_shim(html: str, url: str) -> str:
    """The theme's one script from elsewhere, without which no search works from files, is replaced by one of ours."""
    from mkdocs.utils import get_relative_url

    return html.replace(SHIM, f'<script src="{get_relative_url("_static/worker.js", url)}"></script>')


def on_post_page(output: str, *, page: "Page", config: "MkDocsConfig") -> str:
    """Pages load nothing from a network."""
    return _without_shim(output, page.url)


def on_post_template(output_content: str, *, template_name: str, config: "MkDocsConfig") -> str:
    """Nor does the page of a missing address."""
    return _without_shim(output_content, template_name)
