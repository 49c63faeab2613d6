"""Text from elsewhere, without characters that steer a terminal, turn a line around or are not seen at all."""

from __future__ import annotations

# They join letters of some scripts and parts of emoji; behind ASCII they would only hide.
_JOINERS = "\u200c\u200d"


def visible(text: str, keep: str = "") -> str:
    """The text with every character that cannot be seen written as an escape, as in `\\x1b` and `\\u202e`.

    Args:
        text (`str`):
            Any text.
        keep (`str`, *optional*):
            Characters that stay as they are.
    """
    return "".join(
        c if _is_seen(c, before) or c in keep else _escaped(c) for before, c in zip(" " + text, text, strict=False)
    )


def code_span(text: str) -> str:
    """The text as code in Markdown: on one line, and nothing in it ends the code."""
    return f"`{visible(' '.join(text.split())).replace('`', chr(39))}`"


def _is_seen(character: str, before: str) -> bool:
    return character.isprintable() or (character in _JOINERS and not before.isascii())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
