"""The settings of a script that trains: from a YAML file and the command line, with their help."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..checking import check_fields
from ..errors import InvalidInputError
from ..io import as_path
from ..training import GSLoraTrainingArguments, repo_to_publish_in
from .terminal import say_last

RESUMABLE = {"save_strategy": "epoch", "save_total_limit": 1}  # defaults of scripts only


class SettingsParser(HfArgumentParser):
    """
    Parses a script's options, those of [`AdapterArguments`] and those of [`GSLoraTrainingArguments`].

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


_EPILOG = (
    "Every option of transformers.TrainingArguments works as well, such as --output_dir, --seed, --use_cpu, "
    "--gradient_accumulation_steps, --report_to, --push_to_hub and --hub_model_id; --help_all lists them. Options are "
    "written in full. Set GS_LORA_TRACEBACK=1 in the environment to see the traceback of an error."
)

# The names of `data.EVALUATION_SPLITS`, which takes seconds to import.
_SCORED_ON = (
    "Split to score on. Default: the first that exists of test, validation, valid, val, evaluation, eval, dev."
)


@dataclass(kw_only=True)
class RunArguments:
    """Options of every script that carries out requests. A subclass adds what to forget, the model and the data.

    They are keyword-only, so that a subclass can add required options, and come after its own options in the help.
    """

    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": _SCORED_ON})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    replay_ratio: float = field(
        default=1.0, metadata={"help": "Share of each kept class that is replayed, in (0, 1]."}
    )
    shots: int | None = field(default=None, metadata={"help": "Few-shot: exactly this many samples of every class."})
    missing: str | None = field(
        default=None, metadata={"help": "To keep, although none of their data may be used; names or ids split by ','."}
    )
    config: str | None = field(default=None, metadata={"help": "YAML file with any of these settings."})
    keep: bool = field(
        default=False,
        metadata={"help": "Accept tasks that were carried out with other settings, and go on with the present ones."},
    )
    redo: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "last",
            "help": "Carry out the last request again with the present settings, and keep the other tasks. Name its "
            "task, e.g. task_003, so that repeating the command does not carry it out once more.",
        },
    )


@dataclass
class AdapterArguments:
    """The adapter of each task; see GSLoraConfig."""

    r: int = field(default=8, metadata={"help": "Rank."})
    lora_alpha: int = field(default=1, metadata={"help": "LoRA scaling is lora_alpha / r."})
    target_modules: str = field(default="ffn", metadata={"help": "'ffn', 'attention' or a regular expression."})
    block_pattern: str | None = field(default=None, metadata={"help": "Regex: adapt only these blocks."})
    exclude_blocks: str | None = field(default=None, metadata={"help": "Regex: do not adapt these blocks."})
    group_by: str = field(default="block", metadata={"help": "Kept or dropped together: block, module or matrix."})


def missing_classes(script: RunArguments) -> list[str]:
    """Returns the classes of `--missing`: to keep, although none of their data may be used.

    Args:
        script ([`RunArguments`]):
            The options of a script.

    Raises:
        InvalidInputError: If the text is not a list of classes.
    """
    from ..ledger import parse_classes

    if script.missing is None:
        return []
    try:
        return parse_classes(script.missing)
    except InvalidInputError as error:
        raise InvalidInputError("--missing", error.value, error.expected, error.fix) from None


def help_if_asked(description: str, *options: type, argv: Sequence[str] | None = None) -> None:
    """
    Prints the help and ends the process, if the command line asks for it.

    A script calls this function before slow imports. The script's own options come first, then those of the adapter
    and of forgetting, with their defaults. `--help_all` shows those of transformers too.

    Args:
        description (`str`):
            What the script does.
        options (dataclasses):
            The options of the script, each field with a `help` in its metadata.
        argv (`Sequence[str]`, *optional*):
            By default the command line of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(_help(description, options), end="")
        sys.exit(0)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, which holds examples, and fills the rest."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text == _EPILOG:
            return argparse.HelpFormatter._fill_text(self, text, width, indent)
        return super()._fill_text(text, width, indent)


def training_options() -> Iterator[tuple[str, Any, str]]:
    """Yields name, default and help of each field that GSLoraTrainingArguments defines.

    They are read from its source, because importing the class takes seconds: too long for a help page.
    """
    source = Path(__file__).parents[1] / "training" / "arguments.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
            yield node.target.id, values["default"], values["metadata"]["help"]


def _help(description: str, options: Sequence[type]) -> str:
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        usage="%(prog)s [options]",
        description=description,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        add_help=False,
    )
    for kind in (*options, AdapterArguments):
        group = parser.add_argument_group((kind.__doc__ or kind.__name__).splitlines()[0].rstrip("."))
        # The script's own options first: inherited ones are keyword-only.
        for item in sorted(dataclasses.fields(kind), key=lambda item: bool(item.kw_only)):
            _add_help(group, item.name, item.default, item.metadata.get("help", ""))
    group = parser.add_argument_group("Training and forgetting; see GSLoraTrainingArguments")
    for name, default, text in training_options():
        _add_help(group, name, default, text)
    return parser.format_help()


def _add_help(group: argparse._ArgumentGroup, name: str, default: Any, text: str) -> None:
    text = text.replace("%", "%%")
    if default is MISSING:
        text += " (required)"
    elif default is not None:
        text += " (default: %(default)s)"
    group.add_argument(f"--{name}", default=default, metavar="…", help=text)
