"""Whatever keeps the gradient from the adapter is an error at the first step; reentrant checkpoints do not keep it."""

import copy
import functools
import pickle

import pytest
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from peft import get_peft_model
from tasks import adapter_state, differences, knowing_vit, peft_vit, scoring_set, trainer_for
from torch import nn

from gs_lora_peft import GSLoraConfig, NoGradientError, NonFiniteLossError, NoStepError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.training.gradients import check_checkpointing, reentrant_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cpu.amp:FutureWarning")
ONE = {"num_train_epochs": 1}


def checkpointing(name, reentrant):
    return {name: True, f"{name}_kwargs": {"use_reentrant": reentrant}}


@pytest.fixture(scope="module")
def without_checkpoints(tmp_path_factory):
    model = peft_vit(dropout=0.2)
    trainer = trainer_for(model, tmp_path_factory.mktemp("plain"), **ONE)
    torch.manual_seed(3)
    trainer.train()
    return adapter_state(model)


@pytest.mark.parametrize("switched_on_by", ["arguments", "base before PEFT", "model after PEFT"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_give_the_same_adapter_as_none(tmp_path, without_checkpoints, switched_on_by, reentrant):
    """Bit for bit, also with dropout, however they were switched on; afterwards the model is as it was."""
    settings = {"use_reentrant": reentrant}
    if switched_on_by == "base before PEFT":
        base = knowing_vit(dropout=0.2)
        base.gradient_checkpointing_enable(settings)
        torch.manual_seed(7)
        model = get_peft_model(base, GSLoraConfig(r=2))
    else:
        model = peft_vit(dropout=0.2)
    if switched_on_by == "model after PEFT":
        model.gradient_checkpointing_enable(settings)
    arguments = checkpointing("gradient_checkpointing", reentrant) if switched_on_by == "arguments" else {}
    trainer = trainer_for(model, tmp_path, **ONE, **arguments)
    torch.manual_seed(3)
    trainer.train()
    assert trainer.groups.active_groups() == trainer.groups.names
    assert not differences(adapter_state(model), without_checkpoints)
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert {type(function) for function in functions if function is not None} == {functools.partial}


def test_reentrant_checkpoints_below_the_lowest_block_that_trains(tmp_path):
    """There nothing is computed again, because nothing needs a gradient."""
    losses = []
    for reentrant in (True, False):
        model = peft_vit(block_pattern=r"\.2$")
        settings = {**checkpointing("gradient_checkpointing", reentrant), "prefix_cache": "off", "logging_steps": 1}
        trainer = trainer_for(model, tmp_path, logging_strategy="steps", max_steps=2, **settings)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def test_a_reentrant_checkpoint_works_without_gradient_too():
    """Prototypes and evaluation go through the same layers under no_grad."""
    model = peft_vit()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    pixels = torch.zeros(2, 3, 8, 8)
    with reentrant_checkpoints(model), torch.no_grad():
        assert torch.equal(model.train()(pixels).logits, model.eval()(pixels).logits)


def test_processes_that_look_for_unused_parameters_take_no_reentrant_checkpoint(tmp_path):
    """DDP would stop with an error about marking a variable ready twice."""
    model = peft_vit()
    args = copy.copy(trainer_for(model, tmp_path).args)
    args.__class__ = type("Two", (type(args),), {"world_size": 2})
    check_checkpointing(args, model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InvalidInputError):
        check_checkpointing(args, model)
    args.ddp_find_unused_parameters = False
    check_checkpointing(args, model)


class Broken(nn.Module):
    """A backbone that keeps its gradient to itself, in one of the ways in which that happens."""

    def __init__(self, inner: nn.Module, how: str):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, *args, **kwargs):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.inner(*args, **kwargs)
        hidden = self.inner(*args, **kwargs)
        return hidden.detach() if self.how == "detach" else hidden * 0.0


def broken_model(how):
    base = knowing_vit()
    base.vit.layernorm = Broken(base.vit.layernorm, how)
    torch.manual_seed(7)
    model = get_peft_model(base, GSLoraConfig(r=2))
    if how == "no_grad":
        whole = base.vit.forward

        def forward(*args, **kwargs):
            with torch.no_grad():
                return whole(*args, **kwargs)

        base.vit.forward = forward
    return model


@pytest.mark.parametrize("sparsity", ["proximal", "penalty"])
@pytest.mark.parametrize("how", ["no_grad", "detach", "times zero"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_adapter_without_gradient_is_an_error_at_the_first_step(tmp_path, how, sparsity, accumulation):
    """No step is taken, whatever else has a gradient (a penalty on every matrix, too), and the model stays usable."""
    model = broken_model(how)
    before = adapter_state(model)
    changes = {"sparsity": sparsity, "sparsity_weight": 0.01, "gradient_accumulation_steps": accumulation}
    trainer = trainer_for(model, tmp_path, **changes)
    with pytest.raises(NoGradientError) as caught:
        trainer.train()
    assert caught.value.step == 1
    assert trainer.state.global_step == 0
    assert not differences(before, adapter_state(model))


def test_losses_beyond_their_bound_are_no_broken_graph(tmp_path):
    """What is forgotten already has no slope, the half to keep has; nor has every lora_A in a fresh adapter."""
    trainer = trainer_for(peft_vit(), tmp_path, forget_bound=1e-6, forget_loss="log_odds", **ONE)
    assert trainer.train().global_step == 4


def test_groups_that_no_gradient_reaches_are_named(tmp_path, caplog):
    """A part of the model that does not take part in its answer; the others train."""
    model = peft_vit()
    layers = model.base_model.model.vit.layers
    whole = layers[0].forward

    def forward(*args, **kwargs):
        with torch.no_grad():
            return whole(*args, **kwargs)

    layers[0].forward = forward
    trainer = trainer_for(model, tmp_path, log_level="warning", **ONE)
    transformers.utils.logging.enable_propagation()
    try:
        trainer.train()
    finally:
        transformers.utils.logging.disable_propagation()
        transformers.utils.logging.set_verbosity_error()
    assert [r for r in caplog.records if "1 of 3 groups" in r.getMessage()]
    assert trainer.groups.zero_groups() == ["vit.layers.0"]


def test_a_training_whose_steps_are_all_skipped_is_an_error(tmp_path, monkeypatch):
    """As a loss scaler skips them at infinite gradients (fp16): the Trainer counts them, the weights do not move."""
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: True))
    with pytest.raises(NoStepError) as caught:
        trainer_for(peft_vit(), tmp_path, **ONE).train()
    assert (caught.value.steps, caught.value.method) == (4, None)


@pytest.mark.parametrize("rate", [{"learning_rate": 0}, {"warmup_steps": 1}], ids=str)
def test_a_training_that_moves_no_weight_is_an_error(tmp_path, rate):
    """Steps at a rate of 0 are steps to the Trainer, and a task would be recorded in which nothing is forgotten."""
    with pytest.raises(NoStepError):
        trainer_for(peft_vit(), tmp_path, max_steps=1, **rate).train()


def test_a_model_in_the_other_half_precision(tmp_path):
    """Autocast does not put both kinds together: the option is named, in training and in evaluation."""
    trainer = trainer_for(peft_vit(), tmp_path, kwargs={"eval_dataset": scoring_set()}, bf16=True)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.half()
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(InvalidInputError) as caught:
            run()
        assert caught.value.name == "bf16"


def test_broken_weights_of_the_base_are_named(tmp_path):
    """A lower learning rate would not help."""
    model = peft_vit()
    model.base_model.model.classifier.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_for(model, tmp_path, **ONE).train()
    assert [name.endswith("classifier.bias") for name in caught.value.weights] == [True]


@pytest.mark.parametrize(
    "error",
    [NonFiniteLossError(3, ["loss"], "last-good", "Look.", ["bias"]), NoGradientError(1), NoStepError(0, "ssd")],
)
def test_errors_survive_a_process_boundary(error):
    """Workers send them pickled."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_value_is_computed_without_gradient_where_that_is_asked_for(tmp_path):
    """`compute_loss` under no_grad is no broken graph, and returns outputs, in training as in evaluation."""
    trainer = trainer_for(peft_vit(), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    for mode in (True, False):
        trainer.model.train(mode)
        with torch.no_grad():
            loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        assert outputs["logits"].shape == (8, 6)
        assert torch.equal(loss, trainer.compute_loss(trainer.model, dict(batch)).detach())
