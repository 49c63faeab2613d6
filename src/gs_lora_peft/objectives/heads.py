"""Whether a model has one class head, and how many classes it tells apart."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto

from ..errors import InvalidInputError
from .base import bare
from .detection import is_detector
from .embedding import heads_of

# `config.num_labels` of every configuration that was told nothing, that of a model without a head included.
_UNSET = 2
# Classes of transformers with one decision for each sample. Names say so: their automatic mappings lack some.
_CLASSIFIER = re.compile(r"(\w*)Classification(WithTeacher|Learned|Fourier|ConvProcessing)?")
_NOT_OF_SAMPLES = {"Token", "AudioFrame", "EntitySpan"}
_AUTO_CLASSES: dict[str, Any] = {
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForVideoClassification": modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForAudioClassification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
}
_PARTS = re.compile(r"_(vision|text|audio)(_model)?$")


def head_size(model: nn.Module) -> int | None:
    """
    How many classes a model tells apart, C.

    Args:
        model (`torch.nn.Module`): bare, a `PeftModel`, or wrapped for several processes.

    Returns:
        `int` or `None`: `config.num_labels`; `None` where there is none, or where it is the 2 that every configuration
        of transformers starts with and no layer of the model maps to two.
    """
    own = bare(model)
    count = getattr(getattr(own, "config", None), "num_labels", None)
    if not isinstance(count, int):
        return None
    return count if count != _UNSET or is_detector(own) or heads_of(own, count) else None


def check_class_head(model: nn.Module, name: str = "model") -> None:
    """
    Refuses models that are known to have no class head, before anything is loaded or trained.

    Only classes that transformers defines are known. Your own class passes, with or without a configuration: its
    logits are checked as soon as there are any.

    Args:
        model (`torch.nn.Module`): bare, a `PeftModel`, or wrapped for several processes.
        name (`str`, *optional*, defaults to `"model"`): what the model is called in the message.

    Raises:
        InvalidInputError: if the model is a class of transformers that is neither a classifier nor a detector, or has
            a head for several labels at once or for a number.
    """
    own = bare(model)
    if is_detector(own):
        return
    kind = type(own)
    config = getattr(own, "config", None)
    if kind.__module__.startswith("transformers.models.") and not _is_classifier(kind.__name__):
        raise InvalidInputError(
            name,
            kind.__name__,
            "a classifier, with one logit for each class of a sample, or a detector; this class of transformers has "
            "no such head",
            _instead(config),
        )
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise InvalidInputError(
            f"{name}.config.problem_type",
            problem,
            "'single_label_classification' or None: each sample has one class here, whose probability is pushed down",
            "Use a model that was trained with one class for each sample, or give GSLoraTrainer an `objective` of "
            "your own.",
        )
    if head_size(own) == 1:
        raise InvalidInputError(
            f"{name}.config.num_labels",
            1,
            "at least 2 classes: transformers takes a head with one output for a regression",
            "Use a model that was trained as a classifier, with two outputs if there are two classes.",
        )


def _is_classifier(class_name: str) -> bool:
    found = _CLASSIFIER.fullmatch(class_name.rpartition("For")[2])  # RoFormerFor… has two of them
    return found is not None and found.group(1) not in _NOT_OF_SAMPLES


def _instead(config: Any) -> str:
    """The class with a class head for the same kind of model, where there is one."""
    kind = str(getattr(config, "model_type", ""))
    for model_type in (kind, _PARTS.sub("", kind)):
        for auto_class, names in _AUTO_CLASSES.items():
            if found := names.get(model_type):
                class_name = found if isinstance(found, str) else found[0]
                return f"Use {class_name} ({auto_class}.from_pretrained), trained on the classes."
    return "Use a model with a trained class head, or give GSLoraTrainer an `objective` of your own."
