"""The settings that scripts share, and their help page. Nothing here takes time to import."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError

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

    r: int | None = field(default=None, metadata={"help": "Rank. Default: 8, or 32 with --recipe deep."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "LoRA scaling is lora_alpha / r. Default: 1, or 32 with --recipe deep."}
    )
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
    """Prints the help and ends the process, if the command line asks for it.

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
