"""The image processor of face models: what each kind of pixels is, and that it travels with the model."""

import face_cases as cases
import numpy as np
import pytest
import torch
from datasets import load_dataset
from errors import refused
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from gs_lora_peft.data.collation import ImageCollator
from gs_lora_peft.models import FaceImageProcessor


def image(height=16, width=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(processor, images):
    return processor(images=images, return_tensors="pt")["pixel_values"]


@pytest.mark.shared
def test_the_reference_pixels(shared_data):
    """Grey images standardised one by one are the inputs that the reference outputs were computed from."""
    folder = shared_data / "yale_faces"
    rows = load_dataset("parquet", data_files={"test": str(folder / "test.parquet")})["test"].select(range(16))
    expected = load_file(folder / "reference_outputs.safetensors")
    batch = ImageCollator(FaceImageProcessor.for_pixels("standardized", image_size=32))(rows)
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(batch["labels"], expected["labels"])


def test_kinds_of_pixels():
    """Each kind, spelled out; the default is RGB in [0, 1]."""
    raw = torch.from_numpy(np.array(image())).permute(2, 0, 1).double()
    grey = (0.299 * raw[0] + 0.587 * raw[1] + 0.114 * raw[2]) / 255
    own = (grey - grey.mean()) / (grey.std(unbiased=False) + 1e-3)
    expected = {"unit": raw / 255, "symmetric": raw / 127.5 - 1, "bytes": raw, "standardized": torch.stack([own] * 3)}
    for kind, values in expected.items():
        found = pixels(FaceImageProcessor.for_pixels(kind, image_size=16), [image()])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0].double(), values, atol=1e-5, rtol=1e-6)
    assert torch.equal(pixels(FaceImageProcessor(), [image()]), pixels(FaceImageProcessor.for_pixels(), [image()]))
    with refused("pixels", "raw"):
        FaceImageProcessor.for_pixels("raw")


def test_images_of_all_sorts():
    """Other sizes are resized; arrays are taken like images, and grey images get three channels."""
    processor = FaceImageProcessor.for_pixels(image_size=12)
    assert pixels(processor, [image(), image(9, 20)]).shape == (2, 3, 12, 12)
    assert torch.equal(pixels(processor, np.array(image())), pixels(processor, [image()]))
    grey = pixels(processor, [image().convert("L")])[0]
    assert torch.equal(grey[0], grey[2])


def test_it_travels_with_the_model(tmp_path):
    """`AutoImageProcessor` gives it back with every setting."""
    cases.face_model().save_pretrained(tmp_path)
    processor = FaceImageProcessor.for_pixels("standardized", image_size=16)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FaceImageProcessor
    assert torch.equal(pixels(loaded, [image(20, 20)]), pixels(processor, [image(20, 20)]))
