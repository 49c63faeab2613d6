"""Renders the card of a run, as a repository on the Hub would show it, as one HTML page.

make demo
.venv/bin/gs-lora export --repository runs/digits build/card
.venv/bin/python docs/card/render.py build/card docs/card/demo.html
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from gs_lora_peft.reports import render_html


def main(repository: str, page: str) -> None:
    """Renders `README.md` of a folder with its pictures.

    Args:
        repository (`str`):
            What `gs-lora export --repository` wrote.
        page (`str`):
            The HTML file to write.
    """
    folder = Path(repository)
    card = ModelCard.load(folder / "README.md").text  # without the metadata
    # The page stands alone: links within the repository become plain text.
    card = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", card)
    card += "\n---\n\nThis is the card of a run of `make demo`, rendered by `docs/card/render.py`.\n"
    pictures = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    Path(page).write_text(render_html(card, pictures), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
