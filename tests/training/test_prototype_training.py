"""Prototypes in a run: which model and which images they come from, what they do, and what is refused."""

import pytest
import torch
from errors import refused
from tasks import adapter_state, arguments, forget_set, peft_vit, retain_set, trainer_for, two_adapters
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.objectives import NoEmbeddingFoundError, PrototypeObjective, objective_for

WEIGHTS = {"prototype_forget_weight": 0.3, "prototype_retain_weight": 0.2}


def embeddings_of(model, rows):
    """The final LayerNorm's class token, as one reads it in the source of ViT."""
    model.eval()
    with torch.no_grad():
        hidden = model.base_model.model.vit(pixel_values=rows["pixel_values"]).last_hidden_state
    return hidden[:, 0]


def slow_means(model):
    """One sample after the other, in float64."""
    means = {}
    for rows in (retain_set()[:], forget_set()[:]):
        for c in rows["label"].unique().tolist():
            own = embeddings_of(model, {"pixel_values": rows["pixel_values"][rows["label"] == c]}).double()
            means[c] = sum(own) / len(own)
    return means


def prototypes_of(trainer):
    assert isinstance(trainer.objective, PrototypeObjective)
    return trainer.objective.prototypes


def untouched_adapters(model, *names):
    """The model with nothing but these adapters acting."""
    if names:
        model.base_model.set_adapter(list(names))
    else:
        model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize(("build", "kept"), [(peft_vit, ()), (two_adapters, ("task_001",))])
def test_prototypes_come_from_the_model_before_the_task(tmp_path, build, kept):
    """Without the adapter that trains, whatever it holds, with earlier ones, without dropout."""
    model = build(dropout=0.4)
    training = [p for p in model.parameters() if p.requires_grad]
    for parameter in training:
        torch.nn.init.normal_(parameter, std=0.5)
    trainer = trainer_for(model, tmp_path, max_steps=1, **WEIGHTS)
    flags = [p.requires_grad for p in model.parameters()]
    trainer.train()
    assert [p.requires_grad for p in model.parameters()] == flags
    expected = slow_means(untouched_adapters(build(), *kept))
    found = prototypes_of(trainer)
    assert found.counts.tolist() == [4, 4, 4, 4, 3, 3]
    for c, mean in expected.items():
        torch.testing.assert_close(found.means[c].double(), mean, rtol=1e-5, atol=1e-6)


def test_terms_act_on_the_half_they_are_meant_for(tmp_path):
    """w_f drives forgotten samples from their prototypes, w_r holds kept ones; both are logged."""

    def distances(**weights):
        trainer = trainer_for(
            peft_vit(r=8),
            tmp_path,
            learning_rate=2e-2,
            num_train_epochs=4,
            logging_strategy="epoch",
            prototype_bound=50.0,
            **weights,
        )
        trainer.train()
        entry = [entry for entry in trainer.state.log_history if "retain_distance" in entry][-1]
        return entry["retain_distance"], entry["forget_distance"]

    faint = distances(prototype_forget_weight=1e-9, forget_weight=0.0)
    pushed = distances(prototype_forget_weight=1.0, forget_weight=0.0)
    assert pushed[1] > 2 * faint[1]
    assert pushed[0] < 2 * faint[0]
    drifting = distances(prototype_forget_weight=1e-9)
    held = distances(prototype_retain_weight=10.0)
    assert held[0] < 0.5 * drifting[0]


def test_without_weights_nothing_is_computed(tmp_path):
    """A plain run makes no pass over the data before its first step, and trains as it always did."""
    model, calls = peft_vit(), []
    model.get_base_model().register_forward_hook(lambda *args: calls.append(model.training))
    trainer = trainer_for(model, tmp_path, num_train_epochs=1)
    trainer.train()
    assert calls == [True] * 4
    assert not isinstance(trainer.objective, PrototypeObjective)


