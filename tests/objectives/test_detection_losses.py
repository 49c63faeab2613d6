"""The loss of a detector's joint batch: equal to what the detector says, on one process and on many."""

import math
from collections.abc import Callable

import pytest
import torch
from detectors import DETECTORS, MIXED, NUM_LABELS, NUM_QUERIES, detector, joint_batch
from errors import refused
from torch import Tensor, nn

from gs_lora_peft.objectives.detection.objective import DetectionObjective
from gs_lora_peft.objectives.heads import is_detector

# One for each kind of class loss: softmax, focal, varifocal with and without clamped boxes.
KINDS = ["detr", "deformable_detr", "rt_detr", "d_fine"]


@pytest.fixture(scope="module")
def yolos() -> nn.Module:
    """For input that is refused, which leaves the model as it is."""
    return detector("yolos")


def of_kind(labels: list[dict], forget: bool) -> list[dict]:
    return [{name: values[label["forget"] == forget] for name, values in label.items()} for label in labels]


def class_loss(losses: dict[str, Tensor]) -> Tensor:
    return losses["loss_vfl"] if "loss_vfl" in losses else losses["loss_ce"]


def fixed_outputs(seed: int = 0, images: int = 4, classes: int = NUM_LABELS) -> dict[str, Tensor]:
    """Outputs of a forward as leaves, spread so that matching has a clear best."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, NUM_QUERIES, classes, generator=generator)
    boxes = torch.cat([torch.rand(images, NUM_QUERIES, 2, generator=generator)] * 2, 2) * 0.5 + 0.2
    return {"logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()}


def classes_of(model: nn.Module) -> int:
    return NUM_LABELS + (model.loss_function.__name__ == "ForObjectDetectionLoss")


def step(objective: DetectionObjective, outputs: dict[str, Tensor], batch: dict, **options):
    return objective.training_step(lambda **inputs: outputs, batch, **options)


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_equal_two_forwards_of_the_detector(name):
    """One joint forward stands for the detector's own loss on each half, of every family, in eval mode."""
    model, batch = detector(name), joint_batch(MIXED)
    output = DetectionObjective(model, 0.5, 50.0, background="others").training_step(model, batch)
    with torch.no_grad():
        retain, forget = (
            model(pixel_values=batch["pixel_values"][half], labels=of_kind(batch["labels"][half], kind))
            for half, kind in ((slice(2), False), (slice(2, None), True))
        )
    torch.testing.assert_close(output.retain_loss, retain.loss)
    torch.testing.assert_close(output.forget_loss, class_loss(forget.loss_dict))
    boxes = forget.loss - class_loss(forget.loss_dict)
    torch.testing.assert_close(output.metrics["forget_box_loss"], boxes)
    expected = retain.loss + 0.5 * (50 - 2 * output.forget_loss + boxes)
    torch.testing.assert_close(output.loss.detach(), expected)
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in (output.retain_loss, output.forget_loss, *output.metrics.values()))


@pytest.mark.parametrize("name", DETECTORS)
def test_evaluation_is_the_detectors_own_loss(name):
    """Evaluation scores all annotations, needs no `forget`, and gives what post-processing reads."""
    model, batch = detector(name), joint_batch(MIXED[:3])
    for label in batch["labels"]:
        del label["forget"]
    with torch.no_grad():
        expected = model(**batch)
        loss, outputs = DetectionObjective(model, 1.0).evaluation_step(model, batch)
    torch.testing.assert_close(loss, expected.loss)
    assert torch.equal(outputs["logits"], expected.logits)
    assert torch.equal(outputs["pred_boxes"], expected.pred_boxes)


