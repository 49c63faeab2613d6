"""What cannot work is refused before any training, with the bad value and the fix; a NaN stops a run in time."""

import copy
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from errors import refused
from peft import get_peft_model
from safetensors.torch import load_file
from tasks import (
    FORGET,
    NAMES,
    RETAIN,
    adapter_state,
    arguments,
    differences,
    ffn_trainer,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
    scoring_set,
    trainable,
    trainer_for,
    vit,
)
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from gs_lora_peft import ContinualForgetter, GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments, NonFiniteLossError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.methods import get_method
from gs_lora_peft.objectives import ClassificationObjective
from gs_lora_peft.training.gradients import NonFiniteCallback
from gs_lora_peft.training.inherited import check_distribution


@pytest.fixture
def trains():
    """Asked for by the tests that train."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch, request):
    """Nothing else in this file may take a step."""
    if "trains" not in request.fixturenames:
        monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: pytest.fail("training has begun"))


# Model


SETS = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
TRAINERS = {
    "trainer": lambda model, args: GSLoraTrainer(get_peft_model(model, GSLoraConfig(r=2)), args, **SETS),
    "fine-tuner": lambda model, args: ffn_trainer(model, args, **SETS),
    "sequence": lambda model, args: ContinualForgetter(model, scoring_set(), args.output_dir, args=args),
}


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("build", [ViTModel, ViTForMaskedImageModeling, "regression"])
def test_models_without_a_class_head_are_refused_by_everything_that_trains(tmp_path, kind, build):
    """By the type of the model, before data is looked at; the configuration says how many classes, as always."""
    config = vit().config
    if build == "regression":
        config.problem_type, build = "regression", ViTForImageClassification
    model, args = build(config), arguments(tmp_path / "run", "ffn" if kind == "fine-tuner" else "gs_lora")
    with pytest.raises(InvalidInputError) as error:
        TRAINERS[kind](model, args)
    assert error.value.value in ("ViTModel", "ViTForMaskedImageModeling", "regression")
    assert not (tmp_path / "run").exists()


def test_an_objective_of_ones_own_may_train_any_model(tmp_path):
    """What "forget" means for it is the user's to say."""
    model = get_peft_model(ViTModel(vit().config), GSLoraConfig(r=2))
    objective = ClassificationObjective(1.0, 3.0)
    assert trainer_for(model, tmp_path, kwargs={"objective": objective}).objective is objective


# Data


@pytest.fixture(scope="module")
def untouched():
    """A model with its adapter for what is refused before the model changes."""
    return peft_vit()


@pytest.mark.parametrize("which", ["forget", "retain"])
@pytest.mark.parametrize(
    ("bad", "value"),
    [
        (None, "NoneType"),
        (Dataset.from_dict({"label": []}), "an empty data set"),
        (Dataset.from_dict({"target": [0]}), "label"),
        (Dataset.from_dict({"label": ["cat"]}), "string"),
        (Dataset.from_dict({"label": [0.5]}), "float64"),
        (Dataset.from_dict({"label": [-1]}), -1),
    ],
)
def test_sets_that_cannot_be_read(tmp_path, untouched, which, bad, value):
    """Missing, empty or unlabelled sets: the error says which one and why."""
    with pytest.raises(InvalidInputError) as error:
        trainer_for(untouched, tmp_path, kwargs={f"{which}_dataset": bad})
    assert which in error.value.name
    assert error.value.value == value


def test_a_stream_to_forget_is_refused(tmp_path, untouched):
    """The set to forget is a fixed one; samples to keep may be a stream (test_stream.py)."""
    stream = Dataset.from_dict({"label": [0]}).to_iterable_dataset()
    with refused("forget", "IterableDataset"):
        trainer_for(untouched, tmp_path, kwargs={"forget_dataset": stream})


