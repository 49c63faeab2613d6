"""AP by role decides whether a category counts as forgotten: it must be COCO's own number."""

import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from errors import ANY, refused
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given, settings, strategies as st

from gs_lora_peft.metrics.boxes import pack_boxes, references_from_labels, references_from_objects, unpack_boxes
from gs_lora_peft.metrics.detection import detection_scores

ROLES = {"forget_classes": [0], "old_classes": [3], "missing_classes": [4]}
EMPTY = {"boxes": [], "scores": [], "labels": []}


def scene(seed=0, images=12, classes=6, crowds=True):
    """Random objects, and detections near some of them, with ties among the scores."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(images):
        n = int(rng.integers(0, 7))
        corner, size = rng.uniform(0, 80, (n, 2)), rng.uniform(5, 40, (n, 2))
        truth = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(0, classes, n)
        crowd = rng.random(n) < 0.15 if crowds else np.zeros(n, bool)
        references.append({"boxes": truth, "labels": labels, "iscrowd": crowd})
        picked = rng.integers(0, n, 2 * n) if n else np.zeros(0, int)
        boxes = truth[picked] + rng.normal(0, 2, (len(picked), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        wrong = rng.random(len(picked)) < 0.2
        found = np.where(wrong, rng.integers(0, classes + 1, len(picked)), labels[picked] if n else 0)
        predictions.append({"boxes": boxes, "scores": rng.random(len(picked)).round(1), "labels": found})
    return predictions, references


def by_the_library(predictions, references, classes):
    """AP, AP50 and AR of some categories, from a run of the library over these alone with all its own defaults."""

    def annotations(rows, extra):
        flat = [
            (i, box, *rest)
            for i, row in enumerate(rows)
            for box, *rest in zip(row["boxes"], row["labels"], row[extra], strict=True)
        ]
        return [
            {
                "id": number,
                "image_id": i,
                "category_id": int(label),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]),
                "iscrowd": 0,
                extra: float(value) if extra == "score" else int(value),
            }
            for number, (i, box, label, value) in enumerate(flat, start=1)
        ]

    images = [{"id": i, "width": 200, "height": 200} for i in range(len(references))]
    categories = [{"id": c, "name": str(c)} for c in range(10)]
    truth = COCO({"images": images, "categories": categories, "annotations": annotations(references, "iscrowd")})
    results = annotations([{**row, "score": row["scores"]} for row in predictions], "score")
    run = COCOeval_faster(truth, truth.loadRes(results), "bbox")
    run.params.catIds = classes
    run.run()
    # -1 where there is nothing to find
    return {name: None if run.stats[i] == -1 else run.stats[i] for name, i in {"ap": 0, "ap50": 1, "ar": 8}.items()}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_one_pass_gives_what_the_library_gives_for_each_role(seed, crowds):
    """AP, AP50 and AR of each role and of each category equal runs of the library over these alone."""
    predictions, references = scene(seed, crowds=crowds)
    scores = detection_scores(predictions, references, **ROLES)
    present = {int(c) for row in references for c in row["labels"][~row["iscrowd"]]}
    roles = {"forget": [0], "old": [3], "missing": [4], "retain": sorted(present - {0, 3, 4})}
    for role, classes in roles.items():
        if not classes:
            assert scores[f"ap_{role}"] is None
            continue
        for measure, value in by_the_library(predictions, references, classes).items():
            assert scores[f"{measure}_{role}"] == (None if value is None else pytest.approx(value, abs=1e-9))
    for c in sorted(present):
        for measure, value in by_the_library(predictions, references, [c]).items():
            assert scores["per_class"][c][measure] == pytest.approx(value, abs=1e-9)


def test_scores_by_hand():
    """One object found, one missed, one found where nothing is; the drop and H follow from AP."""
    truth = [{"boxes": [[0, 0, 8, 8], [20, 0, 25, 5]], "labels": [0, 1]}, {"boxes": [], "labels": []}]
    found = [{"boxes": [[0, 0, 8, 8], [9, 0, 14, 5]], "scores": [0.9, 0.8], "labels": [0, 1]}, EMPTY]
    scores = detection_scores(found, truth, forget_classes=[1], ap_forget_before=0.5)
    assert scores["ap_retain"] == scores["ap50_retain"] == scores["ar_retain"] == pytest.approx(1)
    assert scores["ap_forget"] == scores["ar_forget"] == 0
    assert scores["ap_old"] is None
    assert scores["drop"] == 0.5
    assert scores["h_mean"] == pytest.approx(2 / 3)
    assert (scores["n_retain"], scores["n_forget"], scores["n_old"]) == (1, 1, 0)
    assert json.loads(json.dumps(scores))["per_class"]["1"]["ap"] == 0, "scores go to a JSON ledger"


def test_a_model_that_finds_nothing():
    """The aim for what was forgotten: 0, and no failure of the library on an empty list."""
    references = scene(crowds=False)[1]
    scores = detection_scores([EMPTY] * len(references), references, forget_classes=[0], ap_forget_before=0.4)
    assert scores["ap_forget"] == scores["ap_retain"] == 0
    assert (scores["drop"], scores["h_mean"]) == (0.4, 0)


def test_units_do_not_matter():
    """Boxes as shares of the image score as boxes in pixels do, whatever the image's shape."""
    predictions, references = scene()
    scale = np.array([640, 480, 640, 480])
    shares = [[{**row, "boxes": row["boxes"] / scale} for row in rows] for rows in (predictions, references)]
    in_pixels, in_shares = detection_scores(predictions, references, **ROLES), detection_scores(*shares, **ROLES)
    assert in_shares["per_class"] == {c: pytest.approx(v, abs=1e-9) for c, v in in_pixels["per_class"].items()}


