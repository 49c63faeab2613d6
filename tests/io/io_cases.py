"""Helpers of the tests of io."""

import errno
import os
import sys
import textwrap
from pathlib import Path

from gs_lora_peft import io as storage


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def out_of_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ROOT = Path(storage.__file__).parent.parent
# What the package imports on its own takes seconds and plays no part here, so other processes go round it.
LIGHT_IMPORTS = f"""
import sys, types
sys.modules["gs_lora_peft"] = types.ModuleType("gs_lora_peft")
sys.modules["gs_lora_peft"].__path__ = [{str(ROOT)!r}]
"""


def python(code, *arguments):
    return [sys.executable, "-c", LIGHT_IMPORTS + textwrap.dedent(code), *map(str, arguments)]
