"""One entrance for images: the same picture in any form gives the same pixels, and a bad one is named."""

import io
import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image as Images
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DetrImageProcessor, ViTImageProcessor

from gs_lora_peft.audit.pictures import _image
from gs_lora_peft.data import ImageCollator, PairedDataset
from gs_lora_peft.data.augmentation import Augmentation, rand_augment
from gs_lora_peft.data.boxes.collation import DetectionCollator
from gs_lora_peft.data.rows import NamedRows
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.images import to_image
from gs_lora_peft.models import FaceImageProcessor

SIZE = {"height": 8, "width": 8}
VIT = ViTImageProcessor(size=SIZE)
GREY = ViTImageProcessor(size=SIZE, image_mean=[0.5], image_std=[0.5])
SIXTEEN = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", *SIXTEEN]


def pixels(channels=3, seed=0, size=(9, 7)) -> np.ndarray:
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(mode: str) -> Image.Image:
    """A picture of any mode, of grey values where the mode has no colours."""
    grey = Image.fromarray(pixels(1))
    if mode in SIXTEEN:
        values = (pixels(1).astype(np.uint16) * 257).astype(SIXTEEN[mode])
        return Image.frombytes(mode, grey.size, values.tobytes())
    if mode in ("La", "PA"):
        return grey.convert("LA").convert(mode)
    if mode == "LAB":
        return Image.fromarray(pixels(3)).convert("LAB")
    return (grey if mode == "LA" else Image.fromarray(pixels(3))).convert(mode)


def to_pil_rgb(image: Image.Image) -> Image.Image:
    """What the picture looks like, by Pillow's own conversions, or of known values where Pillow cuts them off."""
    if image.mode in SIXTEEN or image.mode in ("La", "PA"):
        return Image.fromarray(pixels(1)).convert("RGB")
    return image.convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(mode):
    """Real collections mix them; 16 bits are scaled, not cut off, which would leave a white picture."""
    image = picture(mode)
    assert image.mode == mode
    expected = to_pil_rgb(image)
    assert np.array_equal(to_image(image), expected)
    assert to_image(image, "L").mode == "L"
    assert to_image(image, None).mode == ("L" if mode == "L" or mode in SIXTEEN else "RGB")
    assert to_image(image, None).size == image.size


def test_a_picture_of_the_mode_is_taken_as_it_is():
    """The common case costs no copy."""
    image = picture("RGB")
    assert to_image(image) is image