@pytest.mark.parametrize("which", ["forget", "retain"])
@pytest.mark.parametrize(
    ("bad", "name", "value"),
    [
        ([{"label": 0}, {"target": 0}], "row 1 of the {} set", ["target"]),
        ([(torch.zeros(3), 0)], "row 0 of the {} set", "tuple"),
        ([{"label": 0}, {"label": "cat"}], "'label' of the {} set", "0"),
        ([{"label": None}], "'label' of the {} set", None),
        ([{"label": 0}, {"label": -1}], "'label' of the {} set", -1),
        ([{"label": torch.tensor(1.5)}], "'label' of the {} set", 1.5),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, untouched, which, bad, name, value):
    """Samples without labels, or with labels of another type."""
    with refused(name.format(which), value):
        trainer_for(untouched, tmp_path, kwargs={f"{which}_dataset": bad})


def test_both_sets_have_to_be_named(tmp_path):
    """They have no default and no order."""
    with pytest.raises(TypeError, match="forget_dataset"):
        GSLoraTrainer(peft_vit(), retain_dataset=retain_set())


@pytest.mark.parametrize(
    ("kwargs", "name", "value"),
    [
        ({"retain_dataset": samples((0, 4))}, "forget_classes", [4]),
        ({"old_classes": [5]}, "forget_classes", [5]),
        ({"old_classes": [0, 1]}, "old_classes", [0, 1]),
        ({"forget_dataset": [{"label": 6}]}, "label", 6),
        ({"old_classes": [77]}, "label", 77),
    ],
)
def test_classes_that_overlap_or_do_not_exist(tmp_path, untouched, kwargs, name, value):
    """A class has one role, and the head has to know it."""
    with refused(name, value):
        trainer_for(untouched, tmp_path, kwargs=kwargs)


@pytest.mark.parametrize("which", ["forget_dataset", "retain_dataset", "eval_dataset"])
def test_labels_of_another_order(tmp_path, untouched, which):
    """Data that number the classes otherwise than the model would have another class forgotten."""
    rows = samples(FORGET if which == "forget_dataset" else RETAIN, 3)
    shuffled = rows.cast_column("label", ClassLabel(names=NAMES[::-1]))
    with pytest.raises(InvalidInputError) as error:
        trainer_for(untouched, tmp_path, kwargs={which: shuffled})
    assert error.value.name.endswith("'label': class 0")
    assert error.value.value == "flamingo"
    assert "id2label[0]" in error.value.expected
    assert "align_labels" in error.value.fix


def test_a_head_of_another_size(tmp_path):
    """A model with fewer classes than the data."""
    model = get_peft_model(vit(num_labels=4), GSLoraConfig(r=2))
    with refused("label", 5):
        trainer_for(model, tmp_path)


@pytest.mark.parametrize(
    ("sets", "name", "value"),
    [
        ([{"label": 7}], "label of the evaluation set", 7),
        ({"far": Dataset.from_dict({"label": [0, 9]})}, "label of the evaluation ('far') set", 9),
    ],
)
def test_evaluation_labels_outside_the_head(tmp_path, untouched, sets, name, value):
    """On a GPU the cross-entropy would end in a device-side assertion, after an epoch of training."""
    with refused(name, value):
        trainer_for(untouched, tmp_path, kwargs={"eval_dataset": sets})


def test_an_evaluation_set_without_labels(tmp_path, untouched):
    """The error says that it is this set."""
    with pytest.raises(InvalidInputError) as error:
        trainer_for(untouched, tmp_path, kwargs={"eval_dataset": Dataset.from_dict({"target": [0]})})
    assert "evaluation" in error.value.name
    assert error.value.value == "label"


@pytest.mark.parametrize(
    ("sets", "expected"), [({"near": scoring_set()}, "eval_near_h_mean"), (samples(RETAIN), "the classes to forget")]
)
def test_a_best_model_by_a_score_that_no_evaluation_gives(tmp_path, untouched, sets, expected):
    """The default of `load_best_model_at_end` would end in a KeyError after the first epoch."""
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with refused("metric_for_best_model", "h_mean") as error:
        trainer_for(untouched, tmp_path, kwargs={"eval_dataset": sets}, **best)
    assert expected in error.value.expected


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_evaluation_without_data(tmp_path, untouched, strategy):
    """The message offers a validation part and warns of the test data."""
    with refused("eval_strategy", strategy) as error:
        trainer_for(untouched, tmp_path, eval_strategy=strategy, eval_steps=2)
    assert "never the test data" in error.value.fix


def test_a_validation_part_of_nothing(tmp_path, untouched):
    """One sample a class leaves none to hold out."""
    data = {"retain_dataset": samples(RETAIN, 1), "forget_dataset": samples(FORGET, 1)}
    with refused("fraction", 0.1):
        trainer_for(untouched, tmp_path, kwargs=data, validation_fraction=0.1)


def test_a_validation_part_of_a_plain_list(tmp_path, untouched):
    """Holding out works on `datasets.Dataset`, whose rows can be picked."""
    retain = [{"pixel_values": torch.zeros(3, 8, 8), "label": 0}] * 8
    with refused("dataset", "list"):
        trainer_for(untouched, tmp_path, kwargs={"retain_dataset": retain}, validation_fraction=0.5)


@pytest.mark.usefixtures("trains")
def test_a_collator_without_labels(tmp_path):
    """The loss needs them; the message lists what the batch has."""
    kwargs = {"data_collator": lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}}
    with refused("the keys of a batch", ["pixel_values"]):
        trainer_for(peft_vit(), tmp_path, kwargs=kwargs).train()


