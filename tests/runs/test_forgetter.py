"""Requests carried out one after another by `ContinualForgetter`, in one process and without disturbance."""

import copy
import dataclasses
import json
import os
import shutil
import warnings

import pytest
import run_cases as cases
import torch
from datasets import Array3D, DatasetDict, Value
from errors import ANY, refused
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, ViTForImageClassification

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, load_forgotten, weights_fingerprint
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.ledger.errors import (
    AlreadyForgottenError,
    FilesDifferError,
    LedgerFileError,
    OtherBaseModelError,
    RequestOrderError,
    RunLockedError,
    WithheldClassesError,
)
from gs_lora_peft.runs.recipe import adapter_settings
from gs_lora_peft.training import ForgettingTrainer


class Seen(TrainerCallback):
    """Notes what is in the model when a training begins, and how many steps are taken."""

    def __init__(self):
        self.names, self.states, self.steps = [], [], 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.names.append(list(model.peft_config))
        tensors = model.get_base_model().state_dict()
        bare = {name.replace(".base_layer", ""): tensor for name, tensor in tensors.items() if "lora_" not in name}
        self.states.append({name: tensor.clone() for name, tensor in bare.items()})

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def never_trains(monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("training was started")

    monkeypatch.setattr(ForgettingTrainer, "train", train)


# What a request leaves behind


def test_a_request_leaves_its_files_and_its_entry(finished):
    """The ledger records everything the issue lists, and vouches for exactly the files that are there."""
    folder, forgetter = finished
    assert sorted(path.name for path in folder.iterdir()) == ["forgetting.json", "forgetting.lock", "tasks"]
    files = ["adapter_config.json", "adapter_model.safetensors", "gs_lora_config.json"]
    ledger = ForgettingLedger.load(folder)
    assert [entry.name for entry in ledger.tasks] == ["task_001", "task_002", "task_003"]
    assert ledger.to_dict() == forgetter.ledger.to_dict()
    assert ledger.base_model["fingerprint"].startswith("sha256:")
    assert ledger.label_names == cases.NAMES
    for entry in ledger.tasks:
        assert sorted(path.name for path in (folder / "tasks" / entry.name).iterdir()) == files
        assert entry.files == {
            f"tasks/{entry.name}/{name}": sha256_of(folder / "tasks" / entry.name / name) for name in files
        }
        assert {"total", "active", "zero", "zero_group_ratio", "norms"} == set(entry.groups)
        assert entry.started_at <= entry.finished_at
        assert {"python", "torch", "peft", "transformers", "gs_lora_peft"} <= set(entry.versions)
        assert entry.settings["training"]["learning_rate"] == 0.05
        assert entry.settings["training"]["forget_weight"] == 0.5
        assert entry.settings["config"]["target_modules"] == "ffn"
    second = ledger.tasks[1]
    assert second.request["classes"] == ["aardvark", 4]
    assert second.classes == [0, 4]
    assert second.class_names == ["aardvark", "earthworm"]
    assert second.sizes == {"forget": 24, "retain": 36, "steps": 9}


def test_scores_before_and_after_are_measured_on_the_test_data(finished, base, data):
    """Scores are those of the published files: recomputed from a reloaded model they agree."""
    folder, _ = finished
    rows = data["test"][:]
    entries = ForgettingLedger.load(folder).tasks
    for number, entry in enumerate(entries):
        assert entry.scores["data"] == "test"
        for tasks, scores in ((number, entry.scores["before"]), (number + 1, entry.scores["after"])):
            model = load_forgotten(cases.load_base(base), folder, tasks=tasks, merge=True)
            hits = model(rows["pixel_values"]).logits.argmax(-1) == rows["label"]
            forgotten = torch.isin(rows["label"], torch.tensor(entry.classes))
            assert scores["acc_forget"] == pytest.approx(hits[forgotten].float().mean().item())
            assert (scores["acc_old"] is None) == (number == 0)
        assert entry.scores["before"]["acc_forget"] > 0.5
        assert entry.scores["after"]["acc_forget"] < 0.3
        assert entry.scores["after"]["drop"] == pytest.approx(
            entry.scores["before"]["acc_forget"] - entry.scores["after"]["acc_forget"]
        )


def test_no_deprecation_is_told_that_is_not_the_users(base, data, one_task):
    """Every `PeftModel` reads an attribute that transformers deprecates: in training, in loading, in merging."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        cases.make_forgetter(base, one_task, data, args=cases.make_args(max_steps=1)).forget(ForgetRequest([4]))
        load_forgotten(cases.load_base(base), one_task)


def test_each_adapter_trains_alone_on_the_model_with_the_earlier_ones_merged(base, data, tmp_path, finished):
    """Task t starts from exactly the weights that merging the files of 1 … t-1 gives, with one fresh adapter."""
    seen = Seen()
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[seen])
    forgetter.run(cases.requests())
    assert seen.names == [["task_001"], ["task_002"], ["task_003"]]
    for count, state in enumerate(seen.states):
        rebuilt = load_forgotten(cases.load_base(base), tmp_path, tasks=count, merge=True)
        assert cases.same(cases.weights(rebuilt), state)
    # One after another through PEFT's own merge gives the same bits.
    model = cases.load_base(base)
    for name in ("task_001", "task_002", "task_003"):
        model = PeftModel.from_pretrained(model, tmp_path / "tasks" / name).merge_and_unload()
    assert cases.same(cases.weights(model), cases.weights(forgetter.model))
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(finished[0] / "tasks")


def test_a_folder_can_be_continued_later(base, data, tmp_path, finished):
    """A new process goes on where the last one ended, and gets what one process would have got."""
    for request in cases.requests():
        forgetter = cases.make_forgetter(base, tmp_path, data)
        forgetter.forget(request)
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(finished[0] / "tasks")
    assert cases.same(cases.weights(forgetter.model), cases.weights(finished[1].model))


def test_what_ran_before_in_the_process_does_not_matter(base, data, tmp_path, finished):
    """The adapter depends on the seed, not on the state of the random generators."""
    torch.manual_seed(999)
    torch.rand(7)
    cases.make_forgetter(base, tmp_path, data).forget(cases.requests()[0])
    written = cases.snapshot(tmp_path / "tasks" / "task_001")
    assert written == cases.snapshot(finished[0] / "tasks" / "task_001")


# What is left as it was


def test_model_arguments_and_data_are_left_as_they_were(base, tmp_path):
    """The base model stays the same object with the same flags; arguments, configuration and transforms stay too."""
    model = cases.load_base(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp.fc1" in name)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    args, config = cases.make_args(report_to="none"), GSLoraConfig(r=4, lora_alpha=4)
    before = copy.deepcopy(args.to_dict()), config.to_dict()
    data = cases.make_data()
    calls = []

    def transform(rows):
        calls.append(len(rows["label"]))
        return {
            "pixel_values": [torch.tensor(image, dtype=torch.float32) for image in rows["pixel_values"]],
            "label": rows["label"],
        }

    data = DatasetDict({name: part.with_transform(transform) for name, part in data.items()})
    forgetter = cases.make_forgetter(model, tmp_path / "run", data, args=args, config=config)
    for step in (lambda: forgetter.forget(ForgetRequest([1])), lambda: forgetter.revoke("task_001")):
        step()
        assert forgetter.model is model
        assert not model.training
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
        assert not hasattr(model, "peft_config")
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert args.to_dict() == before[0]
    assert config.to_dict() == before[1]
    assert data["train"].format["type"] == "custom"
    assert sum(calls) > 0
    assert not os.path.exists("not-used")


def test_mixed_precision_stays_out_of_the_model(base, data, tmp_path):
    """Under bf16 training and scoring run in autocast; the model that is left computes in its own dtype again."""
    forgetter = cases.make_forgetter(base, tmp_path, data, args=cases.make_args(bf16=True))
    forgetter.forget(ForgetRequest([2]))
    assert "forward" not in vars(forgetter.model)
    assert not [name for name in vars(forgetter.model) if "accelerate" in name]
    rebuilt = load_forgotten(cases.load_base(base), tmp_path, merge=True)
    images = data["test"][:]["pixel_values"]
    assert torch.equal(forgetter.model(images).logits, rebuilt(images).logits)


def test_running_statistics_do_not_drift(base, data, tmp_path):
    """Buffers that training changes belong to no adapter, so they are put back: scored is what is published."""

    class WithBatchNorm(ViTForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            self.input_norm = nn.BatchNorm2d(1)

        def forward(self, pixel_values, **more):
            return super().forward(pixel_values=self.input_norm(pixel_values), **more)

    model = WithBatchNorm(cases.load_base(base).config).eval()
    original = copy.deepcopy(model)
    forgetter = cases.make_forgetter(model, tmp_path, data)
    forgetter.forget(ForgetRequest([1]))
    assert torch.equal(model.input_norm.running_mean, original.input_norm.running_mean)
    assert torch.equal(model.input_norm.num_batches_tracked, original.input_norm.num_batches_tracked)
    assert cases.same(cases.weights(load_forgotten(original, tmp_path, merge=True)), cases.weights(model))


def test_nothing_but_the_ledger_names_classes_or_paths(base, data, tmp_path):
    """What is published of a task says neither what was forgotten nor where on this machine it happened."""
    folder = tmp_path / "run"
    request = ForgetRequest(["cassowary", 0], note="a secret note", request_id="number-4711")
    cases.make_forgetter(base, folder, data).forget(request)
    secrets = [*cases.NAMES, "secret", "4711", str(tmp_path), str(base), str(base.parent)]
    for path in [folder / "tasks", *(folder / "tasks").rglob("*")]:
        assert not any(secret in path.relative_to(folder).as_posix() for secret in secrets)
        if path.is_file():
            content = path.read_bytes().lower()
            assert not any(secret.lower().encode() in content for secret in secrets), path
    ledger = (folder / "forgetting.json").read_text()
    assert "cassowary" in ledger
    assert str(tmp_path) not in ledger
    assert str(base) not in ledger


def test_the_adapter_names_its_base_model(base, data, tmp_path):
    """A Hub id and its revision stay, so that AutoPeftModel finds the base model; of a local path only the name."""
    model = cases.load_base(base)
    cases.make_forgetter(model, tmp_path / "local", data).forget(ForgetRequest([1]))
    model = cases.load_base(base)
    model.name_or_path = model.config._name_or_path = "org/tiny-vit"
    model.config._commit_hash = "0123456789abcdef0123456789abcdef01234567"
    # Without checkpoints, at which PEFT would ask the Hub for the size of the vocabulary.
    args = cases.make_args(save_strategy="no")
    cases.make_forgetter(model, tmp_path / "hub", data, args=args).forget(ForgetRequest([1]))
    found = {}
    for name in ("local", "hub"):
        config = json.loads((tmp_path / name / "tasks" / "task_001" / "adapter_config.json").read_text())
        found[name] = config["base_model_name_or_path"], config["revision"]
    assert found == {
        "local": ("tiny-vit", None),
        "hub": ("org/tiny-vit", "0123456789abcdef0123456789abcdef01234567"),
    }


# Data of other shapes


def test_a_plain_dataset_is_scored_on_itself(base, data, tmp_path):
    """Without test data the scores are taken on the training data, and the ledger says so."""
    entry = cases.make_forgetter(base, tmp_path, data["train"]).forget(ForgetRequest([2]))
    assert entry.scores["data"] == "train"
    assert entry.scores["after"]["n_forget"] == 12
    given = cases.make_forgetter(base, tmp_path / "given", data["train"], eval_dataset=data["test"])
    entry = given.forget(ForgetRequest([2]))
    assert entry.scores["data"] == "eval_dataset"
    assert entry.scores["after"]["n_forget"] == 5


def test_evaluation_data_do_not_influence_training(base, data, tmp_path, finished):
    """The test split is scored on and nothing else: with other test data the same adapter comes out."""
    other = DatasetDict(train=data["train"], validation=cases.make_dataset(per_class=2, seed=77))
    entry = cases.make_forgetter(base, tmp_path, other).forget(cases.requests()[0])
    assert entry.scores["data"] == "validation"
    written = cases.snapshot(tmp_path / "tasks" / "task_001")
    assert written == cases.snapshot(finished[0] / "tasks" / "task_001")


def test_labels_may_be_called_otherwise_and_have_no_names(base, data, tmp_path, finished):
    """A label column of another name, with plain integers, gives the same adapter; requests are then by id."""
    plain = DatasetDict({name: part.cast_column("label", Value("int64")) for name, part in data.items()})
    renamed = plain.rename_column("label", "kind")
    forgetter = cases.make_forgetter(base, tmp_path, renamed, label_column="kind")
    entry = forgetter.forget(ForgetRequest([2]))
    assert entry.class_names is None
    assert forgetter.ledger.label_names is None
    written = cases.snapshot(tmp_path / "tasks" / "task_001")
    assert written == cases.snapshot(finished[0] / "tasks" / "task_001")


class Undone(TrainerCallback):
    """Takes back all that was trained."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.zero_()


def test_all_groups_zero(base, data, tmp_path):
    """A task whose groups are all zero is recorded, changes nothing, and does not disturb the next one."""
    args = cases.make_args(sparsity_weight=100.0)
    forgetter = cases.make_forgetter(base, tmp_path, data, args=args, callbacks=[Undone()])
    entry = forgetter.forget(ForgetRequest([2]))
    assert entry.groups["zero_group_ratio"] == 1.0
    assert entry.groups["active"] == []
    assert cases.same(cases.weights(forgetter.model), cases.weights(cases.load_base(base)))
    args.sparsity_weight = 0.1
    forgetter.recipe.callbacks = []
    forgetter.forget(ForgetRequest([3]))
    model = load_forgotten(cases.load_base(base), tmp_path, merge=True)
    assert cases.same(cases.weights(model), cases.weights(forgetter.model))


def test_callbacks_trackers_and_the_hub(base, data, tmp_path, monkeypatch):
    """Callbacks with a state start fresh for each request, logs outlive the workspace, nothing is pushed."""
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda *_, **__: pytest.fail("pushed to the Hub"))
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    args = cases.make_args(
        report_to="tensorboard",
        push_to_hub=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_h_mean",
        validation_fraction=0.2,
    )
    with pytest.warns(UserWarning, match="push_to_hub") as told:  # publishing is a call of its own
        forgetter = cases.make_forgetter(base, tmp_path, data, args=args, callbacks=[stopping])
    assert str(tmp_path) in str(told[0].message)
    for classes in ([1], [2]):
        forgetter.forget(ForgetRequest(classes))
    assert stopping.early_stopping_patience_counter == 0
    # Of each class 2 of 12 are held out: what is recorded is what was trained on.
    sizes = [{name: entry.sizes[name] for name in ("forget", "retain")} for entry in forgetter.ledger.tasks]
    assert sizes == [{"forget": 10, "retain": 50}, {"forget": 10, "retain": 40}]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["task_001", "task_002"]
    assert any((tmp_path / "logs" / "task_001").rglob("events.*"))
    assert not (tmp_path / "work").exists()


