"""Checkpoints of the papers' code become models that compute the same, and nothing else does."""

import io
import os
from collections import OrderedDict

import face_cases as cases
import numpy as np
import pytest
import torch
from datasets import load_dataset
from errors import refused
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from gs_lora_peft import convert_face_checkpoint
from gs_lora_peft.audit import face_predictions
from gs_lora_peft.data.collation import default_collator
from gs_lora_peft.errors import InvalidInputError


def convert(state, tmp_path, **settings):
    torch.save(state, tmp_path / "face.pth")
    folder = convert_face_checkpoint(
        tmp_path / "face.pth", tmp_path / "face", **{"num_attention_heads": 2, **settings}
    )
    return AutoModelForImageClassification.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def reference(shared_data, tmp_path_factory):
    folder = shared_data / "yale_faces"
    converted = convert_face_checkpoint(
        folder / "reference_face_transformer.pth",
        tmp_path_factory.mktemp("face") / "model",
        scale=16,
        margin=0.1,
        pixels="standardized",
    )
    return folder, AutoModelForImageClassification.from_pretrained(converted).eval()


@pytest.mark.shared
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_reference_checkpoint(reference, attention):
    """Embeddings and cosines of a checkpoint in the papers' layout are those that its own code computed."""
    folder, model = reference
    expected = load_file(folder / "reference_outputs.safetensors")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        outputs = model(pixel_values=expected["pixel_values"])
    torch.testing.assert_close(outputs.embeddings, expected["embeddings"], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.logits / 16, expected["cosine"], atol=1e-5, rtol=0)


@pytest.mark.shared
def test_accuracy_with_and_without_the_margin(reference):
    """The accuracies that are known of that checkpoint: by the cosine, and as the papers measure it."""
    folder, model = reference
    rows = load_dataset("parquet", data_files={"test": str(folder / "test.parquet")})["test"]
    processor = AutoImageProcessor.from_pretrained(model.name_or_path)
    found = face_predictions(model, rows, data_collator=default_collator(processor))
    assert 100 * (found.predictions == found.labels).mean() == pytest.approx(85.5, abs=0.1)
    assert 100 * (found.margin_predictions == found.labels).mean() == pytest.approx(75.2, abs=0.1)
    batch = default_collator(processor)(rows.select(range(50)))
    model.config.margin_at_eval = True
    with torch.no_grad():
        with_margin = model(**batch).logits.argmax(1)
    model.config.margin_at_eval = False
    assert with_margin.tolist() == found.margin_predictions[:50].tolist()


@pytest.mark.parametrize(
    ("layout", "settings", "patches"),
    [
        ({"depth": 1, "width": 24, "inner": 24, "hidden": 40}, {}, {}),
        ({"depth": 3, "width": 10, "inner": 32}, {"num_attention_heads": 4}, {"heads": 4}),
        ({"patch": 12, "grid": 2}, {}, {"stride": 8, "padding": 4}),
        ({"patch": 5, "grid": 4}, {"image_size": 12, "patch_padding": 1}, {"stride": 3, "padding": 1}),
        ({"patch": 12, "grid": 2}, {"image_size": 24}, {}),
        ({"bias": True}, {}, {}),
        ({}, {"head_type": "arcface"}, {}),
    ],
    ids=["width", "wide-heads", "P12S8", "P5S3", "P12", "softmax", "arcface"],
)
def test_every_layout(tmp_path, layout, settings, patches):
    """Depth, widths, heads and patches of any size: the model computes what the layout says, spelled out slowly."""
    state = cases.author_state(**layout)
    model = convert(state, tmp_path, scale=8.0, **settings)
    pixels = cases.images(2, model.config.image_size)
    expected = cases.author_embeddings(state, pixels, **patches)
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    logits = cases.author_logits(state, expected) * (1 if layout.get("bias") else 8)
    torch.testing.assert_close(outputs.embeddings.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.logits.double(), logits, atol=1e-4, rtol=1e-5)


def test_factors_are_not_added_twice(tmp_path):
    """A file saved with LoRA has merged weights and the factors; the weights alone are the model."""
    state = cases.author_state()
    for i in range(2):
        for name, rank in (("1.fn.fn.net.0", 2), ("1.fn.fn.net.3", 2), ("0.fn.fn.to_qkv", 3)):
            key = f"transformer.layers.{i}.{name}"
            rows, columns = state[f"{key}.weight"].shape
            factors = torch.randn(rank, columns), torch.randn(rows, rank)
            state[f"{key}.weight"] = state[f"{key}.weight"] + factors[1] @ factors[0] / rank
            state[f"{key}.lora_A"], state[f"{key}.lora_B"] = factors
    model = convert(state, tmp_path)
    pixels = cases.images(2)
    with torch.no_grad():
        embeddings = model(pixel_values=pixels).embeddings
    torch.testing.assert_close(embeddings.double(), cases.author_embeddings(state, pixels), atol=1e-4, rtol=1e-4)


def test_data_parallel_and_names(tmp_path):
    """Files of several GPUs have a prefix on every key; names of people end up in the configuration."""
    state = {f"module.{name}": tensor for name, tensor in cases.author_state().items()}
    names = ["ada", "bob", "cleo", "dan", "eve"]
    model = convert(OrderedDict(state), tmp_path, label_names=names)
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id["eve"] == 4


def test_what_shapes_do_not_tell(tmp_path):
    """By default the code's own: RGB in [0, 1] and, for overlapping patches, other angles of SFace."""
    config = convert(cases.author_state(patch=12, grid=2), tmp_path, head_type="sface").config
    assert (config.image_size, config.sface_intra_angle, config.sface_inter_angle) == (16, 0.9, 1.2)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "face")
    assert (processor.size["height"], processor.do_normalize, processor.rescale_factor) == (16, False, 1 / 255)


