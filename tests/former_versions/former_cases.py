"""Model, data and settings of the runs that former versions made.

They must stay what they are: what lies in `data/` was made with them. Only names of the README are imported, so that
the same file serves `make_run.py` under a former version and the tests under this one.
"""

import hashlib
import platform
from pathlib import Path

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from transformers import ViTConfig, ViTForImageClassification

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments

NAMES = ["aardvark", "bumblebee", "cassowary", "dragonfly", "earthworm", "flamingo"]
REQUESTS = [["cassowary"], ["aardvark"], ["flamingo"]]  # the second one was revoked
BASE_ID = "former/tiny-vit"


def make_dataset(per_class, seed):
    """8×8 grey images: a pattern for each class, and noise."""
    patterns = np.random.RandomState(1).normal(size=(len(NAMES), 1, 8, 8))  # its stream is frozen by numpy
    labels = np.repeat(np.arange(len(NAMES)), per_class)
    images = patterns[labels] + 0.3 * np.random.RandomState(seed).normal(size=(len(labels), 1, 8, 8))
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=NAMES)})
    rows = {"pixel_values": images.astype(np.float32), "label": labels}
    return Dataset.from_dict(rows, features=features).with_format("torch")


def make_data():
    return DatasetDict(train=make_dataset(12, seed=0), test=make_dataset(5, seed=2))


def pretrain(folder):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        id2label=dict(enumerate(NAMES)),
    )
    model, rows = ViTForImageClassification(config), make_dataset(12, seed=0)[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(rows["pixel_values"]).logits, rows["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def load_base(folder):
    """The classifier, which believes that it came from the Hub."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    model.config._name_or_path = BASE_ID
    return model


def make_args(**more):
    values = {
        "output_dir": "not-used",
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "sparsity_weight": 0.3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return GSLoraTrainingArguments(**{**values, **more})


def make_forgetter(base, folder, **more):
    config = GSLoraConfig(r=2, lora_alpha=2)
    return ContinualForgetter(load_base(base), make_data(), folder, config=config, **{"args": make_args(), **more})


def requests(class_lists=REQUESTS):
    return [ForgetRequest(classes) for classes in class_lists]


def probe():
    """Images to compare models on."""
    return make_dataset(2, seed=3)[:]["pixel_values"]


@torch.no_grad()
def logits(model):
    return model.eval()(pixel_values=probe()).logits


def arithmetic():
    """Tells apart where the last bits of a matrix product may differ: builds of torch and kinds of processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or lines[:1]
    return hashlib.sha256("\n".join([torch.__config__.show(), *kind]).encode()).hexdigest()
