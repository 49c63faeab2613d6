"""Attacks on detectors find planted knowledge, find nothing in random weights, and read what the class head reads."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from detection_cases import PLACES, annotated, forgetter, knowing_yolos, own_findings, processor
from detectors import DETECTORS, MIXED, detector, joint_batch
from errors import refused

from gs_lora_peft import ForgetRequest, audit_models, audit_run
from gs_lora_peft.audit import AuditContext, Samples, Subject
from gs_lora_peft.audit.attacks.detection import (
    ClassAgnosticRecall,
    DetectorAnswer,
    ProposalAnswer,
    RetrainedClassHead,
    _drawn,
)
from gs_lora_peft.audit.attacks.detector_states import DetectorStates
from gs_lora_peft.data import default_collator
from gs_lora_peft.objectives import DetectionCriterion, HeadRecorder, matched_by_boxes
from gs_lora_peft.roles import ClassRoles

FORGOTTEN = 1
ATTACKS = (
    DetectorAnswer(resamples=5),
    ProposalAnswer(resamples=5),
    ClassAgnosticRecall(),
    RetrainedClassHead(boxes=(4,), draws=2, resamples=5),
)
OPTIONS = {"label_column": "objects", "processing_class": processor(), "disable_tqdm": True}


def silenced(how):
    """The detector that knows everything, with a class head that does not name one category any more."""
    model = knowing_yolos()
    head = model.class_labels_classifier.layers[-1]
    with torch.no_grad():
        if how == "offset":
            head.bias[FORGOTTEN] -= 50
        else:
            order = [0, 2, 1, 3, 4]  # another category answers for it
            head.weight.copy_(head.weight[order])
            head.bias.copy_(head.bias[order])
    return model


def figures(report):
    return {
        (attack.name, model, found.setting): found.value
        for attack in report.attacks
        for model, listed in attack.measurements.items()
        for found in listed
    }


@pytest.mark.parametrize("how", ["offset", "permuted"])
def test_a_silent_head_is_seen_through_and_random_weights_give_nothing(how):
    report = audit_models(knowing_yolos(), silenced(how), own_findings(), [FORGOTTEN], attacks=ATTACKS, **OPTIONS)
    found = figures(report)
    assert found["detector_answer", "original", "AP"] == pytest.approx(100)
    assert found["detector_answer", "forgotten", "AP"] < 1
    assert ("proposal_answer", "forgotten", "AP") not in found  # a YOLOS has no proposals
    for setting in ("4 boxes", "all boxes"):
        assert found["class_head", "forgotten", setting] > 95
        assert found["class_head", "random weights", setting] < 5
    assert found["class_agnostic_recall", "forgotten", "IoU 0.5"] == 100
    assert found["class_agnostic_recall", "random weights", "IoU 0.5"] < 5
    assert report.gap.points > 90


@pytest.mark.parametrize(("share", "is_refused"), [(1.0, True), (0.0, False)])
def test_a_reference_that_knows_a_forgotten_category_is_refused(share, is_refused):
    """Beside it everything would look forgotten. Another threshold of its answers is no excuse; ignorance is."""
    reference = knowing_yolos()
    head = reference.class_labels_classifier.layers[-1]
    with torch.no_grad():
        head.weight *= 1.01
        head.bias[-1] += 3  # less confident: nothing is answered with over 50 %
        head.weight[FORGOTTEN] *= share
        head.bias[FORGOTTEN] -= 20 * (1 - share)
    options = {"reference": reference, "attacks": [DetectorAnswer(resamples=5)], **OPTIONS}
    with refused("reference") if is_refused else nullcontext() as error:
        audit_models(knowing_yolos(), silenced("offset"), own_findings(), [FORGOTTEN], **options)
    assert not is_refused or "recognises 100%" in error.value.value


@pytest.mark.parametrize("name", DETECTORS)
def test_each_object_is_answered_by_the_box_on_it(name):
    """Whatever the head is: softmax with a background, or a sigmoid for each category."""
    states = DetectorStates.of(Subject("original", "original", detector(name)), _samples(2))
    states.logits.fill_(-9.0)
    for image, label in enumerate(states.labels):
        label["class_labels"] = torch.tensor([2, 1])
        states.boxes[image, 2:] = torch.tensor([0.9, 0.9, 0.01, 0.01])
        states.boxes[image, :2] = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]])
        label["boxes"] = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.6, 0.3, 0.2, 0.2]])  # no box is on the second
        states.logits[image, 0, 2] = 1.0
        states.logits[image, 1:, 0] = 5.0
    labels, given = states.answers()
    assert labels.tolist() == [2, 1, 2, 1]
    assert given.tolist() == [2, -1, 2, -1]


def test_what_is_gone_from_the_states_is_not_found_by_a_new_head():
    """Each forgotten object's query reads as the background does; its box stays."""
    model, states = knowing_yolos(), DetectorStates.of
    samples = _samples()
    known = states(Subject("original", "original", model), samples)
    gone = copy.deepcopy(known)
    gone.states[:, [1, 5]] = gone.states[:, [0]]  # the queries of the category, as another category's
    mask = [torch.ones(len(label["boxes"])).bool() for label in gone.labels]
    attack = RetrainedClassHead()
    for subject, expected in ((known, True), (gone, False)):
        answers = attack._answers(subject, subject, dict(enumerate(mask)), [FORGOTTEN])[:, :, FORGOTTEN]
        assert (answers[:, 1] > answers[:, 0] + 1).all() == expected


