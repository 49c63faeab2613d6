"""The README's examples are run as they are printed."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features
from peft import PeftModel
from transformers import ViTConfig, ViTForImageClassification

from gs_lora_peft.hub.repository import stage_repository

README = Path(__file__).resolve().parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 13
    return ViTForImageClassification(config)


@pytest.fixture
def dataset() -> Dataset:
    """Four noisy images of each class, with the names that the README uses."""
    names = ["tench", "cassette player", *(f"person_{n:02d}" for n in range(1, 12))]
    labels = torch.arange(13).repeat_interleave(4)
    images = torch.randn(13, 3, 8, 8, generator=torch.Generator().manual_seed(0))[labels]
    features = Features({"pixel_values": Array3D((3, 8, 8), "float32"), "label": ClassLabel(names=names)})
    rows = {"pixel_values": images.numpy(), "label": labels.tolist()}
    return Dataset.from_dict(rows, features=features).with_format("torch")


def test_readme_examples_run(dataset, tmp_path, monkeypatch, capsys):
    """The Python snippets of the README work in order, and the exported adapter loads with stock PEFT."""
    monkeypatch.chdir(tmp_path)
    first, second, third, fourth = snippets()
    scope = {"base_model": tiny_vit(), "fresh_base_model": tiny_vit(), "dataset": dataset}
    exec(first, scope)
    assert scope["trainer"].state.global_step > 0
    restored = PeftModel.from_pretrained(tiny_vit(), "out/adapter").eval()
    pixel_values = dataset[:]["pixel_values"]
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
