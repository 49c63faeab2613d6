"""Trains a Face Transformer again without the people of the first requests, as the reference of an audit.

    python examples/benchmarks/retrain_faces.py MODEL DATA OUT --requests 1 --threads 1

MODEL is the converted reference checkpoint (docs/experiments/faces.md), for its architecture. DATA is a folder with
`train.parquet` and `test.parquet`, or a Hub id. The people of the first `--requests` requests of the papers' protocol
(38 people, 8 a request) are left out of the training; 0 makes a control on all people. The head keeps its size. The
test split is scored once, at the end; `--held_out` scores a share of the training images instead, to choose a recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from protocol import Settings, load_data
from transformers import AutoImageProcessor, AutoModelForImageClassification
from yale import shifted

from gs_lora_peft.audit import face_predictions, retrain
from gs_lora_peft.data import ImageCollator, align_known_labels, continual_protocol, train_validation_split

KEPT = [30, 22, 14, 6]  # people left after each request

# Without dropout the accuracy on held-out training images rises faster; in bfloat16 and with plain attention a step
# takes half the time.
RECIPE = {
    "epochs": 50,
    "learning_rate": 1e-3,
    "batch_size": 16,
    "weight_decay": 0.05,
    "training": {"bf16": True, "use_cpu": True},
}
BUILD = {"initializer_range": 0.06, "hidden_dropout_prob": 0.0, "intermediate_dropout_prob": 0.0}


class ShiftingCollator(ImageCollator):
    """Prepares face images, each shifted by up to one pixel, because there are only 42 of each person."""

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        return {**batch, "pixel_values": shifted(batch["pixel_values"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the converted checkpoint: a folder")
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("out", type=Path, help="folder to write; it also holds what a stopped training continues from")
    parser.add_argument("--requests", type=int, default=1, help="requests whose people are left out (0 to 4)")
    parser.add_argument("--epochs", type=float, default=RECIPE["epochs"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held_out", type=float, help="share of the training images to score on instead of the test")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    original = AutoModelForImageClassification.from_pretrained(options.model)
    processor = AutoImageProcessor.from_pretrained(options.model)
    dataset = align_known_labels(load_data(options.data, Settings(kept=KEPT)), "label", original.config.label2id)
    train, scored = dataset["train"], dataset["test"]
    if options.held_out:
        train, scored = train_validation_split(train, "label", options.held_out, options.seed)
    left_out = [person for request in continual_protocol(38, KEPT)[: options.requests] for person in request]

    built = AutoModelForImageClassification.from_pretrained(options.model, attn_implementation="eager", **BUILD)
    model = retrain(
        built,
        train,
        left_out,
        recipe=RECIPE | {"epochs": options.epochs},
        seed=options.seed,
        processing_class=processor,
        data_collator=ShiftingCollator(processor),
        cache=options.out.with_name(f"{options.out.name}_work"),
    )
    for name in BUILD:  # whatever fine-tunes the model later does so as with the original
        setattr(model.config, name, getattr(original.config, name))
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)

    found = face_predictions(model, scored, data_collator=ImageCollator(processor))
    hits = found.predictions == found.labels
    kept = ~torch.isin(torch.from_numpy(found.labels), torch.tensor(left_out, dtype=torch.long)).numpy()
    accuracies = {"kept": hits[kept].mean(), "left out": hits[~kept].mean() if left_out else float("nan")}
    print(", ".join(f"{who}: {100 * value:.1f} %" for who, value in accuracies.items()))


if __name__ == "__main__":
    main()
