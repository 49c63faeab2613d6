"""The baselines train, forget, are resumed, and refuse what they cannot use."""

import pytest
import torch
from baseline_cases import scores_after, trainer_of
from errors import refused
from tasks import arguments, differences, forget_set, knowing_vit, peft_vit, retain_set
from torch import nn
from transformers import LevitConfig, LevitForImageClassification

from gs_lora_peft.methods import METHODS, get_method

BASELINES = [name for name, path in METHODS.items() if ".continual." in path]


@pytest.mark.parametrize(
    ("name", "fields", "build", "rate"),
    [
        ("l2", {}, peft_vit, 8e-2),
        ("ewc", {}, peft_vit, 8e-2),
        ("mas", {}, knowing_vit, 5e-3),
        ("lwf", {}, peft_vit, 8e-2),
        ("der", {"distance_weight": 1.0}, knowing_vit, 5e-3),
        ("derpp", {"distance_weight": 0.05, "retain_weight": 1.0}, peft_vit, 8e-2),
        ("fdr", {"distance_weight": 10.0}, knowing_vit, 5e-3),
        ("scrub", {"max_epochs": 4}, knowing_vit, 5e-3),
        ("scrub_s", {"max_epochs": 4}, knowing_vit, 5e-3),
        ("lirf", {}, knowing_vit, 5e-3),
    ],
)
def test_forgets_and_keeps(tmp_path, name, fields, build, rate):
    model = build()
    head = [weight.clone() for weight in model.get_submodule("classifier").parameters()]
    settings = {"learning_rate": rate, "num_train_epochs": 8}
    forgotten, kept = scores_after(get_method(name, **fields), model, tmp_path, **settings)
    assert forgotten < 0.2
    assert kept > 0.9
    assert all(map(torch.equal, head, model.get_submodule("classifier").parameters()))


def test_retraining_knows_the_kept_classes_alone(tmp_path):
    """Also what the first weights knew is gone."""
    trainer = trainer_of(get_method("retrain"), knowing_vit(), tmp_path, num_train_epochs=15)
    trainer.train()
    scores = trainer.evaluate()
    assert scores["eval_acc_forget"] == 0
    assert scores["eval_acc_retain"] > 0.9
    with trainer.trained.before():
        pixels, labels = forget_set()[:]["pixel_values"], forget_set()[:]["label"]
        assert (trainer.model(pixel_values=pixels).logits.argmax(1) == labels).all()


def test_retraining_starts_from_the_seed_alone(tmp_path):
    """Not from the weights before, nor from random numbers drawn before; frozen weights start anew and train, too."""
    results = []
    for draws, known in ((0, True), (5, False)):
        model = knowing_vit()
        model.vit.requires_grad_(False)
        if not known:
            nn.init.zeros_(model.vit.layers[0].mlp.fc1.weight)
        trainer = trainer_of(get_method("retrain"), model, tmp_path, num_train_epochs=1)
        torch.rand(draws)
        before = torch.get_rng_state()
        trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
        assert torch.equal(before, torch.get_rng_state())
        assert len(trainer.trained.parameters) == len(list(model.parameters()))
        results.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert not differences(*results)
    assert differences(results[0], knowing_vit().state_dict())


@pytest.mark.parametrize(("name", "checkpoints"), [("scrub_s", (4, 6)), ("lirf", (6,))])
def test_weights_are_resumed_bit_for_bit(tmp_path, name, checkpoints):
    """At the end of an epoch and in its middle; adapters, and methods for weights alone: see test_every_method.py."""
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "weight_decay": 0.05}
    whole = trainer_of(get_method(name), knowing_vit(dropout=0.1), tmp_path / "one", **settings)
    whole.train()
    for checkpoint in checkpoints:
        resumed = trainer_of(get_method(name), knowing_vit(dropout=0.1), tmp_path / f"two{checkpoint}", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "one" / f"checkpoint-{checkpoint}"))
        assert not differences(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_lirf_trains_the_lower_half(tmp_path, build):
    """The first of three blocks, and the embeddings if there is no adapter."""
    trainer = trainer_of(get_method("lirf"), build(), tmp_path, num_train_epochs=1)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("layers.0." in name or "embeddings" in name for name in moved)
    assert not trainer.method._captured.outputs or not trainer.model.get_submodule("vit.layers.0")._forward_hooks


def test_lirf_needs_two_blocks(tmp_path):
    with refused("model", ["vit.layers.0"]):
        trainer_of(get_method("lirf"), knowing_vit(layers=1), tmp_path)


def test_retraining_is_refused_where_samples_to_forget_would_leave_a_trace(tmp_path):
    """BatchNorm averages over the joint batch."""
    config = LevitConfig(image_size=16, hidden_sizes=[8, 8, 8], num_attention_heads=[1, 1, 1], depths=[1, 1, 1],
                         key_dim=[4, 4, 4], num_labels=6)  # fmt: skip
    with refused("model"):
        get_method("retrain").take(LevitForImageClassification(config))
    with refused("model", "PeftModel"):
        trainer_of(get_method("retrain"), peft_vit(), tmp_path)


@pytest.mark.parametrize("name", BASELINES)
def test_published_arguments_and_the_space_can_be_used(tmp_path, name):
    """Names of arguments that exist, and hyper-parameters in their range."""
    method = get_method(name)
    args = arguments(tmp_path, method, **method.published)
    assert args.learning_rate == method.published["learning_rate"]
    for field, values in method.space.items():
        assert len(values) == 3
        assert [get_method(name, **{field: value}).settings()[field] for value in values] == list(values)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("l2", "penalty_weight", -1.0),
        ("lwf", "temperature", 0.0),
        ("derpp", "retain_weight", float("nan")),
        ("scrub", "max_epochs", 1.5),
        ("scrub_s", "average_rate", 0.0),
        ("lirf", "alpha", 1.5),
        ("fdr", "official_compat", "yes"),
    ],
)
def test_values_out_of_range_are_refused(name, field, value):
    """Also if the class is called without `get_method`."""
    with refused(field) as error:
        type(get_method(name))(**{field: value})
    assert error.value.fix


def test_the_sets_are_those_the_steps_of_scrub_are_counted_on():
    assert (len(forget_set()), len(retain_set())) == (6, 16)
