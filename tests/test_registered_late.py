"""The tuner type is registered as soon as PEFT is there, and nobody has to import PEFT for that."""

import subprocess
import sys

import pytest


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
@pytest.mark.parametrize(
    "names",
    ["AutoModel", "AutoImageProcessor", "BaseImageProcessor, AutoConfig, AutoModelForImageClassification", "pipeline"],
)
@pytest.mark.parametrize("ours_first", [True, False])
def test_face_model(names, ours_first):
    """Transformers' Auto classes know the face model with either order of imports, without PEFT."""
    imports = ["import gs_lora_peft", f"from transformers import {names}"]
    code = "\n".join(imports if ours_first else imports[::-1]) + (
        "\nimport sys\nfrom transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"
        "print('face_transformer' in CONFIG_MAPPING, 'peft' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "False"], result.stderr
