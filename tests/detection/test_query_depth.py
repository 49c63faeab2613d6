"""Forgetting in depth for detectors: which queries are drawn where, against a slow reference."""

import pytest
import torch
from detectors import DETECTORS, MIXED, TIED, detector, joint_batch
from errors import refused
from peft import get_peft_model
from torch.nn import functional as F

from gs_lora_peft import GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.objectives import captured_states, corners_of, objective_for
from gs_lora_peft.objectives.detection.by_boxes import match_by_boxes
from gs_lora_peft.objectives.detection.depth import (
    OVERLAP,
    QueryDepthObjective,
    _Queries,
    _to_other_tokens,
    query_blocks,
)
from gs_lora_peft.roles import ClassRoles

ROLES = ClassRoles(forget=[3], retain=[0, 1, 2])


def made(model, **changes):
    args = GSLoraTrainingArguments("not-used", use_cpu=True, **{"depth_weight": 2.0, **changes})
    return objective_for(model, args, roles=ROLES)


def adapted(name):
    return get_peft_model(detector(name), GSLoraConfig(r=4))


def overlap(one, other):
    (a, b), (x0, y0, x1, y1) = (corners_of(one), corners_of(other)), range(4)
    sides = [min(a[end], b[end]) - max(a[start], b[start]) for start, end in ((x0, x1), (y0, y1))]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr", "yolos"])
def test_the_terms_are_those_of_a_slow_reference(name):
    model, batch = adapted(name), joint_batch(MIXED)
    objective = made(model, depth_target="mean", depth_retain_weight=3.0)
    plain = made(model, depth_weight=0.0)
    plain.learn_forgotten_boxes = False
    with torch.no_grad():
        for module, parameter in model.named_parameters():
            if "lora_B" in module:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(module)))
    found = objective.training_step(model, batch)
    forwards = []
    for acts in (True, False):
        with torch.no_grad(), captured_states(model, query_blocks(model)) as captured:
            if acts:
                boxes = model(pixel_values=batch["pixel_values"]).pred_boxes
            else:
                with model.disable_adapter():
                    boxes = model(pixel_values=batch["pixel_values"]).pred_boxes
        states = [F.layer_norm(x[:, -boxes.shape[1] :], x.shape[-1:]) for x in captured.outputs.values()]
        forwards.append((boxes, states, match_by_boxes(plain.criterion, boxes, batch["labels"])))
    (boxes, now, pairs), (boxes_before, before, pairs_before) = forwards
    depth, kept = [], []
    for image, label in enumerate(batch["labels"]):
        matched, matched_before = (
            dict(zip(*(x.tolist() for x in p[image]), strict=True)) for p in (pairs, pairs_before)
        )
        background = [
            q
            for q in range(boxes.shape[1])
            if q not in matched_before and all(overlap(boxes_before[image, q], b) < OVERLAP for b in label["boxes"])
        ]
        for query in range(boxes.shape[1]):
            gone = [overlap(boxes[image, query], box) >= OVERLAP for box in label["boxes"][label["forget"]]]
            of_match = bool(label["forget"][matched[query]]) if query in matched else None
            if (of_match if query in matched else any(gone)) and background:
                depth += [
                    (s[image, query] - t[image, background].mean(0)).square().mean()
                    for s, t in zip(now, before, strict=True)
                ]
            if of_match is False:
                same = [q for q, o in matched_before.items() if o == matched[query]]
                kept += [
                    (s[image, query] - t[image, q]).square().mean()
                    for s, t in zip(now, before, strict=True)
                    for q in same
                ]
    torch.testing.assert_close(found.metrics["depth"], torch.stack(depth).mean(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.metrics["depth_retain"], torch.stack(kept).mean(), atol=1e-6, rtol=1e-4)
    forgetting = found.metrics["depth"] + found.metrics.get("depth_proposals", 0)
    expected = plain.training_step(model, batch).loss + 2 * forgetting + 3 * found.metrics["depth_retain"]
    torch.testing.assert_close(found.loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - TIED))
