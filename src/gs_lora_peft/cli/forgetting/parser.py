"""Parsing settings from a YAML file and the command line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ...checking import check_fields
from ...errors import InvalidInputError, PrivateInputError
from ...io import as_path
from ...training import GSLoraTrainingArguments, repo_to_publish_in
from ..convert_face import read_names
from ..loading import refuse_ignored
from ..terminal import NAMES, UsageError, renamed
from .options import CONVERSION, OWN_ARGUMENTS, Options, missing_classes

RESUMABLE = {"save_strategy": "epoch", "save_total_limit": 1}  # defaults of commands only


class SettingsParser(HfArgumentParser):
    """Parses the options of `gs-lora forget`: those of this package, and those of [`GSLoraTrainingArguments`].

    As with `trl.TrlParser`, settings come from the defaults, then from the YAML file of `--config`, then from the
    command line. Differences: the file and the command line are checked alike, options are written in full, an error
    is one line, and classes in the file may be lists.

    Args:
        defaults (*optional*):
            Defaults that differ from those of the classes.

    Example:
        ```py
        >>> options = SettingsParser(output_dir="runs/clinic").parse_options(["--forget", "person_07", "--r", "4"])
        >>> options.adapter.r
        4
        ```
    """

    def __init__(self, **defaults: Any):
        classes: Any = (*OWN_ARGUMENTS, GSLoraTrainingArguments)
        super().__init__(classes, allow_abbrev=False, add_help=False)
        self.add_argument(NAMES["--output_dir"], dest="output_dir", default=argparse.SUPPRESS)
        self.set_defaults(**{**RESUMABLE, **defaults})

    def parse_options(self, argv: Sequence[str]) -> Options:
        """Parses a command line and its YAML file.

        Args:
            argv (`Sequence[str]`):
                The options, without the name of the command.

        Returns:
            [`Options`]: The settings.

        Raises:
            UsageError: If an option does not exist, or a value is wrong.
        """
        self._set_defaults_from_file(argv)
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
            if unknown:
                self.error(self._unknown_option(unknown[0]))
            *own, args = parsed
            for settings in own:
                check_fields(settings)
            options = _as_options(own, args)
            missing_classes(options.data)
            if args.push_to_hub:
                repo_to_publish_in(args)  # before hours of training
        except (ValueError, OSError) as error:
            self.error(_as_option(error))
        if args.resume_from_checkpoint is not None:
            self.error("--resume_from_checkpoint is not needed: the same command, given again, resumes by itself")
        return options

    def error(self, message: str) -> NoReturn:
        # Without the usage, in which 200 options would hide the message.
        raise UsageError(renamed(message))

    def given(self, argv: Sequence[str]) -> set[str]:
        """Returns the names of the settings that a command line and its YAML file give."""
        names = self._names()
        words = {names[key] for word in argv if (key := _key_of(word)) in names}
        return words | {names[str(name)] for name in self._from_file(argv)[1] if str(name) in names}

    def _names(self) -> dict[str, str]:
        """Every way to write a setting, without dashes → the setting."""
        return {_key_of(text): action.dest for action in self._actions for text in action.option_strings}

    def _set_defaults_from_file(self, argv: Sequence[str]) -> None:
        """Makes the settings of the YAML file the defaults, so that the command line wins.

        `parse_yaml_file` and `parse_dict` of the base class ignore the command line.
        """
        path, settings = self._from_file(argv)
        names = self._names()
        if unknown := sorted(map(str, set(settings) - set(names))):
            self.error(f"{path} has unknown settings {unknown}; --help and --help_all list the known ones")
        settings = {names[name]: value for name, value in settings.items()}
        for name in ("forget", "missing"):
            if settings.get(name) is not None:
                try:
                    settings[name] = classes_as_text(settings[name], name)
                except ValueError as error:
                    self.error(f"{path}: {error}")
        self.set_defaults(**settings)

    def _from_file(self, argv: Sequence[str]) -> tuple[str | None, dict[Any, Any]]:
        """Returns the file of `--config` and its settings; without one, `None` and no settings."""
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        first.error = self.error  # type: ignore[method-assign]
        path = first.parse_known_args(argv)[0].config
        return path, {} if path is None else self._read_yaml(path)

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
        known = [f"--{name}" for name in self._names()]
        close = difflib.get_close_matches(given, known, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        return f"there is no option {given}; {meant}--help and --help_all list all options"


def _key_of(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").replace("-", "_") if word.startswith("--") else ""


def _as_options(own: Sequence[Any], args: GSLoraTrainingArguments) -> Options:
    """Returns all settings together, after a check of those that exclude each other."""
    in_order: Any = (*own, args)  # that of OWN_ARGUMENTS
    options = Options(*in_order)
    data, faces = options.data, options.faces
    if faces.checkpoint is not None and data.model_name_or_path is not None:
        raise ValueError("--checkpoint and --model both name a model; give one")
    if faces.people is not None and faces.checkpoint is None:
        raise ValueError("--people is for the model of a --checkpoint; other models have names")
    if data.model_revision is not None and data.model_name_or_path is None:
        raise ValueError("--model_revision is of a --model, which is missing")
    if faces.people is not None:
        _check_people(faces.people)
    if not 0 <= options.boxes.threshold <= 1:
        raise InvalidInputError("threshold", options.boxes.threshold, "a confidence from 0 to 1, such as 0.5")
    face = options.face_model
    if data.model_name_or_path is not None:
        refuse_ignored(face, vars(face), "the model of --model has its own settings")
    elif faces.checkpoint is not None:
        refuse_ignored(face, vars(face).keys() - CONVERSION, "the model of a --checkpoint is already trained")
    if options.run.retrain is not None and not options.run.audit:
        raise ValueError("--retrain trains models for --audit, which is missing")
    return options


def _check_people(text: str) -> None:
    try:
        read_names(text)
    except InvalidInputError as error:
        raise InvalidInputError("--people", error.value, error.expected, error.fix) from None


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
        raise PrivateInputError(name, value, "a list of classes, or a list of such lists, none of them empty")
    names = [[_class_as_text(item, name) for item in request] for request in requests]
    if split := [item for request in names for item in request if "," in item or ";" in item]:
        raise PrivateInputError(name, split[0], "one class: its name, or its id if the name has ',' or ';'")
    return ";".join(",".join(request) for request in names)


def _class_as_text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):  # `no` is False in YAML
        raise PrivateInputError(name, value, "names or ids", "Put quotes around a name that is a word of YAML's.")
    return str(value)
