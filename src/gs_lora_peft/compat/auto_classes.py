"""Registers the face model with transformers' Auto classes by name, without importing it.

transformers looks up its own models by `model_type → class name → module`, and imports the module on first use. The
face model gets an entry in the same tables, as soon as the file of a table has been loaded. Nothing may be imported at
that moment, because transformers itself is only half loaded.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

from wrapt import when_imported

MODEL_TYPE = "face_transformer"
_CONFIG = "FaceTransformerConfig"
_MODULE = f"transformers.models.{MODEL_TYPE}"  # transformers looks here for the classes of this model type

# File in `transformers.models.auto` → its table of names → the face model's entry. The mapping that transformers makes
# from a table has the same name without `_NAMES`.
_ENTRIES: dict[str, dict[str, Any]] = {
    "configuration_auto": {"CONFIG_MAPPING_NAMES": _CONFIG},
    "modeling_auto": {
        "MODEL_MAPPING_NAMES": "FaceTransformerModel",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "FaceTransformerForRecognition",
    },
    "image_processing_auto": {"IMAGE_PROCESSOR_MAPPING_NAMES": {"pil": "FaceImageProcessor"}},
}

_CLASSES = (_CONFIG, "FaceTransformerModel", "FaceTransformerForRecognition", "FaceImageProcessor")


class _FaceModule(ModuleType):
    """Stands for the face model's module in transformers, and imports the real one on first use of a class."""

    def __getattr__(self, name: str) -> Any:
        # Code that walks through `sys.modules` asks for other names, and must not import the model.
        if name in _CLASSES:
            return getattr(import_module("gs_lora_peft.models"), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def register_face_model() -> None:
    """Enters the face model into transformers' tables, now or when their files are loaded.

    A second call changes nothing.
    """
    sys.modules.setdefault(_MODULE, _FaceModule(_MODULE))
    for file in _ENTRIES:
        when_imported(f"transformers.models.auto.{file}")(_enter)


def _enter(module: Any) -> None:
    """Enters the names into the tables of one loaded file."""
    try:
        for table, entry in _ENTRIES[module.__name__.rpartition(".")[2]].items():
            getattr(module, table)[MODEL_TYPE] = entry
            mapping = getattr(module, table.removesuffix("_NAMES"))
            if hasattr(mapping, "_reverse_config_mapping"):  # made from the configurations known until then
                mapping._reverse_config_mapping[_CONFIG] = MODEL_TYPE
    except (AttributeError, TypeError) as error:  # a later version with other tables must still be importable
        warnings.warn(
            f"this version of transformers registers its models differently ({error}): AutoConfig, AutoModel and "
            "pipelines do not know the face model. Load it with FaceTransformerForRecognition.from_pretrained.",
            stacklevel=2,
        )
