"""docs/methods.md lists every method as its docstring and its fields describe it."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from gs_lora_peft.methods import METHODS, get_method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
_TRAINS = {"any": "adapter or weights", "adapter": "adapter", "weights": "weights"}


def line(name):
    """The line of a method: name and file, first sentence, source, what trains, hyper-parameters."""
    method = get_method(name)
    text = inspect.getdoc(type(method))
    idea = re.sub(r"\[`(\w+)`\]", r"\1", text.splitlines()[0].rstrip("."))
    link = re.search(r"https://arxiv\.org/abs/([\d.]+\d)", f"{method.title} {text}")
    source = f"[{link[1]}]({link[0]})" if link else "ours"
    file = Path(inspect.getfile(type(method))).relative_to(PAGE.parents[1] / "src").as_posix()
    values = {item.name: getattr(method, item.name) for item in dataclasses.fields(method) if item.init}
    options = ", ".join(f"`{field}` {value}" for field, value in values.items() if field != "official_compat")
    public = "official_compat" in values
    options = "; ".join(filter(None, [options, "`official_compat`" if public else ""]))
    return f"| [`{name}`](../src/{file}) | {idea} | {source} | {_TRAINS[method.trains]} | {options or '–'} |"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_listed_as_it_is(name):
    if not Path(inspect.getfile(type(get_method(name)))).is_relative_to(PAGE.parents[1]):
        pytest.skip("the package is installed elsewhere")
    assert line(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_no_other_method_is_listed():
    listed = re.findall(r"^\| \[`(\w+)`\]", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == sorted(METHODS)
