"""The benchmark's protocol from a file to a table, on a small face model and data in folders."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage

from gs_lora_peft import FaceTransformerConfig, FaceTransformerForRecognition
from gs_lora_peft.models.face.processing import FaceImageProcessor

BENCHMARKS = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
PEOPLE = 6
SIZE = 16


@pytest.fixture
def protocol(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import protocol

    yield protocol
    sys.modules.pop("protocol", None)


def faces(per_person: int, seed: int) -> Dataset:
    """Noisy copies of one fixed picture of each person."""
    pictures = np.random.default_rng(0).integers(0, 256, (PEOPLE, SIZE, SIZE, 3))
    noise, labels = np.random.default_rng(seed), [p for p in range(PEOPLE) for _ in range(per_person)]
    pixels = [np.clip(pictures[p] + noise.integers(-9, 10, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8) for p in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=[f"person {p}" for p in range(PEOPLE)])})
    return Dataset.from_dict(
        {"image": [PillowImage.fromarray(image) for image in pixels], "label": labels}, features=features
    )


@pytest.fixture
def folders(tmp_path) -> tuple[str, str]:
    """A model that knows six people from one image of each, and four and three images of everybody."""
    data, folder = tmp_path / "data", tmp_path / "model"
    data.mkdir()
    faces(4, seed=1).to_parquet(data / "train.parquet")
    faces(3, seed=2).to_parquet(data / "test.parquet")
    names = [f"person {p}" for p in range(PEOPLE)]
    torch.manual_seed(0)
    model = FaceTransformerForRecognition(
        FaceTransformerConfig(
            image_size=SIZE,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=dict(enumerate(names)),
            label2id={name: p for p, name in enumerate(names)},
        )
    ).eval()
    processor = FaceImageProcessor(size={"height": SIZE, "width": SIZE})
    with torch.no_grad():
        seen = processor(images=faces(1, seed=3)["image"][:], return_tensors="pt")["pixel_values"]
        model.classifier.weight.copy_(model(seen).embeddings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), str(data)


def accuracies(prepared, task: int) -> dict[str, float]:
    """Of the live model, image by image, without any margin."""
    staying = set(range(PEOPLE)) - {person for forgotten in prepared.tasks[: task + 1] for person in forgotten}
    roles = {
        "acc_forget": set(prepared.tasks[task]),
        "acc_old": set(prepared.old_classes(task)),
        "acc_missing": set(prepared.missing),
        "acc_retain": staying - set(prepared.missing),
    }
    test = prepared.dataset["test"]
    pixels = prepared.processor(images=test["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        right = prepared.model.eval()(pixels).logits.argmax(-1).tolist()
    answers = list(zip(test["label"], right, strict=True))
    return {
        role: float(np.mean([label == answer for label, answer in answers if label in members]))
        for role, members in roles.items()
        if members
    }


@pytest.mark.parametrize("method", ["gs_lora", "ffn"])
def test_from_file_to_table(protocol, folders, tmp_path, monkeypatch, method):
    """Two tasks, a row and a line for each; a margin that nobody can win by counts only where it is meant to."""
    settings = protocol.Settings(
        kept=[4, 2],
        missing=1,
        method=method,
        # Above the greatest difference of two cosines, which is 2.
        model={"margin_at_eval": 5.0, "hidden_dropout_prob": 0.0},
        adapter={"r": 2, "lora_alpha": 1},
        training={"num_train_epochs": 1, "learning_rate": 1e-4, "use_cpu": True, "per_device_train_batch_size": 4}
        | {"epoch_covers": "retain"},  # the papers' epochs
        per_task={"forget_weight": [0.1, 0.2]},
    )
    work = tmp_path / "work"
    work.mkdir()
    prepared = protocol.prepare(settings, *folders, 1)
    monkeypatch.setattr(protocol, "prepare", lambda *arguments: prepared)
    rows = protocol.run(settings, *folders, work / "seed_1", 1)

    assert rows == [json.loads(line) for line in (work / "results.jsonl").read_text("utf-8").splitlines()]
    # An epoch has four images of each of the three people, then of the one, who are kept and have data: batches of 4.
    assert [(row["seed"], row["task"], row["steps"]) for row in rows] == [(1, 0, 3), (1, 1, 1)]
    roles = [{"acc_retain", "acc_forget", "acc_missing"}, {"acc_retain", "acc_forget", "acc_missing", "acc_old"}]
    for row, names in zip(rows, roles, strict=True):
        assert {name for name in row if name in protocol.SCORES} == names
        assert {row[name] for name in names} == {0.0}
        assert {row[f"{name}_before"] for name in names} == {0.0}
        assert {name for name in row if name.endswith("_without_margin")} == {f"{n}_without_margin" for n in names}
    direct = accuracies(prepared, task=1)
    assert direct["acc_retain"] > 0.5
    assert {name: rows[1][f"{name}_without_margin"] for name in direct} == pytest.approx(direct)
    assert prepared.model.config.margin_at_eval == 5.0
    assert [line.split()[0] for line in protocol.format_means(rows).splitlines()] == ["task", "0", "1", "mean"]


def test_prepared(protocol, folders):
    """The order of the people is the papers'; who has no data stays to the end; the file's changes reach the model."""
    settings = protocol.Settings(kept=[4, 2], missing=1, train_fraction=0.5, model={"margin_at_eval": 0.25})
    prepared = protocol.prepare(settings, *folders, 1)
    order = list(range(PEOPLE))
    random.Random(1337).shuffle(order)
    assert prepared.tasks == [order[4:], order[2:4]]
    assert prepared.missing == order[:1]
    assert sorted(prepared.dataset["train"]["label"]) == [p for p in range(PEOPLE) for _ in range(2)]
    assert prepared.model.config.margin_at_eval == 0.25
