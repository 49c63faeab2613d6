"""MUNBa: the bargain, the gradient it makes, what it forgets, resume."""

import math

import pytest
import torch
from errors import refused
from method_trainers import differences_if_resumed, scores_after, trainer_of
from tasks import knowing_vit, peft_vit
from torch.nn.functional import cross_entropy

from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.editing.munba import nash_bargain, official_bargain

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("cosine", [-0.95, -0.3, 0.0, 0.4, 1.0])
def test_the_bargain_solves_its_equation(cosine):
    """GᵀG a = 1 / a (elementwise), in float64; also for orthogonal gradients, where the public form divides by 0."""
    retain = torch.tensor([3.0, 0.0], dtype=torch.float64)
    forget = 0.2 * torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
    weights = torch.stack(nash_bargain(retain, forget))
    gram = torch.stack([retain, forget]) @ torch.stack([retain, forget]).T
    torch.testing.assert_close(gram @ weights, 1 / weights)


def test_the_public_form_agrees_where_it_is_stable():
    retain, forget = torch.randn(2, 50, generator=GENERATOR, dtype=torch.float64) + 0.5
    for one, other in zip(nash_bargain(retain, forget), official_bargain(retain, forget), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    orthogonal = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert [float(one) for one in official_bargain(*orthogonal)] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("retain", [torch.zeros(4), torch.ones(4), -1e4 * torch.ones(4)])
def test_the_bargain_is_finite(retain):
    """With no gradient on one side, and with opposite ones."""
    assert all(torch.isfinite(one) for one in nash_bargain(retain, torch.ones(4)))


@pytest.mark.parametrize("build", [knowing_vit, peft_vit])
def test_the_gradient_is_the_bargained_one(tmp_path, build):
    """From two separate backward passes, in float32 of a model in eval mode; the value is that of the losses."""
    model = build()
    trainer = trainer_of("munba", model, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    output = trainer.task_objective.training_step(model.eval(), batch)
    torch.manual_seed(3)
    loss = trainer.method.loss(model, batch, output)
    loss.backward()
    weights = trainer.trained.parameters
    found = torch.cat([weight.grad.flatten() for weight in weights])

    torch.manual_seed(3)
    half = len(batch["labels"]) // 2
    drawn = torch.tensor(trainer.roles.retain)[torch.randint(len(trainer.roles.retain), (half,))]
    logits = model(pixel_values=batch["pixel_values"]).logits
    losses = cross_entropy(logits[:half], batch["labels"][:half]), cross_entropy(logits[half:], drawn)
    parts = [torch.cat([g.flatten() for g in torch.autograd.grad(one, weights, retain_graph=True)]) for one in losses]
    lengths = [part.double().norm() for part in parts]
    root = (1 + (parts[0] @ parts[1]) / (lengths[0] * lengths[1])).sqrt()
    expected = sum(part / (length * root) for part, length in zip(parts, lengths, strict=True))
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-5)
    assert loss.item() == pytest.approx(
        sum((one / (length * root)).item() for one, length in zip(losses, lengths, strict=True)), rel=1e-4
    )


@pytest.mark.parametrize(("build", "rate"), [(knowing_vit, 5e-3), (peft_vit, 5e-2)])
def test_it_forgets_and_keeps(tmp_path, build, rate):
    forgotten, retained = scores_after(trainer_of("munba", build(), tmp_path, learning_rate=rate, num_train_epochs=10))
    assert forgotten < 0.2
    assert retained > 0.9


def test_it_is_resumed_bit_for_bit(tmp_path):
    """Labels are drawn from the generator that checkpoints hold."""
    assert not differences_if_resumed("munba", knowing_vit, tmp_path)


def test_its_own_training_arguments_can_be_used(tmp_path):
    """Stochastic gradient descent among them."""
    method = get_method("munba")
    trainer = trainer_of("munba", knowing_vit(), tmp_path, **{**method.published, "num_train_epochs": 1})
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD


def test_a_value_of_another_type_is_refused():
    with refused("official_compat", 1):
        get_method("munba", official_compat=1)
