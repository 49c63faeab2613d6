"""SSD and LFSSD: importances of each sample, the published rule, what it forgets, and what cannot be selected."""

import copy

import pytest
import torch
from errors import refused
from method_trainers import scores_after, trainer_of
from tasks import forget_set, knowing_vit, peft_vit, retain_set
from torch.nn import functional as F

from gs_lora_peft import NoStepError
from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.importance import importances


def slow_importance(model, rows, loss, power):
    """The mean over samples in float64, by one backward pass for each."""
    model = copy.deepcopy(model).double().eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sums = [torch.zeros_like(weight) for weight in weights]
    for pixels, label in zip(rows["pixel_values"], rows["label"], strict=True):
        model.zero_grad()
        loss(model(pixel_values=pixels[None].double()).logits, label[None]).backward()
        for total, weight in zip(sums, weights, strict=True):
            total += power(weight.grad) if weight.grad is not None else 0
    return [total / len(rows["label"]) for total in sums]


def norms(logits, labels):
    return (logits**2).sum()


KEY_BIAS = ("key.bias", "k_proj.bias")

RULES = {"ssd": (F.cross_entropy, lambda g: g**2), "lfssd": (norms, torch.abs)}


@pytest.mark.parametrize("name", RULES)
def test_the_weights_are_those_of_the_rule(tmp_path, name):
    """In float64, with both sets weighed by their numbers of classes: 2 to forget and 4 to keep."""
    model = knowing_vit(dropout=0.3)
    of_forget, of_retain = (slow_importance(model, rows()[:], *RULES[name]) for rows in (forget_set, retain_set))
    expected, changed = [], 0
    for weight, forget, retain in zip(model.parameters(), of_forget, of_retain, strict=True):
        whole = forget / 3 + 2 * retain / 3
        chosen = forget > 1.2 * whole
        changed += int(chosen.sum())
        expected.append(weight.detach() * torch.where(chosen, (0.5 * whole / forget).clamp(max=1), 1.0))
    assert 0 < changed < sum(weight.numel() for weight in model.parameters())
    trainer_of(name, model, tmp_path, {"alpha": 1.2, "dampening": 0.5}).train()
    for (path, weight), right in zip(model.named_parameters(), expected, strict=True):
        if not path.endswith(KEY_BIAS):  # which changes no attention: its gradient is rounding
            torch.testing.assert_close(weight.detach(), right.float(), rtol=1e-4, atol=1e-6)


def test_importances_by_batch_are_smaller(tmp_path):
    """As in the public code: gradients of samples cancel each other before they are squared."""
    model = knowing_vit()
    trainer = trainer_of("ssd", model, tmp_path, per_device_eval_batch_size=16)
    by_sample, by_batch = (importances(trainer.method, retain_set(), by_sample=value) for value in (True, False))
    rows = retain_set()[:]
    loss = F.cross_entropy(model.eval()(pixel_values=rows["pixel_values"]).logits, rows["label"])
    for one, gradient in zip(by_batch, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, gradient**2)
    assert sum(one.sum() for one in by_batch) < 0.6 * sum(one.sum() for one in by_sample)


def test_importances_of_an_adapter_are_at_its_start(tmp_path):
    """The model before the task has no adapter, hence no gradient; what trains stays as it is meanwhile."""
    model = peft_vit()
    trainer = trainer_of("random_labels", model, tmp_path)
    expected = slow_importance(model, forget_set()[:], *RULES["ssd"])
    with torch.no_grad():
        for matrix in trainer.trained.parameters:
            matrix += 1
    after = [matrix.detach().clone() for matrix in trainer.trained.parameters]
    for one, right in zip(importances(trainer.method, forget_set()), expected, strict=True):
        torch.testing.assert_close(one, right.float(), rtol=1e-4, atol=1e-9)
    assert all(torch.equal(one, other) for one, other in zip(after, trainer.trained.parameters, strict=True))


@pytest.mark.parametrize(("name", "kept"), [("ssd", 0.8), ("lfssd", 0.95)])
def test_it_forgets_with_a_small_lambda(tmp_path, name, kept):
    """0.00 and 0.88 (SSD), 0.00 and 1.00 (LFSSD) measured."""
    forgotten, retained = scores_after(trainer_of(name, knowing_vit(), tmp_path, {"alpha": 1.0, "dampening": 0.3}))
    assert forgotten < 0.2
    assert retained > kept


def test_the_published_constants_forget_nothing_here(tmp_path):
    """With α for 10 times the importance and λ = 1 hardly any weight is selected: Acc_f stays 1.00."""
    assert scores_after(trainer_of("ssd", knowing_vit(), tmp_path)) == (1.0, 1.0)


def test_it_dampens_nothing_twice(tmp_path):
    """A training that is resumed at its end begins once more."""
    trainer = trainer_of("ssd", knowing_vit(), tmp_path, {"alpha": 1.0})
    trainer.train()
    once = [weight.detach().clone() for weight in trainer.trained.parameters]
    trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert all(torch.equal(one, other) for one, other in zip(once, trainer.trained.parameters, strict=True))


def test_an_alpha_that_can_select_nothing_is_refused(tmp_path):
    """A third of the classes are to forget, so that nothing matters more than 3 times as much to them as to all."""
    trainer = trainer_of("ssd", knowing_vit(), tmp_path, {"alpha": 10.0})
    with refused("alpha", 10.0):
        trainer.train()
    with pytest.raises(NoStepError):
        trainer_of("ssd", knowing_vit(), tmp_path, {"alpha": 2.999999}).train()


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("dampening", -1.0), ("dampening", "1"), ("alpha", True)])
def test_values_out_of_range_are_refused(name, value):
    with refused(name, value):
        get_method("ssd", **{name: value})