def _samples(count=4):
    data = own_findings()["train"].select(range(count))
    return Samples(data, default_collator(processor(), "objects", data), "objects")


@pytest.mark.parametrize("name", DETECTORS)
def test_the_states_are_those_from_which_the_head_answers(name):
    model, samples = detector(name), _samples(2)
    states = DetectorStates.of(Subject("original", "original", model), samples)
    assert DetectorStates.of(Subject("original", "original", model), samples) is not states
    assert states.states.shape[:2] == states.logits.shape[:2] == states.boxes.shape[:2]
    with torch.no_grad():
        linears = HeadRecorder(model).linears
        answers = [linear(states.states) for linear in linears if linear.in_features == states.states.shape[2]]
    assert any(
        found.shape == states.logits.shape and torch.allclose(found, states.logits, atol=1e-5) for found in answers
    )
    known = {image: torch.ones(len(label["boxes"])).bool() for image, label in enumerate(states.labels)}
    answered = RetrainedClassHead(steps=2)._answers(states, states, known, [FORGOTTEN])
    assert answered.shape == states.logits.shape
    assert not answered.isnan().any()


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_queries_on_annotations_that_are_not_known_take_no_part(name):
    batch = joint_batch(MIXED)
    model = detector(name)
    with torch.no_grad():
        outputs = model(pixel_values=batch["pixel_values"])
    labels = batch["labels"]
    every = [torch.ones(len(label["boxes"])).bool() for label in labels]
    some = [mask.clone() for mask in every]
    some[2][1:] = False
    states = torch.arange(4 * outputs.logits.shape[1], dtype=torch.float32).reshape(4, -1, 1)
    full, part = (
        matched_by_boxes(DetectionCriterion(model), states, outputs.pred_boxes, labels, known)
        for known in (every, some)
    )
    of_objects = {float(value) for value in full.logits[full.queries]}
    left_out = {float(value) for value in full.logits} - {float(value) for value in part.logits}
    assert len(left_out) == 2
    assert left_out <= of_objects
    assert len(part.class_labels) == len(full.class_labels) - 2


