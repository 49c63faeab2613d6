from .forgetter import ContinualForgetter as ContinualForgetter
from .settings import OtherSettingsError as OtherSettingsError
from .task import training_curves as training_curves

__all__ = [
    "ContinualForgetter",
    "OtherSettingsError",
    "training_curves",
]
