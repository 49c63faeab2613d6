"""A run that was stopped at any step and resumed ends with the adapter of the run that was not, bit for bit."""

import json
import shutil

import pytest
import torch
from tasks import (
    adapter_state,
    differences,
    peft_vit,
    retain_set,
    scoring_set,
    trainable,
    trainer_for,
    two_adapters,
)
from transformers import TrainerCallback

DYING = {"sparsity_weight": 0.9, "sparsity_until_epoch": 1.75, "learning_rate": 3e-2, "lr_scheduler_type": "constant"}
EVALUATED = {"kwargs": {"eval_dataset": scoring_set()}, "eval_strategy": "epoch"}

PROTOTYPES = {"prototype_forget_weight": 0.3, "prototype_retain_weight": 0.2}


def noise(image):
    """A view drawn from the generator of torch."""
    return image + 0.3 * torch.randn_like(image)


# Name → (how to build the model, arguments, steps to resume from). An epoch has 4 steps unless said otherwise.
RUNS = {
    "plain": (peft_vit, {}, (1, 4, 6)),
    "sparse": (peft_vit, {"sparsity_weight": 0.3, "warmup_steps": 2}, (1, 4, 7)),
    "accumulating": (
        peft_vit,
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, "dropout": 0.2},  # 3 steps of 3, 3, 2
        (1, 3, 5),
    ),
    "dropout": (peft_vit, {"dropout": 0.3}, (1, 4, 6, 8, 11)),
    "named": (lambda **kw: peft_vit("task_002", **kw), {"dropout": 0.3}, (4, 7)),
    "two adapters": (two_adapters, {"dropout": 0.3, "sparsity_weight": 0.2}, (4, 7)),
    "average": (peft_vit, {"ema_decay": 0.7, "dropout": 0.3}, (2, 4, 8, 11)),
    "late average": (peft_vit, {"ema_decay": 0.7, "ema_start_epoch": 2, **EVALUATED}, (7, 8)),
    "average by step": (
        peft_vit,
        {"ema_decay": 0.8, "ema_update": "step", "ema_start_epoch": 0.5, "dropout": 0.3},
        (1, 2, 4, 7),
    ),
    "prototypes": (peft_vit, {**PROTOTYPES, "dropout": 0.3}, (1, 4, 6)),
    "prototypes, two adapters": (two_adapters, {**PROTOTYPES, "prototype_distance": "cosine"}, (4, 7)),
    "distillation": (two_adapters, {"distillation_weight": 1.0, "dropout": 0.3}, (1, 4, 7)),
    "depth": (two_adapters, {"depth_weight": 1.0, "dropout": 0.3, "sparsity_weight": 0.2}, (1, 4, 7)),
    "depth by transport": (
        two_adapters,
        {"depth_weight": 1.0, "depth_target": "transport", "depth_radius": 0.05, "dropout": 0.3},
        (4, 7),
    ),
    "depth and all other terms": (
        peft_vit,
        {**PROTOTYPES, "depth_weight": 0.5, "depth_target": "mean", "distillation_weight": 1.0, "ema_decay": 0.5},
        (4, 6),
    ),
    "augmented": (
        peft_vit,
        {
            **PROTOTYPES,
            "kwargs": {"augment": noise},
            "prototype_augmentations": 2,
            "augmentation": True,
            "dropout": 0.3,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
        },
        (1, 4, 6),
    ),
    "evaluated": (peft_vit, {"dropout": 0.3, "ema_decay": 0.5, **EVALUATED}, (4, 6)),
    "zero groups": (peft_vit, DYING, (5, 7, 8, 11)),
    "zero groups, average": (lambda **kw: peft_vit("task_002", **kw), {**DYING, "ema_decay": 0.8}, (5, 8)),
    "zero matrices": (
        lambda **kw: peft_vit(group_by="matrix", **kw),
        {**DYING, "sparsity_weight": 0.7, "warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"},
        (1, 6, 8),
    ),
    "max_steps": (peft_vit, {"max_steps": 10, "dropout": 0.3, "sparsity_weight": 0.2}, (4, 6, 9)),
    "part of an epoch": (peft_vit, {"num_train_epochs": 2.3, "dropout": 0.3, "ema_decay": 0.5}, (3, 8, 9)),
    "one step an epoch": (
        peft_vit,
        {"per_device_train_batch_size": 16, "num_train_epochs": 3.5, "dropout": 0.3, "ema_decay": 0.5},
        (1, 3),
    ),
    "drop last": (peft_vit, {"dataloader_drop_last": True, "per_device_train_batch_size": 3, "dropout": 0.3}, (5, 6)),
    "more to forget": (
        peft_vit,
        {
            "kwargs": {"retain_dataset": retain_set(1)},
            "per_device_train_batch_size": 2,  # 3 steps of 6 to forget
            "dropout": 0.3,
            "sparsity_weight": 0.2,
        },
        (1, 3, 5),
    ),
    "penalty": (peft_vit, {"sparsity": "penalty", "sparsity_weight": 0.05, "dropout": 0.3}, (4, 7)),
}


