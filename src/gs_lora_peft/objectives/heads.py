"""Class heads: where they are, how many classes they tell apart, and the embeddings before them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..compat import bare, unwrapped
from ..errors import InvalidInputError


def is_detector(model: nn.Module) -> bool:
    """Whether a model, bare or in a `PeftModel`, is one of transformers' object detectors."""
    return any(kind.__name__.endswith("ForObjectDetection") for kind in type(bare(model)).__mro__)


_FIX = "Prototypes need one head behind one embedding per sample; without it leave both prototype weights at 0."


class NoEmbeddingFoundError(InvalidInputError):
    """No classification head is found in the structure of a model, or the head's input is not a vector."""


def find_head(model: nn.Module) -> str:
    """
    Path of the classification head: the last Linear, convolution or cosine head that maps to `config.num_labels`.

    Last in the order in which modules were made, which puts the head behind everything that comes before it in every
    classifier of transformers. LoRA matrices are not considered.

    Args:
        model (`torch.nn.Module`):
            A classifier with a `config`, a bare one or a `PeftModel`.

    Returns:
        `str`: A path in `model.named_modules()`.

    Raises:
        NoEmbeddingFoundError: If the configuration does not say how many classes there are, nothing maps to so many,
            or several heads lie side by side (as in distilled models, which average two).
    """
    num_labels = getattr(getattr(bare(model), "config", None), "num_labels", None)
    if not num_labels:
        expected = f"the number of classes of {type(model).__name__}, by which its classification head is found"
        raise NoEmbeddingFoundError("model.config.num_labels", num_labels, expected, _FIX)
    heads = heads_of(model, num_labels)
    if not heads:
        expected = f"one with a layer that maps to its {num_labels} classes"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _FIX)
    *others, head = heads
    beside = [path for path in others if heads[path] == heads[head] and _side_by_side(path, head)]
    if beside:
        expected = f"one with a single head of {num_labels} classes, not {[*beside, head]} side by side"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _FIX)
    return head


def heads_of(model: nn.Module, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Paths of all layers that map to so many classes, and the shapes of their weights; those of LoRA left out."""
    adapted: tuple[str, ...] = ()
    heads: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if path.startswith(adapted) and adapted:
            continue
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{path}.",)
            module = module.get_base_layer()
        if (shape := _head_shape(module)) is not None and shape[0] == num_labels:
            heads[path] = shape
    return heads


def _side_by_side(path: str, other: str) -> bool:
    """Whether two paths differ in one name alone, as `head.linear` and `head_dist.linear`, and not in a number."""
    first, second = path.split("."), other.split(".")
    different = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    return len(first) == len(second) and len(different) == 1 and not all(name.isdecimal() for name in different[0])


def _head_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of the weight of a layer that multiplies by it, outputs first."""
    if isinstance(module, nn.Embedding):
        return None
    if isinstance(module, nn.Linear):
        # Not from the weight, which quantisation packs into another shape.
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) and weight.ndim in (2, 4) else None


class CapturedInputs:
    """What went into the head in one forward.

    Attributes:
        inputs (`list[torch.Tensor]`):
            One for each time that the head was called.
    """

    def __init__(self, path: str):
        self.path = path
        self.inputs: list[Tensor] = []

    @property
    def embeddings(self) -> Tensor:
        """
        The embeddings of the batch, float32, shape `(B, width)`, with gradient where the forward had one.

        Raises:
            NoEmbeddingFoundError: If the head was not called exactly once, or not on one vector for each sample.
        """
        if len(self.inputs) != 1:
            raise NoEmbeddingFoundError(f"calls of the head {self.path!r}", len(self.inputs), "one a forward", _FIX)
        (found,) = self.inputs
        flat = found.flatten(1)
        # One vector per sample: (B, width), or (B, width, 1, 1) and the like. More is a head on every token or place.
        if sum(size > 1 for size in found.shape[1:]) > 1:
            name = f"the input shape of the head {self.path!r}"
            raise NoEmbeddingFoundError(name, tuple(found.shape), "one vector for each sample", _FIX)
        return flat.float()


@contextmanager
def captured_embeddings(model: nn.Module, path: str | None = None) -> Iterator[CapturedInputs]:
    """
    Catches what goes into the head while a forward runs in the block.

    Args:
        model (`torch.nn.Module`):
            A classifier; may be a `PeftModel` or wrapped for several processes.
        path (`str`, *optional*):
            Path of the head in the unwrapped model; by default [`find_head`].

    Example:
        ```py
        >>> with captured_embeddings(model) as captured:
        ...     logits = model(pixel_values=pixels).logits
        >>> captured.embeddings.shape
        torch.Size([8, 768])
        ```
    """
    own = unwrapped(model)
    captured = CapturedInputs(path if path is not None else find_head(own))

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        captured.inputs.append(args[0])

    hook = own.get_submodule(captured.path).register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        hook.remove()


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
        model (`torch.nn.Module`):
            Bare, a `PeftModel`, or wrapped for several processes.

    Returns:
        `int` or `None`: `config.num_labels`; `None` where there is none, or where it is the 2 that every
            configuration.
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
        model (`torch.nn.Module`):
            Bare, a `PeftModel`, or wrapped for several processes.
        name (`str`, *optional*, defaults to `"model"`):
            What the model is called in the message.

    Raises:
        InvalidInputError: If the model is a class of transformers that is neither a classifier nor a detector, or has
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
