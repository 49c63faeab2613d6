"""What errors and warnings say gets into logs: no name of a class, no path of a sample, no content of a cell."""

import json
import logging

import datasets
import numpy as np
import pytest
from errors import refused
from PIL import Image

from gs_lora_peft.data import align_labels, check_names, read_coco, resolve_classes, split_dataset
from gs_lora_peft.data.collation import TensorCollator
from gs_lora_peft.data.rows import NamedRows, labels_of, sound_features
from gs_lora_peft.errors import PrivateInputError
from gs_lora_peft.images import to_image
from gs_lora_peft.ledger import ForgetRequest, ForgettingLedger, TaskEntry, parse_classes, parse_requests, warn_after
from gs_lora_peft.ledger.errors import AlreadyForgottenError, RequestOrderError
from gs_lora_peft.ledger.run_table import warn_before
from gs_lora_peft.runs.validation import check_missing, check_requests, match_requests

NAME = "Quillworth"
NAMES = [NAME, "Oyelaran", "Tanizaki"]
PLACE = "row 1 of the data set, column 'image'"


def told(error):
    """What a traceback prints of an error and of those that led to it."""
    lines = []
    while error is not None:
        lines += [str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(lines)


def labelled(names):
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"label": list(range(len(names)))}, features=features)


def pictures(cell):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [None, cell]}, features=features)


def broken(folder):
    """A file that is no picture, in the folder of a person."""
    path = folder / NAME / f"{NAME} 1.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no picture")
    return str(path)


def broken_picture(folder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = folder / f"{NAME}.jpg"
    picture.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    return Image.open(path)  # decoded later


def incomplete_coco(folder):
    content = {"images": [{"id": 1, "file_name": f"{NAME}.png"}], "annotations": [], "categories": []}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", folder


CALLS = {
    "unknown": ("classes", lambda _: resolve_classes([NAME], names=["tench"])),
    "alike": ("classes", lambda _: resolve_classes([NAME.lower()], names=NAMES)),
    "twice": ("classes", lambda _: resolve_classes([NAME, 0], names=NAMES)),
    "shared": ("classes[0]", lambda _: resolve_classes([NAME], names=[NAME, NAME])),
    "letters": ("classes", lambda _: resolve_classes(NAME, names=NAMES)),
    "request": ("classes", lambda _: ForgetRequest(NAME)),
    "request twice": ("classes", lambda _: ForgetRequest([NAME, NAME])),
    "command line": ("task 2", lambda _: parse_requests(f"a;{NAME},")),
    "missing": ("text", lambda _: parse_classes(f"{NAME};b")),
    "two roles": ("forget", lambda _: split_dataset(labelled(NAMES), [NAME], old=[NAME])),
    "no rows": ("forget", lambda _: split_dataset(labelled(NAMES).select([1, 2]), [NAME])),
    "few rows": ("shots", lambda _: split_dataset(labelled(NAMES), [NAME], shots=2)),
    "other model": ("column 'label'", lambda _: align_labels(labelled(NAMES), "label", {"tench": 0})),
    "other order": ("data: class 0", lambda _: check_names(NAMES, Named({0: "tench"}), "data")),
    "label": ("row 0 of the batch, column 'label'", lambda _: labels_of([{"label": NAME}], "label")),
    "text": ("row 0 of the batch, column 'note'", lambda _: TensorCollator()([{"note": [NAME], "label": 0}])),
    "sound": ("row 0 of the batch, column 'audio'", lambda _: sound_features(None, [{"audio": NAME}], "audio")),
    "file": ("image", lambda folder: to_image(broken(folder))),
    "no file": ("image", lambda folder: to_image(str(folder / f"{NAME}.png"))),
    "address": ("image", lambda _: to_image(f"https://example.org/{NAME}.png")),
    "dictionary": ("image", lambda _: to_image({"person": NAME})),
    "half a file": ("image", lambda folder: to_image(broken_picture(folder))),
    "cell": (PLACE, lambda folder: NamedRows(pictures({"bytes": None, "path": broken(folder)}))[1]),
    "lost cell": (PLACE, lambda _: NamedRows(pictures({"bytes": None, "path": f"no/{NAME}.png"}))[1]),
    "bytes": (PLACE, lambda _: NamedRows(pictures({"bytes": b"x", "path": f"{NAME}.png"}))[1]),
    "boxes": ("image_folder", lambda folder: read_coco(*incomplete_coco(folder))),
}


class Named:
    """A model that names its classes."""

    def __init__(self, id2label):
        self.config = type("Config", (), {"id2label": id2label})


@pytest.mark.parametrize(("place", "call"), CALLS.values(), ids=CALLS)
def test_an_error_tells_the_place_and_no_name(place, call, tmp_path):
    with refused(place) as error:
        call(tmp_path)
    assert NAME.lower() not in told(error.value).lower().replace(str(tmp_path).lower(), "")


def test_a_program_still_gets_the_value():
    """For a notebook that offers a correction: the attributes have what the message leaves out."""
    with refused("image", f"{NAME}.png", PrivateInputError):
        to_image(f"{NAME}.png")


@pytest.fixture
def ledger(tmp_path):
    """A run that forgot the first person; its scores met the target before already, and do not any more."""
    base = {"fingerprint": "sha256:" + "ab" * 32, "num_labels": 3}
    ledger = ForgettingLedger.create(tmp_path / "run", base_model=base, label_names=NAMES)
    entry = TaskEntry(
        name="task_001",
        request={"classes": [NAME]},
        classes=[0],
        class_names=[NAME],
        started_at="2026-01-31T00:00:00Z",
        finished_at="2026-01-31T00:01:00Z",
        groups={"total": 1, "active": ["a"], "zero": []},
        scores={"before": {"acc_forget": 0.0}, "after": {"acc_forget": 0.9}, "data": "test"},
        outcome={"forgotten": False, "target": 0.05, "known_before": False, "earlier": {}},
    )
    with ledger.changes():
        ledger.append(entry)
    return ledger


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (AlreadyForgottenError, lambda run: check_requests([ForgetRequest([NAME])], run, NAMES, lambda *_: None)),
        (AlreadyForgottenError, lambda run: check_requests([ForgetRequest([n]) for n in (1, 1)], run, NAMES, print)),
        (RequestOrderError, lambda run: match_requests([ForgetRequest([NAMES[1]])], run, NAMES)),
        (PrivateInputError, lambda run: check_missing([NAME], run, NAMES)),
    ],
    ids=["forgotten", "asked twice", "other order", "missing"],
)
def test_refused_requests_give_ids(kind, call, ledger):
    with pytest.raises(kind) as error:
        call(ledger)
    assert [name for name in NAMES if name in told(error.value)] == []


def test_warnings_of_a_run_name_the_task(ledger, caplog):
    with caplog.at_level(logging.WARNING, logger="gs_lora_peft"):
        warn_before(ledger, {"acc_forget": 0.0}, "auto")
        warn_after(ledger, ["task_001"])
    assert ["task_002" in caplog.messages[0], "task_001" in caplog.messages[1]] == [True, True]
    assert NAME not in caplog.text


def test_an_array_is_told_by_its_shape():
    """The error helps without showing the values."""
    with refused("row 0 of the batch, column 'label'") as error:
        labels_of([{"label": np.zeros((2, 3))}], "label")
    assert "(2, 3)" in str(error.value)
