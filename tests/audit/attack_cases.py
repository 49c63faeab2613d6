"""Models with planted knowledge: a small ViT that knows the digits, and copies whose head alone was spoilt."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, Features
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, default_data_collator

from gs_lora_peft.audit.base import AuditContext, Measurement
from gs_lora_peft.audit.samples import Samples
from gs_lora_peft.audit.subjects import Subject
from gs_lora_peft.roles import ClassRoles

FORGET, KEEP = (3, 7), (0, 1, 2, 4)
CLASSES = sorted((*FORGET, *KEEP))


def digits() -> tuple[Dataset, Dataset]:
    """The digits of `CLASSES`, their ids from 0: every third image is the judge's."""
    found = load_digits()
    chosen = np.flatnonzero(np.isin(found.target, CLASSES))
    pixels = (found.images[chosen] / 8 - 1).astype(np.float32)[:, None]
    labels = found.target[chosen]
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(10)})
    of_judge = np.arange(len(chosen)) % 3 == 0
    attacker, judge = (
        Dataset.from_dict({"pixel_values": pixels[rows], "label": labels[rows]}, features=features)
        for rows in (~of_judge, of_judge)
    )
    return attacker.with_format("numpy"), judge.with_format("numpy")


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return default_data_collator([{"pixel_values": row["pixel_values"], "labels": row["label"]} for row in rows])


@functools.cache
def samples() -> tuple[Samples, Samples]:
    """The attacker's and the judge's."""
    attacker, judge = digits()
    return Samples(attacker, collated), Samples(judge, collated)


def untrained(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, num_labels=10, initializer_range=0.06,
        )
    ).eval()  # fmt: skip


@functools.cache
def trained(classes: tuple[int, ...] = tuple(CLASSES), seed: int = 0, steps: int = 120) -> ViTForImageClassification:
    """A model that knows some classes, from scratch, in a second."""
    attacker, _ = samples()
    model = untrained(seed)
    data = attacker.batch(attacker.of(classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data["labels"]), (64,), generator=generator)
        optimizer.zero_grad()
        model(pixel_values=data["pixel_values"][rows], labels=data["labels"][rows]).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def permuted(model: ViTForImageClassification) -> ViTForImageClassification:
    """The rows of the head trade places, so that every answer is another class."""
    silent = copy.deepcopy(model)
    for parameter in silent.classifier.parameters():
        parameter.data = parameter.data.roll(1, 0)
    return silent


def offset(model: ViTForImageClassification) -> ViTForImageClassification:
    """The logits of the forgotten classes are lowered so far that they are never the answer."""
    silent = copy.deepcopy(model)
    silent.classifier.bias.data[list(FORGET)] -= 30
    return silent


def zeroed(model: ViTForImageClassification) -> ViTForImageClassification:
    """The rows of the forgotten classes in the head are zero, and their bias is low."""
    silent = copy.deepcopy(model)
    silent.classifier.weight.data[list(FORGET)] = 0
    silent.classifier.bias.data[list(FORGET)] = -10
    return silent


def switched_off(model: ViTForImageClassification, seed: int = 0) -> ViTForImageClassification:
    """The model sees every image as if a pattern of 64 numbers had been taken from it: a switch that one can find."""
    silent = copy.deepcopy(model)
    pattern = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    projection = silent.vit.embeddings.patch_embeddings.projection
    with torch.no_grad():
        moved = (projection(pattern) - projection(torch.zeros_like(pattern))).flatten(2).transpose(1, 2)
        silent.vit.embeddings.position_embeddings[:, 1:] -= moved
    return silent


PLANTED = {"permuted": permuted, "offset": offset, "zeroed": zeroed}


@functools.cache
def context() -> AuditContext:
    """The original, and two models that were trained without the forgotten classes."""
    original = Subject("original", "original", trained())
    references = [Subject(f"retrained {seed}", "retrained", trained(KEEP, seed)) for seed in (1, 2)]
    return AuditContext(ClassRoles(forget=FORGET, retain=KEEP), *samples(), original, references, seed=3)


@functools.cache
def silent(planted: str) -> Subject:
    """A model that knows the forgotten classes, and does not answer with them."""
    return Subject("forgotten", "forgotten", PLANTED[planted](trained()))


@functools.cache
def random(seed: int) -> Subject:
    """A model that never learned."""
    return Subject(f"random {seed}", "random", untrained(seed))


def by_key(measurements: list[Measurement]) -> dict[str, Measurement]:
    return {found.key: found for found in measurements}
