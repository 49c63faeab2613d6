"""Options that a method does not read are refused, left out of the record, and not advised."""

import warnings

import pytest
import torch
from errors import refused
from tasks import arguments, forget_set, knowing_vit, peft_vit, retain_set, samples, scoring_set

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.methods import METHODS, get_method
from gs_lora_peft.training import GROUP_OPTIONS, LOSS_OPTIONS, ForgettingTrainer, Method, only_read, unread_options

# A value of each option that no default equals.
OTHER = {
    "forget_weight": 3.0,
    "forget_loss": "cross_entropy",
    "forget_bound": 9.0,
    "background": "others",
    "prototype_forget_weight": 2.0,
    "prototype_retain_weight": 2.0,
    "prototype_bound": 9.0,
    "prototype_distance": "l2",
    "prototype_augmentations": 2,
    "distillation_weight": 50.0,
    "depth_weight": 7.0,
    "depth_retain_weight": 7.0,
    "depth_target": "mean",
    "depth_blocks": "layers",
    "depth_radius": 0.1,
    "sparsity": "none",
    "select_groups": 0.2,
    "sparsity_weight": 0.3,
    "sparsity_warmup_epochs": 1.0,
    "sparsity_ramp_epochs": 1.0,
    "sparsity_until_epoch": None,
    "ema_decay": 0.9,
    "ema_update": "step",
    "ema_start_epoch": 1.0,
}


class OwnLoss(Method):
    """Its loss does not look at that of the objective."""

    name = "own_loss"

    def loss(self, model, inputs, output):
        return torch.nn.functional.cross_entropy(*self.retain_half(inputs, output))


class Added(OwnLoss):
    """It uses that of the objective, and says so."""

    name = "added"
    reads = LOSS_OPTIONS

    def loss(self, model, inputs, output):
        return output.loss


def args_with(**changes):
    return GSLoraTrainingArguments("not-used", use_cpu=True, **changes)


def test_every_option_of_loss_and_groups_is_known():
    """A new option of either kind needs a value here."""
    assert OTHER.keys() == LOSS_OPTIONS | GROUP_OPTIONS


@pytest.mark.parametrize("name", OTHER)
def test_an_option_without_effect_is_refused(name):
    """By its name, whichever it is; also if it is set after the arguments were made, as a search does."""
    args = args_with()
    setattr(args, name, OTHER[name])
    with refused(name, OTHER[name]) as error:
        get_method("random_labels").check(args)
    assert "'random_labels'" in str(error.value)
    get_method("gs_lora").check(args)


def test_a_recipe_is_refused_by_its_own_name():
    """It sets the options of forgetting in depth, which nobody typed."""
    with refused("recipe", "deep"):
        get_method("random_labels").check(args_with(recipe="deep"))
    get_method("gs_lora_deep").check(args_with(recipe="deep"))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_publishes_is_read(name):
    """Its own settings, and what a search may try."""
    method = get_method(name)
    searched = {item: values[0] for item, values in method.space.items() if item not in method.settings()}
    own = searched | dict(method.published)
    assert only_read(own, method.reads) == own
    assert only_read(OTHER, method.reads).keys() == method.reads


def test_methods_of_others():
    """Own losses read nothing unless they say so; a subclass follows the class that it extends."""
    assert not OwnLoss.reads
    assert Added.reads == LOSS_OPTIONS
    assert type("Mine", (type(get_method("gs_lora")),), {"loss": OwnLoss.loss}).reads == LOSS_OPTIONS | GROUP_OPTIONS
    assert not get_method("ssd").reads  # takes no step
    assert "depth_weight" not in get_method("ffn").reads


def run_of(folder, method, **changes):
    args = arguments(folder, method, max_steps=1, learning_rate=1e-6, **changes)
    data = {"train": samples(per_class=4, seed=1), "test": scoring_set()}
    return ContinualForgetter(knowing_vit(), data, folder / "run", args=args, method=method)


def test_refused_before_any_training(tmp_path):
    with refused("forget_weight", 3.0):
        run_of(tmp_path, "random_labels", forget_weight=3.0)
    sets = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    with refused("distillation_weight", 50.0):
        ForgettingTrainer(
            knowing_vit(), args_with(distillation_weight=50.0), method=get_method("random_labels"), **sets
        )


def test_what_a_run_records_and_advises(tmp_path, caplog):
    """Neither names an option that the method does not read."""
    entry = run_of(tmp_path, "neggrad_plus").forget(ForgetRequest(["echidna"]))
    assert entry.forgotten is False
    assert not entry.settings["training"].keys() & {*unread_options(frozenset()), "recipe"}
    advice = next(line for line in caplog.messages if "To forget more" in line)
    for option in ("forget_weight", "forget_bound", "sparsity_weight", "num_train_epochs"):
        assert option not in advice
    assert "raise max_steps, learning_rate or the rank r, or change alpha of the method 'neggrad_plus'." in advice


def test_a_configuration_of_adapters_is_refused_with_weights(tmp_path):
    """No adapter is made, so it would have no effect."""
    data = {"train": samples(per_class=4, seed=1), "test": scoring_set()}
    args, config = arguments(tmp_path, "ffn"), GSLoraConfig(r=2)
    with refused("config", config):
        ContinualForgetter(knowing_vit(), data, tmp_path / "run", args=args, config=config, method="ffn")


@pytest.mark.parametrize(("name", "warned"), [("random_labels", True), ("ffn", True), ("gs_lora", False)])
def test_missing_classes_that_nothing_holds(tmp_path, name, warned):
    """A method without distillation may forget them, too."""
    sets = {"forget_dataset": forget_set(), "retain_dataset": samples((0, 1, 2), 3, seed=1)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, args = (knowing_vit if name == "ffn" else peft_vit)(), arguments(tmp_path, name)
        ForgettingTrainer(model, args, method=get_method(name), missing_classes=[3], **sets)
    assert any("`missing_classes`" in str(one.message) for one in caught) == warned
