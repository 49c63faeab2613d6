"""Whether a command line with settings asks for JSON, also if the rest of it is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

_NO = ("no", "false", "f", "n", "0")  # as `transformers.hf_argparser.string_to_bool`


def asks_for_json(words: Sequence[str]) -> bool:
    """Returns whether `--json`, or `json` in the YAML file of `--config`, asks for JSON; the command line wins.

    Args:
        words (`Sequence[str]`):
            The words of `gs-lora forget` or `gs-lora redo`. A file that cannot be read asks for nothing: the error
            about it is printed as the command line says.
    """
    parser = _Quiet(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", nargs="?", const=True)
    parser.add_argument("--config")
    try:
        found = parser.parse_known_args(list(words))[0]
        answer = found.json
        if answer is None and found.config is not None:
            settings = yaml.safe_load(Path(found.config).read_text(encoding="utf-8"))
            answer = settings.get("json") if isinstance(settings, dict) else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return "--json" in words
    return answer is not None and str(answer).lower() not in _NO


class _Quiet(argparse.ArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