@pytest.mark.parametrize("name", KINDS)
def test_matched_equals_the_detectors_loss_without_the_other_kinds_queries(name):
    """Matching once and splitting the pairs is the same as taking away the queries that found the other kind."""
    model = detector(name)
    objective = DetectionObjective(model, 0.5, 50.0, background="matched")
    batch, outputs = joint_batch([[0, 3, 1], [3, 2, 3]]), fixed_outputs(3, 2, classes_of(model))
    output = step(objective, outputs, batch)
    logits, boxes = outputs["logits"].detach(), outputs["pred_boxes"].detach()
    pairs = objective.criterion.match(logits, boxes, batch["labels"])
    expected = []
    for image, forget in enumerate((False, True)):
        label = batch["labels"][image]
        query, annotation = pairs[image]
        others = set(query[label["forget"][annotation] != forget].tolist())
        assert others
        kept = [q for q in range(NUM_QUERIES) if q not in others]
        own = of_kind([label], forget)
        part = slice(image, image + 1)
        loss, terms, _ = model.loss_function(
            logits[part][:, kept], own, logits.device, boxes[part][:, kept], model.config
        )
        expected.append((loss, class_loss(terms)))
    torch.testing.assert_close(output.retain_loss, expected[0][0])
    torch.testing.assert_close(output.forget_loss, expected[1][1])
    torch.testing.assert_close(output.metrics["forget_box_loss"], expected[1][0] - expected[1][1])
    assert step(DetectionObjective(model, 0.5, background="others"), outputs, batch).retain_loss > output.retain_loss


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("background", ["matched", "others"])
@pytest.mark.parametrize("kind", ["cross_entropy", "log_odds"])
def test_two_processes_give_the_loss_of_their_joint_batch(name, background, kind):
    """Boxes are spread unevenly over processes; each must count as much as on one process, in value and gradient."""
    model = detector(name)
    objective = DetectionObjective(model, 0.5, 9.0, kind, background=background)
    kinds = [[0], [1, 2, 3, 0], [2], [3], [3, 3, 3, 1], []]  # halves of three; the last has nothing to forget
    batch, outputs = joint_batch(kinds), fixed_outputs(1, 6, classes_of(model))
    joint = step(objective, outputs, batch)
    whole = torch.autograd.grad(joint.loss, list(outputs.values()))

    # Each process has the mean of what both bring to a collective; it is found one collective after another.
    shares = ([0, 3], [1, 2, 4, 5])
    means: list[Tensor] = []
    while True:
        results, brought = [], []
        for share in shares:
            calls: list[Tensor] = []

            def exchange(tensor: Tensor, calls: list[Tensor] = calls) -> Tensor:
                calls.append(tensor.clone())
                return means[len(calls) - 1] if len(calls) <= len(means) else tensor

            part = {
                "pixel_values": batch["pixel_values"][share],
                "labels": [batch["labels"][image] for image in share],
            }
            own = {key: value[share] for key, value in outputs.items()}
            results.append(step(objective, own, part, global_mean=exchange))
            brought.append(calls)
        if len(means) == len(brought[0]):
            break
        means.append((brought[0][len(means)] + brought[1][len(means)]) / 2)
    for result in results:
        torch.testing.assert_close(result.retain_loss, joint.retain_loss)
        torch.testing.assert_close(result.forget_loss, joint.forget_loss)
    mean = sum(result.loss for result in results) / 2
    torch.testing.assert_close(mean, joint.loss)
    for one, many in zip(whole, torch.autograd.grad(mean, list(outputs.values())), strict=True):
        torch.testing.assert_close(many, one)


@pytest.mark.parametrize("name", KINDS)
def test_log_odds_move_the_matched_queries_only(name):
    """On the background a bounded class loss asks for false positives; the log-odds leave it alone."""
    model = detector(name)
    batch, outputs = joint_batch([[0], [3]]), fixed_outputs(2, 2, classes_of(model))
    step(DetectionObjective(model, 1.0, 50.0, "log_odds"), outputs, batch).loss.backward()
    gradient = outputs["logits"].grad[1]
    assert (gradient.abs().sum(1) > 0).sum() == 1
    assert gradient[:, 3].sum() > 0  # descent lowers the category's logit

    outputs = fixed_outputs(2, 2, classes_of(model))
    step(DetectionObjective(model, 1.0, 50.0, "cross_entropy"), outputs, batch).loss.backward()
    assert (outputs["logits"].grad[1].abs().sum(1) > 0).sum() == NUM_QUERIES


