"""Every registered method: resumed bit for bit, and carried out request after request into files that give it back."""

import json

import pytest
import torch
from tasks import arguments, differences, forget_set, knowing_vit, peft_vit, retain_set, samples, scoring_set

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, load_forgotten
from gs_lora_peft.methods import METHODS, get_method
from gs_lora_peft.training import ForgettingTrainer

# The moving average of the published settings starts at the 30th epoch.
OWN = {"gs_lora_pp_published": {"ema_start_epoch": 0}}
EDITS = [name for name in METHODS if not get_method(name).takes_steps]


def settings(name, **changes):
    """The source's settings for a training of three epochs."""
    few = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    return {**get_method(name).published, **few, **OWN.get(name, {}), **changes}


def model_for(name, **options):
    return (knowing_vit if get_method(name).trains == "weights" else peft_vit)(**options)


@pytest.mark.parametrize("name", METHODS)
def test_its_settings_can_be_recorded(name):
    """As JSON in the ledger, and from there it can be made again."""
    recorded = json.loads(json.dumps(get_method(name).settings()))
    assert get_method(recorded.pop("name"), **recorded) == get_method(name)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in EDITS])
def test_it_is_resumed_bit_for_bit(tmp_path, name):
    trainers = []
    for folder in ("whole", "resumed"):
        args = arguments(tmp_path / folder, name, **settings(name, save_strategy="steps", save_steps=3))
        data = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
        trainers.append(ForgettingTrainer(model_for(name, dropout=0.1), args, method=get_method(name), **data))
    whole, resumed = trainers
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed.state.global_step == whole.state.global_step > 6
    assert not differences(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_it_carries_out_requests(tmp_path, name):
    """A killed process goes on from the ledger; the files of both tasks give the model back, bit for bit."""
    requests = [ForgetRequest(["echidna"]), ForgetRequest(["flamingo"])]
    data = {"train": samples(per_class=4, seed=1), "test": scoring_set()}
    args = arguments(tmp_path / "run", name, **settings(name, num_train_epochs=1))
    given = {"args": args, "method": name}
    if get_method(name).trains != "weights":
        given["config"] = GSLoraConfig(r=2)
    ContinualForgetter(knowing_vit(), data, tmp_path / "run", **given).run(requests[:1])
    forgetter = ContinualForgetter(knowing_vit(), data, tmp_path / "run", **given)
    entries = forgetter.run(requests)
    assert [len(entry.classes) for entry in entries] == [1, 1]
    assert differences(knowing_vit().state_dict(), forgetter.model.state_dict())
    loaded = load_forgotten(knowing_vit(), tmp_path / "run")
    pixels = scoring_set()[:]["pixel_values"]
    with torch.no_grad():
        carried_out, read = (model.eval()(pixel_values=pixels).logits for model in (forgetter.model, loaded))
    if get_method(name).trains == "weights":
        assert torch.equal(carried_out, read)
    torch.testing.assert_close(carried_out, read)  # adapters are merged in one, and attached in the other
