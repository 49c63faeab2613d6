from .convert_face import read_names as read_names
from .forgetting.digits import (
    DIGITS_RECIPE as DIGITS_RECIPE,
    load_digits as load_digits,
    pretrained_digits_vit as pretrained_digits_vit,
)
from .forgetting.options import Options as Options
from .forgetting.parser import SettingsParser as SettingsParser
from .forgetting.redoing import redo as redo
from .forgetting.working import forget as forget
from .loading import load_data as load_data
from .program import main as main

__all__ = [
    "DIGITS_RECIPE",
    "Options",
    "SettingsParser",
    "forget",
    "load_data",
    "load_digits",
    "main",
    "pretrained_digits_vit",
    "read_names",
    "redo",
]
