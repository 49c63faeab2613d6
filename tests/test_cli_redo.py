"""`gs-lora redo`, and kinds of models that `gs-lora forget` recognises."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from errors import refused
from local_images import local_model_and_images
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTForImageClassification,
    YolosForObjectDetection,
)

from gs_lora_peft import FaceTransformerForRecognition, ForgettingLedger
from gs_lora_peft.cli import forget, redo
from gs_lora_peft.cli.forgetting import redoing, subjects, working
from gs_lora_peft.cli.forgetting.faces import Faces
from gs_lora_peft.cli.terminal import UsageError


@pytest.fixture
def local(tmp_path) -> dict[str, str]:
    return local_model_and_images(tmp_path / "local")


def test_redo_takes_what_the_ledger_records(local, tmp_path, capsys):
    """Only what the command gives differs; with a task it trains once; another recipe replaces the recorded one."""
    run, quiet = str(tmp_path / "run"), ["--use_cpu", "true", "--disable_tqdm", "true"]
    command = ["--model", local["model"], "--data", local["images"], "--forget", "tench;church", "--r", "2"]
    command += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--replay_ratio", "0.5"]
    forget([*command, *quiet, "--max_forget_accuracy", "1", "--lora_alpha", "6", "--output_dir", run])

    def tasks():
        return ForgettingLedger.load(run).tasks

    again = ["--data", local["images"], "--learning_rate", "0.004", *quiet]
    with refused("--model_name_or_path", None):  # the ledger holds no path
        redo([run, *again])
    again += ["--model", local["model"]]
    with pytest.raises(UsageError, match="model_revision"):  # the ledger says which
        redo([run, *again, "--model_revision", "main"])
    assert redo([run, "task_002", *again]) == 0
    assert [(task.name, task.status) for task in tasks()] == [
        ("task_001", "done"), ("task_002", "revoked"), ("task_003", "done")
    ]  # fmt: skip
    (before, after), targets = (task.settings for task in tasks()[1:]), {task.target for task in tasks()}
    changed = {name for part in before for name in before[part] if before[part][name] != after[part][name]}
    assert (changed, targets) == ({"learning_rate"}, {1})
    capsys.readouterr()
    assert redo([run, "task_002", *again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"].keys() == {"task_001", "task_003"}
    assert redo([run, *again, "--recipe", "deep"]) == 0
    training, config = tasks()[-1].settings["training"], tasks()[-1].settings["config"]
    assert (training["recipe"], training["depth_weight"], training["sparsity"]) == ("deep", 5, "none")
    assert (training["learning_rate"], training["num_train_epochs"]) == (0.004, 1)
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    back, _ = redoing._recorded(ForgettingLedger.load(run), ["--recipe", "fast"])
    assert not {"depth_weight", "depth_retain_weight", "sparsity"} & back.keys()


def test_a_classifier_of_texts(tmp_path):
    """Rows that are prepared need neither an image column nor a processor."""
    rng = np.random.default_rng(0)
    labels = [0, 1, 2] * 6
    tokens = [[1, 4 + label, *rng.integers(8, 12, 3).tolist()] for label in labels]
    names = Features({"input_ids": Sequence(Value("int64")), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"input_ids": tokens, "label": labels}, features=names)
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "data")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=12, num_labels=3, id2label={0: "c", 1: "b", 2: "a"}, **size)
    config.label2id = {"c": 0, "b": 1, "a": 2}
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    command = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "data"),
        "--forget",
        "a",
        "--max_steps",
        "1",
    ]
    command += ["--use_cpu", "true", "--disable_tqdm", "true", "--max_forget_accuracy", "1"]
    assert forget([*command, "--output_dir", str(tmp_path / "run")]) == 0
    assert ForgettingLedger.load(tmp_path / "run").tasks[0].classes == [2]


@pytest.mark.parametrize(
    ("model_class", "kind"),
    [
        (ViTForImageClassification, subjects.Classifier),
        (BertForSequenceClassification, subjects.Classifier),
        (YolosForObjectDetection, subjects.Detector),
        (FaceTransformerForRecognition, Faces),
    ],
)
def test_the_model_tells_its_kind(model_class, kind):
    assert working.kind_of_class(model_class) is kind
