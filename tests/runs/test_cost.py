"""The peak memory that a ledger records is that of its own process."""

import subprocess
import sys

import torch

from gs_lora_peft.runs import peak_bytes

HELD = 1_500_000_000


def test_a_process_does_not_begin_with_the_peak_of_the_one_that_started_it():
    code = "import torch; from gs_lora_peft.runs import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    held = torch.ones(HELD // 4)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert held.sum() > 0
    assert peak_bytes(torch.device("cpu")) > HELD
    assert 0 < int(found.stdout.splitlines()[-1]) < HELD
