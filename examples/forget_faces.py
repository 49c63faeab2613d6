r"""Make a face recogniser forget people, one request after another.

From a checkpoint of the papers' code, which is converted first:

    accelerate launch examples/forget_faces.py --dataset_name data/faces --forget "person_34,person_23;person_10" \
        --checkpoint face.pth --scale 64 --margin 0.35 --output_dir runs/faces

From a converted folder: `--model_name_or_path face-model` instead of `--checkpoint`. Without either, a Face
Transformer is pre-trained on the data first (`--image_size`, `--pretrain_epochs`, ...).

The script prints the accuracy with and without the margin, and scores of verification, for forgotten and kept people.
It draws both to `private_pictures` in the output folder. These pictures show faces that are to be forgotten: do not
publish them. Settings may come from a YAML file, as in forget.py: `--config settings.yaml`.

Repeat the command to continue a stopped run. Pre-training continues after its last finished epoch. Finished requests
are skipped, and the unfinished one continues after its last finished epoch. (`--save_strategy no` writes no
checkpoints of requests; the request then starts again.) With other settings the command is refused, unless you choose
`--keep` or `--redo`. Exit status as in forget.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gs_lora_peft.cli import AdapterArguments, RunArguments, help_if_asked, run_script


@dataclass
class FaceArguments(RunArguments):
    """Whom to forget, and where model and data come from."""

    dataset_name: str = field(metadata={"help": "Faces: a Hub id or a local folder (parquet, images, save_to_disk)."})
    forget: str = field(metadata={"help": "People by name or id; requests split by ';', people by ','."})
    checkpoint: str | None = field(default=None, metadata={"help": "State dict of the papers' code (.pth)."})
    people: str | None = field(
        default=None,
        metadata={
            "help": "With --checkpoint: names of the people in the order of their ids in the head: a file, one name a "
            "line, or a,b,c. Default: the names of the data, in their order."
        },
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Face model: a local folder or a Hub id."})
    label_column: str = field(default="label", metadata={"help": "Column of the people's labels."})
    pictures: bool = field(default=True, metadata={"help": "Draw private_pictures in the output folder."})


@dataclass
class FaceModelArguments:
    """Settings of the face model: those that a checkpoint lacks, and those of pre-training."""

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
    help_if_asked(__doc__, FaceArguments, FaceModelArguments)  # before slow imports

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
from gs_lora_peft.cli import (
    SettingsParser,
    carry_out,
    load_data,
    make_forgetter,
    missing_classes,
    model_source,
    publish_if_asked,
    read_names,
    refuse_ignored,
)
from gs_lora_peft.data import align_known_labels, default_collator, label_names, resolve_classes
from gs_lora_peft.io import as_path, parse_json, refuse_links, sha256_of, staged_folder, write_json_atomic
from gs_lora_peft.ledger import exit_status, format_table
from gs_lora_peft.models import FaceImageProcessor
from gs_lora_peft.runs import newest_checkpoint

SETTINGS_FILE = "base_model.json"  # the settings of the base model beside it
CONVERSION = ("image_size", "num_attention_heads", "head_type", "scale", "margin", "pixels")
DATA = ("dataset_name", "dataset_config_name", "train_split", "image_column", "label_column")


def parse_arguments(
    argv: list[str],
) -> tuple[FaceArguments, FaceModelArguments, AdapterArguments, GSLoraTrainingArguments]:
    """Defaults, then the YAML file, then the command line."""
    parser = SettingsParser("forget_faces.py", __doc__, FaceArguments, FaceModelArguments, output_dir="runs/faces")
    script, face, adapter, args = parser.parse_args_and_config(argv)
    if script.checkpoint is not None and script.model_name_or_path is not None:
        parser.error("--checkpoint and --model_name_or_path both name a model; give one")
    if script.people is not None and script.checkpoint is None:
        parser.error("--people is for the model of a --checkpoint; other models have names")
    if script.model_revision is not None and script.model_name_or_path is None:
        parser.error("--model_revision is of a --model_name_or_path, which is missing")
    try:
        if script.model_name_or_path is not None:
            refuse_ignored(face, vars(face), "the model of --model_name_or_path has its own settings")
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
    """Returns the names of the people that the base model is made for, in the order of their ids."""
    return label_names(dataset["train"], script.label_column) if script.people is None else read_names(script.people)


def check_pretraining(script: FaceArguments, dataset: DatasetDict) -> None:
    """Refuses people without names, and requests for people who are not in the data, before hours of training."""
    names = label_names(dataset["train"], script.label_column)
    if names is None:
        raise ValueError(
            f"{script.label_column!r} of {script.dataset_name!r} has labels without names, which pre-training needs; "
            f"name them with `dataset.class_encode_column({script.label_column!r})`, or use a folder of pictures for "
            "each person."
        )
    asked = [name for request in parse_requests(script.forget) for name in request.classes]
    resolve_classes([*asked, *missing_classes(script)], names=names)


def check_base_model(folder: Path, settings: dict[str, Any], advice: str) -> None:
    """Refuses a base model that an earlier run made, or began to make, with other settings."""
    mark = folder.parent / SETTINGS_FILE
    known = parse_json(mark.read_bytes()) if mark.is_file() else {}
    before = {name: known.get(name, "unknown") for name in settings}
    if differing := [name for name, value in settings.items() if before[name] != value]:
        changes = (f"--{name} was {shortened(before[name])} and is {shortened(settings[name])}" for name in differing)
        raise ValueError(
            f"'{folder}' is made with other settings: {'; '.join(changes)}. Choose another --output_dir, or {advice}."
        )


def pretrained(
    folder: Path,
    work: Path,
    dataset: DatasetDict,
    script: FaceArguments,
    face: FaceModelArguments,
    args: GSLoraTrainingArguments,
) -> None:
    """Trains a Face Transformer on all people, from the last checkpoint in `work` if there is one, and writes it."""
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
    """Converts a checkpoint, and writes the model."""
    try:
        convert_face_checkpoint(script.checkpoint, folder, label_names=names, **settings)
    except ValueError as error:
        if script.people is None:
            error.add_note("The names are those of the data. If the head has other people, name them with --people.")
        raise


def model_folder(
    script: FaceArguments, face: FaceModelArguments, args: GSLoraTrainingArguments, dataset: DatasetDict
) -> str:
    """Makes the base model once, in the output folder, from a checkpoint or the data; returns its folder."""
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
        training |= {"seed": args.seed, "num_processes": args.world_size}  # its checkpoints depend on these, too
    mark = {"checkpoint": source, "people": names, **settings}
    if made:
        check_base_model(folder, mark, f"go on with --model_name_or_path {folder}, without the options that made it")
    elif any(work.glob("checkpoint-*")):
        check_base_model(folder, mark | training, f"remove '{work}' to begin anew")
    PartialState().wait_for_everyone()
    if not made and PartialState().is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder.parent / SETTINGS_FILE, mark | training)  # before the folder that it describes
    if not made and script.checkpoint is None:
        pretrained(folder, work, dataset, script, face, args)
    elif not made and PartialState().is_main_process:
        converted(folder, script, names, settings)
    PartialState().wait_for_everyone()
    if script.checkpoint is None and PartialState().is_main_process:
        shutil.rmtree(work, ignore_errors=True)  # checkpoints hold pickles
    return str(folder)


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
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
        return 0  # with another status a launcher would stop the main process
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
