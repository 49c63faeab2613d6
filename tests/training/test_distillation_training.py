"""Distillation in a run: when it acts, against which model, what it holds, and where it is refused."""

import pytest
import torch
from errors import refused
from peft import get_peft_model
from tasks import (
    FORGET,
    adapter_state,
    arguments,
    ffn_trainer,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
    trainer_for,
    two_adapters,
    vit,
)
from torch.nn import functional as F

from gs_lora_peft import GSLoraConfig, NonFiniteLossError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.objectives import (
    ClassificationObjective,
    DistillationObjective,
    PrototypeObjective,
    distillation_loss,
)

MISSING = 3


def without_missing(**changes):
    """The retain set lacks a class that is to be kept."""
    return {"retain_dataset": samples((0, 1, 2), seed=1), "missing_classes": [MISSING], **changes}


def logits_of(model, rows):
    model.eval()
    with torch.no_grad():
        return model(pixel_values=rows["pixel_values"]).logits


@pytest.mark.parametrize(
    ("weight", "kwargs", "expected"),
    [
        ("auto", {}, None),
        ("auto", without_missing(), 1.0),
        (0.0, without_missing(), None),
        ("0.3", without_missing(), 0.3),
        (0.2, {}, 0.2),
        # Not named, but the head knows it.
        ("auto", {"retain_dataset": samples((0, 1, 2), seed=1)}, 1.0),
        ("auto", {"retain_dataset": samples((0, 1, 2), seed=1), "old_classes": [MISSING]}, None),
    ],
)
def test_acts_by_itself_where_classes_have_no_data(tmp_path, weight, kwargs, expected):
    """A user who names missing classes wants them kept; nobody else pays for a second forward."""
    objective = trainer_for(peft_vit(), tmp_path, kwargs=kwargs, distillation_weight=weight).objective
    if expected is None:
        assert isinstance(objective, ClassificationObjective)
    else:
        assert isinstance(objective, DistillationObjective)
        assert (objective.weight, objective.excluded_classes, objective.adapter) == (expected, list(FORGET), "default")
        # Classes without data are seen on the half to forget, too; the forgetting term has it to itself otherwise.
        assert objective.retain_only == (not kwargs)


def test_what_is_said_of_classes_that_stay_is_held(tmp_path):
    """On images of the classes that go, too, which go all the same."""

    def moved(weight):
        model, rows = peft_vit(r=8), forget_set()[:]
        earlier = logits_of(model, rows)
        settings = {"forget_weight": 1.0, "forget_loss": "log_odds", "num_train_epochs": 20, "learning_rate": 2e-2}
        trainer_for(model, tmp_path, kwargs=without_missing(), distillation_weight=weight, **settings).train()
        now = logits_of(model, rows)
        assert not (now.argmax(-1) == rows["label"]).any()
        return distillation_loss(now, earlier, FORGET).item()

    assert moved(10.0) < moved(0.0) / 4


@pytest.mark.parametrize("retain_only", [False, True])
@pytest.mark.parametrize(("build", "adapter"), [(peft_vit, "default"), (two_adapters, "task_002")])
def test_is_held_at_the_model_before_the_task(tmp_path, build, adapter, retain_only):
    """With earlier adapters, without dropout, and without the adapter that trains, whatever it holds by then."""
    model = build(dropout=0.4)
    trainer = trainer_for(model, tmp_path, distillation_weight=1.0)
    trainer.objective.retain_only = retain_only
    expected = build()
    batch = {
        "pixel_values": samples()[:]["pixel_values"],
        "labels": samples()[:]["label"],
        "interpolate_pos_encoding": False,  # of no sample in particular
    }
    with torch.no_grad():
        before = expected(pixel_values=batch["pixel_values"]).logits
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.5)
    flags = [p.requires_grad for p in model.parameters()]
    model.train()
    torch.manual_seed(1)
    found = trainer.objective.training_step(model, batch)
    torch.manual_seed(1)
    plain = trainer.objective.objective.training_step(model, batch)
    stays = [c for c in range(6) if c not in FORGET]
    rows = len(before) // 2 if retain_only else len(before)
    now = plain.logits[:rows, stays].log_softmax(1)
    distillation = F.kl_div(now, before[:rows, stays].log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(found.loss, plain.loss + distillation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.metrics["distillation"], distillation.detach(), rtol=1e-5, atol=1e-6)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert trainer.adapter_name == adapter


def test_together_with_prototypes(tmp_path):
    """The second forward does not count as the one that embeddings are caught in; both parts are logged."""
    trainer = trainer_for(
        peft_vit(), tmp_path, distillation_weight=0.5, prototype_retain_weight=0.1, logging_strategy="epoch"
    )
    assert isinstance(trainer.objective.objective, PrototypeObjective)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["distillation"] > 0
    assert logged["retain_distance"] > 0


def test_what_was_forgotten_before_is_held_as_forgotten(tmp_path):
    """Only the classes of this request are free: an old class's logits could otherwise rise without a price."""
    kwargs = {"retain_dataset": samples((0, 1, 2), seed=1), "old_classes": [MISSING]}
    objective = trainer_for(peft_vit(), tmp_path, kwargs=kwargs, distillation_weight=1.0).objective
    assert objective.excluded_classes == list(FORGET)


def test_nothing_is_held_where_one_class_is_left(tmp_path):
    """The term would be 0 at every step and cost a forward."""
    model = get_peft_model(vit(num_labels=2), GSLoraConfig(r=2))
    sets = {"forget_dataset": samples((1,), seed=1), "retain_dataset": samples((0,), seed=1)}
    objective = trainer_for(model, tmp_path, kwargs=sets, distillation_weight=1.0).objective
    assert isinstance(objective, ClassificationObjective)


def test_a_loss_that_is_nan_by_distillation_alone_stops_the_run(tmp_path):
    """Both halves' losses and the gradient may be finite then; nothing else would notice."""
    trainer = trainer_for(peft_vit(), tmp_path, distillation_weight=1.0)
    before = adapter_state(trainer.model)
    inner = trainer.objective.training_step

    def broken(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.loss = output.loss + torch.tensor(torch.nan)
        return output

    trainer.objective.training_step = broken
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert (caught.value.step, caught.value.quantities) == (1, ("loss",))
    after = adapter_state(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bf16", [False, True])
def test_every_matrix_learns_under_autocast(tmp_path, bf16):
    """Also with a second forward without gradient in the same step, checkpointing and accumulation."""
    settings = {"bf16": bf16, "gradient_checkpointing": True, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = trainer_for(peft_vit(), tmp_path, distillation_weight=1.0, **settings)
    before = adapter_state(trainer.model)
    trainer.train()
    after = adapter_state(trainer.model)
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("weight", [-1, "nan", "much", None])
def test_bad_weights_are_refused(tmp_path, weight):
    """By name, before anything is built."""
    with pytest.raises(InvalidInputError) as caught:
        arguments(tmp_path, distillation_weight=weight)
    assert caught.value.name == "distillation_weight"


def test_refused_without_an_adapter(tmp_path):
    """The baseline changes the model itself: there is no earlier one to compare with."""
    sets = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    with refused("distillation_weight", 0.5):
        ffn_trainer(knowing_vit(), arguments(tmp_path, "ffn", distillation_weight=0.5), **sets)