@pytest.mark.parametrize("kind", ["cross_entropy", "log_odds"])
def test_beyond_the_bound_only_the_boxes_pull(kind):
    """Once forgotten enough, the category is pushed no further, while the object's box is still learned."""
    model = detector("deformable_detr")
    outputs = fixed_outputs(0, 2)
    with torch.no_grad():
        outputs["logits"][1, :, 3] = -90.0
    step(DetectionObjective(model, 1.0, 15.0, kind), outputs, joint_batch([[0], [3]])).loss.backward()
    assert torch.equal(outputs["logits"].grad[1], torch.zeros(NUM_QUERIES, NUM_LABELS))
    assert outputs["pred_boxes"].grad[1].abs().sum() > 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("background", ["matched", "others"])
def test_images_with_nothing_left(name, background):
    """An image to keep without annotations is background; one to forget takes no part; neither makes a NaN."""
    model = detector(name)
    objective = DetectionObjective(model, 1.0, 100.0, background=background)
    outputs = fixed_outputs(4, 4, classes_of(model))
    output = step(objective, outputs, joint_batch([[], [0], [3], [0, 1]]))
    output.loss.backward()
    assert outputs["logits"].grad[0].abs().sum() > 0
    assert outputs["logits"].grad[2].abs().sum() > 0
    assert outputs["logits"].grad[3].abs().sum() == 0
    assert outputs["pred_boxes"].grad[3].abs().sum() == 0

    outputs = fixed_outputs(4, 4, classes_of(model))
    output = step(objective, outputs, joint_batch([[], [], [], []]))
    output.loss.backward()
    assert torch.isfinite(torch.stack([output.loss, *output.metrics.values()])).all()
    assert outputs["logits"].grad[2:].abs().sum() == 0


def test_an_output_that_is_no_number_reaches_the_loss():
    """The trainer stops at a NaN and names the half; matching would raise an error about boxes instead."""
    model = detector("detr")
    for position, value, kind in (
        (0, float("nan"), "cross_entropy"),
        (1, float("inf"), "cross_entropy"),
        (1, float("nan"), "log_odds"),
    ):
        outputs = fixed_outputs(0, 2, NUM_LABELS + 1)
        with torch.no_grad():
            outputs["pred_boxes"][position, 0, 0] = value
        output = step(DetectionObjective(model, 1.0, kind=kind), outputs, joint_batch([[0], [3]]))
        assert [bool(torch.isfinite(loss)) for loss in (output.retain_loss, output.forget_loss)] == [
            position != 0,
            position != 1,
        ]
        assert torch.isnan(output.loss)