def test_every_detector_gets_a_gradient_of_its_adapter(name):
    model, batch = adapted(name), joint_batch(MIXED)
    found = made(model).training_step(model, batch)
    found.loss.backward()
    gradients = [
        p.grad for n, p in model.named_parameters() if "lora_B" in n and "decoder" in n and p.grad is not None
    ]
    assert gradients or name == "yolos"
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert found.metrics["depth_retain"] == 0  # nothing has moved yet


def test_a_batch_without_objects_to_forget_has_no_term():
    model, batch = adapted("rt_detr"), joint_batch(([0, 1], [2], [1], []))
    found = made(model).training_step(model, batch)
    assert found.metrics["depth"] == 0
    assert found.loss.isfinite()


@pytest.mark.parametrize(("name", "value"), [("depth_target", "transport"), ("depth_radius", 0.05)])
def test_options_for_classifiers_are_refused(name, value):
    """A query has its targets in its own image."""
    with refused(name, value):
        made(adapted("rt_detr"), **{name: value})


def test_two_processes_divide_by_the_mean_number_of_queries():
    model, batch = adapted("rt_detr"), joint_batch(MIXED)
    objective = made(model, depth_target="mean")
    counts = []

    def doubled(tensor):
        counts.append(tensor)
        return 2 * tensor if tensor.ndim == 0 else tensor

    alone, shared = (objective.training_step(model, batch, mean).metrics["depth"] for mean in (lambda x: x, doubled))
    torch.testing.assert_close(shared, alone / 2)


def test_proposals_on_forgotten_objects_are_drawn_to_tokens_that_were_not_proposed():
    tokens = torch.arange(5.0).reshape(1, 5, 1).repeat(2, 1, 1) + torch.tensor([0.0, 10.0])[:, None, None]
    chosen = torch.tensor([[0, 1, 2], [4, 3, 2]])
    seen = _Queries(
        [torch.zeros(6, 1)], torch.tensor([[True, False, True], [False, True, False]]), torch.ones(2, 3).bool(),
        torch.full((2, 3), -1),
    )  # fmt: skip
    gone, targets = _to_other_tokens(seen, tokens, chosen)
    assert gone.tolist() == [0, 2, 4]
    assert set(targets[:2].flatten().tolist()) <= {3.0, 4.0}
    assert targets[2].item() in (10.0, 11.0)
    assert _to_other_tokens(seen, tokens[:, :3], torch.tensor([[0, 1, 2], [0, 1, 2]]))[0].tolist() == []


@pytest.mark.parametrize("name", ["rt_detr", "yolos"])
def test_only_detectors_with_proposals_have_that_term(name):
    model = adapted(name)
    found = made(model).training_step(model, joint_batch(MIXED))
    assert ("depth_proposals" in found.metrics) == (name == "rt_detr")


def test_the_blocks_are_those_of_the_decoder_or_chosen_ones():
    model = adapted("rt_detr")
    assert query_blocks(model) == ["model.decoder.layers.0", "model.decoder.layers.1"]
    assert len(query_blocks(adapted("yolos"))) == 2
    assert made(model, depth_blocks=r"layers\.1$").blocks == ["model.decoder.layers.1"]
    with refused("depth_blocks"):
        made(model, depth_blocks="aifi")


def test_without_an_adapter_the_earlier_model_is_gone():
    args = GSLoraTrainingArguments("not-used", use_cpu=True, depth_weight=1.0)
    with refused("depth_weight", 1.0):
        objective_for(detector("rt_detr"), args, roles=ROLES, adapter=None)


def test_an_adapter_in_front_of_the_decoder_is_warned_of(monkeypatch):
    """There the term breaks the categories to keep (docs/audit.md)."""
    for pattern, warned in ((None, True), ("decoder", False)):
        model = get_peft_model(detector("rt_detr"), GSLoraConfig(r=4, block_pattern=pattern))
        said = []
        monkeypatch.setattr("gs_lora_peft.objectives.detection.depth.logger.warning", said.append)
        made(model)
        assert bool(said) is warned


def test_without_depth_nothing_changes():
    objective = made(adapted("rt_detr"), depth_weight=0.0)
    assert not isinstance(objective, QueryDepthObjective)
    assert objective.learn_forgotten_boxes
