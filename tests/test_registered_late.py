"""The tuner type is registered as soon as PEFT is there, the face model as soon as the Auto classes are."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gs_lora_peft import FaceTransformerConfig
from gs_lora_peft.compat.auto_classes import _enter
from gs_lora_peft.models import FaceImageProcessor


@pytest.mark.slow
def test_peft(tmp_path):
    """`import gs_lora_peft` imports no torch; `import peft`, also after somebody only asked for it, registers."""
    code = (
        "import sys, importlib.util, gs_lora_peft\n"
        "assert not {'torch', 'peft', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('peft')\n"
        "from peft import PeftType, get_peft_model\n"
        "print(PeftType('GS_LORA'), 'gs_lora_peft.tuner' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["PeftType.GS_LORA", "True"], result.stderr


@pytest.mark.slow
def test_import_in_a_process_of_its_own():
    """`from transformers import BertModel` after this package, in an interpreter that has imported nothing else."""
    code = (
        "import sys, gs_lora_peft\nfrom transformers import BertModel, AutoConfig\n"
        "assert not {'peft', 'gs_lora_peft.models', 'transformers.models.vit.modeling_vit'} & set(sys.modules)\n"
        "print(AutoConfig.for_model('face_transformer').model_type)\n"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["face_transformer"], result.stderr


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