def test_references_of_a_dataset_and_of_a_batch():
    """A dataset has (x, y, w, h) in pixels, a batch (cx, cy, w, h) as shares; both become corners."""
    row = {"bbox": [[10, 20, 30, 40]], "category": [2], "iscrowd": [True]}
    (reference,) = references_from_objects([row])
    assert reference["boxes"].tolist() == [[10, 20, 40, 60]]
    assert (reference["labels"].tolist(), reference["iscrowd"].tolist()) == ([2], [True])
    label = {"boxes": torch.tensor([[0.25, 0.5, 0.5, 0.25]]), "class_labels": torch.tensor([1])}
    (reference,) = references_from_labels([label])
    assert reference["boxes"].tolist() == [[0, 0.375, 0.5, 0.625]]
    assert reference["labels"].tolist() == [1]
    assert references_from_objects([{"bbox": [], "category": []}])[0]["boxes"].shape == (0, 4)


GOOD = {"boxes": [[0, 0, 5, 5]], "scores": [0.5], "labels": [1]}


@pytest.mark.parametrize(
    ("predictions", "references", "kwargs", "name", "value"),
    [
        ([GOOD, GOOD], [GOOD], {}, "len(predictions)", 2),
        ([{**GOOD, "scores": None}], [GOOD], {}, "predictions[0]", ["boxes", "labels", "scores"]),
        ([GOOD, 3], [GOOD, GOOD], {}, "predictions[1]", 3),
        ([{**GOOD, "scores": [-math.inf]}], [GOOD], {}, "predictions[0]: scores", -math.inf),
        ([{**GOOD, "boxes": [[0, 0, math.inf, 5]]}], [GOOD], {}, "predictions[0]: boxes", math.inf),
        ([{**GOOD, "labels": [0.5]}], [GOOD], {}, "predictions[0]: labels", 0.5),
        ([{**GOOD, "boxes": np.zeros((1, 48, 64))}], [GOOD], {}, "predictions[0]: shapes", ANY),
        ([GOOD], [{**GOOD, "labels": [-1]}], {}, "references[0]: labels", -1),
        ([GOOD], [{**GOOD, "boxes": [[5, 5, 3, 3]]}], {}, "references[0]: boxes", [5, 5, 3, 3]),
        (GOOD, [GOOD], {}, "predictions", GOOD),
        ([GOOD], [GOOD], {"forget_classes": [1], "old_classes": [1]}, "old_classes", [1]),
        ([GOOD], [GOOD], {"ap_forget_before": 45.0}, "ap_forget_before", 45.0),
    ],
)
def test_bad_input_is_refused(predictions, references, kwargs, name, value):
    """A wrong number would be published as a score."""
    with refused(name, value):
        detection_scores(predictions, references, **{"forget_classes": [0], **kwargs})


def test_packed_boxes_survive_what_the_trainer_does():
    """The Trainer fills tensors up with -100 over processes and batches; the boxes come out as they went in."""
    from transformers.trainer_pt_utils import nested_concat

    predictions = [{k: torch.as_tensor(np.asarray(v)) for k, v in row.items()} for row in scene()[0]]
    packed = [pack_boxes(predictions[:5]), pack_boxes(predictions[5:6]), pack_boxes(predictions[6:])]
    together = nested_concat(nested_concat(packed[0], packed[1], padding_index=-100), packed[2], padding_index=-100)
    for before, after in zip(predictions, unpack_boxes(together.numpy()), strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(before[key], after[key].to(before[key].dtype))
    assert pack_boxes([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}]).shape == (1, 1, 6)
    with refused("rows", []):
        pack_boxes([])


