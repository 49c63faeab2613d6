"""A detector's answers become detections as its image processor makes them, and scores as COCO defines them."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from detection_cases import NUM_LABELS, detector
from detectors import DETECTORS
from errors import refused
from PIL import Image

from gs_lora_peft import GSLoraTrainingArguments
from gs_lora_peft.data import DetectionCollator
from gs_lora_peft.metrics.boxes import references_from_labels
from gs_lora_peft.metrics.detection import detection_scores
from gs_lora_peft.metrics.scores import ACCURACY, AVERAGE_PRECISION, measure_of
from gs_lora_peft.objectives import ClassificationObjective, DetectionObjective, PrototypeObjective, objective_for
from gs_lora_peft.objectives.detection.scoring import DetectionScoring
from gs_lora_peft.roles import ClassRoles

PROCESSORS = {
    "detr": "Detr",
    "conditional_detr": "ConditionalDetr",
    "dab_detr": "ConditionalDetr",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetr",
    "d_fine": "RTDetr",
    "yolos": "Yolos",
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_those_of_the_image_processor(name):
    """With every kind of head: the same boxes, categories and scores, in the same order; 40 queries make more than
    the hundred detections that some processors stop at."""
    scoring = DetectionObjective(detector(name), 1.0).scoring
    generator = torch.Generator().manual_seed(0)
    width = NUM_LABELS + (1 if scoring.is_softmax else 0)
    logits = torch.randn(2, 40, width, generator=generator)
    boxes = torch.rand(2, 40, 4, generator=generator)
    kind = getattr(transformers, f"{PROCESSORS.get(name, 'DeformableDetr')}ImageProcessor")
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    expected = kind().post_process_object_detection(outputs, threshold=0.0)
    for mine, theirs in zip(scoring.detections(logits, boxes), expected, strict=True):
        assert len(theirs["scores"]) in (40, 100)
        for key in ("scores", "labels", "boxes"):
            assert torch.equal(mine[key], theirs[key])


@pytest.mark.parametrize("name", ["yolos", "deformable_detr"])
def test_scores_of_gathered_batches(name):
    """Whatever the numbers of detections and objects, batches put together and filled up score as the whole does."""
    generator = torch.Generator().manual_seed(1)
    scoring = DetectionScoring(is_softmax=name == "yolos", max_detections=None)
    parts, found, references = [], [], []
    for images in (3, 1, 2):
        logits, boxes = torch.randn(images, 4, NUM_LABELS + 1, generator=generator), torch.rand(images, 4, 4)
        labels = [
            {
                "class_labels": torch.randint(NUM_LABELS, (number,), generator=generator),
                "boxes": boxes[number, :number],
            }
            for number in range(images)
        ]
        parts.append(scoring.gathered((logits, boxes), labels))
        found += scoring.detections(logits, boxes)
        references += references_from_labels(labels)
    packed = [torch.cat(list(_filled(side))).numpy() for side in zip(*parts, strict=True)]
    roles = ClassRoles(forget=[0], retain=[1, 2], old=[3])
    expected = detection_scores(
        found, references, forget_classes=[0], retain_classes=[1, 2], old_classes=[3], ap_forget_before=0.5
    )
    mine = scoring.by_role(*packed, roles, 0.5)
    per_class = expected.pop("per_class")
    assert mine == expected
    assert {category: sum_ / weight for category, (sum_, weight) in scoring.by_class(*packed).items()} == {
        category: values["ap"] for category, values in per_class.items() if values["n"]
    }


def test_what_is_found_in_a_crowd_counts_for_nothing():
    """As COCO has it: neither as found nor as wrong; the ledger's scores are then those of the official evaluation."""
    scoring = DetectionScoring(is_softmax=False)
    boxes = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    logits = torch.tensor([[[2.0], [3.0]]])  # surer in the crowd than of the object
    label = {"class_labels": torch.tensor([0]), "boxes": boxes[0, :1]}
    crowd = {"crowd_labels": torch.tensor([0]), "crowd_boxes": torch.tensor([[0.7, 0.7, 0.4, 0.4]])}
    for labels, ap in (([label], 0.5), ([{**label, **crowd}], 1.0)):
        packed = [part.numpy() for part in scoring.gathered((logits, boxes), labels)]
        assert scoring.by_class(*packed) == {0: (pytest.approx(ap), 1)}


@pytest.mark.parametrize("name", ["Detr", "DeformableDetr"])
def test_scores_do_not_depend_on_the_batches(name):
    """A model that finds everything, in images of two sizes: it says where in the image, whatever was padded to it."""
    rows = [
        {"image": Image.new("RGB", size), "objects": {"bbox": [[2, 4, 30, 20]], "category": [1]}}
        for size in ((64, 32), (32, 64))
    ]
    boxes = torch.tensor([[[17 / 64, 14 / 32, 30 / 64, 20 / 32]], [[17 / 32, 14 / 64, 30 / 32, 20 / 64]]])
    logits = torch.tensor([[[-9.0, 9.0]]] * 2)
    processor = getattr(transformers, f"{name}ImageProcessor")(size={"shortest_edge": 64, "longest_edge": 128})
    collate, scoring = DetectionCollator(processor), DetectionScoring(is_softmax=False)
    for batch in (rows, rows[:1]):
        outputs = logits[: len(batch)], boxes[: len(batch)]
        packed = [part.numpy() for part in scoring.gathered(outputs, collate(batch)["labels"])]
        assert scoring.by_class(*packed) == {1: (pytest.approx(1.0), 1)}


def _filled(tensors):
    longest = max(tensor.shape[1] for tensor in tensors)
    for tensor in tensors:
        yield torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1]), value=-100.0)


def test_the_objective_follows_from_the_model():
    """A detector has its own objective, with what the arguments say; its prototypes look at no sample."""
    args = GSLoraTrainingArguments("x", forget_weight=0.3, background="others", prototype_forget_weight=0.2)
    objective = objective_for(detector("yolos"), args)
    assert isinstance(objective, DetectionObjective)
    assert (objective.forget_weight, objective.background, objective.kind) == (0.3, "others", "log_odds")
    assert (objective.forget_bound, objective.prototype_forget_weight) == (15.0, 0.2)
    assert objective.scoring.measure == AVERAGE_PRECISION
    args = GSLoraTrainingArguments("x", prototype_forget_weight=0.2, prototype_augmentations=3)
    with refused("prototype_augmentations", 3):
        objective_for(detector("yolos"), args)
    with refused("distillation_weight", 0.5):
        objective_for(detector("yolos"), GSLoraTrainingArguments("x", distillation_weight=0.5))
    classifier = transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    assert isinstance(objective_for(classifier, GSLoraTrainingArguments("x")), ClassificationObjective)
    objective = objective_for(classifier, args)
    assert isinstance(objective, PrototypeObjective)
    assert objective.scoring.measure == ACCURACY


def test_measures_are_told_by_their_names():
    """Ledgers of classifiers, of detectors, and without scores."""
    assert measure_of({"acc_forget": 1.0, "h_mean": 0.5}) == ACCURACY
    assert measure_of({}, {"ap_retain": None}) == AVERAGE_PRECISION
    assert measure_of() == ACCURACY
    assert AVERAGE_PRECISION.symbol_of("old") == "AP_o"