def test_shots_are_not_held_out(base, data, tmp_path, monkeypatch):
    """Four shots of which one is held out would be three, but the ledger would record four."""
    never_trains(monkeypatch)
    args = cases.make_args(validation_fraction=0.25)
    forgetter = cases.make_forgetter(base, tmp_path, data, args=args, shots=4)
    with refused("validation_fraction", 0.25):
        forgetter.forget(ForgetRequest([1]))
    assert not forgetter.ledger.tasks
    assert not (tmp_path / "work").exists()


# Sequences


def test_run_leaves_out_what_is_done(base, data, tmp_path, finished, monkeypatch):
    """Asking again for a finished sequence returns its entries and trains nothing."""
    never_trains(monkeypatch)
    folder, _ = finished
    forgetter = cases.make_forgetter(base, folder, data)
    before = cases.snapshot(folder)
    assert forgetter.run(cases.requests()) == list(forgetter.ledger.tasks)
    assert forgetter.run(cases.requests()[:1]) == list(forgetter.ledger.tasks[:1])
    assert forgetter.run([]) == []
    assert cases.snapshot(folder) == before


@pytest.mark.parametrize(
    ("sequence", "kind", "parts"),
    [
        ([["cassowary"], ["flamingo"]], RequestOrderError, {"task": "task_002"}),
        ([*cases.REQUESTS, ["bumblebee"], ["dragonfli"]], UnknownClassError, {"value": ["dragonfli"]}),
        ([*cases.REQUESTS, ["bumblebee"], [1]], AlreadyForgottenError, {"classes": [1], "task": None}),
        ([*cases.REQUESTS, ["bumblebee"], ["dragonfly"]], InvalidInputError, {"name": "retain"}),
        ([*cases.REQUESTS, [4]], AlreadyForgottenError, {"classes": [4], "task": "task_002"}),
    ],
)
def test_a_sequence_is_checked_before_its_first_request_trains(
    base, data, finished, monkeypatch, sequence, kind, parts
):
    """A mistake in the last request of a long run is not found out after hours."""
    never_trains(monkeypatch)
    folder, _ = finished
    forgetter = cases.make_forgetter(base, folder, data)
    before = cases.snapshot(folder)
    with pytest.raises(kind) as error:
        forgetter.run(cases.requests(*sequence))
    assert {name: getattr(error.value, name) for name in parts} == parts
    assert cases.snapshot(folder) == before


