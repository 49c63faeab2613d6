"""The parts of the site that come from the code: what a line `<!-- generated: NAME -->` of a page stands for."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "gs_lora_peft"


def public_names(room: str = "") -> dict[str, str]:
    """The names that a façade exports, as its stub lists them, and the module that each is imported from."""
    tree = ast.parse((PACKAGE / room / "__init__.pyi").read_text("utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def rooms() -> list[str]:
    """The folders of the package that have a façade."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi"))


@cache
def path_of_name() -> dict[str, str]:
    """Each name that a façade exports, and its path there."""
    return {name: f"gs_lora_peft.{room}.{name}" for room in rooms() for name in public_names(room)}


def api(module: str) -> str:
    """The entry of every public name of a façade, from its docstring."""
    names = public_names(module.partition(".")[2])
    return "\n\n".join(f"::: {module}.{name}" for name in sorted(names, key=str.lower))


def overview() -> str:
    """A table of the names of the package itself."""
    rows = [
        f"| [`{name}`][{path_of_name()[name]}] | {_summary(room, name)} |" for name, room in public_names().items()
    ]
    return "\n".join(["| Name | What it is |", "| --- | --- |", *sorted(rows, key=str.lower)])


def _summary(room: str, name: str) -> str:
    """The first line of a docstring, read without importing anything."""
    file = PACKAGE / room / f"{public_names(room)[name].replace('.', '/')}.py"
    if not file.exists():  # an inner folder
        return ""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0].replace("[`", "`").replace("`]", "`")
    return ""


def cli() -> str:
    """The help of every command, as `typer utils docs` writes it."""
    command = [sys.executable, "-m", "typer", "gs_lora_peft.cli.program", "utils", "docs", "--name", "gs-lora"]
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": paths}
    )
    # Its summary of the commands cuts each description; the table below does not.
    head, _, commands = run.stdout.partition("**Commands**:")
    sections = commands[commands.index("\n## ") :]
    rows = re.findall(r"^## `gs-lora (\S+)`\n\n(.*(?:\n.+)*)", sections, re.MULTILINE)
    table = [f"| [`{name}`](#gs-lora-{name}) | {' '.join(text.split())} |" for name, text in rows]
    usage = head.partition("\n\n")[2].replace("# `gs-lora`\n", "")
    return "\n".join([usage, "| Command | What it does |", "| --- | --- |", *table, sections])


def settings() -> str:
    """Tables of the options of `gs-lora forget`, which are the keys of its file."""
    sys.path.insert(0, str(PACKAGE.parent))
    from gs_lora_peft.cli.forgetting.options import help_entries

    panels: dict[str, list[str]] = {}
    for entry in help_entries():
        name = entry.name.removeprefix("--").replace("-", "_")
        default = "–" if entry.default is None else f"`{entry.default}`"
        panels.setdefault(entry.panel, []).append(f"| `{name}` | {default} | {_cell(entry.text)} |")
    head = "| Setting | Default | What it does |\n| --- | --- | --- |\n"
    parts = [f"## {title.partition('; see ')[0]}\n\n{head}" + "\n".join(rows) for title, rows in panels.items()]
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def ledger() -> str:
    """Tables of the keys of the ledger's file, from its JSON Schema."""
    (file,) = (ROOT / "docs" / "reference").glob("ledger-*.schema.json")
    schema = json.loads(file.read_text("utf-8"))
    parts = [("The file", schema)]
    parts += [
        (title, schema["$defs"][name])
        for title, name in (("`base_model`", "BaseModel"), ("An entry of `tasks`", "Task"), ("`audit`", "_Audit"))
    ]
    return "\n\n".join(f"## {title}\n\n{_key_table(part)}" for title, part in parts)


def _key_table(part: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_kind(about)} | {'yes' if name in part.get('required', ()) else '–'} "
        f"| {_cell(about.get('description', ''))} |"
        for name, about in part["properties"].items()
    ]
    return "\n".join(["| Key | Type | Required | What it holds |", "| --- | --- | --- | --- |", *rows])


def _kind(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(map(_kind, about["anyOf"])))
    if "enum" in about or "const" in about:
        return " or ".join(f"`{json.dumps(value)}`" for value in about.get("enum", [about.get("const")]))
    kind = about.get("type", "object")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


PARTS: dict[str, Callable[..., str]] = {
    "api": api,
    "overview": overview,
    "cli": cli,
    "settings": settings,
    "ledger": ledger,
}
