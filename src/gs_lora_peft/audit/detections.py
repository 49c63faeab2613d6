"""The detections of a model in the same images before and after it forgot. The picture is private."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checking import Count, Number, checked
from ..data import Annotations, NamedRows, cell_name, picture_cell, read_annotations
from ..errors import InvalidInputError
from ..hub import load_forgotten
from ..images import to_image
from ..io import StrPath, as_path, write_bytes_atomic
from ..ledger import ForgettingLedger
from ..reports import FORGOTTEN, KEPT, new_figure, own_style, png_bytes
from .pictures import private_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Detections = list[dict[str, Tensor]]  # boxes, labels and scores of each image

_Confidence = Annotated[Number, Field(ge=0, le=1, description="a number in [0, 1]")]
_INPUTS = ("pixel_values", "pixel_mask")


class DetectionProcessor(Protocol):
    """The image processor of a detector."""

    def __call__(self, *, images: list[Any], return_tensors: str) -> Mapping[str, Tensor]: ...

    def post_process_object_detection(self, outputs: Any, threshold: float, target_sizes: Tensor) -> Detections: ...


def draw_detections(
    base_model: PreTrainedModel,
    folder: StrPath,
    dataset: Dataset,
    *,
    processing_class: DetectionProcessor,
    image_column: str = "image",
    objects_column: str = "objects",
    threshold: float = 0.5,
    max_images: int = 4,
) -> Path:
    """Draws the detections of a model before and after all tasks in effect, as `private_pictures/detections.png`.

    Images with objects of forgotten and of kept categories come first, then images with forgotten ones alone, evenly
    spread over the data set. The upper row shows the base model, the lower row the model that has forgotten, each with
    the detections above the threshold. Forgotten and kept categories have different colours.

    **The picture shows what is to be forgotten. Store it with the data, and delete it with the data.**
    [`push_to_hub`] does not publish it.

    Args:
        base_model (`transformers.PreTrainedModel`):
            The detector before any task. It is changed: afterwards the tasks are merged into it.
        folder (`str` or `os.PathLike`):
            The folder of the run, to which the picture is written.
        dataset (`datasets.Dataset`):
            Images with annotated boxes, with the category ids of the model.
        processing_class (`transformers.BaseImageProcessor`):
            The model's image processor.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            Column of the annotated boxes.
        threshold (`float`, *optional*, defaults to 0.5):
            Lowest confidence of a detection that is drawn, in [0, 1].
        max_images (`int`, *optional*, defaults to 4):
            The largest number of images.

    Returns:
        `pathlib.Path`: The file.

    Raises:
        LedgerError: If the ledger withholds the forgotten categories; otherwise as [`load_forgotten`].
        InvalidInputError: If `threshold` or `max_images` is out of range, no image has a forgotten category, or a
            column is missing.
        OSError: If the file could not be written.
    """
    folder = as_path(folder, "folder")
    checked("threshold", threshold, _Confidence)
    checked("max_images", max_images, Count)
    if image_column not in dataset.column_names:
        expected = f"one of the columns {dataset.column_names}"
        fix = f"There is no {image_column!r}: pass the name of the image column."
        raise InvalidInputError("image_column", image_column, expected, fix)
    forgotten = ForgettingLedger.load(folder).forgotten_classes
    rows = rows_to_show(read_annotations(dataset, objects_column), forgotten, max_images)
    images = [
        to_image(picture_cell(row, image_column), name=cell_name(row, image_column))
        for row in NamedRows(dataset).__getitems__(rows)
    ]
    before = _detected(base_model, images, processing_class, threshold)
    after = _detected(load_forgotten(base_model, folder, merge=True), images, processing_class, threshold)
    file = private_folder(folder) / "detections.png"
    with own_style():
        write_bytes_atomic(file, png_bytes(_figure(images, (before, after), forgotten)), private=True)
    return file


def has_objects(dataset: Dataset, categories: Sequence[int], objects_column: str = "objects") -> bool:
    """Returns whether an image has an object of one of the categories, so that [`draw_detections`] can show it.

    Args:
        dataset (`datasets.Dataset`):
            Images with annotated boxes.
        categories (`Sequence[int]`):
            Ids of the categories.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            Column of the annotated boxes.
    """
    return not set(categories).isdisjoint(read_annotations(dataset, objects_column).categories.tolist())


def rows_to_show(annotations: Annotations, forgotten: Sequence[int], most: int) -> list[int]:
    """Chooses images with objects of forgotten and of kept categories, then with forgotten ones alone.

    Args:
        annotations ([`Annotations`]):
            The annotations of the whole data set.
        forgotten (`Sequence[int]`):
            Ids of the forgotten categories.
        most (`int`):
            The largest number of rows.

    Returns:
        `list[int]`: Rows of the data set, ascending.

    Raises:
        InvalidInputError: If no image has an object of a forgotten category.
    """
    gone = np.isin(annotations.categories, list(forgotten))
    with_gone, with_kept = np.unique(annotations.rows[gone]), np.unique(annotations.rows[~gone])
    if not with_gone.size:
        expected = "at least one image with an object of a forgotten category"
        fix = "Here no image has an object of one: pass the test data."
        raise InvalidInputError("dataset", "without forgotten categories", expected, fix)
    mixed, alone = np.intersect1d(with_gone, with_kept), np.setdiff1d(with_gone, with_kept)
    chosen = _spread(mixed, most)
    return sorted([*chosen, *_spread(alone, most - len(chosen))])


def _spread(rows: np.ndarray, most: int) -> list[int]:
    count = min(len(rows), most)
    return [int(rows[place * len(rows) // count]) for place in range(count)]


@torch.no_grad()
def _detected(
    model: nn.Module, images: Sequence[Image], processor: DetectionProcessor, threshold: float
) -> Detections:
    """Returns boxes (corners in pixels), labels and scores of each image. One image at a time needs no padding."""
    device = next(model.parameters()).device
    found = []
    for image in images:
        inputs = processor(images=[image], return_tensors="pt")
        outputs = model.eval()(**{name: value.to(device) for name, value in inputs.items() if name in _INPUTS})
        size = torch.tensor([np.asarray(image).shape[:2]], device=device)
        found += processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=size)
    return found


def _figure(images: Sequence[Image], states: tuple[Detections, Detections], forgotten: Sequence[int]) -> Figure:
    from matplotlib.patches import Patch

    height = 2.8 * max(np.asarray(image).shape[0] / np.asarray(image).shape[1] for image in images)
    figure = new_figure(2.8 * len(images) + 0.3, 2 * height + 1.2)
    bands = figure.subfigures(2, 1)
    for band, found, title in zip(bands, states, ("Before", "After all tasks"), strict=True):
        band.suptitle(title, x=0.01, ha="left", fontsize=12)
        panels = band.subplots(1, len(images), squeeze=False)[0]
        for axes, image, detections in zip(panels, images, found, strict=True):
            axes.imshow(image)
            axes.axis("off")
            _draw_boxes(axes, detections, forgotten)
    handles = [
        Patch(fill=False, edgecolor=FORGOTTEN, linewidth=2, label="categories to forget"),
        Patch(fill=False, edgecolor=KEPT, linewidth=1, label="categories to keep"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


def _draw_boxes(axes: Axes, detections: dict[str, Tensor], forgotten: Sequence[int]) -> None:
    from matplotlib.patches import Rectangle

    for box, label in zip(detections["boxes"].tolist(), detections["labels"].tolist(), strict=True):
        left, top, right, bottom = box
        gone = label in forgotten
        style: dict[str, Any] = {"edgecolor": FORGOTTEN if gone else KEPT, "linewidth": 2 if gone else 1}
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, zorder=3 if gone else 2, **style)
        )
