"""Parsing the settings of a script from a YAML file and the command line."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..checking import check_fields
from ..errors import InvalidInputError
from ..io import as_path
from ..training import GSLoraTrainingArguments, repo_to_publish_in
from .settings import AdapterArguments, HelpFormatter, missing_classes
from .terminal import say_last

RESUMABLE = {"save_strategy": "epoch", "save_total_limit": 1}  # defaults of scripts only


class SettingsParser(HfArgumentParser):
    """Parses a script's options, those of [`AdapterArguments`] and those of [`GSLoraTrainingArguments`].

    As with `trl.TrlParser`, settings come from the defaults, then from the YAML file of `--config`, then from the
    command line. Differences: the file and the command line are checked alike, options are written in full, an error
    is one line, and classes in the file may be lists.

    Args:
        prog (`str`):
            Name of the script.
        description (`str`):
            What the script does.
        options (dataclasses):
            The options of the script itself, with a field `config`.
        defaults (*optional*):
            Defaults that differ from those of the classes.

    Example:
        ```py
        >>> parser = SettingsParser("forget.py", __doc__, ScriptArguments, output_dir="runs/digits")
        >>> script, adapter, args = parser.parse_args_and_config(sys.argv[1:])
        ```
    """

    def __init__(self, prog: str, description: str, *options: type, **defaults: Any):
        classes: Any = (*options, AdapterArguments, GSLoraTrainingArguments)
        super().__init__(
            classes, prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
        )
        self.add_argument("--help_all", action="help", help="Show every option, including those of transformers.")
        self.set_defaults(**{**RESUMABLE, **defaults})

    def parse_args_and_config(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Parses a command line and its YAML file. A wrong value ends the process with exit code 2.

        Args:
            argv (`Sequence[str]`):
                The command line without the name of the script.

        Returns:
            `tuple`: An instance of each dataclass, in the order of the constructor.
        """
        self._set_defaults_from_file(argv)
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
            if unknown:
                self.error(self._unknown_option(unknown[0]))
            *others, args = parsed
            if args.push_to_hub:
                repo_to_publish_in(args)  # before hours of training
            for settings in others:
                check_fields(settings)
                if getattr(settings, "missing", None) is not None:
                    missing_classes(settings)
        except (ValueError, OSError) as error:
            self.error(_as_option(error))
        if args.resume_from_checkpoint is not None:
            self.error("--resume_from_checkpoint is not needed: the same command, given again, resumes by itself")
        return tuple(parsed)

    def error(self, message: str) -> NoReturn:
        # Without the usage, in which 200 options would hide the message.
        say_last(f"{self.prog}: error: {message}")
        sys.exit(2)

    def _set_defaults_from_file(self, argv: Sequence[str]) -> None:
        """Makes the settings of the YAML file the defaults, so that the command line wins.

        `parse_yaml_file` and `parse_dict` of the base class ignore the command line.
        """
        first = argparse.ArgumentParser(prog=self.prog, add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        path = first.parse_known_args(argv)[0].config
        if path is None:
            return
        settings = self._read_yaml(path)
        known = {action.dest: action for action in self._actions}
        if unknown := sorted(map(str, set(settings) - set(known))):
            self.error(f"{path} has unknown settings {unknown}; --help and --help_all list the known ones")
        for name in ("forget", "missing"):
            if settings.get(name) is not None:
                try:
                    settings[name] = classes_as_text(settings[name], name)
                except ValueError as error:
                    self.error(f"{path}: {error}")
        for name in settings:
            known[name].required = False
        self.set_defaults(**settings)

    def _read_yaml(self, path: str) -> dict[Any, Any]:
        try:
            settings = yaml.safe_load(as_path(path, "--config").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            self.error(f"--config {path} cannot be read: {' '.join(str(error).split())}")
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            expected = "lines such as 'learning_rate: 0.005'"
            self.error(str(InvalidInputError(f"--config {path}", settings, expected)))
        return settings

    def _unknown_option(self, text: str) -> str:
        given = text.partition("=")[0]
        if not given.startswith("-"):
            return (
                f"{given!r} belongs to no option; write options as --name value, with quotes around a value with "
                "spaces"
            )
        known = [f"--{action.dest}" for action in self._actions]
        close = difflib.get_close_matches(given, known, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        return f"there is no option {given}; {meant}--help and --help_all list all options"


def _as_option(error: Exception) -> str:
    if isinstance(error, InvalidInputError):
        return str(type(error)(f"--{error.name.removeprefix('--')}", error.value, error.expected, error.fix))
    return " ".join(str(error).split())


def classes_as_text(value: Any, name: str) -> str:
    """Returns classes of a YAML file as on a command line: [a, b] becomes 'a,b', and [[a, b], [c]] 'a,b;c'.

    Args:
        value (`Any`):
            A list of classes, a list of such lists, one class, or text as on the command line.
        name (`str`):
            Name of the setting, for the error.

    Raises:
        InvalidInputError: If the value is something else.
    """
    if not isinstance(value, list):
        return _class_as_text(value, name)
    requests = value if any(isinstance(item, list) for item in value) else [value]
    if not all(isinstance(request, list) and request for request in requests):
        raise InvalidInputError(name, value, "a list of classes, or a list of such lists, none of them empty")
    names = [[_class_as_text(item, name) for item in request] for request in requests]
    if split := [item for request in names for item in request if "," in item or ";" in item]:
        raise InvalidInputError(name, split[0], "one class: its name, or its id if the name has ',' or ';'")
    return ";".join(",".join(request) for request in names)


def _class_as_text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):  # `no` is False in YAML
        raise InvalidInputError(name, value, "names or ids", "Put quotes around a name that is a word of YAML's.")
    return str(value)
