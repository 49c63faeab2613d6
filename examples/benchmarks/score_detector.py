"""Prints the average precision of every category, for a detector before and after its forgetting tasks.

    python examples/benchmarks/score_detector.py DATA MODEL --run RUN

DATA is a folder with `train.parquet` and `test.parquet` (`image`, `objects`), or a Hub id; the test split is scored.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from datasets import Dataset
from protocol import Settings, load_data
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from gs_lora_peft import ForgettingLedger, load_forgotten
from gs_lora_peft.data import DetectionCollator, prepare_boxes
from gs_lora_peft.metrics import detection_scores, references_from_objects


@torch.no_grad()
def average_precisions(model: Any, processor: Any, dataset: Dataset) -> dict[int, dict[str, float]]:
    """Returns `ap`, `ap50` and `ar` of each category, on rows from [`prepare_boxes`]."""
    collate = DetectionCollator(processor)
    found = []
    model.eval()
    for row in dataset:  # one at a time: nothing is padded
        batch = collate([row])
        batch.pop("labels")
        outputs = model(**{name: value.to(model.device) for name, value in batch.items()})
        found += processor.post_process_object_detection(outputs, 0.0, target_sizes=[row["image"].size[::-1]])
    return detection_scores(found, references_from_objects(dataset["objects"]), forget_classes=[])["per_class"]


def format_scores(scores: dict[int, dict[str, float]], names: dict[int, str]) -> str:
    """Returns one line for each category."""
    return "\n".join(
        f"  {names[number]:<12} AP {values['ap']:.3f}  AP50 {values['ap50']:.3f}  AR {values['ar']:.3f}"
        for number, values in scores.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("model", help="detector before the tasks: Hub id or folder")
    parser.add_argument("--run", help="folder of forget_detection.py: the model is scored after each task")
    options = parser.parse_args()

    processor = AutoImageProcessor.from_pretrained(options.model)
    tasks = 0 if options.run is None else len(ForgettingLedger.load(options.run).active_tasks)
    for count in range(tasks + 1):
        model = AutoModelForObjectDetection.from_pretrained(options.model)
        dataset = prepare_boxes(load_data(options.data, Settings(kept=[]))["test"], label2id=model.config.label2id)
        if count:
            model = load_forgotten(model, options.run, tasks=count)
        print(f"after {count} tasks")
        print(format_scores(average_precisions(model, processor, dataset), model.config.id2label))


if __name__ == "__main__":
    main()
