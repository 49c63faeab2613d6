"""Class heads: where they are, the number of their classes, the embeddings before them and their logits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..compat import bare, unwrapped
from ..errors import InvalidInputError

# `config.num_labels` by default, also in models without a head.
_DEFAULT_NUM_LABELS = 2

# Names of transformers' classes with one decision for each sample; the automatic mappings lack some of them.
_CLASSIFIER = re.compile(r"(\w*)Classification(WithTeacher|Learned|Fourier|ConvProcessing)?")
_NOT_OF_SAMPLES = {"Token", "AudioFrame", "EntitySpan"}

_AUTO_CLASSES: dict[str, Any] = {
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForVideoClassification": modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForAudioClassification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
}
_TOWER = re.compile(r"_(vision|text|audio)(_model)?$")  # "clip_vision_model" is a part of "clip"

_ONE_EMBEDDING = "Prototypes need one head behind one embedding per sample. Else leave both prototype weights at 0."


class NoEmbeddingFoundError(InvalidInputError):
    """A model does not have a classification head that can be found, or the head's input is not a vector."""


def is_detector(model: nn.Module) -> bool:
    """Whether a model, bare or in a `PeftModel`, is one of transformers' object detectors."""
    return any(kind.__name__.endswith("ForObjectDetection") for kind in type(bare(model)).__mro__)


def find_head(model: nn.Module) -> str:
    """Finds the classification head: the last Linear, convolution or cosine head that maps to `config.num_labels`.

    "Last" follows the order in which the modules were registered. In every classifier of transformers the head is
    registered after the layers before it. LoRA matrices do not count.

    Args:
        model (`torch.nn.Module`):
            A classifier with a `config`, a bare one or a `PeftModel`.

    Returns:
        `str`: A path in `model.named_modules()`.

    Raises:
        NoEmbeddingFoundError: If the configuration does not have the number of classes, no layer maps to that number,
            or several heads lie side by side (as in distilled models, which average two).
    """
    num_labels = getattr(getattr(bare(model), "config", None), "num_labels", None)
    if not num_labels:
        expected = f"the number of classes of {type(model).__name__}, which identifies its classification head"
        raise NoEmbeddingFoundError("model.config.num_labels", num_labels, expected, _ONE_EMBEDDING)
    heads = heads_of(model, num_labels)
    if not heads:
        expected = f"one with a layer that maps to its {num_labels} classes"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _ONE_EMBEDDING)
    *others, head = heads
    beside = [path for path in others if heads[path] == heads[head] and _side_by_side(path, head)]
    if beside:
        expected = f"one with a single head of {num_labels} classes, not {[*beside, head]} side by side"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _ONE_EMBEDDING)
    return head


def heads_of(model: nn.Module, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Paths of all layers that map to `num_labels` classes, and the shapes of their weights, without LoRA layers."""
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
    """Whether two paths differ in one name only, as `head.linear` and `head_dist.linear`, and not in a number."""
    first, second = path.split("."), other.split(".")
    different = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    return len(first) == len(second) and len(different) == 1 and not all(name.isdecimal() for name in different[0])


def _head_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of a layer's weight matrix, outputs first; `None` for layers that do not multiply by one."""
    if isinstance(module, nn.Embedding):
        return None
    if isinstance(module, nn.Linear):
        # Quantisation packs the weight into another shape.
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) and weight.ndim in (2, 4) else None


class CapturedInputs:
    """The inputs of the head in one forward.

    Args:
        path (`str`):
            Path of the head.

    Attributes:
        inputs (`list[torch.Tensor]`):
            One for each call of the head.
    """

    def __init__(self, path: str):
        self.path = path
        self.inputs: list[Tensor] = []

    @property
    def embeddings(self) -> Tensor:
        """The embeddings of the batch, float32, shape `(B, width)`, with gradient where the forward had one.

        Raises:
            NoEmbeddingFoundError: If the head was not called exactly once, or not on one vector for each sample.
        """
        if len(self.inputs) != 1:
            name = f"calls of the head {self.path!r}"
            raise NoEmbeddingFoundError(name, len(self.inputs), "one per forward", _ONE_EMBEDDING)
        (found,) = self.inputs
        flat = found.flatten(1)
        # One vector per sample is (B, width), or (B, width, 1, 1) and the like. Else the head is on tokens or pixels.
        if sum(size > 1 for size in found.shape[1:]) > 1:
            name = f"the input shape of the head {self.path!r}"
            raise NoEmbeddingFoundError(name, tuple(found.shape), "one vector for each sample", _ONE_EMBEDDING)
        return flat.float()