def test_an_encoder_that_still_names_a_category_is_seen_through():
    """The annotations are what the encoder proposes, and the decoder answers nothing."""
    model, samples = detector("rt_detr"), _samples(3)
    subject = Subject("forgotten", "forgotten", model)
    states = DetectorStates.of(subject, samples)
    logits, boxes = states.proposals
    for image, label in enumerate(states.labels):
        logits[image] = -10.0
        logits[image, 0, FORGOTTEN] = 3.0
        label |= {"boxes": boxes[image, :1], "class_labels": torch.tensor([FORGOTTEN])}
    states.logits.fill_(-10.0)
    context = AuditContext(ClassRoles(forget=[FORGOTTEN], retain=[0]), samples, samples, subject, [])
    (found,) = ProposalAnswer(resamples=2).run(subject, context)
    assert found.value == pytest.approx(100)
    assert ProposalAnswer().run(Subject("a", "original", knowing_yolos()), context) == []


def test_the_answers_do_not_move_the_matching():
    model = detector("rt_detr")
    samples = _samples(2)
    states = DetectorStates.of(Subject("a", "original", model), samples)
    other = copy.deepcopy(states)
    other.logits.neg_()
    known = {image: torch.ones(len(label["boxes"])).bool() for image, label in enumerate(states.labels)}
    answers = [RetrainedClassHead(steps=3)._answers(each, each, known, [FORGOTTEN]) for each in (states, other)]
    assert torch.equal(*answers)


def test_n_boxes_are_n_boxes_of_each_forgotten_category():
    whole = [(place % 2, PLACES[place]) for place in range(6)]  # three boxes each of categories 0 and 1
    data = annotated([[*whole[:4], (2, PLACES[4])]] * 5)
    samples = Samples(data, default_collator(processor(), "objects", data), "objects")
    states = DetectorStates.of(Subject("original", "original", knowing_yolos()), samples)
    drawn = _drawn(states, [0, 1], 3, np.random.default_rng(0))
    for category in (0, 1):
        assert sum(int(mask[states.labels[i]["class_labels"] == category].sum()) for i, mask in drawn.items()) == 3
    assert all(mask[states.labels[image]["class_labels"] == 2].all() for image, mask in drawn.items())
    every = _drawn(states, [0], 100, np.random.default_rng(0))
    assert len(every) == 5


def test_a_run_of_a_detector_is_audited(tmp_path):
    own = forgetter(knowing_yolos(), tmp_path / "run")
    own.forget(ForgetRequest(["bee"]))
    report = audit_run(knowing_yolos(), tmp_path / "run", own_findings(), attacks=ATTACKS, **OPTIONS)
    found = figures(report)
    assert found["detector_answer", "original", "AP"] == pytest.approx(100)
    (entry,) = own.ledger.active_tasks
    assert found["detector_answer", "forgotten", "AP"] == pytest.approx(100 * entry.scores["after"]["ap_forget"])
    assert report.facts["classes"] == {"forgotten": 1, "kept": 3}


def test_attacks_on_classifiers_are_not_tried():
    options = {**OPTIONS, "quick": True}
    report = audit_models(knowing_yolos(), silenced("offset"), own_findings(), [FORGOTTEN], **options)
    assert {attack.name for attack in report.attacks} == {attack.name for attack in ATTACKS}
    assert "linear probe" in report.facts["not_applicable"]


def test_images_are_capped_and_as_many_boxes_as_images_are_not_labels():
    one = annotated([[(0, PLACES[0]), (1, PLACES[1])], []] * 3)
    samples = Samples(one, list, "objects")
    assert samples.labels.shape == (0,)
    assert len(samples.capped(4, np.random.default_rng(0))) == 4


def test_other_category_names_are_refused():
    model = knowing_yolos()
    model.config.id2label = {0: "ant", 1: "cat", 2: "bee", 3: "dog"}
    with refused("'objects': class 1", "bee"):
        audit_models(model, silenced("offset"), own_findings(), [FORGOTTEN], attacks=ATTACKS, **OPTIONS)
