"""The options of `gs-lora forget` and `gs-lora redo`, as dataclasses. Nothing here takes time to import."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ..terminal import NAMES

# The names of `data.EVALUATION_SPLITS`, which takes seconds to import.
_SCORED_ON = (
    "Split to score on. Default: the first that exists of test, validation, valid, val, evaluation, eval, dev."
)
_OUTPUT = "Folder of the run. Default: runs/digits, runs/classes, runs/faces or runs/detection, by the kind of model."


@dataclass
class DataArguments:
    """What to forget, model and data."""

    forget: str | None = field(
        default=None,
        metadata={"help": "Classes by name or id; requests split by ';', classes by ','. E.g. 'tench,church;dog'."},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Classifier, face model or detector: a folder or a Hub id. Without model and data: the digits.",
            "aliases": [NAMES["--model_name_or_path"]],
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Labelled data of all classes: a Hub id, or a folder or file (parquet, images, save_to_disk, "
            "COCO's).",
            "aliases": [NAMES["--dataset_name"]],
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels, or of annotated boxes. Default: label, for detectors objects.",
            "aliases": ["--objects_column"],
        },
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images, if it is not called image."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_config_name: str | None = field(
        default=None,
        metadata={"help": "Configuration of the data set.", "aliases": [NAMES["--dataset_config_name"]]},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": _SCORED_ON})
    replay_ratio: float = field(
        default=1.0, metadata={"help": "Share of each kept class that is replayed, in (0, 1]."}
    )
    shots: int | None = field(default=None, metadata={"help": "Few-shot: exactly this many samples of every class."})
    missing: str | None = field(
        default=None, metadata={"help": "To keep, although none of their data may be used; names or ids split by ','."}
    )


@dataclass
class RunArguments:
    """The run and its result."""

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
    forget_weights: list[float] | None = field(
        default=None, metadata={"help": "Beta of each request. Default: forget_weight for all."}
    )
    audit: bool = field(
        default=False, metadata={"help": "End with a quick audit, and record its verdict in the ledger."}
    )
    retrain: int | None = field(
        default=None,
        metadata={
            "help": "With --audit: train so many models from scratch without the classes, to compare with. Default: 2 "
            "for the digits; else none, and random weights are the low bar."
        },
    )
    pictures: bool = field(
        default=True,
        metadata={"help": "Faces, detectors: draw private_pictures in the output folder, which nothing publishes."},
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON document, for machines."})


@dataclass
class DetectorArguments:
    """For detectors."""

    box_format: str = field(default="xywh", metadata={"help": "xywh (COCO's) or xyxy, in pixels."})
    threshold: float = field(default=0.5, metadata={"help": "Lowest confidence of detections in the picture."})


@dataclass
class FaceArguments:
    """For faces: a model to convert or to train first."""

    checkpoint: str | None = field(default=None, metadata={"help": "State dict of the papers' code (.pth)."})
    people: str | None = field(
        default=None,
        metadata={
            "help": "With --checkpoint: names of the people in the order of their ids in the head: a file, one name a "
            "line, or a,b,c. Default: the names of the data, in their order."
        },
    )
    pretrain: bool = field(
        default=False, metadata={"help": "Without model and checkpoint: train a Face Transformer on the data first."}
    )


@dataclass
class FaceModelArguments:
    """For faces: settings of the model that a checkpoint lacks, and of pre-training."""

    head_type: str | None = field(default=None, metadata={"help": "cosface (default), arcface, sface or softmax."})
    scale: float = field(default=64.0, metadata={"help": "Scale of the head."})
    margin: float | None = field(default=None, metadata={"help": "Margin; default 0.35 (cosface) or 0.5 (arcface)."})
    pixels: str = field(
        default="unit", metadata={"help": "unit, symmetric, bytes or standardized; see docs/faces.md."}
    )
    num_attention_heads: int = field(default=8, metadata={"help": "Number of attention heads."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side; to pre-train: default 112."})
    patch_size: int = field(default=8, metadata={"help": "To pre-train: pixels a side of a patch."})
    patch_stride: int | None = field(default=None, metadata={"help": "To pre-train: 8 with --patch_size 12 is P12S8."})
    hidden_size: int = field(default=512, metadata={"help": "To pre-train: width."})
    intermediate_size: int = field(default=2048, metadata={"help": "To pre-train: width of the feed-forward."})
    num_hidden_layers: int = field(default=6, metadata={"help": "To pre-train: number of blocks."})
    pretrain_epochs: float = field(default=60, metadata={"help": "To pre-train: epochs."})
    pretrain_batch_size: int = field(default=48, metadata={"help": "To pre-train: images at once, of each process."})
    pretrain_learning_rate: float = field(default=5e-4, metadata={"help": "To pre-train: learning rate."})


# Those that a checkpoint lacks.
CONVERSION = ("image_size", "num_attention_heads", "head_type", "scale", "margin", "pixels")


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


@dataclass
class Options:
    """Everything that a command line of `gs-lora forget` or `gs-lora redo` says.

    Args:
        data ([`DataArguments`]):
            What to forget, model and data.
        run ([`RunArguments`]):
            The run and its result.
        adapter ([`AdapterArguments`]):
            The adapter of each task.
        boxes ([`DetectorArguments`]):
            For detectors.
        faces ([`FaceArguments`]):
            For faces.
        face_model ([`FaceModelArguments`]):
            For faces: settings of the model.
        args ([`GSLoraTrainingArguments`]):
            The training.
    """

    data: DataArguments
    run: RunArguments
    adapter: AdapterArguments
    boxes: DetectorArguments
    faces: FaceArguments
    face_model: FaceModelArguments
    args: Any


# Options of `gs-lora forget` that `gs-lora redo` lacks.
REDO_LACKS = frozenset(
    {"forget", "forget_weights", "output_dir", "output", "keep", "redo", "checkpoint", "people", "pretrain"}
    | {"model_revision", *(item.name for item in dataclasses.fields(FaceModelArguments))}
)

# In the order of `Options`.
OWN_ARGUMENTS = (
    DataArguments,
    RunArguments,
    AdapterArguments,
    DetectorArguments,
    FaceArguments,
    FaceModelArguments,
)


def missing_classes(data: DataArguments) -> list[str]:
    """Returns the classes of `--missing`: to keep, although none of their data may be used.

    Args:
        data ([`DataArguments`]):
            The options.

    Raises:
        InvalidInputError: If the text is not a list of classes.
    """
    from ...ledger import parse_classes

    if data.missing is None:
        return []
    try:
        return parse_classes(data.missing)
    except InvalidInputError as error:
        raise type(error)("--missing", error.value, error.expected, error.fix) from None


@dataclass(frozen=True)
class HelpEntry:
    """An option on a help page.

    Args:
        panel (`str`):
            Title of the panel that it stands in.
        name (`str`):
            How it is written.
        default (`Any`):
            Its default; `None` is not shown.
        text (`str`):
            What it does.
    """

    panel: str
    name: str
    default: Any
    text: str


def help_entries() -> Iterator[HelpEntry]:
    """Yields the options of this package, in the order of the help page."""
    panels = {kind: (kind.__doc__ or "").rstrip(".") for kind in OWN_ARGUMENTS}
    first = len((DataArguments, RunArguments, AdapterArguments))
    for kind in OWN_ARGUMENTS[:first]:
        yield from _entries(kind, panels[kind])
    for name, default, text in training_options():
        yield HelpEntry("Training and forgetting; see GSLoraTrainingArguments", f"--{name}", default, text)
    for kind in OWN_ARGUMENTS[first:]:
        yield from _entries(kind, panels[kind])


def _entries(kind: Any, panel: str) -> Iterator[HelpEntry]:
    if kind is RunArguments:
        yield HelpEntry(panel, NAMES["--output_dir"], None, _OUTPUT)
    for item in dataclasses.fields(kind):
        name = f"--{item.name}"
        default = None if item.default in (None, False) else item.default
        yield HelpEntry(panel, NAMES.get(name, name), default, item.metadata["help"])


def training_options() -> Iterator[tuple[str, Any, str]]:
    """Yields name, default and help of each field that GSLoraTrainingArguments defines.

    They are read from its source, because importing the class takes seconds: too long for a help page.
    """
    source = Path(__file__).parents[2] / "training" / "arguments.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
            yield node.target.id, values["default"], values["metadata"]["help"]
