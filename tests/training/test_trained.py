"""What trains, and the model before the task and before all tasks, which answer while a backward pass is under way."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gs_lora_peft.training import TrainedAdapter, TrainedWeights


class Net(nn.Module):
    """Two layers with a BatchNorm in between, whose statistics are buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, rows):
        return self.last(torch.relu(self.norm(self.first(rows))))


def with_adapter():
    model = get_peft_model(Net().eval(), LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    return model, TrainedAdapter(model)


def with_weights():
    model = Net().eval()
    return model, TrainedWeights(model)


KINDS = {"adapter": with_adapter, "weights": with_weights}
ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(ROWS)


def original_net():
    """The model before all tasks, of which earlier tasks have changed one weight, one bias and one statistic."""
    net = Net().eval()
    with torch.no_grad():
        net.first.weight.mul_(2)
        net.last.bias.add_(1)
        net.norm.running_mean.add_(0.5)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_before_all_tasks(kind):
    """Below a layer that PEFT has wrapped, and for buffers, too; afterwards the model is the trained one again."""
    model, trained = KINDS[kind]()
    with trained.original():  # outside a run
        torch.testing.assert_close(logits(model), logits(Net().eval()))
    net = original_net()
    trained.originals = {
        name: net.state_dict()[name].clone() for name in ("first.weight", "last.bias", "norm.running_mean")
    }
    with torch.no_grad():
        for weight in trained.parameters:
            weight.add_(0.1)
    now = logits(model)
    for _ in range(2):
        with trained.original():
            torch.testing.assert_close(logits(model), logits(net))
        with trained.before():
            torch.testing.assert_close(logits(model), logits(Net().eval()))
        assert torch.equal(logits(model), now)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_under_way_is_not_disturbed(kind):
    """The values that autograd needs later are not overwritten."""
    gradients = []
    for asks in (False, True):
        model, trained = KINDS[kind]()
        trained.originals = {name: value.clone() for name, value in original_net().state_dict().items()}
        loss = model(ROWS).square().sum()
        if asks:
            with trained.original():
                original = model(ROWS)
            loss = loss + original.sum()
        loss.backward()
        gradients.append([weight.grad for weight in trained.parameters])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_statistics_that_move_in_training_are_those_before():
    """A BatchNorm whose weights train is in training mode; the model before the task has its former statistics."""
    model, trained = with_weights()
    before = logits(model)
    model.train()
    model(ROWS)
    moved = model.norm.running_mean.clone()
    with trained.before():
        torch.testing.assert_close(logits(model), before)
    assert torch.equal(model.norm.running_mean, moved)
