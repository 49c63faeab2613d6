"""Trainers of one method on the two small sets, and what is asked of them."""

from __future__ import annotations

from typing import Any

from tasks import arguments, differences, forget_set, retain_set, scoring_set

from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer


def trainer_of(name: str, model: Any, folder: Any, hyper_parameters: dict[str, Any] | None = None, **changes: Any):
    """A trainer by the name of its method; `changes` go to the arguments."""
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    args = arguments(folder, name, **changes)
    return ForgettingTrainer(model, args, method=get_method(name, **hyper_parameters or {}), **data)


def scores_after(trainer: ForgettingTrainer) -> tuple[float, float]:
    """Acc_f and Acc_r after the training, which runs here."""
    trainer.train()
    scores = trainer.evaluate()
    return scores["eval_acc_forget"], scores["eval_acc_retain"]


def differences_if_resumed(
    name: str, build: Any, folder: Any, hyper_parameters: dict[str, Any] | None = None, **changes: Any
) -> list[str]:
    """The weights that differ between a whole training of 8 steps and one that is resumed in the second epoch."""
    settings = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 2, **changes}
    whole, resumed = (
        trainer_of(name, build(dropout=0.1), folder / part, hyper_parameters, **settings) for part in ("one", "two")
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "one" / "checkpoint-5"))
    assert whole.state.global_step == 8
    return differences(whole.model.state_dict(), resumed.model.state_dict())
