"""The tuner type is registered as soon as PEFT is there, the face model as soon as the Auto classes are."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from processes import in_new_process

from gs_lora_peft import FaceTransformerConfig
from gs_lora_peft.compat.auto_classes import _enter
from gs_lora_peft.models import FaceImageProcessor

# Each step and what holds after it, in an interpreter that has imported nothing before.
STEPS = """
import importlib.util, sys
import gs_lora_peft
assert not {"torch", "peft", "transformers", "huggingface_hub"} & set(sys.modules), "the import is not light"
from transformers import AutoConfig, BertModel
assert not {"peft", "gs_lora_peft.models", "transformers.models.vit.modeling_vit"} & set(sys.modules)
assert importlib.util.find_spec("peft")
from peft import PeftType, get_peft_model
assert PeftType("GS_LORA") is PeftType.GS_LORA
assert "gs_lora_peft.tuner" in sys.modules
heavy = {"datasets", "evaluate", "pandas", "pyarrow", "transformers.trainer", "sklearn.metrics", "gs_lora_peft.models"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert AutoConfig.for_model("face_transformer").model_type == "face_transformer"
"""


@pytest.mark.slow
def test_step_by_step():
    """This package imports no torch; to PEFT it adds the tuner alone; the face model is there when it is asked for."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", STEPS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_everything_at_once():
    """`EAGER_IMPORT` is lazy_loader's switch: each face imports what it offers, so that a wrong name shows at once."""
    code = "import os; os.environ['EAGER_IMPORT'] = '1'; import gs_lora_peft, sys; print('peft' in sys.modules)"
    assert in_new_process(code).split() == ["True"]


@pytest.mark.slow
def test_every_order_of_imports(tmp_path):
    """This package, PEFT, a class, the Auto classes and `pipeline`: in every order the face model is found after."""
    FaceTransformerConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    FaceImageProcessor().save_pretrained(tmp_path)
    script = Path(__file__).with_name("import_orders.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["41 orders, failed: 0"], result.stdout + result.stderr


@pytest.mark.parametrize("name", ["configuration_auto", "modeling_auto", "image_processing_auto"])
def test_other_tables_do_not_break_the_import(name):
    """A version of transformers without these tables gets a warning that names the way out, and goes on."""
    with pytest.warns(UserWarning, match="FaceTransformerForRecognition"):
        _enter(ModuleType(f"transformers.models.auto.{name}"))
