"""Forgetting in depth in a run: against which model, beside which other options, and where it is refused."""

import dataclasses

import pytest
import torch
from errors import refused
from tasks import (
    adapter_state,
    differences,
    peft_vit,
    retain_set,
    samples,
    trainer_for,
    two_adapters,
)

from gs_lora_peft import GSLoraTrainingArguments
from gs_lora_peft.objectives import ClassificationObjective, DepthObjective, DistillationObjective, PrototypeObjective
from gs_lora_peft.training import adapter_of_recipe

OF_RECIPE = ("depth_weight", "depth_retain_weight", "sparsity", "num_train_epochs")
BLOCKS = [f"vit.layers.{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [({}, BLOCKS), ({"depth_blocks": r"\.[12]$"}, BLOCKS[1:]), ({"depth_target": "mean"}, BLOCKS)],
)
def test_acts_on_the_blocks_that_are_asked_for(tmp_path, settings, blocks):
    objective = trainer_for(peft_vit(), tmp_path, depth_weight=0.5, **settings).task_objective
    assert isinstance(objective, DepthObjective)
    assert isinstance(objective.objective, ClassificationObjective)
    assert (objective.weight, objective.blocks, objective.adapter) == (0.5, blocks, "default")
    assert objective.target == settings.get("depth_target", "sample")


def test_without_it_a_training_is_what_it_was(tmp_path):
    """By default, to the last bit: nothing is drawn and no forward is added."""
    models = [peft_vit(dropout=0.3) for _ in range(2)]
    for model, settings in zip(models, ({}, {"depth_weight": 0.0}), strict=True):
        trainer = trainer_for(model, tmp_path, **settings)
        assert isinstance(trainer.task_objective, ClassificationObjective)
        trainer.train()
    assert differences(*map(adapter_state, models)) == []