# Model


def frozen(model):
    return model.requires_grad_(False)


def two_trainable():
    model = peft_vit("task_001")
    model.add_adapter("task_002", GSLoraConfig(r=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def trainable_head():
    model = peft_vit()
    model.base_model.model.classifier.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("build", "name", "number"),
    [
        (lambda: knowing_vit().requires_grad_(False), "adapters that train", 0),
        (lambda: frozen(peft_vit()), "adapters that train", 0),
        (two_trainable, "adapters that train", 2),
        (trainable_head, "parameters that train besides the adapter", 2),
    ],
)
def test_models_in_which_not_exactly_one_adapter_trains(tmp_path, build, name, number):
    """Nothing is guessed: which adapter trains is the user's choice, and nothing trains along unseen."""
    with refused(name) as error:
        trainer_for(build(), tmp_path)
    assert len(error.value.value) == number


# Arguments and set-ups


def test_stock_training_arguments(tmp_path):
    """They lack what forgetting needs; an attribute error later would not say so."""
    with pytest.raises(InvalidInputError) as caught:
        GSLoraTrainer(
            peft_vit(),
            TrainingArguments(str(tmp_path), use_cpu=True),
            forget_dataset=forget_set(),
            retain_dataset=retain_set(),
        )
    assert caught.value.name == "args"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, 5) for name in ("augment", "data_collator", "label_column", "callbacks")),
        ("augment", "flip"),
        ("label_column", ""),
        ("label_column", None),
        ("callbacks", [5]),
        ("callbacks", TrainerCallback()),
        ("args", {"output_dir": "out"}),
    ],
)
def test_arguments_of_another_type(tmp_path, name, bad):
    """Both trainers name the argument before they look at the data."""
    data = {"forget_dataset": [], "retain_dataset": []}
    for kind in (GSLoraTrainer, ffn_trainer):
        arguments = {"args": GSLoraTrainingArguments(str(tmp_path), use_cpu=True), **data, name: bad}
        with pytest.raises(InvalidInputError) as caught:
            kind(vit(), **arguments)
        assert caught.value.name.partition("[")[0] == name


@pytest.mark.parametrize("name", ["train_dataset", "compute_loss_func"])
def test_arguments_of_the_stock_trainer_that_would_be_ignored(tmp_path, name):
    """Silently ignored they would look as if they worked."""
    with refused(name):
        trainer_for(peft_vit(), tmp_path, kwargs={name: lambda: None})


def check_set_up(**changes):
    args = SimpleNamespace(
        world_size=changes.pop("world_size", 1),
        sparsity=changes.pop("sparsity", "proximal"),
        ddp_find_unused_parameters=changes.pop("ddp_find_unused_parameters", None),
        ddp_static_graph=changes.pop("ddp_static_graph", None),
    )
    get_method("gs_lora").check(args)
    check_distribution(
        SimpleNamespace(args=args, **{"is_fsdp_enabled": False, "is_deepspeed_enabled": False, **changes})
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fsdp", {"is_fsdp_enabled": True}),
        ("deepspeed", {"is_deepspeed_enabled": True}),
    ],
)
def test_set_ups_that_split_matrices_or_would_hang(name, changes):
    """A norm of a part of a matrix, or shrinkage that ZeRO overwrites, is wrong without a sign."""
    with refused(name):
        check_set_up(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"world_size": 2},
        {"world_size": 2, "ddp_find_unused_parameters": False},
        {"world_size": 2, "ddp_static_graph": True},
    ],
)
def test_set_ups_that_work_are_let_through(changes):
    """DDP keeps whole matrices on every process."""
    check_set_up(**changes)


