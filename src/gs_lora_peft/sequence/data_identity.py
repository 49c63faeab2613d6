"""By what the ledger tells whether data are those of an earlier task: cheap, and the same wherever they lie."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from ..data.collation import component

# Endings of the names of settings that say nothing of what comes out.
_OF_MACHINE = ("_type", "_class", "_version", "name_or_path", "device")


def data_settings(train: Dataset, trained: np.ndarray, test: Dataset, scored: np.ndarray) -> dict[str, str]:
    """What the ledger records of the data; each data set is given with its labels, see [`data_identity`]."""
    return {
        "train_data": data_identity(len(train), trained),
        "evaluation_data": data_identity(len(test), scored, ordered=False),
    }


def data_identity(rows: int, labels: np.ndarray, *, ordered: bool = True) -> str:
    """The number of rows of a data set, and a digest of its labels.

    Other samples under the same labels are not noticed, nor is another transform: reading them all would take minutes.
    The fingerprint that `datasets` keeps is not used, because the same data have another one on another machine.

    Args:
        rows (`int`): How many rows there are.
        labels (`numpy.ndarray`): The class of every row, or of every annotated box.
        ordered (`bool`, *optional*, defaults to `True`): Whether the order of the labels matters, as it does where
            samples are drawn from them.
    """
    content = (labels if ordered else np.sort(labels)).astype("<i8").tobytes()
    return f"{rows} rows, labels sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def processor_identity(processing_class: Any) -> str | None:
    """The kinds of the parts of a processor, and a digest of their settings; of anything else its kind.

    Settings are what `to_dict()` of an image processor and a feature extractor says, without names, versions and what
    is `None`, and how a tokenizer pads. The vocabulary of a tokenizer is left out: texts are tokenised before.
    """
    if processing_class is None:
        return None
    parts = {
        "image_processor": BaseImageProcessor,
        "feature_extractor": SequenceFeatureExtractor,
        "tokenizer": PreTrainedTokenizerBase,
    }
    found: dict[int, Any] = {}
    for name, kind in parts.items():
        if (part := component(processing_class, name, kind)) is not None:
            found[id(part)] = part
    if not found:
        return type(processing_class).__qualname__
    # transformers has called one and the same processor with and without "Fast".
    described = {type(part).__name__.removesuffix("Fast"): _settings_of(part) for part in found.values()}
    content = json.dumps(described, sort_keys=True, default=_plain)
    return f"{', '.join(described)}, settings sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def function_name(function: Any) -> str | None:
    """The qualified name of a function; of another callable that of its class."""
    if function is None:
        return None
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    # A script and its import are the same.
    return named.__qualname__ if module in (None, "__main__") else f"{module}.{named.__qualname__}"


def _settings_of(part: Any) -> Any:
    if isinstance(part, PreTrainedTokenizerBase):
        return {"padding_side": part.padding_side, "pad_token_id": part.pad_token_id}
    return _lasting(part.to_dict())


def _lasting(value: Any) -> Any:
    """Settings without those that differ from machine to machine or between versions of transformers."""
    if not isinstance(value, Mapping):
        return value
    return {
        str(name): _lasting(item)
        for name, item in value.items()
        if item is not None and not str(name).startswith("_") and not str(name).endswith(_OF_MACHINE)
    }


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
