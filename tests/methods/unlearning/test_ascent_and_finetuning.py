"""Gradient ascent, NegGrad+, fine-tuning and L1-sparse: their losses, and what they forget."""

import math

import pytest
import torch
from errors import refused
from tasks import arguments, knowing_vit, peft_vit
from unlearning_cases import joint_batch, loss_on, move, resumed_differs, rows64, trained_scores, trainer_of

from gs_lora_peft.methods import get_method


def cross_entropies(model, batch):
    """Means over the half to keep and the half to forget, by the definition."""
    rows, labels = rows64(model, batch["pixel_values"]), batch["labels"].tolist()
    losses = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in zip(rows, labels, strict=True)]
    return sum(losses[:4]) / 4, sum(losses[4:]) / 4


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
@pytest.mark.parametrize(
    ("name", "hyper", "of_retain", "of_forget"),
    [
        ("gradient_ascent", {}, 0.0, -1.0),
        ("neggrad_plus", {"alpha": 0.7}, 0.7, -0.3),
        ("finetune", {}, 1.0, 0.0),
    ],
)
def test_the_loss_is_that_of_the_definition(tmp_path, build, name, hyper, of_retain, of_forget):
    """Each half with its own weight and sign: a half taken for the other one would show."""
    trainer, batch = trainer_of(name, build(), tmp_path, hyper=hyper), joint_batch()
    move(trainer)
    kept, gone = cross_entropies(trainer.model, batch)
    assert abs(kept - gone) > 0.01
    assert loss_on(trainer, batch).item() == pytest.approx(of_retain * kept + of_forget * gone, rel=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_the_penalty_is_on_weights_and_officially_on_biases_too(tmp_path, official):
    """Norms and biases hold no knowledge of single classes."""
    trainer, batch = (
        trainer_of("l1_sparse", knowing_vit(), tmp_path, hyper={"official_compat": official}),
        joint_batch(),
    )
    trainer.method.gamma = 0.25
    named = dict(trainer.model.named_parameters())
    counted = [w for name, w in named.items() if official or ("bias" not in name and "layernorm" not in name)]
    norm = sum(math.fsum(map(abs, weight.double().flatten().tolist())) for weight in counted)
    kept, _ = cross_entropies(trainer.model, batch)
    assert loss_on(trainer, batch).item() == pytest.approx(kept + 0.25 * norm, rel=1e-5)


def test_the_penalty_fades_over_the_epochs(tmp_path):
    """γ_t = α·(1 − t/(E − n)), then 0: constant within an epoch, also with accumulated gradients."""
    hyper = {"alpha": 0.5, "no_l1_epochs": 1}
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = trainer_of("l1_sparse", knowing_vit(), tmp_path, hyper=hyper, **settings)
    seen, loss = [], trainer.method.loss

    def watched(*args):
        seen.append(trainer.method.gamma)
        return loss(*args)

    trainer.method.loss = watched
    trainer.train()
    assert seen == [0.5] * 8 + [0.25] * 8 + [0.0] * 8


def test_the_penalty_makes_weights_small(tmp_path):
    """More of them are next to zero than by fine-tuning with the same rate."""
    small = {}
    for name, hyper in (("finetune", {}), ("l1_sparse", {"alpha": 0.01})):
        model = knowing_vit()
        trained_scores(name, model, tmp_path / name, hyper=hyper, num_train_epochs=5, weight_decay=0.0)
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.dim() > 1])
        small[name] = (weights.abs() < 1e-2).float().mean().item()
    assert small["l1_sparse"] > 0.3
    assert small["l1_sparse"] > 2 * small["finetune"]


def test_the_penalty_is_the_same_in_a_resumed_training(tmp_path):
    """In the middle of an epoch, whose number a training that begins does not know."""
    hyper = {"alpha": 0.01, "no_l1_epochs": 1}
    assert not resumed_differs("l1_sparse", lambda: knowing_vit(dropout=0.1), tmp_path, 6, hyper=hyper)


@pytest.mark.parametrize(
    ("name", "build", "settings", "hyper"),
    [
        ("neggrad_plus", knowing_vit, {"learning_rate": 5e-3, "num_train_epochs": 4}, {}),
        ("neggrad_plus", peft_vit, {"learning_rate": 5e-2, "num_train_epochs": 9}, {"alpha": 0.9}),
        ("finetune", knowing_vit, {"learning_rate": 5e-3, "num_train_epochs": 10}, {}),
        ("l1_sparse", knowing_vit, {"learning_rate": 5e-3, "num_train_epochs": 8}, {}),
    ],
)
def test_forgets_and_keeps(tmp_path, name, build, settings, hyper):
    forget, retain = trained_scores(name, build(), tmp_path, hyper=hyper, **settings)
    assert forget < 0.4
    assert retain > 0.9


def test_fine_tuning_an_adapter_forgets_nothing(tmp_path):
    """Few weights that train keep what the others know: the baseline fails, and says so."""
    forget, retain = trained_scores("finetune", peft_vit(), tmp_path, learning_rate=5e-2, num_train_epochs=5)
    assert (forget, retain) == (1.0, 1.0)


@pytest.mark.parametrize(("rate", "epochs", "kept"), [(2e-3, 4, True), (1e-2, 8, False)])
def test_the_rate_decides_what_ascent_loses(tmp_path, rate, epochs, kept):
    """Its loss has no bound: after the classes to forget all others go."""
    settings = {"learning_rate": rate, "num_train_epochs": epochs}
    forget, retain = trained_scores("gradient_ascent", knowing_vit(), tmp_path, **settings)
    assert forget < 0.7
    assert retain > 0.8 if kept else retain < 0.6


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("neggrad_plus", "alpha", 1.5),
        ("neggrad_plus", "alpha", -0.1),
        ("neggrad_plus", "alpha", "0.5"),
        ("l1_sparse", "alpha", -1.0),
        ("l1_sparse", "no_l1_epochs", -1),
    ],
)
def test_values_out_of_range_are_refused(name, field, value):
    with refused(field, value):
        get_method(name, **{field: value})


def test_a_penalty_that_never_acts_is_refused(tmp_path):
    """Without a penalty in any epoch it would be fine-tuning under another name."""
    with refused("no_l1_epochs", 3):
        get_method("l1_sparse", no_l1_epochs=3).check(arguments(tmp_path, "l1_sparse", num_train_epochs=3))
    get_method("l1_sparse", no_l1_epochs=3).check(arguments(tmp_path, "l1_sparse", num_train_epochs=4))
