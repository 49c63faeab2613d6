"""Forgetting in depth withstands attacks that bring back what the head alone forgot, on real digits."""

import copy
import functools
import tempfile

import numpy as np
import pytest
import torch
from attack_cases import FORGET, KEEP, by_key, context, digits, samples, trained
from peft import get_peft_model

from gs_lora_peft import GSLoraTrainer, GSLoraTrainingArguments, split_dataset
from gs_lora_peft.audit.attacks.probes import LinearProbe, NearestCentroid
from gs_lora_peft.audit.subjects import Subject
from gs_lora_peft.training import adapter_of_recipe

PROBES = [LinearProbe(shots=(4,), draws=4, limit=120), NearestCentroid()]


@functools.cache
def forgotten(recipe):
    """The digits model after one request, with nothing but the recipe set."""
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(trained()), adapter_of_recipe(recipe))
    split = split_dataset(digits()[0], forget=FORGET, label_column="label")
    with tempfile.TemporaryDirectory() as folder:
        args = GSLoraTrainingArguments(folder, recipe=recipe, use_cpu=True, disable_tqdm=True)
        sets = {"forget_dataset": split.forget, "retain_dataset": split.retain}
        GSLoraTrainer(model, args, **sets).train()
    return Subject(recipe, "forgotten", model.merge_and_unload().eval())


def accuracy(subject, classes):
    judge = samples()[1]
    data = judge.batch(judge.of(classes))
    with torch.no_grad():
        found = subject.model(pixel_values=data["pixel_values"]).logits.argmax(-1)
    return 100 * (found == data["labels"]).float().mean().item()


def mean_excess(subject):
    """How many points the probes of all blocks recover beyond what they find in models that never saw the classes."""
    excess = []
    for attack in PROBES:
        found = by_key(attack.run(subject, context()))
        references = [by_key(attack.run(reference, context())) for reference in context().references]
        excess += [found[key].value - np.mean([one[key].value for one in references]) for key in found]
    return float(np.mean(excess))


@pytest.mark.parametrize("recipe", ["fast", "deep"])
def test_both_recipes_forget_by_the_head_and_keep_the_rest(recipe):
    subject = forgotten(recipe)
    assert accuracy(subject, FORGET) < 2
    assert accuracy(subject, KEEP) > accuracy(context().original, KEEP) - 3


def test_states_of_the_deep_recipe_say_less():
    """The head alone leaves the classes in the states; in depth they are hardly more than a stranger's."""
    fast, deep = (mean_excess(forgotten(recipe)) for recipe in ("fast", "deep"))
    assert fast > 5
    assert deep < fast / 2