def test_sixteen_bits_keep_their_greys():
    """Every value becomes the nearest of 8 bits, in each byte order and as an array."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for mode, dtype in SIXTEEN.items():
        image = Image.frombytes(mode, (256, 256), values.astype(dtype).tobytes())
        assert np.array_equal(to_image(image, "L"), expected)
    for array in (values, values.astype(">u2"), torch.from_numpy(values), values[..., None], values[None]):
        assert np.array_equal(to_image(array, "L"), expected)
    png = Image.fromarray(values)
    for cell in (encoded(png), encoded(png, "TIFF"), {"bytes": encoded(png), "path": None}):
        assert np.array_equal(to_image(cell, "L"), expected)


FORMS = {
    "uint8": lambda a: a,
    "float32": lambda a: (a / 255).astype(np.float32),
    "float64": lambda a: a / 255,
    "uint16": lambda a: a.astype(np.uint16) * 257,
    "int64": lambda a: a.astype(np.int64),
    "bytes as floats": lambda a: a.astype(np.float32),
}


@settings(deadline=None, max_examples=60)
@given(
    channels=st.sampled_from([1, 2, 3, 4]),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    seed=st.integers(0, 99),
    form=st.sampled_from(sorted(FORMS)),
    layout=st.sampled_from(["last", "first", "flat"]),
    kind=st.sampled_from(["numpy", "torch", "list"]),
    processor=st.sampled_from([VIT, GREY]),
)
def test_arrays_of_any_type_and_layout_are_the_picture(channels, height, width, seed, form, layout, kind, processor):
    """What the model sees does not depend on how the pixels are stored."""
    assume(kind != "list" or form != "uint16")  # lists do not say how many bits there are
    array = pixels(channels, seed, (height, width))
    array.flat[:2] = 0, 255  # a value above 1 marks floats as bytes
    expected = ImageCollator(processor)([{"image": Image.fromarray(array), "label": 0}])["pixel_values"]
    cell = FORMS[form](array)
    if layout != "flat" and channels == 1:
        cell = cell[..., None]
    if layout == "first" and cell.ndim == 3:
        cell = np.ascontiguousarray(np.moveaxis(cell, -1, 0))
    cell = {"numpy": lambda c: c, "torch": torch.from_numpy, "list": lambda c: c.tolist()}[kind](cell)
    found = ImageCollator(processor)([{"image": cell, "label": 0}])["pixel_values"]
    assert found.shape == (1, len(processor.image_mean), 8, 8)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("first", [True, False])
def test_a_shape_with_both_meanings_is_read_by_the_habit_of_its_library(first):
    """A tensor has its channels first, an array last; `datasets` formats pictures so."""
    array = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    found = np.asarray(to_image(torch.from_numpy(array) if first else array))
    assert np.array_equal(found, np.moveaxis(array, 0, -1) if first else array)


def test_half_precision_and_booleans():
    """bfloat16 has no NumPy type; a mask is black and white."""
    mask = pixels(1) > 127
    white = np.where(mask, 255, 0)
    for cell in (mask, torch.from_numpy(mask), Image.fromarray(mask), torch.from_numpy(mask).bfloat16()):
        assert np.array_equal(to_image(cell, "L"), white)


@pytest.mark.parametrize(
    "cell",
    [
        None,
        Image.new("I", (4, 4), 70000),
        Image.new("F", (4, 4), 0.5),
        Image.new("RGB", (0, 4)),
        np.full((4, 4), 300, dtype=np.int32),
        np.full((4, 4), -1, dtype=np.int16),
        np.full((4, 4, 3), 2.5, dtype=np.float32),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), 1j),
        torch.randn(3, 8, 8) * 4,
        np.zeros((9, 9, 7), dtype=np.uint8),
        np.zeros((2, 3, 4, 4), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.array(["a"]),
        [[1, 2], [3]],
        {"bytes": None, "path": None},
        {"pixels": 3},
        b"",
        b"no picture",
        encoded(Image.fromarray(pixels(3, size=(60, 60))))[:400],
        "/no/such/file.png",
        "https://example.com/cat.png",
        {"bytes": None, "path": "https://example.com/cat.png"},
        "s3://bucket/cat.png",
        object(),
        7,
    ],
    ids=lambda cell: type(cell).__name__,
)
def test_what_is_no_picture_of_known_range_is_refused_by_row_and_column(cell):
    """None of them reaches the model as noise; nothing is fetched; the message says where it was."""
    rows = [{"photo": picture("RGB"), "label": 0}, {"photo": cell, "label": 1}]
    with pytest.raises(InvalidInputError) as caught:
        ImageCollator(VIT, image_column="photo")(rows)
    assert "row 1 " in caught.value.name
    assert "'photo'" in caught.value.name
    assert caught.value.fix
    assert pickle.loads(pickle.dumps(caught.value)).name == caught.value.name


def test_files_are_read_and_turned_as_datasets_reads_them(tmp_path):
    """From bytes, an undecoded cell or a path, with the orientation of the camera."""
    image = Image.fromarray(pixels(3))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = tmp_path / "turned.png"
    image.save(file, exif=exif)
    decoded = Dataset.from_dict({"image": [str(file)]}, features=Features({"image": Images()}))
    undecoded = decoded.cast_column("image", Images(decode=False))[0]["image"]
    expected = np.asarray(decoded[0]["image"])
    assert expected.shape == (7, 9, 3)
    for cell in (undecoded, file, str(file), file.read_bytes(), bytearray(file.read_bytes())):
        assert np.array_equal(to_image(cell), expected)


def stored(images, **columns):
    features = Features({"image": Images(), "label": ClassLabel(names=["ant", "bee"])})
    rows = {"image": images, "label": [0] * len(images), **columns}
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("form", ["torch", "numpy", "undecoded"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_formats_of_datasets_do_not_change_the_picture(mode, form):
    """A format turns palettes into indices and CMYK into four channels; in all of them the picture is meant."""
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    data = stored([{"bytes": encoded(picture(mode), kind), "path": None}] * 3)
    formatted = data.cast_column("image", Images(decode=False)) if form == "undecoded" else data.with_format(form)
    for processor in (VIT, GREY):
        collate = ImageCollator(processor)
        plain, other = (collate(NamedRows(rows).__getitems__([2, 0])) for rows in (data, formatted))
        assert torch.equal(plain["pixel_values"], other["pixel_values"])
        assert torch.equal(plain["labels"], other["labels"])


BROKEN = {
    "text": {"bytes": b"no picture", "path": None},
    "empty": {"bytes": b"", "path": None},
    "truncated": {"bytes": encoded(Image.fromarray(pixels(3, size=(60, 60))))[:400], "path": None},
    "missing file": {"bytes": None, "path": "/no/such/file.png"},
    "none": None,
}


@pytest.mark.parametrize("form", [None, "torch", "transform"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_named_by_its_row(kind, form):
    """In the set that it is in and in the whole that the set was drawn from; Pillow says "BytesIO object at 0x7f…"."""
    good = {"bytes": encoded(picture("RGB")), "path": None}
    data = stored([good] * 4 + [BROKEN[kind]] + [good] * 2)
    part = data.select([6, 4, 1])
    if form == "transform":
        part = part.with_transform(lambda rows: {"image": [i.convert("RGB") for i in rows["image"]], "label": [0] * 9})
    elif form:
        part = part.with_format(form)
    pairs = PairedDataset(part, data.select([0]))
    with pytest.raises(InvalidInputError) as caught:
        ImageCollator(VIT)([row for pair in pairs.__getitems__([(0, 0), (1, 0)]) for row in pair])
    assert caught.value.name == "row 1 of the retain set (row 4 of the data it was drawn from), column 'image'"
    with pytest.raises(InvalidInputError) as caught:
        list(DataLoader(NamedRows(part, "the evaluation set"), batch_size=2, collate_fn=ImageCollator(VIT)))
    assert caught.value.name == "row 1 of the evaluation set (row 4 of the data it was drawn from), column 'image'"


def test_an_error_of_a_transform_stays_what_it_is_and_gets_the_row():
    """What has nothing to do with decoding is the user's own error."""

    def fails(rows):
        raise KeyError("pose")

    with pytest.raises(KeyError) as caught:
        NamedRows(stored([picture("RGB")] * 3).with_transform(fails), "the retain set").__getitems__([2])
    assert any("row 2 of the retain set" in note for note in caught.value.__notes__)


