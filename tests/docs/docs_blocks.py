"""The blocks of code of the documentation, and which of them are said not to run."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# CONTRIBUTING.md holds excerpts of files; tests/test_contributing.py compares them. README.md: tests/test_readme.py.
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"(?:^<!-- (?:not run: (?P<reason>[^\n]+)|needs: (?P<needs>[^\n]+)) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    code: str
    reason: str | None  # why it is not run
    needs: tuple[str, ...]  # modules that the suite does not install


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            name_of(page),
            text.count("\n", 0, found.start("code")) + 1,
            found["kind"],
            found["code"],
            found["reason"],
            tuple((found["needs"] or "").split()),
        )
        for found in BLOCK.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    """The command lines of a bash block, without continuations and comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]
