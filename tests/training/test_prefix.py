"""Kept outputs of frozen blocks change no bit of a training, and are not used where they would."""

import pytest
import torch
from errors import refused
from tasks import adapter_state, differences, forget_set, peft_vit, retain_set, trainer_for, two_adapters
from torch import nn
from transformers import TrainerCallback
from transformers.models.vit.modeling_vit import ViTAttention

from gs_lora_peft import LoraGroups
from gs_lora_peft.training.prefix.states import StateStore, digests

SAMPLES = len(retain_set()) + len(forget_set())


def lower_zero(model, number=2):
    """The model with its lowest groups zero, as sparsity leaves them."""
    adapter = next(name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad)
    groups = LoraGroups(model, adapter)
    with torch.no_grad():
        for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
            parameter.mul_(group >= number)
    return model


class Record(TrainerCallback):
    """What a training logged at every step, and how many blocks it left out and states it kept."""

    def __init__(self, trainer):
        self.trainer, self.logs, self.blocks, self.kept, self.calls = trainer, [], [], [], 0

    def on_step_end(self, args, state, control, **kwargs):
        self.blocks.append(self.trainer.prefix.block)
        self.kept.append(len(self.trainer.prefix.store))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append({name: value for name, value in logs.items() if "loss" in name or name == "grad_norm"})


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains with logs of every step, and counts the calls of the lowest block's attention."""

    def run(model, cache, resume=None, callbacks=(), **changes):
        settings = {"logging_strategy": "steps", "logging_steps": 1, "prefix_cache": cache, **changes}
        trainer = trainer_for(model, tmp_path / cache, **settings)
        record = Record(trainer)
        for callback in (*callbacks, record):
            trainer.add_callback(callback)
        lowest = model.base_model.model.vit.layers[0]
        forward = ViTAttention.forward

        def counted(self, *args, **kwargs):
            record.calls += self is lowest.attention
            return forward(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(ViTAttention, "forward", counted)
            trainer.train(resume_from_checkpoint=resume)
        assert not any("forward" in vars(module) for module in model.modules() if module is not model)
        return record, adapter_state(model)

    return run


def assert_same(first, second):
    assert first[0].logs == second[0].logs
    assert len(first[0].logs) > 3
    assert differences(first[1], second[1]) == []


CASES = {
    "plain": (peft_vit, {}),
    "earlier adapter": (two_adapters, {}),
    "earlier model": (two_adapters, {"distillation_weight": 1.0}),
    "accumulation": (peft_vit, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    "bfloat16": (peft_vit, {"bf16": True}),
    "checkpoints": (peft_vit, {"gradient_checkpointing": True}),
    "average": (peft_vit, {"ema_decay": 0.7}),
    "prototypes": (peft_vit, {"prototype_forget_weight": 0.3, "prototype_retain_weight": 0.2}),
}


@pytest.mark.parametrize(("make", "changes"), CASES.values(), ids=CASES)
def test_losses_and_weights_are_the_same(make, changes, train):
    cached, uncached = (train(lower_zero(make()), cache, **changes) for cache in ("auto", "off"))
    assert_same(cached, uncached)
    assert set(cached[0].blocks) == {2}
    assert cached[0].kept[-1] >= SAMPLES
    assert not any(uncached[0].blocks)
    assert cached[0].calls < uncached[0].calls


def test_earlier_model_uses_the_same_states(train):
    """One pass serves both forwards of a step where both get the whole batch; half of the batch has its own states."""
    both_halves = {"kwargs": {"missing_classes": [5]}, "distillation_weight": 1.0}
    model = lower_zero(two_adapters())
    from datasets import Dataset  # noqa: F401

    record, _ = train(model, "auto", distillation_weight=1.0)
    assert record.kept[-1] == SAMPLES + len(retain_set())
    assert both_halves
