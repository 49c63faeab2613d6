"""The baseline without LoRA: the same losses on the feed-forward weights themselves."""

from __future__ import annotations

import pytest
import torch
from errors import refused
from tasks import (
    arguments,
    differences,
    ffn_trainer,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
    scoring_set,
    trainer_for,
)
from transformers import LevitConfig, LevitForImageClassification

from gs_lora_peft import find_ffn_blocks


def finetuner(tmp_path, model, **changes):
    settings = {"learning_rate": 5e-3, "num_train_epochs": 10, **changes}
    return ffn_trainer(
        model, arguments(tmp_path, "ffn", **settings), forget_dataset=forget_set(), retain_dataset=retain_set()
    )


def accuracy(model, dataset) -> float:
    model.eval()
    batch = dataset[:]
    with torch.no_grad():
        return (model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["label"]).float().mean().item()


def test_forgets_and_keeps(tmp_path):
    """The baseline does what it is compared by: it forgets the one set and keeps the other."""
    model = knowing_vit()
    before = accuracy(model, forget_set())
    finetuner(tmp_path, model).train()
    assert before > 0.9
    assert accuracy(model, forget_set()) < 0.2
    assert accuracy(model, retain_set()) > 0.9


def test_changes_the_feed_forward_alone(tmp_path):
    """A comparison is only fair if the baseline trains the layers that LoRA is put on, all of them, and no others."""
    model = knowing_vit()
    trained = {path for paths in find_ffn_blocks(model).values() for path in paths}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetuner(tmp_path, model, num_train_epochs=1).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == trained


def test_classes_without_data_take_no_part(tmp_path):
    """As in GSLoraTrainer; what earlier tasks forgot is a wrong answer like any other."""
    sets = {"forget_dataset": samples((5,)), "retain_dataset": samples((0, 1))}
    tuner = ffn_trainer(knowing_vit(), arguments(tmp_path, "ffn"), old_classes=[4], **sets)
    assert tuner.objective.missing_classes == [2, 3]


def test_shared_classes_are_refused(tmp_path):
    """A class that is to be kept and forgotten at once is named before anything trains."""
    with refused("forget_classes", [0, 1, 2, 3]):
        ffn_trainer(
            knowing_vit(), arguments(tmp_path, "ffn"), forget_dataset=retain_set(), retain_dataset=retain_set()
        )


def test_batch_norm_stays(tmp_path):
    """Running statistics are no feed-forward weights: GSLoraTrainer leaves them alone, and so does its rival."""
    sizes = {"hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4]}
    torch.manual_seed(0)
    model = LevitForImageClassification(LevitConfig(image_size=32, num_labels=4, **sizes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def images(*classes):
        return [{"pixel_values": torch.randn(3, 32, 32) + c, "label": c} for c in classes for _ in range(4)]

    sets = {"forget_dataset": images(3), "retain_dataset": images(0, 1, 2)}
    ffn_trainer(model, arguments(tmp_path, "ffn", num_train_epochs=1), **sets).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    # The Linears of LeViT's feed-forwards have no bias of their own.
    assert changed == {f"{path}.weight" for paths in find_ffn_blocks(model).values() for path in paths}


@pytest.mark.parametrize(
    "changes",
    [{"seed": 5}, {"seed": 5, "data_seed": 7}, {"per_device_train_batch_size": 5, "dataloader_drop_last": True}],
)
def test_same_batches(tmp_path, changes):
    """Both see the same samples in the same order, or the comparison would be one of luck, too."""
    ours = trainer_for(peft_vit(), tmp_path, **changes).get_train_dataloader()
    theirs = finetuner(tmp_path, knowing_vit(), **changes).get_train_dataloader()
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_what_the_trainer_can_do_it_can_do_here(tmp_path):
    """Evaluation by role with H and Drop, a part held out, prototypes, and gradients that are added up."""
    settings = {"eval_strategy": "epoch", "validation_fraction": 0.34, "gradient_accumulation_steps": 2}
    trainer = finetuner(tmp_path, knowing_vit(), prototype_retain_weight=0.1, logging_strategy="epoch", **settings)
    trainer.train()
    last = [row for row in trainer.state.log_history if "eval_loss" in row][-1]
    assert last["eval_acc_forget"] < last["eval_acc_retain"]
    assert last["eval_drop"] > 0
    assert trainer.state.log_history[0]["retain_distance"] > 0


@pytest.mark.parametrize("step", [8, 12])
def test_resumed_bit_for_bit(tmp_path, step):
    """In the middle of an epoch and at its end; Drop refers to the model before the task."""
    settings = {"num_train_epochs": 5, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch"}

    def trainer(name):
        model = knowing_vit(dropout=0.1)
        args = arguments(tmp_path / name, "ffn", learning_rate=5e-3, prototype_retain_weight=0.1, **settings)
        return ffn_trainer(
            model, args, forget_dataset=forget_set(), retain_dataset=retain_set(), eval_dataset=scoring_set()
        )

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())
    scores = [[row for row in t.state.log_history if "eval_loss" in row][-1] for t in (whole, resumed)]
    assert scores[0]["eval_drop"] == scores[1]["eval_drop"]


def test_the_model_before_the_task_is_known_while_it_changes(tmp_path):
    """Prototypes and Drop of a resumed training need it, and there is no adapter to take off."""
    model = knowing_vit()
    batch = scoring_set()[:]["pixel_values"]
    with torch.no_grad():
        before = model.eval()(pixel_values=batch).logits
    trainer = finetuner(tmp_path, model)
    trainer.train()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with trainer.trained.before():
        assert torch.equal(model(pixel_values=batch).logits, before)
    assert not differences(after, model.state_dict())


@pytest.mark.parametrize("name", ["distillation_weight", "depth_weight", "push_to_hub", "ema_decay"])
def test_what_needs_an_adapter_is_refused(tmp_path, name):
    """A comparison in which one side silently does without what both were asked for would be none."""
    value = {"push_to_hub": True}.get(name, 0.5)
    with refused(name, value):
        finetuner(tmp_path, knowing_vit(), **{name: value})


def test_a_model_with_an_adapter_is_refused(tmp_path):
    """The adapter would stay as it is, and what it adds would not be forgotten."""
    with refused("model"):
        finetuner(tmp_path, peft_vit())
