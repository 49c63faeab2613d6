"""examples/forget_faces.py from its two starts, the data alone and a checkpoint, and the page docs/faces.md."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, load_dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from gs_lora_peft.cli import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
import face_cases as cases

NAMES = ["ada", "bob", "cleo", "dan", "eve"]
SETTINGS = ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--r", "2", "--use_cpu", "true"]
SETTINGS += ["--disable_tqdm", "true", "--scale", "16", "--margin", "0.1", "--num_attention_heads", "2"]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import forget_faces

    return forget_faces.main


@pytest.fixture
def faces(tmp_path):
    """A folder of pictures: four of each person to train on, three to test."""
    random = np.random.default_rng(0)
    for name in NAMES:
        pattern = random.integers(0, 200, (16, 16, 3))
        for split, count in (("train", 4), ("test", 3)):
            folder = tmp_path / "faces" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noisy = pattern + random.integers(0, 50, pattern.shape)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number}.png")
    return str(tmp_path / "faces")


@pytest.mark.slow
def test_pretrain_and_forget(example, faces, tmp_path, capsys):
    """Without a model one is trained first; tables are printed and pictures drawn. Asked again, nothing is redone."""
    out = tmp_path / "run"
    command = [
        *SETTINGS, "--dataset_name", faces, "--forget", "eve;ada", "--output_dir", str(out), "--image_size", "16",
        "--patch_size", "4", "--hidden_size", "16", "--intermediate_size", "32", "--num_hidden_layers", "2",
        "--pretrain_epochs", "1", "--pretrain_batch_size", "10",
    ]  # fmt: skip
    example(command)
    printed = capsys.readouterr().out
    assert "with the margin" in printed
    assert "TAR@FAR=1e-2" in printed
    assert sorted(path.name for path in (out / "private_pictures").iterdir()) == ["embedding_map.png", "faces.png"]
    model = AutoModelForImageClassification.from_pretrained(out / "base_model")
    assert list(model.config.id2label.values()) == NAMES
    assert AutoImageProcessor.from_pretrained(out / "base_model").size["height"] == 16
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert len(before) == 3
    example(command)
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_from_a_checkpoint(example, faces, tmp_path, capsys):
    """A checkpoint is converted once, with the names of the data; pictures can be left out."""
    torch.save(cases.author_state(), tmp_path / "face.pth")
    command = [*SETTINGS, "--dataset_name", faces, "--forget", "dan", "--output_dir", str(tmp_path / "run")]
    example([*command, "--checkpoint", str(tmp_path / "face.pth"), "--pictures", "false"])
    assert "task_001" in capsys.readouterr().out
    assert not (tmp_path / "run" / "private_pictures").exists()
    assert json.loads((tmp_path / "run" / "base_model" / "config.json").read_text())["id2label"]["4"] == "eve"
    with pytest.raises(SystemExit):
        example([*command, "--checkpoint", "face.pth", "--model_name_or_path", "face"])
    assert "give one" in capsys.readouterr().err


def test_the_page_about_faces(faces, tmp_path, monkeypatch):
    """The Python snippets of docs/faces.md work in order, after `gs-lora convert-face` as it is printed there."""
    text = (ROOT / "docs" / "faces.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    torch.save(cases.author_state(), "face.pth")  # 8 heads of 2
    (command,) = re.findall(r"^gs-lora (convert-face .*)$", text, flags=re.M)
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--label-names", ",".join(f"person_3{i}" for i in range(3, 8))])
    assert end.value.code == 0
    dataset = load_dataset(faces)
    names = ClassLabel(names=[f"person_3{i}" for i in range(3, 8)])
    scope = {"dataset": dataset.cast_column("label", names), "epochs": 1, "image": dataset["test"][0]["image"]}
    for snippet in snippets:
        exec(snippet, scope)
    assert len(snippets) == 4
    assert scope["audit"].forgotten == [[2, 3]]
    assert (tmp_path / "runs" / "faces" / "private_pictures" / "faces.png").is_file()