def test_augmented_views_change_the_prototypes_reproducibly(tmp_path):
    """The mean over each image and its views: another one than without, the same for a seed, another for another."""

    def means(**settings):
        trainer = trainer_for(
            peft_vit(),
            tmp_path,
            kwargs={"augment": lambda image: image + torch.randn(1)} if "prototype_augmentations" in settings else {},
            max_steps=1,
            **WEIGHTS,
            **settings,
        )
        torch.rand(3)
        trainer.train()
        return prototypes_of(trainer)

    plain, views = means(), means(prototype_augmentations=3)
    assert views.counts.tolist() == [4 * n for n in plain.counts.tolist()]
    assert not torch.allclose(plain.means, views.means, atol=1e-3)
    assert torch.equal(means(prototype_augmentations=3).means, views.means)
    assert not torch.equal(means(prototype_augmentations=3, seed=7).means, views.means)


def test_prototypes_draw_no_random_numbers(tmp_path):
    """Taking them must not change which dropout or data training sees: with a weight of almost 0 nothing differs."""
    states = []
    for weight in (0.0, 1e-30):
        model = peft_vit(dropout=0.3)
        torch.manual_seed(3)
        trainer_for(model, tmp_path, prototype_forget_weight=weight).train()
        states.append(adapter_state(model))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_augmented_training_sees_other_images(tmp_path):
    """`augmentation=True` changes what is trained on, and is the same run for the same seed."""
    states = []
    for settings in ({}, {"augmentation": True}, {"augmentation": True}):
        model = peft_vit()
        kwargs = {"augment": lambda image: image + torch.randn_like(image)} if settings else {}
        trainer_for(model, tmp_path, kwargs=kwargs, **settings).train()
        states.append(torch.cat([tensor.flatten() for tensor in adapter_state(model).values()]))
    assert not torch.allclose(states[0], states[1], atol=1e-3)
    assert torch.equal(states[1], states[2])


def test_an_augmentation_for_nothing_is_refused(tmp_path):
    """A function that is never called would be taken for one that acts."""
    with refused("augment"):
        trainer_for(peft_vit(), tmp_path, kwargs={"augment": lambda image: image})


def test_a_model_with_two_heads_is_refused_before_training(tmp_path):
    """Not after the first epoch: when the trainer is made."""
    model = DeiTForImageClassificationWithTeacher(
        DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=3)
    )
    args = arguments(tmp_path, **WEIGHTS)
    with refused("model", "DeiTForImageClassificationWithTeacher", NoEmbeddingFoundError):
        objective_for(model, args)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prototype_forget_weight", -1.0),
        ("prototype_retain_weight", float("nan")),
        ("prototype_bound", "far"),
        ("prototype_bound", 0.0),
        ("prototype_distance", "l1"),
        ("ema_update", "batch"),
        ("prototype_augmentations", -1),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, name, value):
    """Each with its value."""
    with pytest.raises(InvalidInputError) as caught:
        arguments(tmp_path, **{**WEIGHTS, name: value})
    assert (caught.value.name, caught.value.value) == (name, value)


def test_views_that_nothing_averages_are_refused(tmp_path):
    """Without prototypes they would be made for nothing."""
    with refused("prototype_augmentations", 2):
        arguments(tmp_path, prototype_augmentations=2)


def test_missing_classes_are_evaluated_by_themselves(tmp_path):
    """`eval_acc_missing`: kept classes without training data count for neither Acc_r nor Acc_f."""
    from tasks import samples, scoring_set

    trainer = trainer_for(
        peft_vit(),
        tmp_path,
        kwargs={
            "retain_dataset": samples((0, 1, 2), 4, seed=1),
            "eval_dataset": scoring_set(),
            "missing_classes": [3],
        },
    )
    logits = trainer.predict(scoring_set()).predictions
    labels = scoring_set()[:]["label"].numpy()
    scores = trainer.evaluate()
    for name, members in (("missing", [3]), ("retain", [0, 1, 2]), ("forget", [4, 5])):
        rows = [label in members for label in labels]
        assert scores[f"eval_acc_{name}"] == pytest.approx((logits.argmax(-1) == labels)[rows].mean())


@pytest.mark.parametrize(
    ("missing", "name", "value"), [([3], "missing_classes", [3]), ([4], "missing_classes", [4]), ([9], "label", 9)]
)
def test_missing_classes_with_data_are_refused(tmp_path, missing, name, value):
    """A class whose data is trained on is not missing."""
    with refused(name, value):
        trainer_for(peft_vit(), tmp_path, kwargs={"missing_classes": missing})
