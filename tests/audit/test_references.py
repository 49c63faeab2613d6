"""A reference is what "gone" is measured by: a model that holds the original's knowledge must not pass as one."""

import copy

import pytest
import torch
from datasets import DatasetDict
from errors import refused
from tiny_models import model, rows

from gs_lora_peft import audit_models
from gs_lora_peft.audit import Subject
from gs_lora_peft.audit.retraining.references import check_weights


def changed(original, *parts):
    """A copy in which the parameters of some parts were trained."""
    torch.manual_seed(9)
    other = copy.deepcopy(original)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if any(part in name for part in parts):
                weight += 0.1 * torch.randn_like(weight)
    return other


def check(original, forgotten, *references):
    named = [Subject(f"retrained {number}", "retrained", found) for number, found in enumerate(references, start=1)]
    digests = [str(number) for number in range(2 + len(named))]
    check_weights(
        Subject("original", "original", original), Subject("forgotten", "forgotten", forgotten), named, digests
    )


FORGETTING = ("intermediate", "output.dense")  # what a run leaves merged into the weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("made", "twin"),
    [
        (lambda original, forgotten: changed(forgotten, "classifier.bias"), "the original"),
        (lambda original, forgotten: changed(original, "intermediate"), "the original"),
        (lambda original, forgotten: changed(original, "attention", "dense"), "the original"),
    ],
    ids=["the forgotten model with another bias", "another run", "another run on all layers of the blocks"],
)
def test_a_model_of_the_same_base_is_no_reference(made, twin, dtype):
    original = changed(model(0), "classifier")
    forgotten = changed(original, *FORGETTING)
    with refused("reference") as error:
        check(original, forgotten, made(original, forgotten).to(dtype))
    assert error.value.value.endswith(f"has the weights of {twin}")


def test_a_forgotten_model_whose_head_was_trained_is_no_reference():
    """Nor are two references of one training, where only a few tensors differ."""
    original = model(0)
    forgotten = changed(original, "")
    with refused("reference") as error:
        check(original, forgotten, changed(forgotten, "embeddings"))
    assert error.value.value.endswith("has the weights of the forgotten model")
    with refused("reference") as error:
        check(original, forgotten, model(2), changed(model(2), "embeddings"))
    assert error.value.value.endswith("has the weights of retrained 1")


@pytest.mark.parametrize(
    "trained",
    [("classifier",), ("classifier", "attention"), ("vit",), ("",)],
    ids=["above a frozen backbone", "above frozen embeddings", "below a fixed head", "everything"],
)
def test_an_honest_reference_is_accepted(trained):
    """What the original has of a pre-trained backbone, an honest reference may have, too."""
    original = model(0)
    check(original, changed(original, *FORGETTING), changed(original, *trained))


def test_a_forgotten_model_under_another_name_is_refused_before_any_attack():
    original = model(0)
    forgotten = changed(original, *FORGETTING)
    with refused("reference"):
        data = DatasetDict(train=rows(48, 0), test=rows(24, 1))
        audit_models(original, forgotten, data, [1, 3], reference=changed(forgotten, "classifier.bias"), attacks=[])
