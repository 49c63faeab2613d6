"""Runs that were never trained: a model, and tasks with random adapters of any rank on any of its modules."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gs_lora_peft import ForgettingLedger, export_lora
from gs_lora_peft.adapters import model_identity
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import TaskEntry

# Names of which one is the end, the beginning or the regular expression of another.
SHAPES = {
    "fc1": (6, 5),
    "layers.1.fc1": (5, 6),
    "layers.11.fc1": (4, 4),
    "layers.1.fc11": (6, 3),
    "decoder.layers.1.fc1": (5, 6),
    "layers+.fc1": (3, 6),
    "(fc1)": (7, 4),
}


class Names(nn.Module):
    """Linear layers with difficult names, side by side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for path, (inputs, outputs) in SHAPES.items():
            *parents, leaf = path.split(".")
            module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.add_module(leaf, nn.Linear(inputs, outputs))

    def forward(self, x):
        return {path: self.get_submodule(path)(x[:, :inputs]) for path, (inputs, _) in SHAPES.items()}


def write_task(model, ledger, modules, *, alpha=1.0, rslora=False, zero=(), seed=0, dtype=torch.float32):
    """Adds a task to a ledger (in memory) with random matrices.

    Args:
        modules (`dict[str, int]`): rank by module path.
        zero (`Collection[str]`): modules in which `lora_B` is zero.
    """
    name = ledger.next_task_name()
    patterns = {f"^{exactly(path)}": rank for path, rank in modules.items()}
    config = LoraConfig(
        target_modules="|".join(map(exactly, modules)),
        rank_pattern=patterns,
        lora_alpha=alpha,
        use_rslora=rslora,
        fan_in_fan_out=any(type(model.get_submodule(path)).__name__ == "Conv1D" for path in modules),
    )
    torch.manual_seed(seed)
    peft_model = get_peft_model(model, config, adapter_name=name)
    with torch.no_grad():
        for path in modules:
            layer = peft_model.base_model.model.get_submodule(path)
            for factors in (layer.lora_A, layer.lora_B):
                factors[name].weight = nn.Parameter(torch.randn_like(factors[name].weight).to(dtype))
            if path in zero:
                layer.lora_B[name].weight.zero_()
    folder = ledger.folder / "tasks" / name
    base = ledger.base_model["name_or_path"]
    export_lora(peft_model, folder, adapter_name=name, base_model_name_or_path=base)
    peft_model.unload()
    add_entry(ledger, name)


def exactly(path):
    """A module's name as a regular expression that matches nothing else."""
    return "".join(
        f"\\{character}" if not character.isalnum() and character != "_" else character for character in path
    )


def add_entry(ledger, name):
    """Puts the task whose files are there into a ledger."""
    files = sorted((ledger.folder / "tasks" / name).iterdir())
    number = int(name[-3:])
    entry = TaskEntry(
        name=name,
        request={"classes": [number - 1]},
        classes=[number - 1],
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
        files={f"tasks/{name}/{path.name}": sha256_of(path) for path in files},
    )
    ledger.append(entry)


def new_ledger(model, folder):
    return ForgettingLedger.create(folder, base_model=model_identity(model))


def vouch_again(folder):
    """Makes a ledger vouch for the files as they are now, as a user with bad intentions could."""
    ledger = ForgettingLedger.load(folder)
    for entry in ledger.tasks:
        for name in entry.files:
            entry.files[name] = sha256_of(Path(folder, name))
    ledger.save()