def test_the_trainer_checks_how_it_is_distributed(tmp_path, monkeypatch):
    """The check runs where the trainer is built, before any training."""
    original = GSLoraTrainer.create_accelerator_and_postprocess

    def sharded(self):
        original(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(GSLoraTrainer, "create_accelerator_and_postprocess", sharded)
    with refused("fsdp"):
        trainer_for(peft_vit(), tmp_path)


def test_processes_that_would_train_on_their_own_are_refused(tmp_path, monkeypatch):
    """As `torchrun` starts them on a CPU: without `use_cpu`, accelerate does not join them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with refused("use_cpu", False):
        GSLoraTrainingArguments(str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "1")
    GSLoraTrainingArguments(str(tmp_path))


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of the usual model, after four steps."""
    folder = tmp_path_factory.mktemp("run")
    trainer_for(peft_vit(), folder, save_strategy="epoch", num_train_epochs=1).train()
    return folder / "checkpoint-4"


def renamed():
    return peft_vit("task_002")


def two_of_them():
    model = peft_vit()
    model.add_adapter("task_002", GSLoraConfig(r=2))
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: peft_vit(layers=2),
        lambda: peft_vit(layers=4),
        lambda: peft_vit(r=3),
        lambda: peft_vit(target_modules="attention"),
        renamed,
        two_of_them,
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, checkpoint, build):
    """Loaded by name it would be dropped in part, in silence. The model stays as it was."""
    model = build()
    before, training = adapter_state(model), trainable(model)
    with refused("resume_from_checkpoint", str(checkpoint)):
        trainer_for(model, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    assert not differences(before, adapter_state(model))
    assert trainable(model) == training


@pytest.mark.parametrize("damage", ["truncated", "emptied", "swapped for text"])
def test_a_damaged_checkpoint(tmp_path, checkpoint, damage):
    """A crash while writing, or a bad copy: the file is named."""
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(checkpoint, folder)
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(
        {"truncated": content[:-100], "emptied": b"", "swapped for text": b"version https://git-lfs"}[damage]
    )
    model = peft_vit()
    before = adapter_state(model)
    with refused("resume_from_checkpoint", str(weights)):
        trainer_for(model, tmp_path).train(resume_from_checkpoint=str(folder))
    assert not differences(before, adapter_state(model))


@pytest.mark.parametrize("resume", [True, "checkpoint-99"])
def test_no_checkpoint_where_one_was_asked_for(tmp_path, resume):
    """Training from the start instead would lose work without a word."""
    resume = resume if resume is True else str(tmp_path / resume)
    with refused("resume_from_checkpoint", resume):
        trainer_for(peft_vit(), tmp_path).train(resume_from_checkpoint=resume)


# Numbers that are no numbers


def with_nan(dataset: Dataset, row: int, value: float = float("nan")) -> Dataset:
    """One pixel of one sample is no number."""
    pixels = torch.stack(list(dataset[:]["pixel_values"]))
    pixels[row, 0, 0, 0] = value
    columns = {"pixel_values": pixels.tolist(), "label": dataset[:]["label"].tolist()}
    return Dataset.from_dict(columns).with_format("torch")


class Before(TrainerCallback):
    """The adapter before each optimizer step."""

    def __init__(self, model):
        self.model, self.states = model, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.states.append(adapter_state(self.model))


@pytest.mark.usefixtures("trains")
@pytest.mark.parametrize("half", ["retain", "forget"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_in_one_half_stops_the_run_before_it_reaches_the_weights(tmp_path, half, value, accumulate):
    """At that very step, naming that half; the weights are those of the last good step, in the model and on disk."""
    data = {"retain": retain_set(), "forget": forget_set()}
    data[half] = with_nan(data[half], 2, value)
    model = peft_vit("task_002")
    before = Before(model)
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"callbacks": [before], **{f"{name}_dataset": dataset for name, dataset in data.items()}},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulate,
        sparsity_weight=0.2,
    )
    order = list(trainer._get_train_sampler())
    step = next(i for i, pair in enumerate(order) if pair[half == "forget"] == 2) // (2 * accumulate) + 1
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert caught.value.step == step
    assert caught.value.quantities == (f"{half}_loss",)
    assert caught.value.folder == str(tmp_path / "last-good")
    assert caught.value.weights == ()
    assert "learning_rate" in caught.value.advice
    assert isinstance(caught.value, ValueError)

    assert len(before.states) == step
    good = before.states[max(step - 2, 0)]
    assert not differences(good, adapter_state(model))
    assert all(torch.isfinite(tensor).all() for tensor in good.values())
    assert all(p.grad is None for p in model.parameters())
    saved = load_file(tmp_path / "last-good" / "task_002" / "adapter_model.safetensors")
    for name, tensor in good.items():
        assert torch.equal(saved[name.replace(".task_002.", ".")], tensor)
    assert not list(tmp_path.rglob("training_args.bin"))


@pytest.mark.usefixtures("trains")
def test_a_run_that_broke_can_go_on_with_good_data(tmp_path):
    """The trainer, the model and earlier checkpoints stay usable; an earlier NaN is not remembered."""
    model = peft_vit()
    trainer = trainer_for(model, tmp_path, save_strategy="steps", save_steps=1)
    good = trainer.train_dataset.forget
    trainer.train_dataset.forget = with_nan(good, int(next(iter(trainer._get_train_sampler()))[1]))
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert caught.value.step == 1
    assert not list(tmp_path.glob("checkpoint-*"))
    trainer.train_dataset.forget = good
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.score(scoring_set())["acc_retain"] > 0.9


@pytest.mark.usefixtures("trains")
def test_weights_that_gave_the_nan_are_not_the_last_good_ones(tmp_path):
    """A learning rate of 1e30 ruins the weights at step 1, which shows at step 2: the adapter before is kept."""
    model = peft_vit()
    before = adapter_state(model)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_for(model, tmp_path, learning_rate=1e30, lr_scheduler_type="constant").train()
    assert (caught.value.step, caught.value.folder) == (2, str(tmp_path / "last-good"))
    assert not differences(before, adapter_state(model))
    saved = load_file(tmp_path / "last-good" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name.replace(".default.", ".")], tensor) for name, tensor in before.items())


