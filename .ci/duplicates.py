"""Fails if two places in a tree of Python files share twelve lines of code. `make style` runs it on src.

Blank lines, comments, docstrings and imports do not count, nor does indentation. pylint's `duplicate-code` compares
every file with every other one, which takes minutes here; a table of all windows of twelve lines takes a second.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

LENGTH = 12


def lines_of_code(source: str) -> list[tuple[int, str]]:
    """The number and the text of every line that counts."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in numbered if line and number not in left_out]


def duplicates(root: Path) -> Iterator[tuple[str, str]]:
    """Pairs of places, as `path:line`, where the same lines begin; one pair for each run of lines."""
    seen: dict[tuple[str, ...], tuple[Path, int]] = {}
    for path in sorted(root.rglob("*.py")):
        code = lines_of_code(path.read_text("utf-8"))
        before: tuple[Path, int] | None = None
        for index in range(len(code) - LENGTH + 1):
            window = tuple(line for _, line in code[index : index + LENGTH])
            first, start = seen.setdefault(window, (path, index))
            is_copy = first != path or start + LENGTH <= index
            if is_copy and before != (first, start - 1):
                number = lines_of_code(first.read_text("utf-8"))[start][0]
                yield f"{first}:{number}", f"{path}:{code[index][0]}"
            before = (first, start) if is_copy else None


def main() -> int:
    """Print every pair of places."""
    found = [pair for root in sys.argv[1:] for pair in duplicates(Path(root))]
    for one, other in found:
        print(f"{other}: the same {LENGTH} lines of code as {one}. Move them to one place.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
