r"""Make a face recogniser forget people, one request after another.

From a checkpoint of the papers' code, which is converted first:

    accelerate launch examples/forget_faces.py --dataset_name data/faces --forget "person_34,person_23;person_10" \
        --checkpoint face.pth --scale 64 --margin 0.35 --output_dir runs/faces

From a converted folder: `--model_name_or_path face-model` instead of `--checkpoint`. Without either, a Face
Transformer is pre-trained on the data first (`--image_size`, `--pretrain_epochs`, ...).

Prints accuracy with and without the margin and how well pairs of images are told apart, for people forgotten and kept.
Pictures of both go to `private_pictures` in the output folder: they show faces that are to be forgotten, and are
nothing to publish. A run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict
from forget import AdapterArguments, load_data
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from gs_lora_peft import (
    ContinualForgetter,
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    GSLoraConfig,
    GSLoraTrainingArguments,
    convert_face_checkpoint,
    parse_requests,
)
from gs_lora_peft.audit import audit_faces, draw_face_pictures, format_face_audit
from gs_lora_peft.data.classes import label_names
from gs_lora_peft.data.pairing import default_collator
from gs_lora_peft.launch import start_missing_cpu_processes
from gs_lora_peft.models import FaceImageProcessor
from gs_lora_peft.sequence import format_table
from gs_lora_peft.storage import sha256_of, staged_folder

SOURCE_FILE = "source.txt"  # what the base model was made from


@dataclass
class FaceArguments:
    """Whom to forget, and where model and data come from."""

    dataset_name: str = field(metadata={"help": "Faces: a Hub id or a local folder (parquet, images, save_to_disk)."})
    forget: str = field(metadata={"help": "People by name or id; requests split by ';', people by ','."})
    checkpoint: str | None = field(default=None, metadata={"help": "State dict of the papers' code (.pth)."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Face model: a local folder or a Hub id."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str = field(default="test", metadata={"help": "Split to score on; 'validation' is tried too."})
    replay_ratio: float = field(default=1.0, metadata={"help": "Share of each kept person that is replayed."})
    shots: int | None = field(default=None, metadata={"help": "Few-shot: exactly this many images of everybody."})
    missing: str | None = field(
        default=None, metadata={"help": "To keep, although none of their data may be used; names or ids split by ','."}
    )
    pictures: bool = field(default=True, metadata={"help": "Whether to draw private_pictures in the output folder."})


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


def pretrained(folder: Path, dataset: DatasetDict, face: FaceModelArguments, args: GSLoraTrainingArguments) -> None:
    """Trains a Face Transformer on everybody, and writes it."""
    names = label_names(dataset["train"], "label")
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
    model = FaceTransformerForRecognition(config)
    training = TrainingArguments(
        output_dir=str(folder.parent / "pretraining"),
        num_train_epochs=face.pretrain_epochs,
        per_device_train_batch_size=face.pretrain_batch_size,
        learning_rate=face.pretrain_learning_rate,
        weight_decay=0.05,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=args.seed,
        use_cpu=args.use_cpu,
        disable_tqdm=args.disable_tqdm,
    )
    trainer = Trainer(model, training, train_dataset=dataset["train"], data_collator=default_collator(processor))
    trainer.train()
    if trainer.is_world_process_zero():
        with staged_folder(folder) as staged:
            model.save_pretrained(staged)
            processor.save_pretrained(staged)


def model_folder(
    script: FaceArguments, face: FaceModelArguments, args: GSLoraTrainingArguments, dataset: DatasetDict
) -> str:
    """Where the base model is: as given, or made once in the output folder from a checkpoint or the data."""
    if script.model_name_or_path is not None:
        return script.model_name_or_path
    folder = Path(args.output_dir, "base_model")
    missing = not folder.is_dir()
    source = sha256_of(script.checkpoint) if script.checkpoint is not None else "pre-trained"
    mark = folder / SOURCE_FILE
    if mark.is_file() and mark.read_text() != source:
        raise ValueError(
            f"'{folder}' was made from something else than {script.checkpoint or 'the data'}. Choose another "
            "--output_dir, or go on with what is there: --model_name_or_path."
        )
    PartialState().wait_for_everyone()
    if missing and script.checkpoint is None:
        pretrained(folder, dataset, face, args)
    elif missing and PartialState().is_main_process:
        convert_face_checkpoint(
            script.checkpoint,
            folder,
            image_size=face.image_size,
            num_attention_heads=face.num_attention_heads,
            head_type=face.head_type,
            scale=face.scale,
            margin=face.margin,
            label_names=label_names(dataset["train"], "label"),
            pixels=face.pixels,
        )
    PartialState().wait_for_everyone()
    if missing and PartialState().is_main_process:
        mark.write_text(source)
    return str(folder)


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        (FaceArguments, FaceModelArguments, AdapterArguments, GSLoraTrainingArguments),
        description=__doc__,
        prog="forget_faces.py",
    )
    parser.set_defaults(output_dir="runs/faces")
    script, face, adapter, args = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    if script.checkpoint is not None and script.model_name_or_path is not None:
        parser.error("--checkpoint and --model_name_or_path both name a model; give one")
    requests = parse_requests(script.forget)
    dataset = load_data(script)
    folder = model_folder(script, face, args, dataset)
    processor = AutoImageProcessor.from_pretrained(folder)
    forgetter = ContinualForgetter(
        AutoModelForImageClassification.from_pretrained(folder),
        dataset,
        args.output_dir,
        config=GSLoraConfig(**vars(adapter)),
        args=args,
        processing_class=processor,
        replay_ratio=script.replay_ratio,
        shots=script.shots,
        missing_classes=parse_requests(script.missing)[0].classes if script.missing else (),
    )
    forgetter.run(requests)
    if not PartialState().is_main_process:
        return
    print(format_table(forgetter.ledger))
    base_model = AutoModelForImageClassification.from_pretrained(folder).to(args.device)
    audit = audit_faces(base_model, args.output_dir, dataset["test"], data_collator=default_collator(processor))
    print(f"\n{format_face_audit(audit)}")
    if script.pictures:
        files = draw_face_pictures(audit, dataset["test"], args.output_dir)
        print(f"\nPictures of the forgotten, for nobody else: {files[0].parent}")


if __name__ == "__main__":
    start_missing_cpu_processes()
    main()