# Bad input


@pytest.mark.parametrize(
    ("classes", "kind", "parts"),
    [
        (["casowary"], UnknownClassError, {"name": "classes", "value": ["casowary"]}),
        ([6], UnknownClassError, {"name": "classes", "value": [6]}),
        (["bumblebee"], AlreadyForgottenError, {"classes": [1], "task": "task_001"}),
        ([0, "1"], AlreadyForgottenError, {"classes": [1], "task": "task_001"}),
        ([0, 2, 3, 4, 5], InvalidInputError, {"name": "retain", "value": []}),
        ([0, "aardvark"], InvalidInputError, {"name": "classes"}),
    ],
)
def test_bad_requests(base, data, one_task, monkeypatch, classes, kind, parts):
    """A request that cannot be carried out is refused before any training, and no file changes."""
    forgetter = cases.make_forgetter(base, one_task, data)
    before, state = cases.snapshot(one_task), cases.weights(forgetter.model)
    never_trains(monkeypatch)
    with pytest.raises(kind) as error:
        forgetter.forget(ForgetRequest(classes))
    assert {name: getattr(error.value, name) for name in parts} == parts
    assert cases.snapshot(one_task) == before
    assert cases.same(cases.weights(forgetter.model), state)
    assert not list(one_task.rglob("work"))