@pytest.mark.parametrize("name", ["yolos", "d_fine"])
def test_losses_are_float32_under_autocast(name):
    """Half precision is for the forward; losses of it would be too coarse to compare with a bound."""
    model, batch = detector(name), joint_batch(MIXED)
    objective = DetectionObjective(model, 1.0, prototype_retain_weight=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective.training_step(model, batch)
        logits = model(pixel_values=batch["pixel_values"])["logits"]
    assert logits.dtype == torch.bfloat16
    assert output.loss.dtype == output.metrics["retain_distance"].dtype == torch.float32
    full = objective.training_step(model, batch)
    torch.testing.assert_close(output.retain_loss, full.retain_loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", DETECTORS)
def test_prototypes_are_the_heads_rows(name):
    """Distances are those of what the head reads at the matched queries from the rows of their categories."""
    model, batch = detector(name), joint_batch(MIXED)
    objective = DetectionObjective(
        model, 0.0, prototype_forget_weight=2.0, prototype_retain_weight=3.0, prototype_bound=7.0
    )
    plain = DetectionObjective(model, 0.0).training_step(model, batch)
    output = objective.training_step(model, batch)
    retain, forget = output.metrics["retain_distance"], output.metrics["forget_distance"]
    torch.testing.assert_close(output.loss - plain.loss, 3 * retain + 2 * (7 - forget))

    with objective.recorder.recording() as seen, torch.no_grad():
        outputs = model(pixel_values=batch["pixel_values"])
    if name != "d_fine":  # which adds a quality score to what the head says
        embeddings, weight = seen["embeddings"], seen["weight"]
        bias = next(linear.bias for linear in objective.recorder.linears if linear.weight is weight)
        torch.testing.assert_close(embeddings @ weight.T + bias, outputs["logits"])
    pairs = objective.criterion.match(outputs["logits"], outputs["pred_boxes"], batch["labels"])
    distances: dict[bool, list[Tensor]] = {False: [], True: []}
    for image, (queries, annotations) in enumerate(pairs):
        label, kind = batch["labels"][image], image >= 2
        for query, annotation in zip(queries, annotations, strict=True):
            if label["forget"][annotation] == kind:
                p = seen["weight"][label["class_labels"][annotation]].log_softmax(0)
                q = seen["embeddings"][image, query].log_softmax(0)
                distances[kind].append((p.exp() * (p - q)).sum())
    torch.testing.assert_close(retain, torch.stack(distances[False]).mean().detach())
    torch.testing.assert_close(forget, torch.stack(distances[True]).mean().detach())


def _without(key: str) -> Callable[[dict], None]:
    return lambda batch: batch["labels"][1].pop(key)


def _with(key: str, value: Tensor) -> Callable[[dict], None]:
    return lambda batch: batch["labels"][1].update({key: value})


@pytest.mark.parametrize(
    ("spoil", "name", "value"),
    [
        (lambda batch: batch.pop("labels"), "labels", "NoneType"),
        (lambda batch: batch.update(labels=torch.zeros(4)), "labels", "Tensor"),
        (lambda batch: batch["labels"].pop(), "a joint batch", "4 images and labels for 3"),
        (lambda batch: batch.update(joint_batch(MIXED[:3])), "a joint batch", "3 images and labels for 3"),
        (_without("boxes"), "the labels of image 1 of the batch", ["class_labels", "forget"]),
        (_without("forget"), "the labels of image 1 of the batch", ["boxes", "class_labels"]),
        (_with("boxes", torch.zeros(2, 5)), "the shape of boxes of image 1 of the batch", (2, 5)),
        (_with("forget", torch.zeros(3, dtype=torch.bool)), "the shape of forget of image 1 of the batch", (3,)),
        (_with("forget", torch.zeros(2)), "the dtype of forget of image 1 of the batch", torch.float32),
        (_with("class_labels", torch.tensor([0, NUM_LABELS])), "class_labels", "0 to 4"),
        (_with("class_labels", torch.tensor([-1, 0])), "class_labels", "-1 to 3"),
    ],
)
def test_malformed_batches_are_refused_before_the_forward(yolos, spoil, name, value):
    """Each would fail far from its cause otherwise, on a GPU as an assertion of the device."""
    batch = joint_batch(MIXED)
    spoil(batch)
    with refused(name, value):
        DetectionObjective(yolos, 1.0).training_step(pytest.fail, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"forget_weight": -1.0},
        {"forget_bound": "high"},
        {"kind": "hinge"},
        {"background": "none"},
        {"prototype_bound": math.inf},
        {"prototype_distance": "l1"},
    ],
)
def test_arguments_out_of_range_are_refused(yolos, options):
    """Before any long work starts."""
    with refused(*next(iter(options.items()))):
        DetectionObjective(yolos, **{"forget_weight": 1.0, **options})


def test_what_cannot_be_split_is_refused():
    """A loss function of the user's own, or one of a detector not named, must not be replaced without a word."""
    model = detector("yolos")
    model.loss_function = fixed_outputs
    with refused("the loss function of YolosForObjectDetection", "fixed_outputs"):
        DetectionObjective(model, 1.0)
    model = detector("yolos")
    model.outputs = model.__dict__["_modules"].pop("class_labels_classifier")
    with refused("model", "YolosForObjectDetection"):
        DetectionObjective(model, 1.0, prototype_forget_weight=1.0)
    assert is_detector(model)
    assert not is_detector(nn.Linear(2, 2))