@contextmanager
def captured_embeddings(model: nn.Module, path: str | None = None) -> Iterator[CapturedInputs]:
    """Captures the inputs of the head while a forward runs in the block.

    Args:
        model (`torch.nn.Module`):
            A classifier: bare, a `PeftModel`, or wrapped for several processes.
        path (`str`, *optional*):
            Path of the head in the unwrapped model; by default the path of [`find_head`].

    Yields:
        [`CapturedInputs`]: The inputs, after the forward.

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


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The logits of a classifier for a batch with `labels`, shape `(B, C)`. The forward does not get the labels.

    Raises:
        InvalidInputError: If the forward does not return logits, or not one row for each sample and one column for
            each class.
    """
    if "labels" not in inputs:
        fix = "Let `data_collator` put the integer labels there."
        raise InvalidInputError("the keys of a batch", sorted(inputs), "'labels' among them", fix)
    # With labels, the model would compute its own loss over both halves, which is not used.
    logits = _logits_in(model(**{name: value for name, value in inputs.items() if name != "labels"}))
    _check_logits(model, logits, inputs["labels"])
    return logits


def _logits_in(outputs: Any) -> Tensor:
    """The logits in the output of a forward: a tensor, a tuple that begins with them, a mapping or an object."""
    named = dict(outputs) if isinstance(outputs, Mapping) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor) and value.ndim}
    # Another name counts if only one output can be meant: PatchTST has `prediction_logits`.
    candidates = [
        outputs,
        named.get("logits", getattr(outputs, "logits", None)),
        *[value for name, value in tensors.items() if name.endswith("logits")],
        *(tensors.values() if len(tensors) == 1 else ()),
        # In a tuple they come after a loss, or after the `None` in its place.
        *(outputs if isinstance(outputs, (tuple, list)) else ()),
    ]
    for value in candidates:
        if isinstance(value, Tensor) and value.ndim:
            return value
    raise InvalidInputError(
        "the model's output",
        sorted(named) or type(outputs).__name__,
        "a tensor of logits, a tuple that begins with them, or 'logits' by name",
        "Return the logits from the forward, or pass your own `objective` to GSLoraTrainer.",
    )


def _check_logits(model: nn.Module, logits: Tensor, labels: Tensor) -> None:
    """Checks that there is one row for each sample and one column for each of at least two classes."""
    batch = len(labels)
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        raise InvalidInputError(
            f"the shape of {type(bare(model)).__name__}'s logits",
            tuple(logits.shape),
            f"(B, C) = ({batch}, C): one row for each sample, one column for each of at least 2 classes",
            "Use a model that classifies whole samples instead of tokens or pixels, or pass your own `objective` to "
            "GSLoraTrainer.",
        )


def head_size(model: nn.Module) -> int | None:
    """The number of classes that a model tells apart, C.

    Args:
        model (`torch.nn.Module`):
            Bare, a `PeftModel`, or wrapped for several processes.

    Returns:
        `int` or `None`: `config.num_labels`. `None` if it is missing, or if it is 2, the default of transformers, and
        no layer of the model maps to two classes.
    """
    own = bare(model)
    count = getattr(getattr(own, "config", None), "num_labels", None)
    if not isinstance(count, int):
        return None
    return count if count != _DEFAULT_NUM_LABELS or is_detector(own) or heads_of(own, count) else None


def check_class_head(model: nn.Module, name: str = "model") -> None:
    """Refuses models that cannot have a class head, before anything is loaded or trained.

    Only classes that transformers defines are known. Your own class passes, with or without a configuration: its
    logits are checked in the first forward.

    Args:
        model (`torch.nn.Module`):
            Bare, a `PeftModel`, or wrapped for several processes.
        name (`str`, *optional*, defaults to `"model"`):
            Name of the model in the error.

    Raises:
        InvalidInputError: If the model is a class of transformers that is neither a classifier nor a detector, or if
            its head is for multi-label classification or regression.
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
            "'single_label_classification' or None, because forgetting lowers the probability of the one class of a "
            "sample",
            "Use a model that was trained with one class for each sample, or pass your own `objective` to "
            "GSLoraTrainer.",
        )
    if head_size(own) == 1:
        raise InvalidInputError(
            f"{name}.config.num_labels",
            1,
            "at least 2 classes, because transformers trains a head with one output by regression",
            "Use a model that was trained as a classifier, with two outputs for two classes.",
        )


def _is_classifier(class_name: str) -> bool:
    found = _CLASSIFIER.fullmatch(class_name.rpartition("For")[2])  # RoFormerFor… has two of them
    return found is not None and found.group(1) not in _NOT_OF_SAMPLES


def _instead(config: Any) -> str:
    """The advice to use the class with a class head for the same kind of model, if there is one."""
    kind = str(getattr(config, "model_type", ""))
    for model_type in (kind, _TOWER.sub("", kind)):
        for auto_class, names in _AUTO_CLASSES.items():
            if found := names.get(model_type):
                class_name = found if isinstance(found, str) else found[0]
                return f"Use {class_name} ({auto_class}.from_pretrained), trained on the classes."
    return "Use a model with a trained class head, or pass your own `objective` to GSLoraTrainer."
