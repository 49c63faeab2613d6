from .convert_face import read_names as read_names
from .parser import SettingsParser as SettingsParser
from .program import main as main
from .running import (
    carry_out as carry_out,
    load_data as load_data,
    make_forgetter as make_forgetter,
    model_source as model_source,
    publish_if_asked as publish_if_asked,
    refuse_ignored as refuse_ignored,
)
from .settings import (
    AdapterArguments as AdapterArguments,
    RunArguments as RunArguments,
    help_if_asked as help_if_asked,
    missing_classes as missing_classes,
)
from .terminal import run_script as run_script

__all__ = [
    "AdapterArguments",
    "RunArguments",
    "SettingsParser",
    "carry_out",
    "help_if_asked",
    "load_data",
    "main",
    "make_forgetter",
    "missing_classes",
    "model_source",
    "publish_if_asked",
    "read_names",
    "refuse_ignored",
    "run_script",
]
