"""Face models: made from a checkpoint or trained first if asked, and shown with and without the margin."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, ClassVar

from accelerate import PartialState
from datasets import DatasetDict
from transformers import Trainer, set_seed

from ...audit import RetrainRecipe, audit_faces, draw_face_pictures, format_face_audit
from ...data import NamedRows, check_pictures, default_collator, label_names, resolve_classes
from ...errors import InvalidInputError
from ...io import as_path, parse_json, refuse_links, sha256_of, staged_folder, write_json_atomic
from ...ledger import parse_requests
from ...models import (
    FaceImageProcessor,
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    convert_face_checkpoint,
)
from ...runs import ContinualForgetter, newest_checkpoint
from ..convert_face import read_names
from ..loading import load_data
from ..terminal import renamed
from .options import CONVERSION, Options, missing_classes
from .subjects import Classifier

# Settings that the configuration of a model takes as they are.
_OF_CONFIG = (
    "patch_size", "patch_stride", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "scale", "margin",
)  # fmt: skip
SETTINGS_FILE = "base_model.json"  # the settings of the base model beside it


class Faces(Classifier):
    """A face recogniser of this package."""

    defaults: ClassVar[dict[str, Any]] = {"output_dir": "runs/faces"}
    own_groups = ("faces", "face_model")
    draws = True

    def after(self, forgetter: ContinualForgetter) -> list[str]:
        base_model: Any = self.base_model().to(self.options.args.device)
        test, collator = self.dataset["test"], default_collator(self.processor, self.label_column)
        audit = audit_faces(base_model, forgetter.folder, test, data_collator=collator)
        paragraphs = [format_face_audit(audit)]
        if self.options.run.pictures:
            files = draw_face_pictures(audit, test, forgetter.folder)
            paragraphs.append(f"Pictures of the forgotten, which are private: {files[0].parent}")
        return paragraphs


def made_face_model(options: Options) -> tuple[dict[str, Any], DatasetDict]:
    """Makes the base model once, in the output folder, from a checkpoint or the data.

    Args:
        options ([`Options`]):
            The settings.

    Returns:
        `tuple[dict, datasets.DatasetDict]`: Keyword arguments of `from_pretrained`, and the data.

    Raises:
        InvalidInputError: If the folder has a model that was made with other settings, the data have no names, or a
            person to forget is not in the data.
    """
    dataset = load_data(options.data)
    if options.faces.checkpoint is None:
        _check_pretraining(options, dataset)
    output = Path(options.args.output_dir)
    refuse_links(output, ("base_model", "pretraining", SETTINGS_FILE))
    folder, work = output / "base_model", output / "pretraining"
    names, settings, made = _names_of_people(options, dataset), asdict(options.face_model), folder.is_dir()
    training: dict[str, Any] = {}
    if options.faces.checkpoint is not None:
        settings = {name: settings[name] for name in CONVERSION}
        source = sha256_of(as_path(options.faces.checkpoint, "--checkpoint"))
    else:
        source = "pre-trained"
        training = {
            name: getattr(options.data, name) for name in ("dataset_name", "dataset_config_name", "train_split")
        }
        training |= {"image_column": options.data.image_column or "image", "label_column": _column(options)}
        # Its checkpoints depend on these, too.
        training |= {"seed": options.args.seed, "num_processes": options.args.world_size}
    mark = {"checkpoint": source, "people": names, **settings}
    if made:
        advice = f"go on with --model {folder}, without the options that made it"
        _check_base_model(folder, mark, advice)
    elif any(work.glob("checkpoint-*")):
        _check_base_model(folder, mark | training, f"remove '{work}' to begin anew")
    state = PartialState()
    state.wait_for_everyone()
    if not made and state.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_json_atomic(output / SETTINGS_FILE, mark | training)  # before the folder that it describes
    if not made and options.faces.checkpoint is None:
        _pretrain(folder, work, dataset, options)
    elif not made and state.is_main_process:
        _convert(folder, options, names, settings)
    state.wait_for_everyone()
    if options.faces.checkpoint is None and state.is_main_process:
        shutil.rmtree(work, ignore_errors=True)  # checkpoints hold pickles
    return {"pretrained_model_name_or_path": str(folder)}, dataset


def _names_of_people(options: Options, dataset: DatasetDict) -> list[str] | None:
    """Returns the names of the people that the base model is made for, in the order of their ids."""
    people = options.faces.people
    return label_names(dataset["train"], _column(options)) if people is None else read_names(people)


def _column(options: Options) -> str:
    return options.data.label_column or "label"


def _check_pretraining(options: Options, dataset: DatasetDict) -> None:
    """Refuses people without names or pictures, and requests for people who are unknown, before hours of training."""
    column = _column(options)
    names = label_names(dataset["train"], column)
    if names is None:
        fix = f"Name them with `dataset.class_encode_column({column!r})`, or use a folder of pictures for each person."
        raise InvalidInputError(column, "labels without names", "names, which pre-training needs", fix)
    asked = [name for request in parse_requests(options.data.forget or "") for name in request.classes]
    resolve_classes([*asked, *missing_classes(options.data)], names=names)
    for name, part in dataset.items():
        check_pictures(part, f"the split {name!r}")


def _check_base_model(folder: Path, settings: dict[str, Any], advice: str) -> None:
    """Refuses a base model that an earlier run made, or began to make, with other settings."""
    mark = folder.parent / SETTINGS_FILE
    known = parse_json(mark.read_bytes()) if mark.is_file() else {}
    before = {name: known.get(name, "unknown") for name in settings}
    if differing := [name for name, value in settings.items() if before[name] != value]:
        changes = (
            renamed(f"--{name}") + f" was {shortened(before[name])} and is {shortened(settings[name])}"
            for name in differing
        )
        raise ValueError(
            f"'{folder}' is made with other settings: {'; '.join(changes)}. Choose another --output, or {advice}."
        )


def _pretrain(folder: Path, work: Path, dataset: DatasetDict, options: Options) -> None:
    """Trains a Face Transformer on all people, from the last checkpoint in `work` if there is one, and writes it."""
    args, names = options.args, _names_of_people(options, dataset) or []
    face: Any = options.face_model
    config = FaceTransformerConfig(
        **{name: getattr(face, name) for name in _OF_CONFIG},
        image_size=face.image_size or 112,
        head_type=face.head_type or "cosface",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    processor = FaceImageProcessor.for_pixels(face.pixels, image_size=config.image_size)
    set_seed(args.seed)
    recipe = RetrainRecipe(
        epochs=face.pretrain_epochs,
        learning_rate=face.pretrain_learning_rate,
        batch_size=face.pretrain_batch_size * args.world_size,
        weight_decay=0.05,
        warmup=0.05,
        training={"use_cpu": args.use_cpu, "logging_strategy": "steps"},
    )
    training = recipe.arguments(work, args.seed, args.disable_tqdm)
    collator: Any = default_collator(processor, _column(options))
    model = FaceTransformerForRecognition(config)
    rows = NamedRows(dataset["train"], "the training data")  # a row that cannot be read is named
    trainer = Trainer(model, training, train_dataset=rows, data_collator=collator)
    checkpoint = newest_checkpoint(work, training.world_size)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.is_world_process_zero():
        with staged_folder(folder) as staged:
            model.save_pretrained(staged)
            processor.save_pretrained(staged)


def _convert(folder: Path, options: Options, names: list[str] | None, settings: dict[str, Any]) -> None:
    """Converts a checkpoint, and writes the model."""
    checkpoint: Any = options.faces.checkpoint
    try:
        convert_face_checkpoint(checkpoint, folder, label_names=names, **settings)
    except ValueError as error:
        if options.faces.people is None:
            error.add_note("The names are those of the data. If the head has other people, name them with --people.")
        raise
