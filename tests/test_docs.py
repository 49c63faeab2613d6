"""The documentation names only what exists: modules, options, files, headings and tests."""

import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Options of other programs and of typer, and one that typer calls otherwise than its parameter.
OTHER_OPTIONS = {
    "install-completion",
    "multi_gpu",
    "num_processes",
    "nproc_per_node",
    "cpu",
    "name-classes",
    "mpirun_hostfile",
    "repo-type",
    "update-aliases",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page):
    """Everything in backticks, and the blocks of code."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return "\n".join(blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


@cache
def words_of(*patterns):
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {word for path in files for word in re.findall(r"\w[\w-]*", path.read_text("utf-8"))}


@pages
def test_names_of_the_package_exist(page):
    text = code(page)
    imports = re.findall(r"from (gs_lora_peft[\w.]*) import ([\w, ]+)", text)
    names = {f"{module}.{name.strip()}" for module, listed in imports for name in listed.split(",")}
    for name in sorted(names | set(re.findall(r"\bgs_lora_peft(?:\.[a-zA-Z]\w*)+", text))):
        pkgutil.resolve_name(name)


@pages
def test_options_exist(page):
    known = words_of("src/**/*.py", "examples/**/*.py")
    options = set(re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", code(page))) - OTHER_OPTIONS
    assert [name for name in sorted(options) if not {name, name.replace("-", "_")} & known] == []


@pages
def test_files_and_headings_exist(page):
    text = page.read_text("utf-8")
    path = r"(?<![\w./])((?:\.ci/)?(?:src|tests|docs|examples)/[\w/.-]*\w\.\w+)"
    named = [ROOT / found for found in re.findall(path, text)]
    for target, heading in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", text):
        file = page.parent / target if target else page
        named.append(file)
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert [str(file) for file in named if not file.exists()] == []


@pages
def test_tests_exist(page):
    known = words_of("tests/**/*.py") | {path.stem for path in ROOT.glob("tests/**/*.py")}
    assert set(re.findall(r"\btest_\w+", code(page))) <= known
