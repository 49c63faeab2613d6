"""The README's examples are run as they are printed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peft import PeftModel
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from gs_lora_peft.hub.repository import stage_repository

NAMES = ["tench", "cassette player", *(f"person_{n:02d}" for n in range(1, 12))]
README = Path(__file__).resolve().parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: number for number, name in enumerate(NAMES)}
    return ViTForImageClassification(config)


@pytest.fixture
def dataset() -> Dataset:
    """Four pictures of each class, with the names that the README uses, numbered otherwise than in the model."""
    random = np.random.default_rng(0)
    labels = np.arange(13).repeat(4)
    images = random.integers(0, 200, (13, 8, 8, 3))[labels] + random.integers(0, 50, (52, 8, 8, 3))
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES[::-1])})
    return Dataset.from_dict({"image": list(images.astype(np.uint8)), "label": labels.tolist()}, features=features)


def test_readme_examples_run(dataset, tmp_path, monkeypatch, capsys):
    """The Python snippets of the README work in order, and the exported adapter loads with stock PEFT."""
    monkeypatch.chdir(tmp_path)
    first, second, third, fourth = snippets()
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    scope = {"base_model": tiny_vit(), "fresh_base_model": tiny_vit(), "dataset": dataset, "processor": processor}
    exec(first, scope)
    assert scope["split"].forget_classes == [0, 1]
    assert scope["trainer"].state.global_step > 0
    restored = PeftModel.from_pretrained(tiny_vit(), "out/adapter").eval()
    pixel_values = processor(images=dataset[:]["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert torch.equal(
            restored(pixel_values=pixel_values).logits, scope["model"].eval()(pixel_values=pixel_values).logits
        )
    scope["base_model"] = tiny_vit()  # a bare model: the first snippet put an adapter on the other one
    exec(second, scope)
    assert [entry.name for entry in scope["forgetter"].ledger.tasks] == ["task_001", "task_002"]
    assert isinstance(scope["model"], PeftModel)
    # A folder wins over a repository of the same name, so that the snippet runs as it is printed.
    stage_repository("runs/clinic", "org/clinic-forgotten")
    scope |= {"base_model": tiny_vit(), "fresh_base_model": tiny_vit()}
    exec(third, scope)
    assert scope["everything"].active_adapters == ["default"]
    assert scope["first_only"].active_adapters == ["task_001"]
    scope["base_model"] = tiny_vit()
    exec(fourth, scope)
    entry = scope["forgetter"].ledger.tasks[0]
    assert entry.sizes["forget"] == 4
    assert "acc_missing" in entry.scores["after"]


def test_readme_names_the_two_commands():
    """A newcomer finds `make demo` and `make test`."""
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
