"""Random labels and SalUn: they forget, only salient weights move, and a resumed training has the same masks."""

import math

import pytest
import torch
from errors import refused
from tasks import arguments, differences, forget_set, knowing_vit, peft_vit, retain_set, scoring_set
from torch.nn import functional as F

from gs_lora_peft.methods import get_method
from gs_lora_peft.objectives import ObjectiveOutput
from gs_lora_peft.training import ForgettingTrainer


def trainer_of(method, model, folder, **changes):
    settings = {"eval_strategy": "epoch", "num_train_epochs": 10, "learning_rate": 5e-3, **changes}
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    return ForgettingTrainer(model, arguments(folder, method, **settings), method=method, **data)


def last_scores(trainer):
    return [row for row in trainer.state.log_history if "eval_loss" in row][-1]


@pytest.mark.parametrize(
    ("name", "build", "rate"),
    [("random_labels", peft_vit, 5e-2), ("random_labels", knowing_vit, 5e-3), ("salun", knowing_vit, 5e-3)],
)
def test_forgets_and_keeps(tmp_path, name, build, rate):
    trainer = trainer_of(get_method(name), build(), tmp_path, learning_rate=rate)
    trainer.train()
    assert last_scores(trainer)["eval_acc_forget"] < 0.2
    assert last_scores(trainer)["eval_acc_retain"] > 0.9


def test_the_labels_are_those_of_kept_classes(tmp_path):
    """The true class, or another one to forget, would be learned again."""
    trainer = trainer_of(get_method("random_labels"), knowing_vit(), tmp_path)
    kept = torch.zeros(6).index_fill(0, torch.tensor(trainer.roles.retain), 1.0)
    logits = torch.where(kept.bool(), 0.0, -1e3).expand(64, 6)
    labels = torch.tensor([trainer.roles.retain[0]] * 32 + [trainer.roles.forget[0]] * 32)
    output = ObjectiveOutput(*[torch.zeros(())] * 3, logits=logits)
    loss = trainer.method.loss(trainer.model, {"labels": labels}, output)
    assert loss.item() == pytest.approx(2 * math.log(len(trainer.roles.retain)))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_only_the_salient_share_of_the_weights_moves(tmp_path, share):
    """Also with momentum and weight decay; their gradient over all samples to forget is the largest."""
    model = knowing_vit()
    weights = list(model.parameters())
    batch = forget_set()[:]
    loss = F.cross_entropy(model.eval()(pixel_values=batch["pixel_values"]).logits, batch["label"], reduction="sum")
    saliency = torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss, weights)])
    before = torch.cat([weight.detach().clone().flatten() for weight in weights])
    trainer_of(get_method("salun", share=share), model, tmp_path, weight_decay=0.5, num_train_epochs=3).train()
    moved = torch.cat([weight.detach().flatten() for weight in weights]) != before
    assert 0.9 * share < moved.float().mean() <= share + 1e-3
    assert saliency[moved].min() >= saliency[~moved].quantile(1 - 1e-3)


def test_it_is_resumed_bit_for_bit(tmp_path):
    """The masks are those of the model before the task, also when the training goes on in the middle."""
    settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    whole, resumed = (
        trainer_of(get_method("salun", share=0.3), knowing_vit(dropout=0.1), tmp_path / name, **settings)
        for name in ("one", "two")
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-6"))
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with refused("share", share):
        get_method("salun", share=share)