def with_labels_outside(data):
    part = data["train"].cast_column("label", Value("int64"))
    labels = part.with_format(None)["label"][:-1]
    return part.remove_columns("label").add_column("label", [*labels, 6]).with_format("torch")


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        (lambda d: d["train"].rename_column("label", "kind"), "training data: label_column", "label"),
        (
            lambda d: DatasetDict(train=d["train"], test=d["test"].remove_columns("label")),
            "evaluation data: label_column",
            "label",
        ),
        (with_labels_outside, "training data: label", "labels up to 6"),
        (lambda d: cases.make_data(names=cases.NAMES[:5]), "training data: label", "5 classes"),
        (lambda d: DatasetDict(test=d["test"]), "dataset", ["test"]),
        (lambda d: d["train"].select([]), "training data", ANY),
        (
            lambda d: DatasetDict(train=d["train"], test=cases.make_dataset(names=cases.NAMES[::-1])),
            "evaluation data: label",
            cases.NAMES[::-1],
        ),
        (lambda d: cases.make_data(names=cases.NAMES[::-1]), "label_names", cases.NAMES[::-1]),
    ],
)
def test_bad_data(base, data, one_task, change, name, value):
    """Data that do not fit model, ledger or each other are refused when the folder is opened."""
    before = cases.snapshot(one_task)
    model = cases.load_base(base)
    with refused(name, value):
        cases.make_forgetter(model, one_task, change(data))
    assert cases.snapshot(one_task) == before
    assert cases.same(cases.weights(model), cases.weights(cases.load_base(base)))


