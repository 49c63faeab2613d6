"""Augmented views: which one is decided by a number alone."""

import random
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from errors import refused
from PIL import Image

from gs_lora_peft.data.augmentation import Augmentation, AugmentedPairs, AugmentedViews, NumberedSampler, rand_augment

OTHER_MODES = ("RGBA", "LA", "P", "1", "CMYK")


def rows(count=4):
    return Dataset.from_dict({"x": [[float(i)] * 3 for i in range(count)], "label": [0] * count}).with_format("torch")


def jitter(values):
    """Draws from all three generators that augmentations use."""
    return values + torch.rand(1) + np.random.rand() + random.random()


def test_a_view_depends_on_seed_and_number_alone():
    """Not on what was drawn before, and drawing it leaves all generators as they were."""
    augmentation, row = Augmentation(jitter, "x", seed=3), rows()[0]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    view = augmentation(row, 5)["x"]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.rand(9), np.random.rand(9), random.random()
    assert torch.equal(augmentation(row, 5)["x"], view)
    others = [augmentation(row, 6)["x"], Augmentation(jitter, "x", seed=4)(row, 5)["x"], row["x"]]
    assert not any(torch.equal(other, view) for other in others)


def test_a_view_leaves_accelerators_alone(monkeypatch):
    """`torch.manual_seed` would make the dropout of a training on an accelerator begin again with every sample."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("an accelerator was seeded"))
    assert Augmentation(jitter, "x", seed=3)(rows()[0], 5)["x"].shape == (3,)


def test_views_keep_the_row_and_add_different_ones():
    """Every row as it is, followed by its views: all different, all with its label."""
    views = AugmentedViews(rows(), 2, Augmentation(jitter, "x", seed=0))
    assert len(views) == 12
    found = views.__getitems__(list(range(12)))
    assert [row["x"][0].item() for row in found[::3]] == [0.0, 1.0, 2.0, 3.0]
    assert len({row["x"][0].item() for row in found}) == 12
    assert torch.equal(views[7]["x"], found[7]["x"])
    assert set(found[1]) == {"x", "label"}


def test_training_sees_a_new_view_each_time():
    """Also of a sample that comes twice in an epoch; the same epoch gives the same views again."""
    pairs = AugmentedPairs(rows(), rows(1), Augmentation(jitter, "x", seed=0))
    sampler = NumberedSampler(4, 1, seed=1)

    def epoch(number):
        sampler.set_epoch(number)
        return [half["x"][0].item() for pair in pairs.__getitems__(list(sampler)) for half in pair]

    assert len(set(epoch(0) + epoch(1))) == 16
    assert epoch(0) == epoch(0)


def test_a_row_without_the_column_is_refused():
    """The error says what the row has."""
    with refused("image_column", "image") as error:
        Augmentation(jitter, "image", seed=0)(rows()[0], 0)
    assert "['label', 'x']" in error.value.expected


def test_without_torchvision_the_fix_is_named(monkeypatch):
    """torchvision is not required by the package."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with refused("augment") as error:
        rand_augment()
    assert "pip install torchvision" in error.value.fix


@pytest.mark.parametrize(("mode", "seen"), [("RGB", "RGB"), ("L", "L"), *((m, "RGB") for m in OTHER_MODES)])
def test_operations_get_grey_or_rgb_pictures_alone(monkeypatch, mode, seen):
    """Solarize, Posterize and their like end in an OSError on palettes, transparency, CMYK and single bits."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    transforms = ModuleType("torchvision.transforms")
    transforms.v2 = SimpleNamespace(RandAugment=lambda num_ops, magnitude: lambda image: image)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)
    picture = Image.fromarray(pixels).convert(mode)
    found = rand_augment()(picture)
    assert found.mode == seen
    assert np.array_equal(np.asarray(found), np.asarray(picture.convert(seen)))


def test_rand_augment_changes_pictures_and_refuses_normalised_tensors():
    """Real pictures come back changed, of the same size; a tensor of floats has no known range."""
    pytest.importorskip("torchvision")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    augmentation = Augmentation(rand_augment(), "image", seed=0)
    views = [np.asarray(augmentation({"image": picture}, number)["image"]) for number in range(8)]
    assert {view.shape for view in views} == {(16, 16, 3)}
    assert sum(not np.array_equal(view, np.asarray(picture)) for view in views) >= 4
    assert np.array_equal(views[3], np.asarray(augmentation({"image": picture}, 3)["image"]))
    with refused("image", "a tensor of torch.float32"):
        rand_augment()(torch.randn(3, 8, 8))