@pytest.mark.parametrize(("build", "adapter"), [(peft_vit, "default"), (two_adapters, "task_002")])
def test_targets_are_states_of_the_model_before_the_task(tmp_path, build, adapter):
    """With earlier adapters, without dropout, and without the adapter that trains, whatever it holds by then."""
    model, expected = build(dropout=0.4), build()
    objective = trainer_for(model, tmp_path, depth_weight=1.0, depth_target="mean").task_objective
    assert objective.adapter == adapter
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.5)
    rows = samples((0, 1, 4, 5), 3, seed=1)[:]
    inputs = {"pixel_values": rows["pixel_values"], "labels": rows["label"], "interpolate_pos_encoding": False}
    model.train()
    objective.scales = [torch.full((16,), 2.0)] * 6
    objective.training_step(model, inputs)
    assert model.training
    # Without dropout, and with the states of the same forward, from `transformers` itself.
    model.eval()
    found = objective.training_step(model, inputs).metrics["depth"]
    total = 0.0
    with torch.no_grad():
        now = model(pixel_values=inputs["pixel_values"], output_hidden_states=True).hidden_states[1:]
        before = expected(pixel_values=inputs["pixel_values"], output_hidden_states=True)
    nearest = before.logits[6:, :2].argmax(1)
    for block, (state, target) in enumerate(zip(now, before.hidden_states[1:], strict=True), start=1):
        for share, read in ((1, lambda x: x[:, 0]), (3, lambda x: x.mean(1))):
            kept = read(target)[:6]
            means = torch.stack([kept[inputs["labels"][:6] == c].mean(0) for c in (0, 1)])
            total += (read(state)[6:] - means[nearest]).square().mean() * share / 4 / block
    torch.testing.assert_close(found, total / (4 * (1 + 1 / 2 + 1 / 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["mean", "transport"])
def test_states_of_forgotten_samples_go_to_kept_ones(tmp_path, target):
    """The term falls in training, and is logged."""
    settings = {"num_train_epochs": 15, "learning_rate": 3e-2, "logging_strategy": "epoch", "forget_weight": 0.1}
    trainer = trainer_for(peft_vit(r=8), tmp_path, depth_weight=2.0, depth_target=target, **settings)
    trainer.train()
    logged = [row["depth"] for row in trainer.state.log_history if "depth" in row]
    assert logged[-1] < 0.7 * logged[0]


def test_kept_states_are_held(tmp_path):
    """By the distance from what they were before the task, with a weight of its own."""
    model, before = peft_vit(), peft_vit()
    objective = trainer_for(
        model, tmp_path, depth_weight=2.0, depth_retain_weight=3.0, depth_target="mean"
    ).task_objective
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=2.0)
    rows = samples((0, 1, 4, 5), 3, seed=1)[:]
    inputs = {"pixel_values": rows["pixel_values"], "labels": rows["label"]}
    objective.scales = [torch.full((16,), 2.0)] * 6
    model.eval()
    found = objective.training_step(model, inputs)
    objective.retain_weight = 0.0
    plain = objective.training_step(model, inputs)
    total = 0.0
    with torch.no_grad():
        pairs = [
            m(pixel_values=rows["pixel_values"], output_hidden_states=True).hidden_states[1:] for m in (model, before)
        ]
    for block, (now, then) in enumerate(zip(*pairs, strict=True), start=1):
        for share, read in ((1, lambda x: x[:, 0]), (3, lambda x: x.mean(1))):
            total += (read(now)[:6] - read(then)[:6]).square().mean() * share / 4 / block
    expected = total / (4 * (1 + 1 / 2 + 1 / 3))
    torch.testing.assert_close(found.metrics["depth_retain"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.loss, plain.loss + 3.0 * expected, rtol=1e-4, atol=1e-5)
    assert expected > 0.01


def test_together_with_the_other_terms(tmp_path):
    """No second forward counts as the one in which embeddings and states are caught; every part is logged."""
    settings = {"distillation_weight": 0.5, "prototype_retain_weight": 0.1, "logging_strategy": "epoch"}
    trainer = trainer_for(peft_vit(), tmp_path, depth_weight=1.0, **settings)
    outer = trainer.task_objective
    assert isinstance(outer, DistillationObjective)
    assert isinstance(outer.objective, DepthObjective)
    assert isinstance(outer.objective.objective, PrototypeObjective)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert min(logged[name] for name in ("depth", "distillation", "retain_distance")) > 0


def test_with_few_kept_classes_and_missing_ones(tmp_path):
    """One kept class has data: it is the target of all. A class without data is none."""
    kwargs = {"retain_dataset": samples((0,), 6, seed=1), "missing_classes": [1, 2, 3]}
    trainer = trainer_for(peft_vit(), tmp_path, depth_weight=1.0, kwargs=kwargs)
    trainer.train()
    assert isinstance(trainer.task_objective, DistillationObjective)


@pytest.mark.parametrize("bf16", [False, True])
def test_every_matrix_learns_under_autocast(tmp_path, bf16):
    """Also with a second forward without gradient in the same step, checkpointing and accumulation."""
    settings = {
        "bf16": bf16,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
    }
    trainer = trainer_for(peft_vit(), tmp_path, depth_weight=1.0, **settings)
    before = adapter_state(trainer.model)
    trainer.train()
    after = adapter_state(trainer.model)
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_keeps_the_gradient_of_the_states(tmp_path, use_reentrant):
    """It runs the blocks twice, the first time without a graph if it is reentrant."""
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    models = [peft_vit() for _ in range(2)]
    for model, settings in zip(models, ({}, checkpointing), strict=True):
        trainer_for(model, tmp_path, depth_weight=5.0, depth_target="mean", max_steps=2, **settings).train()
    one, two = map(adapter_state, models)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_blocks_before_the_adapter_are_refused(tmp_path):
    """Their states are what they were before the task."""
    trainer = trainer_for(peft_vit(block_pattern=r"\.2$"), tmp_path, depth_weight=1.0, depth_blocks=r"\.[01]$")
    with refused("depth_blocks", BLOCKS[:2]):
        trainer.train()


@pytest.mark.parametrize("pattern", ["(", "no such block"])
def test_patterns_that_name_no_block_are_refused(tmp_path, pattern):
    with refused("depth_blocks", pattern):
        trainer_for(peft_vit(), tmp_path, depth_weight=1.0, depth_blocks=pattern)


def test_more_to_forget_than_to_keep(tmp_path):
    trainer_for(peft_vit(), tmp_path, depth_weight=1.0, kwargs={"retain_dataset": retain_set(1)}).train()


def test_the_deep_recipe_sets_what_is_not_set():
    """What the user chose stays, also a value that is the default, and when the arguments are copied."""
    args = GSLoraTrainingArguments("out", recipe="deep", depth_weight=3.0, use_cpu=True)
    again = dataclasses.replace(args)
    for found in (args, again):
        assert (found.depth_weight, found.depth_retain_weight) == (3.0, 5.0)
        assert (found.sparsity, found.num_train_epochs) == ("none", 6.0)
    of_fast = {name: getattr(GSLoraTrainingArguments("out", use_cpu=True), name) for name in OF_RECIPE[2:]}
    given = GSLoraTrainingArguments("out", recipe="deep", use_cpu=True, **of_fast)
    assert {name: getattr(given, name) for name in of_fast} == of_fast
    with refused("depth_weight", 0.0):  # a recipe that is not what it says
        GSLoraTrainingArguments("out", recipe="deep", depth_weight=0.0, use_cpu=True)
    with refused("depth_weight", 0.0):
        dataclasses.replace(GSLoraTrainingArguments("out", use_cpu=True), recipe="deep")
    adapter = adapter_of_recipe("deep", r=4, lora_alpha=None, group_by="module")
    assert (adapter.r, adapter.lora_alpha, adapter.group_by) == (4, 32, "module")
    assert (adapter_of_recipe("fast").r, adapter_of_recipe("fast").lora_alpha) == (8, 1)
    with refused("recipe", "slow"):
        GSLoraTrainingArguments("out", recipe="slow", use_cpu=True)


def test_the_recipe_by_default_is_fast():
    args = GSLoraTrainingArguments("out", use_cpu=True)
    assert [getattr(args, name) for name in OF_RECIPE] == [0.0, 0.0, "proximal", 15.0]
