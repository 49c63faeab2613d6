"""`gs-lora forget` with a detector, its settings for COCO, and its picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import DatasetDict
from detection_cases import NAMES, annotated, knowing_yolos, own_findings, processor
from errors import refused
from PIL import Image
from transformers import Trainer

from gs_lora_peft import ContinualForgetter, ForgettingLedger, parse_requests
from gs_lora_peft.audit.detections import draw_detections, rows_to_show
from gs_lora_peft.cli import SettingsParser, forget
from gs_lora_peft.cli.forgetting.subjects import load_boxes
from gs_lora_peft.cli.terminal import UsageError
from gs_lora_peft.data.boxes.annotations import read_annotations
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.ledger import AlreadyForgottenError
from gs_lora_peft.reports import FORGOTTEN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLACE = [0.3, 0.3, 0.3, 0.3]


def parsed(*argv):
    """The settings of a command line."""
    return SettingsParser(output_dir="runs").parse_options(argv)


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Model and data in folders, and one category to forget."""
    knowing_yolos().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    own_findings().save_to_disk(str(tmp_path / "data"))
    return [
        "--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "data"), "--forget", "cat",
        "--output_dir", str(tmp_path / "run"), "--r", "4", "--lora_alpha", "8", "--num_train_epochs", "12",
        "--learning_rate", "2e-2", "--forget_weights", "0.5", "--sparsity_weight", "0.1", "--use_cpu", "true",
        "--disable_tqdm", "true",
    ]  # fmt: skip


def test_forgets_and_draws(command, tmp_path, capsys):
    """From folders to table and picture: above are boxes of the forgotten category, below there are none."""
    forget(command)
    printed = capsys.readouterr().out
    assert "AP_f before" in printed
    assert "detections.png" in printed
    picture = np.asarray(Image.open(tmp_path / "run" / "private_pictures" / "detections.png").convert("RGB"))
    colour = np.array([int(FORGOTTEN[k : k + 2], 16) for k in (1, 3, 5)])
    rows = np.flatnonzero((picture == colour).all(-1).any(1)) / len(picture)
    assert (rows < 0.5).any()
    assert not ((rows > 0.5) & (rows < 0.9)).any()  # the legend is below


def test_a_stopped_request_goes_on(command, tmp_path, monkeypatch):
    """By default after its last finished epoch; requests before it are not carried out again, no checkpoint stays."""
    command += ["--forget", "cat;dog", "--forget_weights", "0.5", "0.3", "--num_train_epochs", "2"]
    taken, original = [], Trainer.training_step

    def training_step(self, *args, **more):
        taken.append((Path(self.args.output_dir).name, int(self.state.epoch or 0)))
        if taken.count(("task_002", 1)) == 1:
            taken.append("stopped")
            raise KeyboardInterrupt
        return original(self, *args, **more)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        forget(command)
    forget(command)
    assert set(taken[taken.index("stopped") + 1 :]) == {("task_002", 1)}
    assert [task.class_names for task in ForgettingLedger.load(tmp_path / "run").tasks] == [["cat"], ["dog"]]
    assert not (tmp_path / "run" / "work").exists()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".pt", ".pth", ".bin")]
    # A request is redone with its own weight, and requests that are done are compared with theirs.
    redone = []
    monkeypatch.setattr(ContinualForgetter, "redo", lambda *given: redone.append((*given[1:], given[0].recipe.args)))
    forget([*command, "--redo"])
    assert [(task, args.forget_weight) for task, args in redone] == [(None, 0.3)]
    forget(command)


def test_refused_before_anything_is_carried_out(command, tmp_path):
    """What is wrong with a later request, a weight or a setting is said before the first request trains."""
    with refused("classes", ["dgo"], UnknownClassError):
        forget([*command, "--forget_weights", "0.5", "0.5", "--forget", "cat;dgo"])
    two = [*command, "--forget_weights", "0.5", "0.5"]
    with pytest.raises(AlreadyForgottenError) as error:
        forget([*two, "--forget", "cat;dog,cat"])
    assert (error.value.classes, error.value.task) == ([2], None)
    with refused("forget", [3]):
        forget([*two, "--forget", "cat;dog", "--missing", "dog"])
    for weights in (["0.5", "0.5"], ["-1"]):
        with refused("--forget_weights", [float(weight) for weight in weights]):
            forget([*command, "--forget_weights", *weights])
    for options, said in (
        (["--resume_from_checkpoint", "x"], "resumes by itself"),
        (["--threshold", "2"], "`--threshold` is 2.0"),
        (["--threshold", "nan"], "`--threshold` is nan"),
    ):
        with pytest.raises(UsageError) as error:
            forget([*command, *options])
        assert said in str(error.value)
    assert not (tmp_path / "run" / "tasks").exists()


