"""examples/forget_detection.py as a user runs it, its settings for COCO, and its picture."""

from pathlib import Path

import numpy as np
import pytest
from detection_cases import annotated, knowing_yolos, own_findings, processor
from PIL import Image

from gs_lora_peft import parse_requests
from gs_lora_peft.audit.detections import draw_detections, rows_to_show
from gs_lora_peft.data.boxes import read_annotations
from gs_lora_peft.drawing import FORGOTTEN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLACE = [0.3, 0.3, 0.3, 0.3]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import forget_detection

    return forget_detection


def test_forgets_and_draws(example, tmp_path, capsys):
    """From folders to table and picture: above are boxes of the forgotten category, below there are none."""
    knowing_yolos().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    own_findings().save_to_disk(str(tmp_path / "data"))
    command = [
        "--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "data"), "--forget", "cat",
        "--output_dir", str(tmp_path / "run"), "--r", "4", "--lora_alpha", "8", "--num_train_epochs", "12",
        "--learning_rate", "2e-2", "--forget_weights", "0.5", "--sparsity_weight", "0.1", "--use_cpu", "true",
        "--disable_tqdm", "true",
    ]  # fmt: skip
    example.main(command)
    printed = capsys.readouterr().out
    assert "AP_f before" in printed
    assert "detections.png" in printed
    picture = np.asarray(Image.open(tmp_path / "run" / "private_pictures" / "detections.png").convert("RGB"))
    colour = np.array([int(FORGOTTEN[k : k + 2], 16) for k in (1, 3, 5)])
    rows = np.flatnonzero((picture == colour).all(-1).any(1)) / len(picture)
    assert (rows < 0.5).any()
    assert not ((rows > 0.5) & (rows < 0.9)).any()  # the legend is below
    with pytest.raises(ValueError, match="2 `forget_weights`"):
        example.main([*command, "--forget_weights", "0.5", "0.5"])


def test_settings_for_coco_are_read(example, tmp_path):
    """Seven requests of ten different categories, each with its weight, and the published settings."""
    command = ["--config", str(EXAMPLES / "benchmarks" / "coco.yaml"), "--dataset_name", "coco", "--use_cpu", "true"]
    script, adapter, args = example.parse_arguments(command)
    requests = parse_requests(script.forget)
    assert [len(request.classes) for request in requests] == [10] * 7
    assert len({name for request in requests for name in request.classes}) == 70
    assert len(script.forget_weights) == 7
    assert (args.forget_bound, args.background, args.sparsity_until_epoch, adapter.r) == (15.0, "others", None, 8)
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}
    (tmp_path / "wrong.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(SystemExit):
        example.parse_arguments(["--config", str(tmp_path / "wrong.yaml"), *command[2:]])


def test_the_images_that_show_most(tmp_path):
    """Images of both kinds first, then those of forgotten categories alone, spread over the data; none without."""
    kinds = [[0], [0, 2], [2], [1], [2, 3], [2, 1], [2]]
    data = annotated([[(category, PLACE) for category in row] for row in kinds])
    annotations = read_annotations(data, "objects")
    assert rows_to_show(annotations, [2], 4) == [1, 2, 4, 5]
    assert rows_to_show(annotations, [2], 2) == [1, 4]
    with pytest.raises(ValueError, match="no image has an object"):
        rows_to_show(annotations, [9], 4)
    options = {"processing_class": processor(), "image_column": "picture"}
    with pytest.raises(ValueError, match="no 'picture'"):
        draw_detections(knowing_yolos(), tmp_path, data, **options)
    with pytest.raises(ValueError, match="threshold"):
        draw_detections(knowing_yolos(), tmp_path, data, threshold=50, **options)
