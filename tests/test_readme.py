"""The README's examples are run as they are printed."""

import re
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from gs_lora_peft.hub.publish import stage_repository

NAMES = [f"person_{n:02d}" for n in range(1, 12)]
README = Path(__file__).resolve().parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def write_model(folder: Path) -> None:
    """A tiny classifier and its processor, as `save_pretrained` writes them."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: number for number, name in enumerate(NAMES)}
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def people() -> Dataset:
    """Four pictures of each person that the README names, numbered otherwise than in the model."""
    random = np.random.default_rng(0)
    labels = np.arange(len(NAMES)).repeat(4)
    images = random.integers(0, 200, (len(NAMES), 8, 8, 3))[labels] + random.integers(0, 50, (len(labels), 8, 8, 3))
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES[::-1])})
    return Dataset.from_dict({"image": list(images.astype(np.uint8)), "label": labels.tolist()}, features=features)


def test_the_blocks_run_one_after_another(tmp_path, monkeypatch):
    """In one process, as printed, from nothing but the two names that the first block asks for."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    scope = {"folder": "model", "dataset": DatasetDict(train=people(), test=people())}
    first, second = snippets()
    exec(first, scope)
    assert [entry.name for entry in scope["forgetter"].ledger.tasks] == ["task_001", "task_002"]
    assert scope["entry"].class_names == ["person_07"]
    assert scope["entry"].settings["training"]["recipe"] == "deep"
    assert scope["model"].active_adapters == ["task_001"]
    # The commands of the page publish the run; a folder wins over a repository of the same name.
    stage_repository("runs/clinic", "org/clinic-forgotten")
    exec(second, scope)
    pixel_values = scope["processor"](images=people()[:]["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        stock, checked = (scope[name].eval()(pixel_values=pixel_values).logits for name in ("everything", "checked"))
    assert torch.allclose(stock, checked, atol=1e-5)


def test_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 120


def test_readme_names_the_two_commands():
    """A newcomer finds them."""
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
