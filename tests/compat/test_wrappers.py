"""A model out of its wrappers: those of several processes, of torch.compile and of PEFT, in any order."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gs_lora_peft.compat import bare, base_of, loaded_from, preparation_undone, undo_preparation, unwrapped


def linears():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def adapted(model):
    return get_peft_model(model, LoraConfig(target_modules=["0"]))


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nn.DataParallel,
        compiled,
        adapted,
        lambda model: adapted(model).base_model,
        lambda model: compiled(nn.DataParallel(adapted(model))),
        lambda model: nn.DataParallel(compiled(adapted(model))),
    ],
)
def test_bare_is_the_model_inside_all_wrappers(wrap):
    model = linears()
    assert bare(wrap(model)) is model


def test_unwrapped_keeps_the_adapter_and_base_of_keeps_the_wrapper():
    inner = adapted(linears())
    parallel = nn.DataParallel(inner)
    assert unwrapped(parallel) is inner
    assert base_of(parallel) is parallel
    assert unwrapped("a/path") == "a/path"


def test_unwrapping_does_not_change_the_wrapper():
    """accelerate's default takes a compiled model's DDP wrapper off for good."""
    parallel = nn.DataParallel(linears())
    whole = compiled(parallel)
    unwrapped(whole)
    assert whole._orig_mod is parallel


def test_the_active_adapter_may_have_been_deleted():
    model = linears()
    peft_model = adapted(model)
    peft_model.add_adapter("other", LoraConfig(target_modules=["1"]))
    peft_model.base_model.set_adapter(["default", "other"])
    peft_model.base_model.delete_adapter("default")
    peft_model.active_adapter = "default"
    assert bare(peft_model) is model


def test_marks_of_accelerate_are_taken_off():
    model = linears()
    model._is_accelerate_prepared = True
    undo_preparation(model)
    assert not hasattr(model, "_is_accelerate_prepared")
    forward = model.forward = lambda x: x
    with preparation_undone(model):
        model.forward, model._is_accelerate_prepared = None, True
    assert model.forward is forward
    assert not hasattr(model, "_is_accelerate_prepared")


def test_a_model_without_a_configuration_has_no_name():
    assert loaded_from(linears()) == (None, None)
    assert loaded_from(adapted(linears())) == (None, None)