class Exploding(torch.autograd.Function):
    """Harmless forward, infinite backward."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("name", ["missing_classes", "old_classes"])
@pytest.mark.parametrize("value", [[-1], [1.5], ["bobcat"], "bobcat", 3, [True], None])
def test_classes_must_be_ids(tmp_path, untouched, name, value):
    """A negative id would count from the end of the head, a fraction would be cut, and names belong elsewhere."""
    kwargs = {"retain_dataset": samples((0, 1)), name: value}
    with pytest.raises(InvalidInputError) as caught:
        trainer_for(untouched, tmp_path, kwargs=kwargs)
    assert caught.value.name.partition("[")[0] == name


@pytest.mark.parametrize("name", ["missing_classes", "old_classes"])
@pytest.mark.parametrize("ids", [np.array([3, 2]), iter((2, 3)), {2, 3}])
def test_ids_of_classes_come_in_any_collection(tmp_path, name, ids):
    """The trainer holds them sorted."""
    kwargs = {"retain_dataset": samples((0, 1)), name: copy.copy(ids)}
    assert getattr(trainer_for(peft_vit(), tmp_path, kwargs=kwargs), name) == [2, 3]


@pytest.mark.usefixtures("trains")
def test_a_gradient_that_overflows_stops_the_run_too(tmp_path):
    """With finite losses the error names the gradient."""
    model = peft_vit()
    model.get_base_model().classifier.register_forward_hook(lambda module, args, output: Exploding.apply(output))
    before = adapter_state(model)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_for(model, tmp_path).train()
    assert (caught.value.step, caught.value.quantities) == (1, ("gradient",))
    assert not differences(before, adapter_state(model))


@pytest.mark.usefixtures("trains")
def test_a_loss_scaler_may_see_infinite_gradients(tmp_path):
    """fp16: the scaler looks for a scale by letting gradients overflow; only the losses are judged then."""
    model = peft_vit()
    model.get_base_model().classifier.register_forward_hook(lambda module, args, output: Exploding.apply(output))
    trainer = trainer_for(model, tmp_path, max_steps=1)
    guard = next(c for c in trainer.callback_handler.callbacks if isinstance(c, NonFiniteCallback))
    guard.trainer = SimpleNamespace(
        meter=trainer.meter,
        global_mean=trainer.global_mean,
        trained=trainer.trained,
        accelerator=SimpleNamespace(scaler=object()),
    )
    for parameter in trainer.groups.parameters:
        parameter.grad = torch.full_like(parameter, float("inf"))
    before = adapter_state(model)
    guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    assert not differences(before, adapter_state(model))
    assert not trainer.control.should_training_stop


@pytest.mark.usefixtures("trains")
def test_groups_that_were_frozen_are_saved_with_the_last_good_adapter(tmp_path):
    """The file holds every matrix, zero or not, and the model is thawed."""
    model = peft_vit()

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 10:
                with torch.no_grad():
                    model.get_base_model().classifier.weight.fill_(float("nan"))

    settings = {
        "sparsity_weight": 0.9,
        "sparsity_until_epoch": 2,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
    }
    trainer = trainer_for(model, tmp_path, kwargs={"callbacks": [Poison()]}, **settings)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    assert caught.value.quantities == ("retain_loss", "forget_loss")
    assert len(trainer.groups.zero_groups()) == 2
    assert len(load_file(tmp_path / "last-good" / "adapter_model.safetensors")) == 12
    assert trainable(model) == {"default"}
    assert all(p.requires_grad for p in trainer.groups.parameters)
