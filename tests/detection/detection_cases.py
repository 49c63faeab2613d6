"""A detector that knows something without having been trained: its data are annotated with what it finds."""

import functools
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from detectors import IMAGE_SIZE, NUM_LABELS, NUM_QUERIES, detector
from PIL import Image as Pillow
from torch import Tensor, nn

from gs_lora_peft import ContinualForgetter, GSLoraConfig, GSLoraTrainingArguments

NAMES = ["ant", "bee", "cat", "dog"]
# Apart from each other, (cx, cy, w, h) relative to the image: one for each query.
PLACES = [[(column + 0.5) / 3, (row + 0.5) / 2, 0.25, 0.4] for row in range(2) for column in range(3)]


def named(model: nn.Module) -> nn.Module:
    """The model with the names of its four categories."""
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: number for number, name in enumerate(NAMES)}
    return model


def processor():
    """Leaves 64×64 images as they are; without torchvision the one that works on PIL images."""
    kind = getattr(transformers, "YolosImageProcessorPil", None) or transformers.YolosImageProcessor
    return kind(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def knowing_yolos() -> nn.Module:
    """A tiny YOLOS whose query q finds category q mod 4 at place q, whatever the image.

    The last layers of its heads solve a small system of equations.
    """
    model = named(detector("yolos"))
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
        queries = model.vit(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).last_hidden_state[0, -NUM_QUERIES:]
        logits = torch.full((NUM_QUERIES, NUM_LABELS + 1), -2.0)
        logits[range(NUM_QUERIES), [query % NUM_LABELS for query in range(NUM_QUERIES)]] = 2.0
        _solve(model.class_labels_classifier.layers, queries, logits)
        _solve(model.bbox_predictor.layers, queries, torch.tensor(PLACES).logit())
    return model


def _solve(layers: nn.ModuleList, inputs: Tensor, wanted: Tensor) -> None:
    for layer in layers[:-1]:
        torch.nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(1))
        inputs = layer(inputs).relu()
    layers[-1].bias.zero_()
    layers[-1].weight.copy_(torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution.T)


def annotated(objects: list[list[tuple[int, list[float]]]], seed: int = 0) -> Dataset:
    """Images of noise with the given objects: for each its category and its place."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "image_id": number,
            "image": Pillow.fromarray(random.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)),
            "width": IMAGE_SIZE,
            "height": IMAGE_SIZE,
            "objects": {
                "bbox": [
                    [IMAGE_SIZE * (cx - w / 2), IMAGE_SIZE * (cy - h / 2), IMAGE_SIZE * w, IMAGE_SIZE * h]
                    for _, (cx, cy, w, h) in image
                ],
                "category": [category for category, _ in image],
            },
        }
        for number, image in enumerate(objects)
    ]
    features = {
        "image_id": Value("int64"),
        "image": Image(),
        "width": Value("int32"),
        "height": Value("int32"),
        "objects": {"bbox": List(List(Value("float64"), length=4)), "category": List(ClassLabel(names=NAMES))},
    }
    return Dataset.from_list(rows, features=Features(features))


@functools.cache
def own_findings() -> DatasetDict:
    """Training and test images that show what [`knowing_yolos`] finds, so that it starts with an AP of 1."""
    whole = [(query % NUM_LABELS, place) for query, place in enumerate(PLACES)]
    return DatasetDict(train=annotated([whole] * 12), test=annotated([whole] * 5, seed=1))


def arguments(**changes) -> GSLoraTrainingArguments:
    """Under these the tiny YOLOS forgets a category in two seconds."""
    settings = {
        "output_dir": "not-used",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "num_train_epochs": 12,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "learning_rate": 2e-2,
        "forget_weight": 0.5,
        "sparsity_weight": 0.1,
        **changes,
    }
    return GSLoraTrainingArguments(**settings)


def adapter(**changes) -> GSLoraConfig:
    return GSLoraConfig(**{"r": 4, "lora_alpha": 8, **changes})


def forgetter(model: nn.Module, folder: Path, *, data: DatasetDict | None = None, **changes) -> ContinualForgetter:
    return ContinualForgetter(
        model,
        data or own_findings(),
        folder,
        config=adapter(),
        args=arguments(**changes),
        label_column="objects",
        processing_class=processor(),
    )


def answers(model: nn.Module) -> Tensor:
    """Logits and boxes of two images, side by side, in eval mode."""
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = model.eval()(pixel_values=images)
    return torch.cat([found.logits, found.pred_boxes], dim=-1)
