"""A Griffe extension: docstrings as transformers writes them become what Griffe reads, with links between entries."""

from __future__ import annotations

import re
from typing import Any

import griffe
from generated import path_of_name

REFERENCE = re.compile(r"\[`~?([A-Za-z_][\w.]*)`\](?![\[(])")
# `name (`type`, *optional*, defaults to `x`):` of an argument, and the type that opens "Returns:".
ARGUMENT = re.compile(r"^( +[\w*, ]+ )\((.+)\):$", re.MULTILINE)
RETURNS = re.compile(r"^(Returns|Yields):\n( +)([^:\n]+):(?= )", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Types lose their marks, which would be shown as they are; names that a façade exports become links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of every object that is read."""
        if obj.docstring is not None:
            text = ARGUMENT.sub(lambda found: f"{found[1]}({_plain(found[2])}):", obj.docstring.value)
            text = RETURNS.sub(lambda found: f"{found[1]}:\n{found[2]}{_plain(found[3])}:", text)
            obj.docstring.value = REFERENCE.sub(_link, text)


def _plain(kind: str) -> str:
    return re.sub(r"\[`~?([\w.]+)`\]", r"\1", kind).replace("`", "").replace("*optional*", "optional")


def _link(found: re.Match[str]) -> str:
    name, _, member = found[1].partition(".")
    path = path_of_name().get(name)
    if path is None:
        return f"`{found[1]}`"
    if member:  # an inherited one has no entry
        return f'<autoref identifier="{path}.{member}" optional><code>{found[1]}</code></autoref>'
    return f"[`{found[1]}`][{path}]"