@pytest.mark.parametrize(
    ("make", "kind", "parts"),
    [
        (
            lambda base: cases.make_model(num_labels=7),
            InvalidInputError,
            {"name": "training data: label", "value": "6 classes"},
        ),
        (lambda base: cases.make_model(seed=5), OtherBaseModelError, {}),
        (lambda base: cases.make_model(layers=3), OtherBaseModelError, {}),
        (lambda base: PeftModel(cases.load_base(base), GSLoraConfig()), InvalidInputError, {"name": "base_model"}),
    ],
)
def test_bad_models(base, data, one_task, make, kind, parts):
    """A model that is not the one on which the tasks rest, or is not bare, is refused and stays what it is."""
    before = cases.snapshot(one_task)
    model = make(base)
    fingerprint = weights_fingerprint(model)
    with pytest.raises(kind) as error:
        cases.make_forgetter(model, one_task, data)
    assert {name: getattr(error.value, name) for name in parts} == parts
    assert cases.snapshot(one_task) == before
    assert weights_fingerprint(model) == fingerprint


def test_a_configuration_that_does_not_fit_the_model(base, data, tmp_path):
    """An adapter for another architecture is refused before training; model and folder are as they were."""
    model = cases.load_base(base)
    forgetter = cases.make_forgetter(model, tmp_path / "run", data, config=GSLoraConfig(target_modules=["none_such"]))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match="none_such"):
        forgetter.forget(ForgetRequest([1]))
    assert cases.snapshot(tmp_path / "run") == {}
    assert not hasattr(model, "peft_config")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    forgetter.recipe.config = GSLoraConfig(r=4, lora_alpha=4)
    forgetter.forget(ForgetRequest([1]))