def changed(key, value):
    def change(state):
        if value is None:
            del state[key]
        else:
            state[key] = value
        return state

    return change


def foreign(_):
    return ViTForImageClassification(
        ViTConfig(hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
    ).state_dict()


LAYER = "transformer.layers.1."


def test_the_unchanged_file_is_converted(tmp_path):
    """The tests below refuse what they change, not the file."""
    assert convert(cases.author_state(), tmp_path).config.num_labels == cases.author_state()["loss.weight"].shape[0]


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        (changed("head.weight", torch.zeros(2, 2)), "head.weight", (2, 2)),
        (changed(LAYER + "1.fn.fn.net.6.weight", torch.zeros(2, 2)), LAYER + "1.fn.fn.net.6.weight", (2, 2)),
        (changed(LAYER + "0.fn.norm.lora_A", torch.zeros(2, 2)), LAYER + "0.fn.norm.lora_A", (2, 2)),
        (foreign, "vit.embeddings.cls_token", (1, 1, 12)),
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict", "dict"),
        (changed("loss.weight", None), "loss.weight", None),
        (changed(LAYER + "1.fn.fn.net.3.bias", None), LAYER + "1.fn.fn.net.3.bias", None),
        (lambda state: {"cls_token": state["cls_token"]}, "pos_embedding", None),
        (changed("cls_token", torch.zeros(16)), "cls_token", (16,)),
        (changed("mlp_head.0.weight", torch.zeros(2, 16)), "mlp_head.0.weight", (2, 16)),
        (changed("patch_to_embedding.weight", torch.zeros(16, 40)), "patch_to_embedding.weight", (16, 40)),
        (changed("pos_embedding", torch.zeros(1, 16, 16)), "pos_embedding", (1, 16, 16)),
        (changed(LAYER + "0.fn.fn.to_qkv.weight", torch.zeros(49, 16)), LAYER + "0.fn.fn.to_qkv.weight", (49, 16)),
        (changed(LAYER + "1.fn.norm.bias", torch.zeros(17)), LAYER + "1.fn.norm.bias", (17,)),
        (changed("loss.weight", torch.zeros(5, 15)), "loss.weight", (5, 15)),
    ],
)
def test_something_else_is_refused(tmp_path, change, key, value):
    """The error names the first key that is wrong, and nothing is written."""
    with refused(f"key {key!r} of {tmp_path / 'face.pth'}", value):
        convert(change(cases.author_state()), tmp_path)
    assert not (tmp_path / "face").exists()


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_executed(tmp_path):
    """A pickle that would run code is refused unread."""
    with refused("path", str(tmp_path / "face.pth")):
        convert({**cases.author_state(), "extra": Trap(tmp_path / "sprung")}, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, zipped):
    """Whatever bytes are wrong, the file is converted or refused with one kind of error; undamaged it is converted."""
    whole, random, refusals = io.BytesIO(), np.random.default_rng(0), 0
    torch.save(cases.author_state(depth=1), whole, _use_new_zipfile_serialization=zipped)
    (tmp_path / "face.pth").write_bytes(whole.getvalue())
    convert_face_checkpoint(tmp_path / "face.pth", tmp_path / "whole", num_attention_heads=2)
    for number in range(60):
        damaged = np.frombuffer(whole.getvalue(), np.uint8).copy()
        damaged[random.integers(0, 3000, 3)] = random.integers(0, 256, 3)  # the structure is at the start
        (tmp_path / "face.pth").write_bytes(damaged.tobytes())
        try:
            convert_face_checkpoint(tmp_path / "face.pth", tmp_path / f"{number}", num_attention_heads=2)
        except InvalidInputError:
            refusals += 1
            assert not (tmp_path / f"{number}").exists()
    assert refusals


def test_not_even_a_checkpoint(tmp_path):
    """Text, half a file and a bare tensor are refused; what is missing is missing."""
    whole = io.BytesIO()
    torch.save(cases.author_state(), whole)
    for content in (b"not a checkpoint", b"", whole.getvalue()[:-2000]):
        (tmp_path / "face.pth").write_bytes(content)
        with refused("path", str(tmp_path / "face.pth")):
            convert_face_checkpoint(tmp_path / "face.pth", tmp_path / "face")
    with refused(f"content of {tmp_path / 'face.pth'}", "Tensor"):
        convert(torch.zeros(3), tmp_path)
    with pytest.raises(FileNotFoundError):
        convert_face_checkpoint(tmp_path / "absent.pth", tmp_path / "face")


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads", 3),
        ({"image_size": 18}, "image_size", 18),
        ({"image_size": 8, "patch_padding": 3}, "patch_padding", 3),
        ({"head_type": "softmax"}, "head_type", "softmax"),
        ({"head_type": "sphereface"}, "head_type", "sphereface"),
        ({"head_type": "sface", "margin": 0.2}, "margin", 0.2),
        ({"label_names": ["ada"]}, "label_names", "1 names"),
        ({"label_names": ["ada", "bob", "cleo", "bob", "eve"]}, "label_names[3]", "an earlier name"),
        ({"pixels": "raw"}, "pixels", "raw"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, name, value):
    """What was given by hand is checked against the file, and nothing is written."""
    with refused(name, value):
        convert(cases.author_state(), tmp_path, **settings)
    assert not (tmp_path / "face").exists()


def test_a_folder_with_files_is_kept(tmp_path):
    """What is in `out` is not overwritten."""
    (tmp_path / "face").mkdir()
    (tmp_path / "face" / "notes.txt").write_text("mine")
    with refused("out", str(tmp_path / "face")):
        convert(cases.author_state(), tmp_path)
    assert [path.name for path in (tmp_path / "face").iterdir()] == ["notes.txt"]
