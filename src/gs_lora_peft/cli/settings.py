"""The settings of a script that trains: from a YAML file, from the command line, and their help."""

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

from ..checking import check_fields
from ..errors import InvalidInputError, located
from ..io import as_path
from .terminal import say_last

RESUMABLE = {"save_strategy": "epoch", "save_total_limit": 1}  # defaults of scripts, which the library has not


_MORE = (
    "Every option of transformers.TrainingArguments works as well, such as --output_dir, --seed, --use_cpu, "
    "--gradient_accumulation_steps, --report_to, --push_to_hub and --hub_model_id; --help_all lists them. Options are "
    "written in full. GS_LORA_TRACEBACK=1 in the environment shows where an error came from."
)


# The names of `data.evaluation`, which takes seconds to import.
SCORED_ON = "Split to score on. By default the first there is of test, validation, valid, val, evaluation, eval, dev."


@dataclass(kw_only=True)
class RepeatArguments:
    """What becomes of requests that the output folder has already."""

    keep: bool = field(
        default=False,
        metadata={"help": "Accept tasks that were carried out with other settings, and go on with those given now."},
    )
    redo: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "last",
            "help": "Carry the last request out again with the settings given now and keep the other tasks; or name "
            "its task, e.g. task_003, so that the same command, given again, does not repeat it.",
        },
    )


@dataclass
class AdapterArguments:
    """The adapter of each task; see GSLoraConfig."""

    r: int = field(default=8, metadata={"help": "Rank."})
    lora_alpha: int = field(default=1, metadata={"help": "LoRA scaling is lora_alpha / r."})
    target_modules: str = field(default="ffn", metadata={"help": "'ffn', 'attention' or a regular expression."})
    block_pattern: str | None = field(default=None, metadata={"help": "Regex: only these blocks are adapted."})
    exclude_blocks: str | None = field(default=None, metadata={"help": "Regex: these blocks are left alone."})
    group_by: str = field(default="block", metadata={"help": "Kept or dropped together: block, module or matrix."})


# Help