def edit_ledger(folder):
    path = folder / "forgetting.json"
    path.write_text(path.read_text().replace("bumblebee", "dragonfly"))


def truncate(folder):
    path = folder / "tasks" / "task_001" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove(folder):
    (folder / "tasks" / "task_001" / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "kind", "file"),
    [
        (edit_ledger, LedgerFileError, None),
        (truncate, FilesDifferError, "adapter_model.safetensors"),
        (remove, FilesDifferError, "adapter_config.json"),
    ],
)
def test_damaged_folders(base, data, one_task, damage, kind, file):
    """A folder that was edited or damaged is refused when it is opened, and not touched."""
    damage(one_task)
    before = cases.snapshot(one_task)
    with pytest.raises(kind) as error:
        cases.make_forgetter(base, one_task, data)
    if file is None:
        assert (error.value.path, error.value.reason) == (one_task / "forgetting.json", "edited")
    else:
        assert list(error.value.problems) == [f"tasks/task_001/{file}"]
    assert cases.snapshot(one_task) == before


def test_swapped_files(base, data, finished, tmp_path):
    """Adapters exchanged between two tasks are noticed, and the message says which."""
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    first, second = (folder / "tasks" / name / "adapter_model.safetensors" for name in ("task_001", "task_002"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(FilesDifferError) as error:
        cases.make_forgetter(base, folder, data)
    names = [f"tasks/task_00{number}/adapter_model.safetensors" for number in (1, 2)]
    assert list(error.value.problems) == names


def test_one_run_at_a_time(base, data, one_task, monkeypatch):
    """Whoever comes second gets a clear error before training; so does a forgetter whose folder has moved on."""
    first, second = (cases.make_forgetter(base, one_task, data) for _ in range(2))

    class Meanwhile(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                before = cases.snapshot(one_task)
                with monkeypatch.context() as patched:
                    never_trains(patched)
                    for action in (
                        lambda: second.forget(ForgetRequest([2])),
                        lambda: second.run(cases.requests(["bumblebee"], [2])),
                        lambda: second.revoke("task_001"),
                        second.discard_unfinished,
                    ):
                        with pytest.raises(RunLockedError):
                            action()
                assert cases.snapshot(one_task) == before

    first.recipe.callbacks = [Meanwhile()]
    first.forget(ForgetRequest([2]))
    never_trains(monkeypatch)
    before = cases.snapshot(one_task)
    for action in (lambda: second.forget(ForgetRequest([3])), lambda: second.revoke("task_001")):
        with pytest.raises(LedgerFileError) as error:
            action()
        assert error.value.reason == "changed"
    assert cases.snapshot(one_task) == before


def test_withheld_classes_cannot_be_continued(base, data, one_task):
    """Where the ledger does not say what was forgotten, going on would train it back; so it is refused."""
    ledger = ForgettingLedger.load(one_task)
    hidden = dataclasses.replace(ledger.tasks[0], classes=None, class_names=None, request={})
    ledger.tasks = (hidden,)
    ledger.save()
    with pytest.raises(WithheldClassesError) as error:
        cases.make_forgetter(base, one_task, data).forget(ForgetRequest([2]))
    assert error.value.tasks == ["task_001"]


def test_images_go_through_the_processor(base, tmp_path):
    """Rows with images and the model's image processor work as rows of tensors do."""
    from PIL import Image
    from transformers import ViTImageProcessor

    def draw(row):
        pixels = ((row["pixel_values"][0] + 4) * 30).clamp(0, 255).to(torch.uint8).numpy()
        return {"image": Image.fromarray(pixels), "label": row["label"]}

    data = cases.make_data().map(draw, remove_columns="pixel_values").with_format(None)
    assert not isinstance(data["train"].features["image"], Array3D)
    model = cases.make_model()
    model.vit.embeddings.patch_embeddings.num_channels = 3
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(3, 16, 4, 4)
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    entry = cases.make_forgetter(model, tmp_path, data, processing_class=processor).forget(ForgetRequest([2]))
    assert entry.sizes["forget"] == 12


def test_data_numbered_in_another_order_than_the_model(base, data, tmp_path):
    """The model's own names tell that an id means another class; synonyms and letter case do not matter."""
    model = cases.load_base(base)
    model.config.id2label = {i: f"{name.upper()}, Animal {i}" for i, name in enumerate(cases.NAMES)}
    cases.make_forgetter(model, tmp_path, data)
    model.config.id2label = dict(enumerate(cases.NAMES[::-1]))
    with refused("training data: 'label': class 0", "aardvark"):
        cases.make_forgetter(model, tmp_path, data)


def test_the_base_model_is_scored_before_any_task(base, data, tmp_path, finished):
    """What was kept is compared with the base model, also by a run that goes on in a folder with tasks."""
    rows = data["test"][:]
    hits = cases.load_base(base)(rows["pixel_values"]).logits.argmax(-1) == rows["label"]
    forgotten = []
    for entry in finished[1].ledger.tasks:
        forgotten += entry.classes
        kept = ~torch.isin(rows["label"], torch.tensor(forgotten))
        assert entry.scores["base"]["acc_all"] == pytest.approx(hits.float().mean().item())
        assert entry.scores["base"]["acc_retain"] == pytest.approx(hits[kept].float().mean().item())
    for request in cases.requests()[:2]:
        entry = cases.make_forgetter(base, tmp_path, data).forget(request)
    assert entry.scores == finished[1].ledger.tasks[1].scores


def test_mistaken_arguments_are_named(base, data, tmp_path):
    """A list of names, a single request, and a file for a folder: the message says what to write."""
    forgetter = cases.make_forgetter(base, tmp_path / "run", data)
    with refused("request", ["aardvark"]):
        forgetter.forget(["aardvark"])
    request = ForgetRequest(["aardvark"])
    with refused("requests", request):
        forgetter.run(request)
    (tmp_path / "file").touch()
    with refused("folder", str(tmp_path / "file")):
        cases.make_forgetter(base, tmp_path / "file", data)


def test_initialisation_that_no_task_would_carry_out_is_refused(tmp_path):
    """Each task begins with an adapter of its own, which nobody could fill from data in between."""
    with pytest.raises(InvalidInputError) as caught:
        cases.make_forgetter(
            cases.make_model(), tmp_path, config=GSLoraConfig(init_lora_weights="eva", eva_config=EvaConfig())
        )
    assert (caught.value.name, caught.value.value) == ("init_lora_weights", "eva")
    assert not any(tmp_path.iterdir())


def test_settings_name_the_keyword(tmp_path):
    """A configuration that was used for a model before is recorded by what it asks for, as a fresh one is."""
    config = GSLoraConfig(r=2)
    fresh = adapter_settings(config)
    get_peft_model(cases.make_model(), config)
    assert config.target_modules != "ffn"
    assert adapter_settings(config) == fresh


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("folder", None),
        ("folder", ""),
        ("base_model", "org/model"),
        ("config", LoraConfig(target_modules=["fc1"])),
        ("config", {"r": 4}),
        ("args", TrainingArguments("out", use_cpu=True)),
        ("replay_ratio", True),
        ("replay_ratio", "0.5"),
        ("shots", "4"),
        ("missing_classes", "person"),
        ("missing_classes", [None]),
        ("augment", 5),
        ("callbacks", 5),
        ("callbacks", TrainerCallback()),
        ("label_column", 3),
    ],
)
def test_arguments_of_another_type(base, tmp_path, name, bad):
    """They are named when the forgetter is made, before it looks at the data."""
    arguments = {"base_model": cases.load_base(base), "dataset": None, "folder": tmp_path / "run", name: bad}
    with pytest.raises(InvalidInputError) as caught:
        ContinualForgetter(**arguments)
    assert caught.value.name.partition("[")[0] == name
    assert not (tmp_path / "run").exists()
