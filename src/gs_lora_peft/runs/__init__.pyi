from .cost import peak_bytes as peak_bytes
from .forgetter import ContinualForgetter as ContinualForgetter
from .recipe import Recipe as Recipe, adapter_settings as adapter_settings, recorded_config as recorded_config
from .revocation import task_to_redo as task_to_redo
from .scores import predict as predict
from .settings import OtherSettingsError as OtherSettingsError, processor_identity as processor_identity
from .task import (
    MAX_CURVE_POINTS as MAX_CURVE_POINTS,
    library_versions as library_versions,
    training_curves as training_curves,
)
from .validation import are_same_rows as are_same_rows, names_of_head as names_of_head
from .workspace import newest_checkpoint as newest_checkpoint

__all__ = [
    "MAX_CURVE_POINTS",
    "ContinualForgetter",
    "OtherSettingsError",
    "Recipe",
    "adapter_settings",
    "are_same_rows",
    "library_versions",
    "names_of_head",
    "newest_checkpoint",
    "peak_bytes",
    "predict",
    "processor_identity",
    "recorded_config",
    "task_to_redo",
    "training_curves",
]
