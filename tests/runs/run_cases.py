"""A tiny classifier and its data, small enough that a forgetting request takes a fraction of a second.

Other processes of the tests import this file too, so that every one of them sees the same model and the same data.
"""

import os
from pathlib import Path

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from transformers import ViTConfig, ViTForImageClassification

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.methods import get_method
from gs_lora_peft.training import only_read

NAMES = ["aardvark", "bumblebee", "cassowary", "dragonfly", "earthworm", "flamingo"]
REQUESTS = [["cassowary"], ["aardvark", 4], ["flamingo"]]


class OnPurposeError(RuntimeError):
    """What a test makes go wrong."""


def requests(*class_lists):
    return [ForgetRequest(classes) for classes in class_lists or REQUESTS]


def make_dataset(per_class=12, seed=0, names=NAMES):
    """8×8 grey images: a pattern for each class, and noise."""
    random = np.random.default_rng(1)
    patterns = random.normal(size=(len(names), 1, 8, 8))
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), per_class)
    images = patterns[labels] + 0.3 * random.normal(size=(len(labels), 1, 8, 8))
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=list(names))})
    rows = {"pixel_values": images.astype(np.float32), "label": labels}
    return Dataset.from_dict(rows, features=features).with_format("torch")


def make_data(names=NAMES):
    return DatasetDict(train=make_dataset(names=names), test=make_dataset(per_class=5, seed=1, names=names))


def make_model(num_labels=6, seed=0, layers=2):
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            hidden_dropout_prob=0.1,
            num_labels=num_labels,
        )
    ).eval()


def pretrain(folder):
    """Trains the classifier once; everybody loads it from `folder`."""
    model, rows = make_model(), make_dataset()[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(rows["pixel_values"]).logits, rows["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def load_base(folder):
    return ViTForImageClassification.from_pretrained(folder).eval()


def make_args(method="gs_lora", **more):
    """Settings under which the tiny classifier forgets, of which a method gets those that it reads.

    Those of forgetting do not follow the package's defaults.
    """
    values = {
        "output_dir": "not-used",
        "forget_weight": 0.5,
        "forget_bound": 4.0,
        "forget_loss": "cross_entropy",
        "sparsity": "proximal",
        "sparsity_weight": 0.1,
        "sparsity_until_epoch": None,
        "weight_decay": 0.0,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.05,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 4,
        "dataloader_pin_memory": False,
    }
    return GSLoraTrainingArguments(**{**only_read(values, get_method(method).reads), **more})


def make_forgetter(base, folder, data=None, *, args=None, config=None, **more):
    model = load_base(base) if isinstance(base, (str, Path)) else base
    method = get_method(more.get("method", "gs_lora"))
    if method.trains != "weights":
        config = config or GSLoraConfig(r=4, lora_alpha=4)
    return ContinualForgetter(
        model, make_data() if data is None else data, folder, config=config, args=args or make_args(method), **more
    )


def snapshot(folder):
    """Content of every file below a folder, by path; locks mean nothing and are left out."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "forgetting.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    """Whether two state dicts hold the same bits."""
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def kill_self():
    """The end that no `finally` sees."""
    os.kill(os.getpid(), 9)
