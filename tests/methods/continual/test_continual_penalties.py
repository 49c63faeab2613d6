"""L2, EWC and MAS: importance, earlier states, and the pull on the weights below an adapter."""

import copy

import pytest
import torch
from baseline_cases import cross_entropy, one_step, trainer_of
from errors import refused
from peft import get_peft_model
from tasks import knowing_vit, peft_vit, retain_set
from torch.nn import functional as F

from gs_lora_peft import GSLoraConfig
from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.continual.moving import QuadraticPull

NAMES = ("l2", "ewc", "mas")


def slow_importance(name, model, official):
    """By one backward pass for each sample, or each batch, in float64."""
    model = copy.deepcopy(model).double().eval()
    data, size = retain_set()[:], len(retain_set()) if official else 1
    sums = {key: torch.zeros_like(weight) for key, weight in model.named_parameters()}
    parts = list(zip(data["pixel_values"].double().split(size), data["label"].split(size), strict=True))
    for pixels, labels in parts:
        model.zero_grad()
        logits = model(pixel_values=pixels).logits
        (F.cross_entropy(logits, labels) if name == "ewc" else logits.square().mean()).backward()
        for key, weight in model.named_parameters():
            if weight.grad is not None:
                sums[key] += size * weight.grad**2 if name == "ewc" else weight.grad.abs()
    return {key: total / len(parts) for key, total in sums.items()}


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("name", ["ewc", "mas"])
@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_importance(tmp_path, name, build, official):
    """With an adapter it is that of the frozen weights below it, which stay frozen."""
    expected = slow_importance(name, knowing_vit(), official)
    trainer = trainer_of(get_method(name, official_compat=official), build(), tmp_path)
    flags = [weight.requires_grad for weight in trainer.model.parameters()]
    trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert flags == [weight.requires_grad for weight in trainer.model.parameters()]
    found = dict(zip(trainer.method._moving.names, trainer.method._own, strict=True))
    assert len(found) == (6 if build is peft_vit else len(expected) - 2)
    assert "classifier.weight" not in found
    for key, values in found.items():
        torch.testing.assert_close(values.double(), expected[key], rtol=1e-3, atol=1e-7)


def test_several_states_are_one_quadratic_function():
    """Also where no state holds a weight to matter."""
    torch.manual_seed(0)
    shapes = {"a": (4, 3), "b": (5,)}
    draw = {key: [torch.randn(4, *shape).double() for _ in range(2)] for key, shape in shapes.items()}
    weights = {key: values.float() for key, (values, _) in draw.items()}
    importance = {key: values.square().float() for key, (_, values) in draw.items()}
    for values in importance.values():
        values[:, 0] = 0
    kinds = {"weights": weights, "importance": importance}
    states = [
        {f"{kind}/{key}": values[i] for kind, of in kinds.items() for key, values in of.items()} for i in range(3)
    ]
    last = ([v[3] for v in weights.values()], [v[3] for v in importance.values()])
    moves = [torch.randn(shape) for shape in shapes.values()]
    expected = sum(
        (importance[key][i] * (weights[key][3] + move - weights[key][i]) ** 2).double().sum()
        for key, move in zip(shapes, moves, strict=True)
        for i in range(4)
    )
    assert QuadraticPull(list(shapes), *last, [{}, *states])(moves).item() == pytest.approx(expected.item(), rel=1e-5)
    assert QuadraticPull(list(shapes), *last)([torch.zeros(shape) for shape in shapes.values()]).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_weights(tmp_path, name):
    step = one_step(name, knowing_vit(), tmp_path, penalty_weight=0.5)
    ones = {key: torch.ones_like(weight) for key, weight in step.original.named_parameters()}
    importance = ones if name == "l2" else slow_importance(name, step.original, False)
    before = dict(step.original.double().named_parameters())
    pull = sum(
        (importance[key] * (weight.detach().double() - before[key].detach()) ** 2).sum().item()
        for key, weight in step.trainer.model.named_parameters()
    )
    targets = torch.cat([step.labels[: step.half], step.drawn])
    assert step.loss.item() == pytest.approx(cross_entropy(step.now, targets) + 0.5 * pull, rel=1e-4)


def test_loss_of_an_adapter(tmp_path):
    """The pull acts on what the adapter adds to the weights, whatever its factors are."""
    step = one_step("l2", peft_vit(), tmp_path, penalty_weight=0.5)
    merged = copy.deepcopy(step.trainer.model).double().merge_and_unload().state_dict()
    before = knowing_vit().double().state_dict()
    pull = sum((merged[key] - values).square().sum().item() for key, values in before.items())
    targets = torch.cat([step.labels[: step.half], step.drawn])
    assert step.loss.item() == pytest.approx(cross_entropy(step.now, targets) + 0.5 * pull, rel=1e-4)


@pytest.mark.parametrize(("name", "by_adapter"), [("l2", True), ("ewc", True), ("mas", False)])
def test_a_later_task_is_pulled_to_all_earlier_states(tmp_path, name, by_adapter):
    """What two tasks leave holds the original weights and those after the first, each with its own importance."""
    states, left, model = [], [], knowing_vit()
    for task in range(3):
        method = get_method(name, penalty_weight=0.01)
        method.earlier = left
        states.append({key: values.clone().double() for key, values in model.state_dict().items()})
        adapted = get_peft_model(model, GSLoraConfig(r=2)) if by_adapter else model
        trainer = trainer_of(method, adapted, tmp_path / str(task), num_train_epochs=1)
        trainer.train()
        left = [*left, trainer.method.leave()]
        if by_adapter:
            model = adapted.merge_and_unload()
    for state, found in zip(states, left, strict=True):
        names = [key.removeprefix("weights/") for key in found if key.startswith("weights/")]
        assert len(names) == (6 if by_adapter else len(states[0]) - 2)
        assert all(torch.equal(found[f"weights/{key}"].double(), state[key]) for key in names)
    now = model.state_dict()
    expected = sum(
        (found[f"importance/{key}"].double() * (now[key].double() - state[key]).square()).sum().item()
        for state, found in zip(states, left, strict=True)
        for key in names
    )
    # Of the third task, whose adapter is merged by now: its moves are the difference of the weights.
    moves = [now[key] - states[2][key].float() for key in trainer.method._moving.names]
    assert trainer.method._pull(moves).item() == pytest.approx(expected, rel=1e-3)


def test_a_state_without_a_weight_that_trains_is_refused(tmp_path):
    """Half a sum would look like a sum."""
    method = get_method("l2")
    method.earlier = [{"weights/a": torch.zeros(1), "importance/a": torch.ones(())}]
    trainer = trainer_of(method, knowing_vit(), tmp_path)
    with refused("earlier"):
        trainer.method.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
def test_a_strong_pull_keeps_the_weights(tmp_path, build):
    moved = {}
    for weight in (0.0, 100.0):
        trainer = trainer_of(get_method("l2", penalty_weight=weight), build(), tmp_path, num_train_epochs=3)
        trainer.train()
        moved[weight] = sum(move.norm().item() for move in trainer.method._moving.moves())
    assert moved[100.0] < 0.3 * moved[0.0]