def test_published_without_a_picture(command, tmp_path, capsys, monkeypatch, recwarn):
    """Without test objects to forget there is no picture and no error; missing classes stay; the run is pushed."""
    data = DatasetDict(train=own_findings()["train"], test=annotated([[(0, PLACE), (3, PLACE)]]))
    data.save_to_disk(str(tmp_path / "others"))
    pushed = []
    monkeypatch.setattr(
        "gs_lora_peft.cli.forgetting.carrying.push_to_hub",
        lambda *args, **options: pushed.append((args, options)) or "address",
    )
    options = ["--dataset_name", str(tmp_path / "others"), "--max_steps", "1", "--missing", "ant,3"]
    forget([*command, *options, "--push_to_hub", "true", "--hub_model_id", "me/it", "--hub_token", "hf_x"])
    assert not [warning for warning in recwarn if "push_to_hub" in str(warning.message)]  # it is acted upon
    printed, said = capsys.readouterr()
    assert "No picture will be drawn: no test image" in said
    assert "No picture was drawn: no test image" in printed
    assert not (tmp_path / "run" / "private_pictures").exists()
    (task,) = ForgettingLedger.load(tmp_path / "run").tasks
    assert task.missing_classes == [0, 3]
    options = {"private": True, "revision": None, "token": "hf_x"}
    assert pushed == [((str(tmp_path / "run"), "me/it"), options)]
    assert "Hub:      address" in printed


def coco_folder(folder: Path, without_area: int) -> Path:
    """Two splits of one image: 40 objects, some of them without area, and 40 crowds, half of them without area."""
    annotations = [
        {"image_id": 1, "category_id": 1, "bbox": [2, 2, 30 * (k >= flat), 30], "iscrowd": crowd}
        for crowd, flat in ((0, without_area), (1, 20))
        for k in range(40)
    ]
    image = {"id": 1, "file_name": "1.png", "width": 64, "height": 64}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (folder / name).mkdir()
        Image.new("RGB", (64, 64)).save(folder / name / "1.png")
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return folder


def test_says_how_many_boxes_were_dropped(command, tmp_path, capsys):
    """Prints a few bad boxes of each split, and refuses more than 5 % and another box format; crowds do not count."""
    label2id = {name: number for number, name in enumerate(NAMES)}
    coco = coco_folder(tmp_path / "some", 2)
    prepared = load_boxes(parsed("--data", str(coco)), label2id)
    assert len(prepared["train"][0]["objects"]["bbox"]) == 38 + 20
    printed = capsys.readouterr().out
    assert "train: 2 of 40 boxes" in printed
    assert "test: 2 of 40 boxes" in printed
    with refused("boxes of train", "3 of 40"):
        load_boxes(parsed("--data", str(coco_folder(tmp_path / "many", 3))), label2id)
    data = ["--data", str(tmp_path / "data"), "--box_format"]
    with refused("boxes of train") as error:
        load_boxes(parsed(*data, "xyxy"), label2id)
    assert error.value.value.endswith("of 72")
    assert "--box_format xywh" in error.value.fix
    capsys.readouterr()
    load_boxes(parsed(*data, "xywh"), label2id)
    assert "boxes" not in capsys.readouterr().out


def test_settings_for_coco_are_read(tmp_path):
    """Different categories in every request, a weight for each, and no setting that is not known."""
    command = ["--config", str(EXAMPLES / "benchmarks" / "coco.yaml"), "--dataset_name", "coco", "--use_cpu", "true"]
    options = parsed(*command)
    requests = parse_requests(options.data.forget)
    names = [name for request in requests for name in request.classes]
    assert len(set(names)) == len(names) > 0
    assert len(options.run.forget_weights) == len(requests)
    (tmp_path / "wrong.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(UsageError):
        parsed("--config", str(tmp_path / "wrong.yaml"), *command[2:])


def test_the_images_that_show_most(tmp_path):
    """Images of both kinds first, then those of forgotten categories alone, spread over the data; none without."""
    kinds = [[0], [0, 2], [2], [1], [2, 3], [2, 1], [2]]
    data = annotated([[(category, PLACE) for category in row] for row in kinds])
    annotations = read_annotations(data, "objects")
    assert rows_to_show(annotations, [2], 4) == [1, 2, 4, 5]
    assert rows_to_show(annotations, [2], 2) == [1, 4]
    with refused("dataset", "without forgotten categories"):
        rows_to_show(annotations, [9], 4)
    options = {"processing_class": processor(), "image_column": "picture"}
    with refused("image_column", "picture"):
        draw_detections(knowing_yolos(), tmp_path, data, **options)
    with refused("threshold", 50):
        draw_detections(knowing_yolos(), tmp_path, data, threshold=50, **options)
