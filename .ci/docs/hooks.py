"""Hooks of the site: fill the parts of a page that come from the code, and link files outside docs/."""

from __future__ import annotations

import json
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

import generated
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)((?:#[^)]*)?\))")
# Pages of the repository that belong into the site as they are.
WHOLE_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside docs/ that a page links to, so that no link leads out of the site."""
    for path in sorted({*WHOLE_PAGES, *_linked_outside()}):
        files.append(File.generated(config, _page_of(path), content=_as_page(path)))
    for folder in _folders_without_page():
        files.append(File.generated(config, f"{folder}/index.md", content=_listing(folder)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills the markers, and turns links that leave docs/ into links to the pages of those files."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    markdown = MARKER.sub(lambda found: generated.PARTS[found[1]](*filter(None, [found[2]])), markdown)

    def link(found: re.Match[str]) -> str:
        path = _outside(here, found[2])
        return found[0] if path is None else f"{found[1]}{_relative(_page_of(path), here)}{found[3]}"

    def folder(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        return f"]({found[1].rstrip('/')}/index.md)" if path in _folders_without_page() else found[0]

    return re.sub(r"\]\(([\w./-]+)\)", folder, LINK.sub(link, markdown))


def _outside(page: str, target: str) -> str | None:
    """The path in the repository of a link that leaves docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") else path


@cache
def _linked_outside() -> frozenset[str]:
    docs = ROOT / "docs"
    found = set()
    for file in docs.rglob("*.md"):
        for link in LINK.finditer(file.read_text("utf-8")):
            path = _outside(file.relative_to(docs).as_posix(), link[2])
            if path is not None and (ROOT / path).is_file():  # mkdocs reports the others
                found.add(path)
    return frozenset(found)


@cache
def _folders_without_page() -> frozenset[str]:
    """Folders of raw results, which pages link as a whole."""
    docs = ROOT / "docs"
    folders = (path for path in (docs / "results").rglob("*") if path.is_dir() and not (path / "index.md").exists())
    return frozenset(path.relative_to(docs).as_posix() for path in folders)


def _listing(folder: str) -> str:
    names = sorted(path.name for path in (ROOT / "docs" / folder).iterdir() if path.is_file())
    return "\n".join([f"# Raw results: {posixpath.basename(folder)}", "", *(f"- [{name}]({name})" for name in names)])


def _page_of(path: str) -> str:
    return "source/" + (path if path.endswith(".md") else f"{path}.md")


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _as_page(path: str) -> str:
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return _with_links(text, path)
    if path.endswith(".ipynb"):
        return _notebook(text)
    kind = {".py": "python", ".yaml": "yaml", ".jinja": "jinja"}.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# `{path}`\n\n````{kind}\n{text}````\n"


def _notebook(text: str) -> str:
    """The cells of a notebook, one below the other."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)


def _with_links(text: str, path: str) -> str:
    """A page of the repository's root: links to docs/ lead into the site, links to other files become plain text."""

    def link(found: re.Match[str]) -> str:
        target, _, heading = found[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return found[0]
        if target.startswith("docs/"):
            return f"[{found[1]}](../{target.removeprefix('docs/')}{'#' + heading if heading else ''})"
        return f"[{found[1]}]({target})" if target in WHOLE_PAGES else f"`{target}`"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Forgets what was read, for `mkdocs serve`."""
    _linked_outside.cache_clear()
    _folders_without_page.cache_clear()