def run_python(code, *args, home):
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_metric_gives_the_same_scores(tmp_path):
    """Batches, single images and one call; float32 tensors, and what was added is gone afterwards."""
    from gs_lora_peft.metrics.continual_detection import ContinualDetection

    predictions, references = scene()
    predictions = [{**row, "boxes": torch.tensor(row["boxes"], dtype=torch.float32)} for row in predictions]
    expected = detection_scores(predictions, references, **ROLES, ap_forget_before=1.0)
    metric = ContinualDetection(**ROLES, ap_forget_before=1.0, cache_dir=tmp_path)
    metric.add_batch(predictions=predictions[:5], references=references[:5])
    metric.add_batch(predictions=[], references=[])
    for prediction, reference in zip(predictions[5:], references[5:], strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected
    assert metric.compute(predictions=predictions, references=references) == expected
    only = metric.compute(predictions=predictions, references=references, forget_classes=[1])
    assert only["n_forget"] == expected["per_class"][1]["n"]
    with refused("forget_classes", None):
        ContinualDetection(cache_dir=tmp_path).compute(predictions=predictions, references=references)


@pytest.mark.slow
def test_two_processes_score_together(tmp_path):
    """AP is no mean of the processes' APs: process 0 must see the images of both."""
    code = """
    import json, sys
    from gs_lora_peft.metrics.continual_detection import ContinualDetection
    rank, cache_dir, rows, settings = int(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    metric = ContinualDetection(
        **settings, cache_dir=cache_dir, num_process=2, process_id=rank, experiment_id="together", timeout=120
    )
    metric.add_batch(predictions=[p for p, _ in rows], references=[r for _, r in rows])
    print(json.dumps(metric.compute()))
    """
    plain = [[{k: np.asarray(v).tolist() for k, v in row.items()} for row in rows] for rows in scene()]
    pairs = list(zip(*plain, strict=True))
    processes = [
        run_python(code, rank, tmp_path / "cache", json.dumps(pairs[rank::2]), json.dumps(ROLES), home=tmp_path)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.strip().splitlines()[-1]) for out, _ in outputs)
    shuffled = pairs[::2] + pairs[1::2]
    expected = detection_scores([p for p, _ in shuffled], [r for _, r in shuffled], **ROLES)
    assert first == json.loads(json.dumps(expected))
    assert second is None


@pytest.mark.shared
def test_what_a_model_and_its_processor_give_is_scored(shared_data, tmp_path):
    """On real images: in pixels against the data, and as shares of the image against the batch of the collator."""
    from datasets import load_dataset
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    from gs_lora_peft.data.boxes.collation import DetectionCollator

    files = {"test": str(shared_data / "bccd" / "test.parquet")}
    data = load_dataset("parquet", data_files=files, split="test", cache_dir=tmp_path)
    rows = [data[i] for i in range(3)]
    processor = YolosImageProcessor(size={"height": 48, "width": 64}, do_pad=False)
    batch = DetectionCollator(processor)(rows)
    torch.manual_seed(0)
    sizes = {"image_size": [48, 64], "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    config = YolosConfig(**sizes, num_attention_heads=2, num_detection_tokens=20, num_labels=3)
    with torch.no_grad():
        outputs = YolosForObjectDetection(config).eval()(batch["pixel_values"])
    # A few true boxes among those of a model that knows nothing, so that there is something to score.
    for image, label in enumerate(batch["labels"]):
        outputs.pred_boxes[image, :5] = label["boxes"][:5]
        outputs.logits[image, :5] = 9 * torch.nn.functional.one_hot(label["class_labels"][:5], 4)
    found = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=torch.tensor([[480, 640]] * 3)
    )
    in_pixels = detection_scores(found, references_from_objects([r["objects"] for r in rows]), forget_classes=[2])
    found = processor.post_process_object_detection(outputs, threshold=0.0)
    in_shares = detection_scores(found, references_from_labels(batch["labels"]), forget_classes=[2])
    assert in_pixels["ap50_forget"] == 1, "all three white cells come first in their images"
    assert 0 < in_pixels["ap50_retain"] < 1
    for category, scores in in_pixels["per_class"].items():
        assert in_shares["per_class"][category] == pytest.approx(scores, abs=1e-4)
