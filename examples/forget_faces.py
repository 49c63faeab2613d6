r"""Make a face recogniser forget people, one request after another.

From a checkpoint of the papers' code, which is converted first:

    accelerate launch examples/forget_faces.py --dataset_name data/faces --forget "person_34,person_23;person_10" \
        --checkpoint face.pth --scale 64 --margin 0.35 --output_dir runs/faces

From a converted folder: `--model_name_or_path face-model` instead of `--checkpoint`. Without either, a Face
Transformer is pre-trained on the data first (`--image_size`, `--pretrain_epochs`, ...).

Prints accuracy with and without the margin and how well pairs of images are told apart, for people forgotten and kept.
Pictures of both go to `private_pictures` in the output folder: they show faces that are to be forgotten, so
do not publish them. Settings may come from a YAML file, as in forget.py: `--config settings.yaml`.

A run that was stopped goes on when the same command is given again: pre-training after its last finished epoch; then
finished requests are skipped, and the unfinished one goes on after its last finished epoch (`--save_strategy no`
writes no checkpoints of requests; it then starts again). With other settings the command is refused, unless you choose
`--keep` or `--redo`. Exit status as in forget.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gs_lora_peft.cli.settings import (
    SCORED_ON,
    AdapterArguments,
    RepeatArguments,
    help_if_asked,
    missing_classes,
    parse_settings,
    settings_parser,
)
from gs_lora_peft.cli.terminal import run_script


@dataclass
class FaceArguments(RepeatArguments):
    """Whom to forget, and where model and data come from."""

    dataset_name: str = field(metadata={"help": "Faces: a Hub id or a local folder (parquet, images, save_to_disk)."})
    forget: str = field(metadata={"help": "People by name or id; requests split by ';', people by ','."})
    checkpoint: str | None = field(default=None, metadata={"help": "State dict of the papers' code (.pth)."})
    people: str | None = field(
        default=None,
        metadata={
            "help": "With --checkpoint: names of the head's people in the order of their ids: a file, one a line, or "
            "a,b,c. Without it the rows of the head are taken to be in the data's order of names."
        },
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Face model: a local folder or a Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": SCORED_ON})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column that says who is on them."})
    replay_ratio: float = field(default=1.0, metadata={"help": "Share of each kept person that is replayed."})
    shots: int | None = field(default=None, metadata={"help": "Few-shot: exactly this many images of everybody."})
    missing: str | None = field(
        default=None, metadata={"help": "To keep, although none of their data may be used; names or ids split by ','."}
    )
    pictures: bool = field(default=True, metadata={"help": "Whether to draw private_pictures in the output folder."})
    config: str | None = field(default=None, metadata={"help": "YAML file with any of these settings."})


@dataclass
class FaceModelArguments:
    """What a checkpoint does not tell of the model, and what a pre-trained one is like."""

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


if __name__ == "__main__":
    help_if_asked(__doc__, FaceArguments, FaceModelArguments)  # before the imports that take seconds

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from accelerate import PartialState
from datasets import DatasetDict
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from gs_lora_peft import (
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    GSLoraTrainingArguments,
    convert_face_checkpoint,
    parse_requests,
)
from gs_lora_peft.audit import audit_faces, draw_face_pictures, format_face_audit
from gs_lora_peft.cli.convert_face import read_names
from gs_lora_peft.cli.running import (
    carry_out,
    load_data,
    make_forgetter,
    model_source,
    publish_if_asked,
    refuse_ignored,
)
from gs_lora_peft.data import align_known_labels, default_collator
from gs_lora_peft.data.classes import label_names, resolve_classes
from gs_lora_peft.io import as_path, parse_json, refuse_links, sha256_of, staged_folder, write_json_atomic
from gs_lora_peft.ledger import exit_status, format_table
from gs_lora_peft.models import FaceImageProcessor
from gs_lora_peft.runs.workspace import newest_checkpoint

SETTINGS_FILE = "base_model.json"  # what the base model beside it was made from
CONVERSION = ("image_size", "num_attention_heads", "head_type", "scale", "margin", "pixels")
DATA = ("dataset_name", "dataset_config_name", "train_split", "image_column", "label_column")


def parse_arguments(
    argv: list[str],
) -> tuple[FaceArguments, FaceModelArguments, AdapterArguments, GSLoraTrainingArguments]:
    """Defaults, then the YAML file, then the command line."""
    parser = settings_parser("forget_faces.py", __doc__, FaceArguments, FaceModelArguments, output_dir="runs/faces")
    script, face, adapter, args = parse_settings(parser, argv)
    if script.checkpoint is not None and script.model_name_or_path is not None:
        parser.error("--checkpoint and --model_name_or_path both name a model; give one")
    if script.people is not None and script.checkpoint is None:
        parser.error("--people is for the model of a --checkpoint; others have their names")
    if script.model_revision is not None and script.model_name_or_path is None:
        parser.error("--model_revision is of a --model_name_or_path, which is missing")
    try:
        if script.model_name_or_path is not None:
            refuse_ignored(face, vars(face), "the model of --model_name_or_path has its own")
        elif script.checkpoint is not None:
            refuse_ignored(face, vars(face).keys() - CONVERSION, "the model of a --checkpoint is already trained")
    except ValueError as error:
        parser.error(str(error))
    if script.people is not None:
        try:
            read_names(script.people)
        except (ValueError, OSError) as error:
            parser.error(f"--people: {error}")
    return script, face, adapter, args


def names_of_people(script: FaceArguments, dataset: DatasetDict) -> list[str] | None:
    """Names of the people that a base model made here knows, in the order of their ids."""
    return label_names(dataset["train"], script.label_column) if script.people is None else read_names(script.people)


def check_pretraining(script: FaceArguments, dataset: DatasetDict) -> None:
    """Refuses, before hours of training, people without names and requests for people who are not in the data."""
    names = label_names(dataset["train"], script.label_column)
    if names is None:
        raise ValueError(
            f"{script.label_column!r} of {script.dataset_name!r} has labels without names, which a model that is "
            f"pre-trained on it needs; name them with `dataset.class_encode_column({script.label_column!r})`, or use "
            "a folder of pictures for each person."
        )
    asked = [name for request in parse_requests(script.forget) for name in request.classes]
    resolve_classes([*asked, *missing_classes(script)], names=names)


def check_base_model(folder: Path, settings: dict[str, Any], advice: str) -> None:
    """Refuses a base model that an earlier run made, or has begun to make, from something else."""
    mark = folder.parent / SETTINGS_FILE
    known = parse_json(mark.read_bytes()) if mark.is_file() else {}
    before = {name: known.get(name, "unknown") for name in settings}
    if differing := [name for name, value in settings.items() if before[name] != value]:
        told = (f"--{name} was {shortened(before[name])} and is {shortened(settings[name])}" for name in differing)
        raise ValueError(
            f"'{folder}' is made from something else: {'; '.join(told)}. Choose another --output_dir, or {advice}."
        )


def pretrained(
    folder: Path,
    work: Path,
    dataset: DatasetDict,
    script: FaceArguments,
    face: FaceModelArguments,
    args: GSLoraTrainingArguments,
) -> None:
    """Trains a Face Transformer on everybody, from the last checkpoint in `work` if there is one, and writes it."""
    names = names_of_people(script, dataset)
    config = FaceTransformerConfig(
        image_size=face.image_size or 112,
        patch_size=face.patch_size,
        patch_stride=face.patch_stride,
        hidden_size=face.hidden_size,
        intermediate_size=face.intermediate_size,
        num_hidden_layers=face.num_hidden_layers,
        num_attention_heads=face.num_attention_heads,
        head_type=face.head_type or "cosface",
        scale=face.scale,
        margin=face.margin,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    processor = FaceImageProcessor.for_pixels(face.pixels, image_size=config.image_size)
    set_seed(args.seed)
    model = FaceTransformerForRecognition(config)
    training = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=face.pretrain_epochs,
        per_device_train_batch_size=face.pretrain_batch_size,
        learning_rate=face.pretrain_learning_rate,
        weight_decay=0.05,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        remove_unused_columns=False,
        seed=args.seed,
        use_cpu=args.use_cpu,
        disable_tqdm=args.disable_tqdm,
    )
    collator = default_collator(processor, script.label_column)
    trainer = Trainer(model, training, train_dataset=dataset["train"], data_collator=collator)
    checkpoint = newest_checkpoint(work, training.world_size)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.is_world_process_zero():
        with staged_folder(folder) as staged:
            model.save_pretrained(staged)
            processor.save_pretrained(staged)


def converted(folder: Path, script: FaceArguments, names: list[str] | None, settings: dict[str, Any]) -> None:
    """Writes the model of a checkpoint."""
    try:
        convert_face_checkpoint(script.checkpoint, folder, label_names=names, **settings)
    except ValueError as error:
        if script.people is None:
            error.add_note("The names are the data's. If the head knows other people, name them with --people.")
        raise


def model_folder(
    script: FaceArguments, face: FaceModelArguments, args: GSLoraTrainingArguments, dataset: DatasetDict
) -> str:
    """The base model that is made once, in the output folder, from a checkpoint or the data."""
    refuse_links(args.output_dir, ("base_model", "pretraining", SETTINGS_FILE))
    folder, work = Path(args.output_dir, "base_model"), Path(args.output_dir, "pretraining")
    names, settings, made = names_of_people(script, dataset), asdict(face), folder.is_dir()
    if script.checkpoint is not None:
        settings, source, training = (
            {name: settings[name] for name in CONVERSION},
            sha256_of(as_path(script.checkpoint, "--checkpoint")),
            {},
        )
    else:
        source, training = "pre-trained", {name: getattr(script, name) for name in DATA}
        training |= {"seed": args.seed, "num_processes": args.world_size}  # on these, too, its checkpoints depend
    mark = {"checkpoint": source, "people": names, **settings}
    if made:
        check_base_model(folder, mark, f"go on with --model_name_or_path {folder}, without the options that made it")
    elif any(work.glob("checkpoint-*")):
        check_base_model(folder, mark | training, f"remove '{work}' to begin anew")
    PartialState().wait_for_everyone()
    if not made and PartialState().is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder.parent / SETTINGS_FILE, mark | training)  # first, so that no folder is without it
    if not made and script.checkpoint is None:
        pretrained(folder, work, dataset, script, face, args)
    elif not made and PartialState().is_main_process:
        converted(folder, script, names, settings)
    PartialState().wait_for_everyone()
    if script.checkpoint is None and PartialState().is_main_process:
        shutil.rmtree(work, ignore_errors=True)  # checkpoints hold pickles
    return str(folder)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    script, face, adapter, args = parse_arguments(sys.argv[1:] if argv is None else argv)
    requests = parse_requests(script.forget)
    dataset = load_data(script)
    if script.checkpoint is None and script.model_name_or_path is None:
        check_pretraining(script, dataset)
    if script.model_name_or_path is not None:
        source = model_source(script)
    else:
        source = {"pretrained_model_name_or_path": model_folder(script, face, args, dataset)}
    processor = AutoImageProcessor.from_pretrained(**source)
    model = AutoModelForImageClassification.from_pretrained(**source)
    dataset = align_known_labels(dataset, script.label_column, model.config.label2id)
    forgetter = make_forgetter(script, adapter, args, model, dataset, script.label_column, processor)
    carry_out(forgetter, requests, script)
    if not PartialState().is_main_process:
        return 0  # with another status a launcher would end the main process, which is still at work
    print(format_table(forgetter.ledger))
    base_model = AutoModelForImageClassification.from_pretrained(**source).to(args.device)
    collator = default_collator(processor, script.label_column)
    audit = audit_faces(base_model, args.output_dir, dataset["test"], data_collator=collator)
    print(f"\n{format_face_audit(audit)}")
    if script.pictures:
        files = draw_face_pictures(audit, dataset["test"], args.output_dir)
        print(f"\nPictures of the forgotten, which are private: {files[0].parent}")
    publish_if_asked(args)
    return exit_status(forgetter.ledger)


if __name__ == "__main__":
    run_script(main)
