r"""Make a detector forget object categories, one request after another.

    accelerate launch examples/forget_detection.py --model_name_or_path hustvl/yolos-tiny --dataset_name cppe-5 \
        --forget "Mask;Gloves" --output_dir runs/cppe

Data: a Hub id or a local folder (parquet, `save_to_disk`) with annotated boxes, or COCO's own format: a folder with
`annotations/instances_train2017.json`, `annotations/instances_val2017.json` and the images in `train2017` and
`val2017`. Models: any detector that `DetectionObjective` names, by Hub id or folder.

Settings may come from a YAML file; the command line takes precedence. `--config examples/benchmarks/coco.yaml` is the
papers' protocol on COCO. The script prints the AP of forgotten and kept categories, and draws the same test images
before and after to `private_pictures` in the output folder.

Repeat the command to continue a stopped run: finished requests are skipped, and the unfinished one continues after its
last finished epoch. (`--save_strategy no` writes no checkpoints; the request then starts again.) With other settings
the command is refused, unless you choose `--keep` or `--redo`. Exit status as in forget.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gs_lora_peft.cli import AdapterArguments, RunArguments, help_if_asked, run_script


@dataclass
class DetectionArguments(RunArguments):
    """What to forget, and where model and data come from."""

    model_name_or_path: str = field(metadata={"help": "Detector: a Hub id or a local folder."})
    dataset_name: str = field(metadata={"help": "Data: a Hub id, or a local folder (parquet, save_to_disk, COCO's)."})
    forget: str = field(metadata={"help": "Categories by name or id; requests split by ';', categories by ','."})
    forget_weights: list[float] | None = field(
        default=None, metadata={"help": "Beta of each request; default: --forget_weight for all."}
    )
    objects_column: str = field(default="objects", metadata={"help": "Column of the annotated boxes."})
    box_format: str = field(default="xywh", metadata={"help": "'xywh' (COCO's) or 'xyxy', in pixels."})
    threshold: float = field(default=0.5, metadata={"help": "Lowest confidence of detections in the picture."})


if __name__ == "__main__":
    help_if_asked(__doc__, DetectionArguments)  # before slow imports

import copy
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from gs_lora_peft import GSLoraTrainingArguments, parse_requests
from gs_lora_peft.audit import draw_detections, has_objects
from gs_lora_peft.cli import (
    SettingsParser,
    carry_out,
    load_data,
    make_forgetter,
    model_source,
    publish_if_asked,
    refuse_ignored,
)
from gs_lora_peft.data import prepare_boxes, read_annotations, read_coco, resolve_classes
from gs_lora_peft.ledger import exit_status, format_table

MAX_DROPPED = 0.05  # COCO has a few boxes without area; many suggest another box format
OF_OTHER_DATA = ("dataset_config_name", "train_split", "test_split", "image_column", "objects_column", "box_format")
NO_PICTURE = "no test image has an object to forget"


def parse_arguments(argv: list[str]) -> tuple[DetectionArguments, AdapterArguments, GSLoraTrainingArguments]:
    """Defaults, then the YAML file, then the command line."""
    parser = SettingsParser(
        "forget_detection.py",
        __doc__,
        DetectionArguments,
        output_dir="runs/detection",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
    )
    script, adapter, args = parser.parse_args_and_config(argv)
    if not 0 <= script.threshold <= 1:
        parser.error(f"--threshold is {script.threshold}; expected a confidence from 0 to 1, such as 0.5")
    return script, adapter, args


def load_boxes(script: DetectionArguments, label2id: dict[str, int]) -> DatasetDict:
    """Loads the train and test split, with the category ids of the model."""
    annotations = Path(script.dataset_name).expanduser() / "annotations"
    if annotations.is_dir():
        refuse_ignored(script, OF_OTHER_DATA, f"the format of COCO in '{annotations}' fixes it")
        dataset = DatasetDict(
            {
                split: read_coco(annotations / f"instances_{name}.json", annotations.parent / name)
                for split, name in (("train", "train2017"), ("test", "val2017"))
            }
        )
    else:
        dataset = load_data(script)
    prepared = prepare_boxes(
        dataset, script.objects_column, label2id=label2id, box_format=script.box_format, invalid="drop"
    )
    for split in dataset:
        before, after = (count_boxes(data[split], script.objects_column) for data in (dataset, prepared))
        check_dropped(split, before - after, before, script.box_format)
    return prepared


def count_boxes(dataset: Dataset, objects_column: str) -> int:
    """Counts boxes without crowds, which are not training samples."""
    return int((~read_annotations(dataset, objects_column).crowd).sum())


def check_dropped(split: str, dropped: int, total: int, box_format: str) -> None:
    """Prints how many boxes were dropped; refuses data that lost many."""
    if not dropped:
        return
    message = f"{split}: {dropped} of {total} boxes have no area, are not finite or lie outside their image"
    if dropped > MAX_DROPPED * total:
        other = "xyxy" if box_format == "xywh" else "xywh"
        raise ValueError(
            f"{message}; expected {MAX_DROPPED:.0%} at most. --box_format is {box_format!r}: try --box_format "
            f"{other}, or fix the boxes."
        )
    PartialState().print(f"{message}; they are dropped.")


def with_weight(args: GSLoraTrainingArguments, weight: float) -> GSLoraTrainingArguments:
    """Returns the same training with another β."""
    args = copy.copy(args)
    args.forget_weight = weight
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    script, adapter, args = parse_arguments(sys.argv[1:] if argv is None else argv)
    requests = parse_requests(script.forget)
    weights = script.forget_weights or [args.forget_weight] * len(requests)
    if len(weights) != len(requests) or min(weights) < 0:
        raise ValueError(
            f"there are {len(requests)} requests and {len(weights)} `forget_weights`, {weights}; expected one number "
            "of at least 0 for each request."
        )
    source = model_source(script)
    model = AutoModelForObjectDetection.from_pretrained(**source)
    processor = AutoImageProcessor.from_pretrained(**source)
    dataset = load_boxes(script, model.config.label2id)
    forgetter = make_forgetter(script, adapter, args, model, dataset, script.objects_column, processor)
    forgetter.check(requests)
    names = [name for request in requests for name in request.classes]
    categories = resolve_classes(names, names=forgetter.label_names)
    drawn = has_objects(dataset["test"], categories, script.objects_column)
    if not drawn:
        PartialState().print(f"No picture will be drawn: {NO_PICTURE}.")
    carry_out(forgetter, requests, script, [with_weight(forgetter.recipe.args, weight) for weight in weights])
    if not PartialState().is_main_process:
        return 0  # with another status a launcher would stop the main process
    print(format_table(forgetter.ledger))
    if drawn:
        base_model = AutoModelForObjectDetection.from_pretrained(**source).to(args.device)
        picture = draw_detections(
            base_model,
            args.output_dir,
            dataset["test"],
            processing_class=processor,
            objects_column=script.objects_column,
            threshold=script.threshold,
        )
        print(f"\nThe same images before and after, which is private: {picture}")
    else:
        print(f"\nNo picture was drawn: {NO_PICTURE}.")
    publish_if_asked(args)
    return exit_status(forgetter.ledger)


if __name__ == "__main__":
    run_script(main)
