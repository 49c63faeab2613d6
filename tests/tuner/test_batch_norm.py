"""BatchNorm layers that no adapter saves."""

import copy
import pickle

import torch
from torch import nn

from gs_lora_peft.compat import batch_norm_frozen


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2), nn.BatchNorm1d(2))
    return layers.requires_grad_(False).train()


IMAGES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_statistics_stay_and_normalise_in_training():
    """Training mode after the call, as the Trainer sets it at every step, must not bring the layers to life."""
    net = model()
    before = copy.deepcopy(net.state_dict())
    expected = copy.deepcopy(net).eval()(IMAGES)
    with batch_norm_frozen(net):
        for _ in range(2):
            net.train()
            assert torch.equal(net(IMAGES), expected)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_layers_are_as_they_were_afterwards():
    """Neither hooks nor a mode stay behind: the model trains, evaluates, copies and pickles as before."""
    net = model()
    with batch_norm_frozen(net):
        net(IMAGES)
    assert all(module.training for module in net.modules())
    net(IMAGES)
    assert net[1].num_batches_tracked == 1
    with batch_norm_frozen(net.eval()):
        net(IMAGES)
    assert not any(module.training for module in net.modules())
    pickle.dumps(copy.deepcopy(net))


def test_layers_that_train_stay_alive():
    """Who trains a BatchNorm, as PEFT's `modules_to_save` does, saves its statistics as well."""
    net = model()
    net[1].requires_grad_(True)
    with batch_norm_frozen(net):
        net(IMAGES)
    assert net[1].num_batches_tracked == 1
    assert net[4].num_batches_tracked == 0
