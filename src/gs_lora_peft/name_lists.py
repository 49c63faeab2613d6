"""Lists of names as one gives them on a command line."""

from __future__ import annotations

import os
from pathlib import Path


def read_names(text: str) -> list[str]:
    """Read the names in a file, one a line, or the names themselves, split by `,`.

    Args:
        text (`str`): e.g. `"people.txt"` or `"ada,bob"`. What is the path of a file is taken for it.

    Returns:
        `list[str]`: the names in order, without empty ones.

    Raises:
        ValueError: if there is neither a file nor a `,`, or the file is not UTF-8 text.
        OSError: if the file cannot be read.
    """
    path = Path(os.path.expanduser(text))
    if path.is_file():
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"'{text}' holds no text ({error}); expected UTF-8 with one name a line.") from None
    elif "," in text:
        names = text.split(",")
    else:
        raise ValueError(f"there is no file '{text}'; expected a file with one name a line, or names split by ','.")
    return [name.strip() for name in names if name.strip()]
