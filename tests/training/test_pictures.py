"""Files that are no pictures are found before long work, and named by their rows whenever they are met."""

import io
import zlib

import datasets
import numpy as np
import pytest
from errors import refused
from PIL import Image
from tasks import NAMES, arguments, knowing_vit
from transformers import ViTImageProcessor

from gs_lora_peft import ContinualForgetter
from gs_lora_peft.audit import audit_models, retrain
from gs_lora_peft.data import check_pictures
from gs_lora_peft.errors import InvalidInputError


def file(kind="PNG", size=8, **options):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def with_odd_note():
    """A PNG whose pixels are whole, with a note whose checksum is wrong."""
    content = file()
    note = b"tEXt" + b"by\0nobody"
    chunk = len(note[4:]).to_bytes(4, "big") + note + (zlib.crc32(note) ^ 1).to_bytes(4, "big")
    return content[:-12] + chunk + content[-12:]


def rows(bad=None, at=13):
    """24 pictures of six classes, one of which may be replaced."""
    cells = [{"bytes": file(), "path": None} for _ in range(24)]
    if bad is not None:
        cells[at] = bad if isinstance(bad, dict) else {"bytes": bad, "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"image": cells, "label": [n % 6 for n in range(24)]}, features=features)


def flipped(at):
    content = bytearray(file())
    content[at] ^= 255
    return bytes(content)


BROKEN = {
    "text": b"no picture",
    "empty": b"",
    "cut": file()[:-60],
    "damaged pixels": flipped(60),
    "damaged header": flipped(20),
    "missing file": {"bytes": None, "path": "no/such/file.png"},
}


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_by_its_row(bad):
    with pytest.raises(InvalidInputError) as error:
        check_pictures(rows(bad), "the training data")
    assert error.value.name == "row 13 of the training data, column 'image'"


def test_a_decompression_bomb_is_found(monkeypatch):
    data = rows(file(size=40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InvalidInputError) as error:
        check_pictures(data, "the training data")
    assert "row 13 " in error.value.name


@pytest.mark.parametrize(
    "data",
    [rows(), rows(with_odd_note()), rows().select([]), rows({"bytes": None, "path": "https://example.org/a.png"})],
    ids=["whole", "damage without effect", "no rows", "elsewhere"],
)
def test_what_can_be_read_or_is_far_away_passes(data):
    check_pictures(data, "the training data")


def test_a_data_set_without_fault_is_looked_at_once(tmp_path):
    """A benchmark checks the same pictures before each of its runs. Other rows, and what was broken, are looked at."""
    path = tmp_path / "cat.png"
    path.write_bytes(file())
    data = rows({"bytes": None, "path": str(path)})
    check_pictures(data, "the training data")
    path.write_bytes(b"no picture")
    check_pictures(data, "the training data")
    others = data.select(range(20))
    for _ in range(2):
        with refused("row 13 of the training data, column 'image'"):
            check_pictures(others, "the training data")
    path.write_bytes(file())
    check_pictures(others, "the training data")


@pytest.mark.parametrize("work", ["forget", "retrain", "audit"])
def test_long_work_begins_with_a_look_at_all_pictures(work, tmp_path):
    """The broken one is neither among the first rows nor of the first batch."""
    model, processor = knowing_vit(), ViTImageProcessor(size={"height": 8, "width": 8})
    data = datasets.DatasetDict(train=rows(b"no picture", at=20), test=rows())
    calls = {
        "forget": lambda: ContinualForgetter(
            model, data, tmp_path / "run", args=arguments(tmp_path), processing_class=processor
        ),
        "retrain": lambda: retrain(model, data["train"], [0], processing_class=processor, cache=tmp_path),
        "audit": lambda: audit_models(model, knowing_vit(), data, [0], processing_class=processor),
    }
    with pytest.raises(InvalidInputError) as error:
        calls[work]()
    assert "row 20 " in error.value.name or "(row 20 " in error.value.name
    assert not (tmp_path / "run").exists()


def test_a_jpeg_that_breaks_off_is_named_when_its_batch_comes(tmp_path):
    """To notice it before, all pixels would have to be decoded."""
    model, processor = knowing_vit(), ViTImageProcessor(size={"height": 8, "width": 8})
    data, recipe = (
        rows(file("JPEG", size=64)[:-200], at=20),
        {"epochs": 1, "batch_size": 8, "training": {"use_cpu": True}},
    )
    with pytest.raises(InvalidInputError) as error:
        retrain(model, data, [0], recipe=recipe, processing_class=processor, cache=tmp_path, disable_tqdm=True)
    assert "row 20 of the data it was drawn from" in error.value.name
