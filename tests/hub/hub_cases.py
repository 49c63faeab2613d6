"""A tiny classifier with a processor, and a run of three requests on it, to be published."""

from pathlib import Path

import numpy as np
import run_cases as cases
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification, ViTImageProcessor

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig

NAMES = cases.NAMES
REQUESTS = cases.REQUESTS
BASE_ID = "me/tiny-vit"


def make_dataset(per_class, seed):
    """8×8 colour images: a pattern for each class, and noise."""
    patterns = np.random.default_rng(1).normal(size=(len(NAMES), 3, 8, 8))
    labels = np.repeat(np.arange(len(NAMES)), per_class)
    images = patterns[labels] + 0.3 * np.random.default_rng(seed).normal(size=(len(labels), 3, 8, 8))
    features = Features({"pixel_values": Array3D((3, 8, 8), "float32"), "label": ClassLabel(names=NAMES)})
    rows = {"pixel_values": images.astype(np.float32), "label": labels}
    return Dataset.from_dict(rows, features=features).with_format("torch")


def make_data():
    return DatasetDict(train=make_dataset(12, seed=0), test=make_dataset(5, seed=2))


def pretrain(folder):
    """Writes the classifier and its processor to `folder`, as a model on the Hub has them."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        id2label=dict(enumerate(NAMES)),
    )
    model, rows = ViTForImageClassification(config), make_dataset(12, seed=0)[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(rows["pixel_values"]).logits, rows["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def load_base(folder):
    """The classifier, which believes that it came from the Hub."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    model.config._name_or_path = BASE_ID
    return model


def make_forgetter(model, folder, **more):
    return ContinualForgetter(
        model,
        make_data(),
        folder,
        config=GSLoraConfig(r=4, lora_alpha=4),
        args=cases.make_args(max_forget_accuracy=0.5),
        **more,
    )


def forget(base, folder, class_lists, **more):
    """A run over some requests; gives the forgetter."""
    forgetter = make_forgetter(load_base(base), folder, **more)
    forgetter.run([ForgetRequest(classes) for classes in class_lists])
    return forgetter


def probe():
    """Images to compare models on."""
    return make_dataset(1, seed=3)[:]["pixel_values"]


@torch.no_grad()
def logits(model):
    """What a model says of the probe, as exact numbers that fit into JSON."""
    return model.eval()(pixel_values=probe()).logits.tolist()


class LogitsAtEnd(TrainerCallback):
    """Keeps what the live model said of the probe when a training ended."""

    def __init__(self):
        self.seen = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(logits(model))


def read(folder):
    """The files of a folder, by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
