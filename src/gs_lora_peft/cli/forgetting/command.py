"""The commands that train: forget, redo and demo."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from ..terminal import Json, join_processes, leave_processes, own_names, say_last
from .help import SettingsCommand
from .options import REDO_LACKS, help_entries

_NOT_ALL = "Not everything is forgotten: the lines below the table name what is still recognised."


class RedoCommand(SettingsCommand):
    """The same command without the options that say which requests to carry out."""

    entries = staticmethod(
        lambda: [entry for entry in help_entries() if entry.name.removeprefix("--") not in REDO_LACKS]
    )


def forget(ctx: typer.Context) -> None:
    """Make a model forget classes, one request after another, and record each in a ledger.

    Classifiers of images, text or sound, face models and object detectors: the kind is recognised from the model.
    Without model and data, a small ViT forgets handwritten digits.

    Repeat the command to continue a stopped run: finished requests are skipped, and the unfinished one continues after
    its last finished epoch. With other settings the command is refused, unless --keep or --redo says what to do.
    --config reads settings from a YAML file; there, a list of classes under 'forget' is one request, and a list of
    such lists are several.

    Options are written in full. Those of transformers.TrainingArguments work as well, such as --seed, --use_cpu,
    --report_to, --push_to_hub and --hub_model_id; --help_all lists them.

    Several processes: 'accelerate launch -m gs_lora_peft forget ...' on GPUs, 'torchrun --nproc_per_node 2 -m --
    gs_lora_peft forget ...' on CPUs. The exit code is 3 if a request is not forgotten.
    """
    join_processes()
    from .working import forget as carry_out

    with own_names(dashes=False):
        status = carry_out(ctx.args)
    _end(status)


def redo(ctx: typer.Context) -> None:
    """Carry out the last request of a run again, and revoke its former task once the new one is done.

    RUN is the folder of the run; TASK (task_003) is the task, by default the last one in effect. The settings are
    those that the ledger records, except for the options that are given. With TASK the command can be repeated: what
    was redone with these settings is not trained again. The exit code is 3 if a request is not forgotten.
    """
    join_processes()
    from .redoing import redo as carry_out

    with own_names(dashes=False):
        status = carry_out(ctx.args)
    _end(status)


def demo(
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the run.")] = "runs/digits",
    recipe: Annotated[str, typer.Option(metavar="NAME", help="'deep' to erase, 'fast' to silence.")] = "deep",
    as_json: Json = False,
) -> None:
    """Forget handwritten digits and attack the result: about three minutes on two cores, without any download.

    A small ViT is trained on scikit-learn's digits (once; it is kept in the cache of Hugging Face), forgets three,
    then seven, then zero and one, and is audited beside two models that were trained without them.
    """
    join_processes()
    from .working import forget as carry_out

    bars = "false" if sys.stderr.isatty() else "true"
    options = ["--recipe", recipe, "--audit", "--disable_tqdm", bars, "--output", output]
    _end(carry_out([*options, *["--json"] * as_json]))


def _end(status: int) -> NoReturn:
    """Ends a command, which may be one of several processes."""
    leave_processes()
    if status:
        say_last(_NOT_ALL)
    raise typer.Exit(status)
