"""Makes what lies in `data/`, with the version of the package that is imported: `python make_run.py FOLDER`."""

import shutil
import sys
from pathlib import Path

import former_cases as cases
import torch
from safetensors.torch import save_file

from gs_lora_peft import load_forgotten
from gs_lora_peft.cli import main

torch.set_num_threads(1)
folder = Path(sys.argv[1])
base, run = folder / "base", folder / "run"
cases.pretrain(base)
forgetter = cases.make_forgetter(base, run)
forgetter.run(cases.requests())
forgetter.revoke("task_002", reason="asked for by mistake")
loaded = {
    "base": cases.load_base(base),
    "merged": load_forgotten(cases.load_base(base), run, merge=True),
    "attached": load_forgotten(cases.load_base(base), run),
    "first": load_forgotten(cases.load_base(base), run, tasks=1, merge=True),
}
tensors = {name: cases.logits(model) for name, model in loaded.items()}
save_file(tensors, folder / "logits.safetensors", {"arithmetic": cases.arithmetic()})
try:
    main(["export", "--repository", str(run), str(folder / "repository")])  # ends the process
finally:
    shutil.rmtree(folder / "repository" / "figures")  # most of the size, and nothing reads them
