"""`sparsity="select"` trains the groups that gain most at the start, and no others."""

import pytest
import torch
from errors import refused
from tasks import adapter_state, differences, forget_set, peft_vit, retain_set, trainer_for

from gs_lora_peft import LoraGroups
from gs_lora_peft.methods.selection import gains, gains_for_their_cost, keep_best, number_to_keep


@pytest.mark.parametrize(("asked", "kept"), [(0.5, 2), (0.01, 1), (0.99, 3), (1, 1), (3, 3)])
def test_number_of_groups(asked, kept):
    assert number_to_keep(asked, LoraGroups(peft_vit())) == kept


@pytest.mark.parametrize("asked", [1.5, 4])
def test_other_numbers_are_refused_before_training(asked, tmp_path):
    with refused("select_groups", asked):
        trainer_for(peft_vit(), tmp_path, sparsity="select", select_groups=asked)


def test_gains_are_what_a_small_step_takes_off_the_loss(tmp_path):
    """Both sets are as large as a batch, so that every batch is the whole of both."""
    rows = range(6)
    data = {"kwargs": {"forget_dataset": forget_set().select(rows), "retain_dataset": retain_set().select(rows)}}
    trainer = trainer_for(peft_vit(), tmp_path, per_device_train_batch_size=6, **data)
    groups, found = trainer.groups, gains(trainer, trainer.groups)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()

    def loss():
        return trainer.task_objective.training_step(trainer.model, batch).loss

    before = loss()
    gradients = torch.autograd.grad(before, groups.parameters)
    distance = 1e-3
    for index in range(len(groups)):
        moved = [p for p, group in zip(groups.parameters, groups.group_of, strict=True) if group == index]
        signs = [g.sign() for g, group in zip(gradients, groups.group_of, strict=True) if group == index]
        with torch.no_grad():
            torch._foreach_add_(moved, signs, alpha=-distance)
            gain = before - loss()
            torch._foreach_add_(moved, signs, alpha=distance)
        assert gain.item() == pytest.approx(distance * found[index].item(), rel=0.1)


def test_only_the_best_groups_train(tmp_path):
    model = peft_vit()
    trainer = trainer_for(model, tmp_path / "scored")
    best = gains_for_their_cost(gains(trainer, trainer.groups)).argmax().item()
    trainer = trainer_for(peft_vit(), tmp_path / "trained", sparsity="select", select_groups=1)
    trainer.train()
    assert trainer.groups.active_groups() == [trainer.groups.names[best]]
    others = [p for p, group in zip(trainer.groups.parameters, trainer.groups.group_of, strict=True) if group != best]
    assert not any(matrix.any() for matrix in others)


def test_resumed_training_equals_one_that_was_not_stopped(tmp_path):
    settings = {"sparsity": "select", "select_groups": 2, "save_strategy": "epoch"}
    whole, resumed = peft_vit(), peft_vit(seed=1)
    trainer_for(whole, tmp_path, **settings).train()
    trainer_for(resumed, tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert differences(adapter_state(whole), adapter_state(resumed)) == []


def test_a_lower_group_costs_more():
    """With equal gains the highest group is best; three times the gain makes up for three blocks."""
    assert gains_for_their_cost(torch.ones(3)).argmax() == 2
    assert gains_for_their_cost(torch.tensor([3.3, 1.0, 1.0])).argmax() == 0


def test_the_largest_scores_are_kept():
    groups = LoraGroups(peft_vit())
    assert keep_best(groups, torch.tensor([0.1, 3.0, 2.0]), 2) == groups.names[1:]
    assert groups.norms()[0] == 0
    assert (groups.norms()[1:] > 0).all()
