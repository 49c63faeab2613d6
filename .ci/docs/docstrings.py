"""A Griffe extension: references in docstrings, such as [`TaskEntry`] or [`~TaskEntry.to_dict`], become links."""

from __future__ import annotations

import re
from typing import Any

import griffe
from generated import path_of_name

REFERENCE = re.compile(r"\[`~?([A-Za-z_][\w.]*)`\](?![\[(])")


class References(griffe.Extension):
    """Links names that a façade exports; other names stay code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of every object that is read."""
        if obj.docstring is not None:
            obj.docstring.value = REFERENCE.sub(_link, obj.docstring.value)


def _link(found: re.Match[str]) -> str:
    name, _, member = found[1].partition(".")
    path = path_of_name().get(name)
    if path is None:
        return f"`{found[1]}`"
    if member:  # an inherited one has no entry
        return f'<autoref identifier="{path}.{member}" optional><code>{found[1]}</code></autoref>'
    return f"[`{found[1]}`][{path}]"
