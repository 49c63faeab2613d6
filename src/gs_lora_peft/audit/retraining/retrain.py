"""Training the architecture of a model again without some classes, once or several times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from ...checking import Count, NotNegativeWhole, checked
from ...io import StrPath
from .plan import Plan
from .recipe import RetrainRecipe

logger = logging.getLogger(__name__)


def retrain(
    model: PreTrainedModel,
    dataset: Dataset,
    classes: Sequence[str | int],
    *,
    recipe: RetrainRecipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    processing_class: Any = None,
    data_collator: Callable | None = None,
    label_column: str = "label",
    cache: StrPath | None = None,
    disable_tqdm: bool | None = None,
) -> PreTrainedModel:
    """Trains the architecture of a model again, on the same data without some classes.

    This is what "never seen" means: the yardstick for a model that was made to forget (retraining is the gold standard
    of unlearning, https://arxiv.org/abs/1912.03817). Samples of the classes are removed before the first step. Of a
    detector only their boxes are removed: all images stay, and the objects count as background. Ids and the size of
    the head stay, so that the model compares with the original.

    A finished model is saved, and the same call returns it again without training. A call that was stopped goes on
    after its last finished epoch. All processes of a distributed launch call this together.

    Args:
        model (`transformers.PreTrainedModel`):
            Gives class and configuration. Its weights are not used, and it is not changed.
        dataset (`datasets.Dataset`):
            Training data of all classes.
        classes (`Sequence[str | int]`):
            The classes to leave out, by name or id. With none of them this is a control: a model on all the data by
            the same recipe.
        recipe ([`RetrainRecipe`] or `dict`, *optional*):
            How to train.
        seed (`int`, *optional*, defaults to 0):
            Seed of the weights and of the order of samples.
        processing_class (*optional*):
            As in [`GSLoraTrainer`]; saved beside the model.
        data_collator (`Callable`, *optional*):
            Makes batches of lists of rows, by default [`default_collator`]. Random augmentation goes here, or into a
            transform of the data set.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.
        cache (`str` or `os.PathLike`, *optional*, defaults to the assets cache of Hugging Face):
            Folder of finished models. Each has a folder of its own, named by a hash of labels, first rows, left-out
            classes, recipe, seed and configuration. Another collator of the same first rows needs another cache.
        disable_tqdm (`bool`, *optional*):
            As in `transformers.TrainingArguments`.

    Returns:
        `transformers.PreTrainedModel`: The model in eval mode, on the device of `model`.

    Raises:
        InvalidInputError: Before any training, if a class is unknown, no other class has data, the data do not fit the
            head, a setting is invalid, or the backbone does not fit the model.

    Example:
        ```py
        >>> reference = retrain(base_model, dataset["train"], ["person_01", "person_04"], recipe={"epochs": 60})
        >>> audit_run(base_model, "runs/clinic", dataset, reference=reference)
        ```
    """
    first = checked("seed", seed, NotNegativeWhole)
    plan = Plan.of(
        model,
        dataset,
        classes,
        recipe=recipe,
        processing_class=processing_class,
        data_collator=data_collator,
        label_column=label_column,
        cache=cache,
    )
    return plan.carry_out(first, disable_tqdm)


def retrained_models(
    model: PreTrainedModel,
    dataset: Dataset,
    classes: Sequence[str | int],
    count: int = 3,
    *,
    seed: int = 0,
    disable_tqdm: bool | None = None,
    **options: Any,
) -> Iterator[PreTrainedModel]:
    """Retrains several models with the seeds `seed`, `seed + 1`, …: their mean is a steadier yardstick.

    Everything is checked at the call. Each model is trained, or read from the cache, when it is asked for.

    Args:
        model (`transformers.PreTrainedModel`):
            As in [`retrain`].
        dataset (`datasets.Dataset`):
            As in [`retrain`].
        classes (`Sequence[str | int]`):
            As in [`retrain`].
        count (`int`, *optional*, defaults to 3):
            Number of models.
        seed (`int`, *optional*, defaults to 0):
            The first seed.
        disable_tqdm (`bool`, *optional*):
            As in `transformers.TrainingArguments`.
        options (*optional*):
            Other arguments of [`retrain`].

    Returns:
        `Iterator[transformers.PreTrainedModel]`: The models, in the order of the seeds.

    Raises:
        InvalidInputError: As in [`retrain`].

    Example:
        ```py
        >>> references = list(retrained_models(base_model, dataset["train"], ["person_01", "person_04"]))
        >>> audit_run(base_model, "runs/clinic", dataset, reference=references)
        ```
    """
    checked("count", count, Count)
    first = checked("seed", seed, NotNegativeWhole)
    plan = Plan.of(model, dataset, classes, **options)

    def models() -> Iterator[PreTrainedModel]:
        for number in range(count):
            if PartialState().is_main_process:
                logger.info("Retrained model %d of %d", number + 1, count)
            yield plan.carry_out(first + number, disable_tqdm)

    return models()