def help_if_asked(description: str, *options: type, argv: Sequence[str] | None = None) -> None:
    """
    Prints the help and ends the process, if the command line asks for it.

    A script calls it before it imports what takes seconds. The script's own options come first, then those of the
    adapter and of forgetting, with their defaults; for those of transformers there is `--help_all`.

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


def _help(description: str, options: Sequence[type]) -> str:
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        usage="%(prog)s [options]",
        description=description,
        epilog=_MORE,
        formatter_class=_HelpFormatter,
        add_help=False,
    )
    for kind in (*options, AdapterArguments):
        group = parser.add_argument_group((kind.__doc__ or kind.__name__).splitlines()[0].rstrip("."))
        for item in sorted(
            dataclasses.fields(kind), key=lambda item: bool(item.kw_only)
        ):  # the script's own ones first
            _show(group, item.name, item.default, item.metadata.get("help", ""))
    group = parser.add_argument_group("Training and forgetting; see GSLoraTrainingArguments")
    for name, default, said in training_options():
        _show(group, name, default, said)
    return parser.format_help()


def _show(group: Any, name: str, default: Any, said: str) -> None:
    said = said.replace("%", "%%")
    if default is MISSING:
        said += " (required)"
    elif default is not None:
        said += " (default: %(default)s)"
    group.add_argument(f"--{name}", default=default, metavar="…", help=said)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the description as it is, with the examples in it, and fills the rest."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text == _MORE:
            return argparse.HelpFormatter._fill_text(self, text, width, indent)
        return super()._fill_text(text, width, indent)


def training_options() -> Iterator[tuple[str, Any, str]]:
    """Name, default and help of each field that GSLoraTrainingArguments defines.

    They are read from its source, because importing it takes seconds: too long for a help page.
    """
    source = Path(__file__).parents[1] / "training" / "arguments.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
            yield node.target.id, values["default"], values["metadata"]["help"]


# Settings


def settings_parser(prog: str, description: str, *options: type, **defaults: Any) -> Any:
    """
    A parser of a script's options, those of [`AdapterArguments`] and those of [`GSLoraTrainingArguments`].

    Args:
        prog (`str`):
            The name of the script.
        description (`str`):
            What it does.
        options (dataclasses):
            The options of the script itself. A field `config` names a YAML file with settings.
        defaults (`Any`):
            Defaults that differ from those of the classes.

    Returns:
        `transformers.HfArgumentParser`: For [`parse_settings`]; its `error` ends the process with exit code 2.
    """
    from transformers import HfArgumentParser

    from ..training import GSLoraTrainingArguments

    class SettingsParser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            # The usage of 200 options would hide what was wrong.
            say_last(f"{self.prog}: error: {message}")
            sys.exit(2)

    classes: Any = (*options, AdapterArguments, GSLoraTrainingArguments)
    parser = SettingsParser(
        classes,
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--help_all", action="help", help="Show every option, those of transformers too.")
    parser.set_defaults(**{**RESUMABLE, **defaults})
    return parser


def parse_settings(parser: Any, argv: Sequence[str]) -> tuple[Any, ...]:
    """
    Defaults, then the YAML file of `--config`, then the command line.

    A value of another type, or out of its range, is a wrong command line: the process ends with exit code 2.

    Returns:
        The dataclasses of [`settings_parser`], in its order.
    """
    from ..training import repo_to_publish_in

    _set_defaults_from_file(parser, argv)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
        if unknown:
            parser.error(_unknown_option(parser, unknown[0]))
        *others, args = parsed
        if args.push_to_hub:
            repo_to_publish_in(args)  # before hours of training
        for settings in others:
            check_fields(settings)
            if getattr(settings, "missing", None) is not None:
                missing_classes(settings)
    except (ValueError, OSError) as error:
        parser.error(_as_option(error))
    if args.resume_from_checkpoint is not None:
        parser.error("--resume_from_checkpoint is not needed: the same command, given again, resumes by itself")
    return tuple(parsed)


def _unknown_option(parser: Any, text: str) -> str:
    given = text.partition("=")[0]
    if not given.startswith("-"):
        return f"{given!r} belongs to no option; write options as --name value, with quotes around a value with spaces"
    known = [f"--{action.dest}" for action in parser._actions]
    close = difflib.get_close_matches(given, known, n=3)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"there is no option {given}; {meant}--help and --help_all list all options"


def _as_option(error: Exception) -> str:
    if isinstance(error, InvalidInputError):
        return str(type(error)(f"--{error.name.removeprefix('--')}", error.value, error.expected, error.fix))
    return " ".join(str(error).split())


def missing_classes(script: Any) -> list[str]:
    """`--missing`: what to keep although none of its data may be used."""
    from ..ledger import parse_classes

    if script.missing is None:
        return []
    try:
        return parse_classes(script.missing)
    except ValueError as error:
        raise located(error, "--missing") from None


def _set_defaults_from_file(parser: Any, argv: Sequence[str]) -> None:
    """Makes what the YAML file of `--config` says the defaults of the parser."""
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    if path is None:
        return
    settings = _read_yaml(parser, path)
    known = {action.dest: action for action in parser._actions}
    if unknown := sorted(map(str, set(settings) - set(known))):
        parser.error(f"{path} has unknown settings {unknown}; --help and --help_all list the known ones")
    for name in ("forget", "missing"):
        if settings.get(name) is not None:
            try:
                settings[name] = classes_as_text(settings[name], name)
            except ValueError as error:
                parser.error(f"{path}: {error}")
    for name in settings:
        known[name].required = False
    parser.set_defaults(**settings)


def _read_yaml(parser: Any, path: str) -> dict[Any, Any]:
    import yaml

    try:
        settings = yaml.safe_load(as_path(path, "--config").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"--config {path} cannot be read: {' '.join(str(error).split())}")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        expected = "lines such as 'learning_rate: 0.005'"
        parser.error(str(InvalidInputError(f"--config {path}", settings, expected)))
    return settings


def classes_as_text(value: Any, name: str) -> str:
    """Classes of a YAML file as they are on a command line: [a, b] is 'a,b' and [[a, b], [c]] is 'a,b;c'.

    Raises:
        InvalidInputError: If it is neither of them, nor one name, id or text as on the command line.
    """
    if not isinstance(value, list):
        return _class_as_text(value, name)
    requests = value if any(isinstance(item, list) for item in value) else [value]
    if not all(isinstance(request, list) and request for request in requests):
        raise InvalidInputError(name, value, "a list of classes, or a list of such lists, none of them empty")
    names = [[_class_as_text(item, name) for item in request] for request in requests]
    if split := [item for request in names for item in request if "," in item or ";" in item]:
        raise InvalidInputError(name, split[0], "one class: its name, or its id if that has ',' or ';'")
    return ";".join(",".join(request) for request in names)


def _class_as_text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):  # `no` is False in YAML
        raise InvalidInputError(name, value, "names or ids", "Put quotes around a name that is a word of YAML's.")
    return str(value)
