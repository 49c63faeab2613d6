"""What a command works on: a model with its data, of the kind that the model shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from ...audit import RetrainRecipe, draw_detections, has_objects
from ...data import prepare_boxes, read_annotations, read_coco, resolve_classes
from ...errors import InvalidInputError
from ...io import as_path
from ...ledger import ForgetRequest
from ...runs import ContinualForgetter
from ..loading import load_data, load_processor, model_class, refuse_ignored, with_ids_of
from .digits import DIGITS_RECIPE, load_digits, pretrained_digits_vit
from .options import Options

MAX_DROPPED = 0.05  # COCO has a few boxes without area; many suggest another box format
NO_PICTURE = "no test image has an object to forget"
_OF_COCO = ("dataset_config_name", "train_split", "test_split", "image_column", "label_column")
_OF_DIGITS = ("dataset_config_name", "train_split", "test_split", "image_column", "label_column")


class Classifier:
    """A classifier of any kind of input, and the base of the other kinds.

    Args:
        options ([`Options`]):
            The settings.
        source (`dict`):
            Keyword arguments of `from_pretrained` for the base model.
        dataset (`datasets.DatasetDict`, *optional*):
            The data, if they are loaded already.
    """

    defaults: ClassVar[dict[str, Any]] = {"output_dir": "runs/classes"}
    own_groups: ClassVar[tuple[str, ...]] = ()  # groups of options that only this kind has
    draws: ClassVar[bool] = False
    references: ClassVar[int] = 0  # models that an audit trains again by default, and how
    recipe: ClassVar[RetrainRecipe | None] = None

    def __init__(self, options: Options, source: dict[str, Any], dataset: DatasetDict | None = None):
        self.options, self.source = options, source
        for group in ("boxes", "faces", "face_model"):
            if group not in self.own_groups:
                settings = getattr(options, group)
                refuse_ignored(settings, vars(settings), f"the model is not a {group.partition('_')[0]} model")
        if not self.draws:
            refuse_ignored(options.run, ["pictures"], "nothing is drawn of this model")
        self.model, self.processor = self.base_model(), self.load_processor()
        self.dataset, self.label_column = self.load(dataset)

    def base_model(self) -> PreTrainedModel:
        """Loads the model as it was before all requests."""
        return model_class(self.source).from_pretrained(**self.source)

    def load_processor(self) -> Any:
        """Loads what turns rows into tensors; `None` for prepared data."""
        return load_processor(self.source)

    def load(self, dataset: DatasetDict | None) -> tuple[DatasetDict, str]:
        """Returns the data with the class ids of the model, and the column of their labels."""
        data = self.options.data
        return with_ids_of(self.model, load_data(data) if dataset is None else dataset, data.label_column)

    def before(self, forgetter: ContinualForgetter, requests: Sequence[ForgetRequest]) -> None:
        """Checks and says what has to be known before the training."""

    def after(self, forgetter: ContinualForgetter) -> list[str]:
        """Returns what a finished run shows besides its table, as paragraphs."""
        return []


class Digits(Classifier):
    """The handwritten digits, with a model that is trained on them first."""

    defaults: ClassVar[dict[str, Any]] = {"output_dir": "runs/digits", "forget": "three;seven;zero,one"}
    references = 2
    recipe = DIGITS_RECIPE

    def base_model(self) -> PreTrainedModel:
        refuse_ignored(self.options.data, _OF_DIGITS, "the digits come with their own model")
        return pretrained_digits_vit(self._digits, disable_tqdm=self.options.args.disable_tqdm)

    def load_processor(self) -> None:
        return None

    def load(self, dataset: DatasetDict | None) -> tuple[DatasetDict, str]:
        return self._digits, "label"

    @property
    def _digits(self) -> DatasetDict:
        return load_digits()


class Detector(Classifier):
    """An object detector, with annotated boxes."""

    defaults: ClassVar[dict[str, Any]] = {
        "output_dir": "runs/detection",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
    }
    own_groups = ("boxes",)
    draws = True

    def load(self, dataset: DatasetDict | None) -> tuple[DatasetDict, str]:
        column = self.options.data.label_column or "objects"
        return load_boxes(self.options, self.model.config.label2id), column

    def before(self, forgetter: ContinualForgetter, requests: Sequence[ForgetRequest]) -> None:
        forgetter.check(requests)
        names = [name for request in requests for name in request.classes]
        categories = resolve_classes(names, names=forgetter.label_names)
        asked = self.options.run.pictures
        if asked and not has_objects(self.dataset["test"], categories, self.label_column):
            PartialState().print(f"No picture will be drawn: {NO_PICTURE}.")

    def after(self, forgetter: ContinualForgetter) -> list[str]:
        if not self.options.run.pictures:
            return []
        if not has_objects(self.dataset["test"], forgetter.ledger.forgotten_classes, self.label_column):
            return [f"No picture was drawn: {NO_PICTURE}."]
        picture = draw_detections(
            self.base_model().to(self.options.args.device),
            forgetter.folder,
            self.dataset["test"],
            processing_class=self.processor,
            objects_column=self.label_column,
            threshold=self.options.boxes.threshold,
        )
        return [f"The same images before and after, which is private: {picture}"]


def load_boxes(options: Options, label2id: Any) -> DatasetDict:
    """Loads the train and test split, with the category ids of the model. Also reads folders in COCO's own format.

    Args:
        options ([`Options`]):
            The settings.
        label2id (`dict[str, int]`):
            The categories of the model.

    Raises:
        InvalidInputError: If more than 5 % of the boxes cannot be used, or an option has no effect on these data.
    """
    data, column = options.data, options.data.label_column or "objects"
    box_format: Any = options.boxes.box_format
    annotations = as_path(data.dataset_name, "--dataset_name") / "annotations"
    if annotations.is_dir():
        why = f"the format of COCO in '{annotations}' fixes it"
        refuse_ignored(data, _OF_COCO, why)
        refuse_ignored(options.boxes, ["box_format"], why)
        dataset = DatasetDict(
            {
                split: read_coco(annotations / f"instances_{name}.json", annotations.parent / name)
                for split, name in (("train", "train2017"), ("test", "val2017"))
            }
        )
    else:
        dataset = load_data(data)
    prepared: Any = prepare_boxes(dataset, column, label2id=label2id, box_format=box_format, invalid="drop")
    for split in dataset:
        before, after = (_count_boxes(each[split], column) for each in (dataset, prepared))
        _check_dropped(str(split), before - after, before, box_format)
    return prepared


def _count_boxes(dataset: Dataset, column: str) -> int:
    """Counts boxes without crowds, which are not training samples."""
    return int((~read_annotations(dataset, column).crowd).sum())


def _check_dropped(split: str, dropped: int, total: int, box_format: str) -> None:
    """Prints how many boxes were dropped; refuses data that lost many."""
    if not dropped:
        return
    if dropped > MAX_DROPPED * total:
        other = "xyxy" if box_format == "xywh" else "xywh"
        expected = f"at most {MAX_DROPPED:.0%} without area, not finite or outside their image"
        fix = f"--box_format is {box_format!r}: try --box_format {other}, or fix the boxes."
        raise InvalidInputError(f"boxes of {split}", f"{dropped} of {total}", expected, fix)
    PartialState().print(
        f"{split}: {dropped} of {total} boxes have no area, are not finite or lie outside their image; they are "
        "dropped."
    )
