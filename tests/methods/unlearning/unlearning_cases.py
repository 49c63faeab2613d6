"""What the tests of unlearning methods share: a small trainer, and losses and logits on one joint batch."""

import copy

import torch
from tasks import arguments, differences, forget_set, knowing_vit, retain_set, samples, scoring_set

from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer


def trainer_of(name, model, folder, *, hyper=None, **settings):
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    return ForgettingTrainer(
        model, arguments(folder, name, **settings), method=get_method(name, **(hyper or {})), **data
    )


def trained_scores(name, model, folder, *, hyper=None, **settings):
    """Acc_f and Acc_r after a training."""
    trainer = trainer_of(name, model, folder, hyper=hyper, **settings)
    trainer.train()
    scores = trainer.score(scoring_set())
    return scores["acc_forget"], scores["acc_retain"]


def move(trainer, std=0.05):
    """Moves what trains away from where it was before the task."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainer.trained.parameters:
            weight += std * torch.randn(weight.shape, generator=generator)


def joint_batch():
    """Four samples to keep, then four to forget."""
    rows = [samples(classes, per_class=2, seed=6)[:] for classes in ((0, 3), (4, 5))]
    return {
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "labels": torch.cat([row["label"] for row in rows]),
    }


def loss_on(trainer, batch):
    """The loss of the method, computed as the trainer does it."""
    model = trainer.model.train()
    return trainer.method.loss(model, batch, trainer.task_objective.training_step(model, batch))


def rows64(model, pixels):
    """Logits of a copy of the model in float64, as lists of Python numbers."""
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return exact(pixel_values=pixels.double()).logits.tolist()


def before64(pixels):
    """Logits of the model before the task, in the same form; a fresh adapter changes nothing."""
    return rows64(knowing_vit(), pixels)


def resumed_differs(name, build, folder, checkpoint, *, hyper=None, **settings):
    """Weights that differ between a whole training and one that goes on from a checkpoint of it."""
    settings = {"save_strategy": "steps", "save_steps": checkpoint, "num_train_epochs": 3, **settings}
    whole, resumed = (trainer_of(name, build(), folder / part, hyper=hyper, **settings) for part in ("one", "two"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "one" / f"checkpoint-{checkpoint}"))
    assert whole.state.global_step == resumed.state.global_step
    return differences(whole.model.state_dict(), resumed.model.state_dict())
