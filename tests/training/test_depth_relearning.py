"""A simulated step of relearning: its size and direction, and forgetting in depth behind it."""

import copy

import pytest
import torch
from errors import refused
from tasks import knowing_vit, peft_vit, samples, trainer_for
from torch.nn import functional as F

from gs_lora_peft import GSLoraTrainingArguments
from gs_lora_peft.objectives import block_paths, logits_of
from gs_lora_peft.objectives.relearning import relearned_weights, with_weights


def to_forget(classes=(4, 5), count=6):
    rows = samples(classes, count, seed=5)[:]
    return {"pixel_values": rows["pixel_values"], "labels": rows["label"]}


def changed_adapter(model):
    generator = torch.Generator().manual_seed(3)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_every_frozen_matrix_of_the_blocks_takes_a_step_of_the_relative_size():
    """Attention too, though it is not adapted; the adapter, embeddings and head stay."""
    model, inputs = changed_adapter(peft_vit()), to_forget()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    after = relearned_weights(model, block_paths(model), inputs, 0.05)
    matrices = [
        name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2 and "lora_" not in name
    ]
    assert sorted(after) == sorted(matrices)
    assert any("attention" in name for name in after)
    for name, weight in after.items():
        assert (weight - before[name]).norm().item() == pytest.approx(0.05 * before[name].norm().item(), rel=1e-4)
        assert not weight.requires_grad
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_step_is_that_of_the_model_with_the_adapter_merged():
    """By autograd on a merged copy in float64, whose weights are leaves: the attacker has one model."""
    model, inputs = changed_adapter(peft_vit()), to_forget()
    found = relearned_weights(model, ["vit.layers.1"], inputs, 0.1)
    merged = copy.deepcopy(model).double().merge_and_unload().eval()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    F.cross_entropy(merged(inputs["pixel_values"].double()).logits, inputs["labels"]).backward()
    names = dict(merged.named_parameters())
    for name, weight in found.items():
        path = name.removeprefix("base_model.model.").replace(".base_layer", "")
        start = dict(model.named_parameters())[name].detach()
        step = weight - start
        expected = -0.1 * start.norm() * names[path].grad / names[path].grad.norm()
        torch.testing.assert_close(step, expected.float(), rtol=1e-3, atol=1e-6)


def test_a_step_recovers_what_was_silenced():
    """So that it is what an attacker does: the loss on the true labels falls."""
    model, inputs = knowing_vit(), to_forget()
    with torch.no_grad():
        model.classifier.bias[4:] -= 8.0
    model.requires_grad_(False).eval()

    def loss(changed):
        return F.cross_entropy(logits_of(changed, inputs), inputs["labels"]).item()

    before = loss(model)
    weights = relearned_weights(model, block_paths(model), inputs, 0.05)
    assert with_weights(model, weights, loss) < before - 0.1
    assert loss(model) == before


def test_training_lowers_the_term_behind_a_step(tmp_path):
    """It reaches the adapter through the weights behind the step, and is logged."""
    settings = {"num_train_epochs": 12, "learning_rate": 3e-2, "logging_strategy": "epoch", "forget_weight": 0.1}
    trainer = trainer_for(
        peft_vit(r=8), tmp_path, depth_weight=2.0, depth_target="mean", depth_radius=0.05, **settings
    )
    trainer.train()
    logged = [row["depth_relearned"] for row in trainer.state.log_history if "depth_relearned" in row]
    assert len(logged) == 12
    assert logged[-1] < 0.5 * logged[0]


def test_the_term_is_added_with_the_same_weight(tmp_path):
    model, inputs = peft_vit().eval(), to_forget((0, 1, 4, 5), 3)
    objective = trainer_for(model, tmp_path, depth_weight=2.0, depth_target="mean").task_objective
    objective.scales = [torch.ones(16)] * 6
    plain = objective.training_step(model, inputs)
    objective.radius = 0.05
    added = objective.training_step(model, inputs)
    expected = plain.loss + 2.0 * added.metrics["depth_relearned"]
    torch.testing.assert_close(added.loss, expected)
    assert added.metrics["depth_relearned"] != added.metrics["depth"]
    assert "depth_relearned" not in plain.metrics


def test_a_sure_model_takes_no_larger_step():
    """Its gradient is so small that its squares underflow."""
    model, inputs = knowing_vit(), to_forget()
    with torch.no_grad():
        model.classifier.weight *= 30
    model.requires_grad_(False).eval()
    before = dict(model.named_parameters())
    for name, weight in relearned_weights(model, block_paths(model), inputs, 0.05).items():
        step = ((weight - before[name]).norm() / before[name].norm()).item()
        assert step == pytest.approx(0.05, rel=1e-3) or step == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_that_the_model_switched_on_are_refused(tmp_path, reentrant):
    model = peft_vit()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with refused("depth_radius", 0.05):
        trainer_for(model, tmp_path, depth_weight=1.0, depth_radius=0.05)


def test_under_autocast_every_matrix_learns(tmp_path):
    model = peft_vit()
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = trainer_for(model, tmp_path, depth_weight=1.0, depth_radius=0.05, bf16=True, max_steps=3)
    trainer.train()
    assert not any(p.equal(before[name]) for name, p in model.named_parameters() if name in before)


@pytest.mark.parametrize("settings", [{}, {"depth_weight": 1.0, "gradient_checkpointing": True}])
def test_where_it_cannot_act(settings):
    """Checkpointing would run the blocks again with the weights before the step."""
    with refused("depth_radius", 0.05):
        GSLoraTrainingArguments("out", use_cpu=True, depth_radius=0.05, **settings)


@pytest.mark.parametrize("bad", [-0.1, 1.0, True, "0.05"])
def test_values_out_of_range(bad):
    with refused("depth_radius", bad):
        GSLoraTrainingArguments("out", use_cpu=True, depth_weight=1.0, depth_radius=bad)