# Rows at the end of epochs, or every third step, which lies across epochs and checkpoints.
LOGS = {
    run: {"logging_strategy": "epoch"} if number % 2 else {"logging_strategy": "steps", "logging_steps": 3}
    for number, run in enumerate(RUNS)
}


def rows(trainer):
    """What a training has logged, without how long it took and the summary of each call."""
    return [
        {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second", "_time"))}
        for row in trainer.state.log_history
        if "train_runtime" not in row
    ]


def start(run, folder, **changes):
    build, settings, _ = RUNS[run]
    settings = {**settings, **LOGS[run], **changes}
    model = build(dropout=settings.pop("dropout", 0.0))
    torch.manual_seed(5)
    return model, trainer_for(model, folder, **settings)


@pytest.mark.parametrize("run", RUNS)
def test_resumed_runs_end_bit_equal(tmp_path, run):
    """From checkpoints within and at the end of epochs; the same adapter trains, the same ones are active, and the
    same rows are logged: means over steps before and after the stop, and of an epoch whose end was still to come."""
    model, trainer = start(run, tmp_path / "through", save_strategy="steps", save_steps=1)
    trainer.train()
    final, total, logged = adapter_state(model), trainer.state.global_step, rows(trainer)
    assert any("retain_loss" in row for row in logged)
    training, active = trainable(model), list(model.base_model.active_adapters)
    if run.startswith("zero"):
        assert 0 < len(trainer.groups.zero_groups()) < len(trainer.groups)

    for step in RUNS[run][2]:
        torch.manual_seed(step)  # a fresh process has other random numbers
        model, resumed = start(run, tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "through" / f"checkpoint-{step}"))
        assert resumed.state.global_step == total
        assert not differences(final, adapter_state(model)), f"resumed from step {step}"
        assert rows(resumed) == logged, f"resumed from step {step}"
        assert (trainable(model), list(model.base_model.active_adapters)) == (training, active)


class StopAt(TrainerCallback):
    """Ends a run as a signal would: at a step, after saving there or when the epoch is left."""

    def __init__(self, step, save):
        self.step, self.save = step, save

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop, control.should_save = True, self.save == "no"


