"""`gs-lora forget` with faces, from its two starts, the data alone and a checkpoint, and the page docs/faces.md."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset
from errors import refused
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.cli import forget, main
from gs_lora_peft.cli.terminal import UsageError
from gs_lora_peft.data.classes import UnknownClassError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
import face_cases as cases

NAMES = ["ada", "bob", "cleo", "dan", "eve"]
SETTINGS = ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--r", "2", "--use_cpu", "true"]
SETTINGS += ["--disable_tqdm", "true", "--scale", "16", "--margin", "0.1", "--num_attention_heads", "2"]


def example(command):
    return forget(["--pretrain", *command])


def write_faces(root: Path, names: list[str]) -> str:
    """A folder of pictures: four of each person to train on, three to test."""
    random = np.random.default_rng(0)
    for name in names:
        pattern = random.integers(0, 200, (16, 16, 3))
        for split, count in (("train", 4), ("test", 3)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noisy = pattern + random.integers(0, 50, pattern.shape)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number}.png")
    return str(root)


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / "faces", NAMES)


class Stopped(Exception):
    """What a test stops a run with."""


def stops_at(monkeypatch, step, steps):
    """Notes at which step each training step is, and stops the run before so many have been taken."""
    original = Trainer.training_step

    def training_step(self, *args, **more):
        steps.append(self.state.global_step)
        if len(steps) == step:
            raise Stopped
        return original(self, *args, **more)

    monkeypatch.setattr(Trainer, "training_step", training_step)


TINY = ["--image_size", "16", "--patch_size", "4", "--hidden_size", "16", "--intermediate_size", "32"]
TINY += ["--num_hidden_layers", "2", "--pretrain_batch_size", "10"]  # two steps an epoch of five people


@pytest.mark.slow
def test_a_stopped_pretraining_goes_on(faces, tmp_path, monkeypatch):
    """After its last whole checkpoint, to the same bits; on other data or settings it is refused; no pickle stays."""
    command = [*SETTINGS, *TINY, "--dataset_name", faces, "--forget", "eve", "--pictures", "false"]
    command += ["--pretrain_epochs", "3"]
    whole, out, steps = tmp_path / "whole", tmp_path / "run", []
    example([*command, "--output_dir", str(whole)])
    with monkeypatch.context() as patch:
        stops_at(patch, 6, steps)
        with pytest.raises(Stopped):
            example([*command, "--output_dir", str(out)])
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in (out / "pretraining").iterdir()] == ["checkpoint-4"]
    (out / "pretraining" / "checkpoint-6").mkdir()  # a kill within the next one
    for options, said in (
        (["--pretrain_learning_rate", "1"], "--pretrain_learning_rate was 0.0005 and is 1.0"),
        (["--seed", "7"], r"--seed was 42 and is 7.*remove '.*pretraining' to begin anew"),
        (["--dataset_name", write_faces(tmp_path / "others", NAMES)], "--data was"),
    ):
        with pytest.raises(ValueError, match=said):
            example([*command, "--output_dir", str(out), *options])
    steps.clear()
    with monkeypatch.context() as patch:
        stops_at(patch, None, steps)
        example([*command, "--output_dir", str(out)])
    assert steps[0] == 4
    for name in ("base_model/model.safetensors", "tasks/task_001/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert not [path for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".bin")]


@pytest.mark.slow
def test_other_columns_from_a_file(tmp_path, capsys):
    """`--label_column` and `--image_column` hold from pre-training to the pictures; `--config` reads them."""
    loaded = load_dataset("imagefolder", data_dir=write_faces(tmp_path / "faces", NAMES))
    loaded.rename_columns({"image": "photo", "label": "identity"}).save_to_disk(str(tmp_path / "data"))
    settings = {"dataset_name": str(tmp_path / "data"), "forget": [["eve"], ["ada", "bob"]], "image_column": "photo"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [*SETTINGS, *TINY, "--config", str(tmp_path / "settings.yaml"), "--output_dir", str(tmp_path / "run")]
    command += ["--pretrain_epochs", "1"]
    with refused("label_column", "label"):
        example(command)
    example([*command, "--label_column", "identity"])
    assert "with the margin" in capsys.readouterr().out
    assert (tmp_path / "run" / "private_pictures" / "faces.png").is_file()
    tasks = ForgettingLedger.load(tmp_path / "run").tasks
    assert [task.class_names for task in tasks] == [["eve"], ["ada", "bob"]]


@pytest.mark.slow
def test_pretrain_and_forget(faces, tmp_path, capsys):
    """Without a model one is trained first; tables are printed and pictures drawn. Asked again, nothing is redone."""
    out = tmp_path / "run"
    command = [
        *SETTINGS, *TINY, "--dataset_name", faces, "--forget", "eve;ada", "--output_dir", str(out),
        "--pretrain_epochs", "1",
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
    with pytest.raises(ValueError, match=r"--hidden_size was 16 and is 32; --pretrain_epochs was 1.0 and is 2.0\. "):
        example([*command, "--hidden_size", "32", "--pretrain_epochs", "2"])


@pytest.mark.slow
def test_from_a_checkpoint(faces, tmp_path, capsys, monkeypatch):
    """A checkpoint is converted once, with the names of the data; pictures can be left out; the run is pushed.

    Other settings of the model are refused, by name, instead of going on with the model that is there.
    """
    torch.save(cases.author_state(), tmp_path / "face.pth")
    pushed = []
    monkeypatch.setattr(
        "gs_lora_peft.cli.forgetting.carrying.push_to_hub",
        lambda folder, name, **options: pushed.append((folder, name)) or "there",
    )
    command = [*SETTINGS, "--dataset_name", faces, "--forget", "dan", "--output_dir", str(tmp_path / "run")]
    converting = [*command, "--checkpoint", str(tmp_path / "face.pth"), "--pictures", "false"]
    example([*converting, "--push_to_hub", "true", "--hub_model_id", "me/it"])
    printed = capsys.readouterr().out
    assert "task_001" in printed
    assert "Hub:      there" in printed
    assert pushed == [(str(tmp_path / "run"), "me/it")]
    with pytest.raises(ValueError, match=r"--scale was 16.0 and is 32.0; --pixels was 'unit' and is 'bytes'\. "):
        example([*converting, "--scale", "32", "--pixels", "bytes"])
    assert not (tmp_path / "run" / "private_pictures").exists()
    assert json.loads((tmp_path / "run" / "base_model" / "config.json").read_text())["id2label"]["4"] == "eve"


@pytest.mark.slow
def test_names_of_the_head(tmp_path):
    """`--people` tells whose row is whose: data of fewer people in another order is numbered as the head."""
    torch.save(cases.author_state(), tmp_path / "face.pth")
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    faces = write_faces(tmp_path / "faces", [name for name in NAMES if name != "bob"])
    command = [*SETTINGS, "--dataset_name", faces, "--forget", "dan", "--output_dir", str(tmp_path / "run")]
    command += ["--checkpoint", str(tmp_path / "face.pth"), "--pictures", "false", "--missing", "ada,bob"]
    with refused("label_names", "4 names") as raised:
        example(command)
    assert "--people" in raised.value.__notes__[0]
    example([*command, "--people", str(tmp_path / "names.txt")])
    (task,) = ForgettingLedger.load(tmp_path / "run").tasks
    assert (task.classes, task.class_names) == ([1], ["dan"])
    assert task.missing_classes == [3, 4]
    with pytest.raises(ValueError, match="--people was "):
        example(command)


def test_refused_before_pretraining(faces, tmp_path):
    """What is wrong with a name or an option is said before a model is trained or converted."""
    command = ["--dataset_name", faces, "--forget", "dan", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    for options, said in (
        (["--checkpoint", "face.pth", "--model_name_or_path", "face"], "give one"),
        (["--people", "names.txt"], "is for the model of a --checkpoint"),
        (["--checkpoint", "face.pth", "--people", "poeple.txt"], "`--people` is 'poeple.txt'"),
        (["--checkpoint", "face.pth", "--hidden_size", "99"], "`--hidden_size` is 99"),
        (["--model_name_or_path", "face", "--scale", "32", "--pretrain_epochs", "2"], "--scale, --pretrain_epochs."),
        (["--model_revision", "v1"], "--model_revision is of a --model,"),
        (["--resume_from_checkpoint", "x"], "resumes by itself"),
        (["--missing", "ada;bob"], "Separate them with ','"),  # and the message does not name them
    ):
        with pytest.raises(UsageError) as error:
            example([*command, *options])
        assert said in str(error.value)
    for options in (["--forget", "dna"], ["--missing", "dna"]):
        with pytest.raises(UnknownClassError) as error:
            example([*command, *options])
        assert "dna" in error.value.value
    unnamed = Dataset.from_dict({"image": [Image.new("L", (32, 32))] * 2, "label": [0, 1]})
    DatasetDict(train=unnamed, test=unnamed).save_to_disk(tmp_path / "unnamed")
    with refused("label", "labels without names"):
        example([*command, "--dataset_name", str(tmp_path / "unnamed")])
    assert not (tmp_path / "run").exists()


def test_the_page_about_faces(tmp_path, monkeypatch):
    """The Python snippets of docs/faces.md work in order, after `gs-lora convert-face` as it is printed there."""
    text = (ROOT / "docs" / "faces.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    torch.save(cases.author_state(), "face.pth")  # 8 heads of 2
    (command,) = re.findall(r"^gs-lora (convert-face .*)$", text, flags=re.M)
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--label-names", "person_37,person_06,person_05,person_34,person_33"])
    assert end.value.code == 0
    write_faces(Path("data/faces"), ["person_05", "person_06", "person_33", "person_37"])
    scope = {"image": Image.open("data/faces/test/person_33/0.png")}
    for snippet in snippets:
        exec(snippet, scope)
    assert len(snippets) == 4
    assert scope["audit"].forgotten == [[2, 1]]  # the model's numbers
    assert (tmp_path / "runs" / "faces" / "private_pictures" / "faces.png").is_file()
