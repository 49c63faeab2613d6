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