@pytest.mark.parametrize(
    ("run", "step", "save"),
    [("average", 4, "no"), ("average", 6, "epoch"), ("evaluated", 6, "no"), ("zero groups, average", 6, "no")],
)
def test_a_run_that_really_stopped_goes_on_from_its_last_checkpoint(tmp_path, run, step, save):
    """`resume_from_checkpoint=True` in the same folder, as a user who starts the script again does it."""
    model, trainer = start(run, tmp_path / "through")
    trainer.train()
    final = adapter_state(model)
    _, stopped = start(run, tmp_path / "stopped", save_strategy=save)
    stopped.add_callback(StopAt(step, save))
    stopped.train()
    assert stopped.state.global_step == step
    model, resumed = start(run, tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert not differences(final, adapter_state(model))


def test_the_same_trainer_can_resume_after_an_error(tmp_path):
    """In a notebook: the run broke, the cell is run again with the same objects."""

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 10 and not self.broken:
                self.broken = True
                raise ConnectionError("the file server went away")

    Break.broken = False
    model, trainer = start("zero groups", tmp_path / "through")
    trainer.train()
    final = adapter_state(model)
    model, trainer = start("zero groups", tmp_path / "broken", save_strategy="steps", save_steps=3)
    trainer.add_callback(Break())
    with pytest.raises(ConnectionError):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert not differences(final, adapter_state(model))


def test_a_checkpoint_in_the_middle_of_a_step(tmp_path):
    """As `enable_jit_checkpoint` writes it when a machine is taken away: the step is taken again and counted once."""

    class Interrupt(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 5:
                trainer._save_checkpoint(trainer.model, None)
                raise KeyboardInterrupt

    model, trainer = start("plain", tmp_path / "through")
    trainer.train()
    final, logged = adapter_state(model), rows(trainer)
    _, trainer = start("plain", tmp_path / "stopped")
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    model, resumed = start("plain", tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert not differences(final, adapter_state(model))
    assert rows(resumed) == logged


def test_zero_groups_are_frozen_from_the_first_resumed_step(tmp_path):
    """A resumed run does not pay for, or revive, what was dropped before."""
    _, trainer = start("zero groups", tmp_path, save_strategy="epoch")
    trainer.train()
    _, resumed = start("zero groups", tmp_path)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append([p.requires_grad for p in resumed.groups.parameters].count(False))

    resumed.add_callback(Watch())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert seen == [8] * 4  # both matrices of two groups of two pairs
    assert len(resumed.groups.zero_groups()) == 2


def test_the_score_before_the_task_survives_a_resume(tmp_path):
    """H after a resume is against the model before the task, not against the half-trained one."""
    entries = []
    settings = {"learning_rate": 2e-2, "forget_weight": 1.0, "num_train_epochs": 8}
    for resume in (None, str(tmp_path / "checkpoint-24")):
        _, trainer = start("evaluated", tmp_path, save_strategy="epoch", **settings)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.accuracy_forget_before == {"eval": 1.0}
        entries.append([entry for entry in trainer.state.log_history if "eval_h_mean" in entry][-1])
    assert entries[0]["eval_h_mean"] == entries[1]["eval_h_mean"] > 0


def test_resume_finds_the_best_checkpoint_again(tmp_path):
    """The best score so far belongs to the run: a resumed run that gets no better ends with the earlier best model."""
    settings = {"save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 3e-2, "num_train_epochs": 5}
    states, bests = [], []
    for resume in (None, str(tmp_path / "checkpoint-12")):
        model, trainer = start("evaluated", tmp_path, **settings)
        trainer.train(resume_from_checkpoint=resume)
        states.append(adapter_state(model))
        bests.append((trainer.state.best_global_step, trainer.state.best_metric))
    assert bests[0] == bests[1]
    assert not differences(*states)


def test_checkpoints_of_other_trainers_can_be_resumed(tmp_path):
    """Without the small state file: nothing is known of the time before, everything else goes on."""
    model, trainer = start("plain", tmp_path, save_strategy="epoch")
    trainer.train()
    final = adapter_state(model)
    (tmp_path / "checkpoint-4" / "forgetting_state.json").unlink()
    model, resumed = start("plain", tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not differences(final, adapter_state(model))


def test_the_checkpoint_holds_both_the_average_and_the_weights(tmp_path):
    """The file of the adapter is what training goes on from; the average lies next to it, with its step."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    _, trainer = start("average", tmp_path, save_strategy="epoch")
    trainer.train()
    folder = tmp_path / "checkpoint-8"
    with safe_open(folder / "ema.safetensors", framework="pt") as file:
        assert file.metadata()["step"] == "8"
        averages = [file.get_tensor(str(i)) for i in range(12)]
    weights = load_file(folder / "adapter_model.safetensors")
    assert not any(torch.equal(a, w) for a, w in zip(averages, weights.values(), strict=True))
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"]) == (8, 2.0)
    shutil.rmtree(folder)
