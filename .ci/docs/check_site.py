"""Checks the built site: every public name has an entry, and every link leads to a file and a heading of the site."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zlib import decompress

from generated import public_names, rooms


class Page(HTMLParser):
    """What a page links to, and what on it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects links, images and ids."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def names_without_entry(site: Path) -> Iterator[str]:
    """Public names that the inventory of the site lacks: those of the package and of each room."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split(" ", 1)[0] for line in decompress(inventory).decode().splitlines()}
    for room in ("", *rooms()):
        for name in public_names(room):
            path = ".".join(filter(None, ("gs_lora_peft", room, name)))
            if path not in known:
                yield path


def dead_links(site: Path) -> Iterator[str]:
    """Links of pages that lead to no file, or to no heading, of the site."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            has_heading = not fragment or target not in pages or fragment in pages[target].anchors
            if not target.exists() or not has_heading:
                yield f"{path.relative_to(site.resolve())} → {link}"


def main() -> int:
    """Prints what is missing."""
    site = Path(sys.argv[1])
    missing, dead = list(names_without_entry(site)), sorted(set(dead_links(site)))
    for name in missing:
        print(f"{name}: no entry in the reference. Is the room's page in docs/reference/api?")
    for link in dead:
        print(f"dead link: {link}")
    return bool(missing or dead)


if __name__ == "__main__":
    sys.exit(main())
