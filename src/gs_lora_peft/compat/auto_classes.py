"""Makes the face model known to transformers' Auto classes by name, without importing it.

transformers looks its own models up by `model_type → class name → module`, and imports the module when a class is
asked for. The face model stands in the same tables: each table gets its names when the file that holds it has been
loaded. Nothing is imported then, because most of transformers is half loaded at that moment: `from transformers import
BertModel` passes here on its way to the files that a model needs.
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
_MODULE = f"transformers.models.{MODEL_TYPE}"  # where transformers looks for the classes of this model type

# File below `transformers.models.auto` → its table of names → the face model's entry. The mapping that transformers
# makes of a table is called the same without `_NAMES`.
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
    """What transformers takes for the face model's module; imports the real one when a class of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        # Other names are asked for by whatever walks through `sys.modules`.
        if name in _CLASSES:
            return getattr(import_module("gs_lora_peft.models"), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def register_face_model() -> None:
    """Enters the face model into transformers' tables, now or when their files are loaded. Twice changes nothing."""
    sys.modules.setdefault(_MODULE, _FaceModule(_MODULE))
    for file in _ENTRIES:
        when_imported(f"transformers.models.auto.{file}")(_enter)


def _enter(module: Any) -> None:
    """Enters the names into the tables of one file, which has just been loaded or was loaded long ago."""
    try:
        for table, entry in _ENTRIES[module.__name__.rpartition(".")[2]].items():
            getattr(module, table)[MODEL_TYPE] = entry
            mapping = getattr(module, table.removesuffix("_NAMES"))
            if hasattr(mapping, "_reverse_config_mapping"):  # made from the configurations that were known by then
                mapping._reverse_config_mapping[_CONFIG] = MODEL_TYPE
    except (AttributeError, TypeError) as error:  # other tables in a later version must not break its import
        warnings.warn(
            f"this version of transformers keeps its models in another way ({error}), so that AutoConfig, AutoModel "
            "and pipelines do not know the face model. Load it with FaceTransformerForRecognition.from_pretrained.",
            stacklevel=2,
        )