def test_detectors_faces_and_audits_see_the_same_picture():
    """One function behind all of them: a picture of 16 bits, and grey and channel-first arrays."""
    wide = pixels(1).astype(np.uint16) * 257
    expected = Image.fromarray(pixels(1)).convert("RGB")
    objects = {"bbox": [[1.0, 1.0, 3.0, 3.0]], "category": [0]}
    detect = DetectionCollator(DetrImageProcessor(size={"height": 32, "width": 32}))
    face = FaceImageProcessor.for_pixels(image_size=8)
    for cell in (Image.fromarray(wide), wide, torch.from_numpy(wide)[None], pixels(1), wide / 65535):
        batches = [detect([{"image": one, "objects": objects}]) for one in (cell, expected)]
        assert torch.equal(*(batch["pixel_values"] for batch in batches))
        assert torch.equal(*(batch["labels"][0]["boxes"] for batch in batches))
        batches = [ImageCollator(face)([{"image": one, "label": 0}]) for one in (cell, expected)]
        assert torch.equal(*(batch["pixel_values"] for batch in batches))
        assert np.array_equal(_image({"image": cell}, "image"), expected)
    alone = [face(images=[one], return_tensors="pt")["pixel_values"] for one in (Image.fromarray(wide), expected)]
    assert torch.equal(*alone), "the face processor by itself"
    with pytest.raises(InvalidInputError) as caught:
        detect([{"image": None, "objects": objects}])
    assert caught.value.name == "row 0 of the batch, column 'image'"


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_floats_stay_where_the_processor_does_not_rescale(kind):
    """transformers advises `do_rescale=False` for floats in [0, 1]; bytes of them would be 255 times too large."""
    array = pixels(3) / np.float32(255)
    cell = array if kind == "numpy" else torch.from_numpy(array).permute(2, 0, 1)
    usual = {"size": SIZE, "do_resize": False}
    expected = ImageCollator(ViTImageProcessor(**usual))([{"image": pixels(3), "label": 0}])["pixel_values"]
    found = ImageCollator(ViTImageProcessor(**usual, do_rescale=False))([{"image": cell, "label": 0}])["pixel_values"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    face = FaceImageProcessor(do_resize=False)
    alone = face(images=[cell], do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(alone[0], torch.from_numpy(array).permute(2, 0, 1))
    objects = {"bbox": [[1.0, 1.0, 3.0, 3.0]], "category": [0]}
    sizes = {"size": {"height": 32, "width": 32}, "do_resize": False}
    detect = [DetectionCollator(DetrImageProcessor(**sizes, do_rescale=scale)) for scale in (True, False)]
    cells = zip(detect, (pixels(3), cell), strict=True)
    batches = [one([{"image": image, "objects": objects}]) for one, image in cells]
    torch.testing.assert_close(*(batch["pixel_values"] for batch in batches), atol=1e-6, rtol=0)
    assert torch.equal(*(batch["labels"][0]["boxes"] for batch in batches))


def test_a_model_of_other_channels_gets_what_the_cell_holds():
    """A model of colours and infrared has four means; RGB would take one of its channels away."""
    processor = ViTImageProcessor(size=SIZE, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    array = pixels(4, size=(8, 8))
    cells = (array, torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array))
    found = [ImageCollator(processor)([{"image": cell, "label": 0}])["pixel_values"] for cell in cells]
    assert found[0].shape == (1, 4, 8, 8)
    assert all(torch.equal(one, found[0]) for one in found)


def test_random_views_are_made_of_pictures(monkeypatch):
    """RandAugment knows grey and RGB alone: it gets these of any form, palettes behind a format included."""
    transforms = ModuleType("torchvision.transforms")
    transforms.v2 = SimpleNamespace(RandAugment=lambda num_ops, magnitude: lambda image: image)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", transforms)
    augmentation = Augmentation(rand_augment(), "image", seed=0)
    palette = stored([{"bytes": encoded(picture("P")), "path": None}]).with_format("torch")
    view = augmentation(NamedRows(palette)[0], 0)
    assert np.array_equal(view["image"], picture("P").convert("RGB"))
    alone = VIT(picture("P").convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageCollator(VIT)([view])["pixel_values"], alone)
    grey = augmentation({"image": picture("I;16B")}, 0)["image"]
    assert np.array_equal(grey, pixels(1))
    with pytest.raises(InvalidInputError) as caught:
        augmentation({"image": None}, 0)
    assert "'image'" in caught.value.name
