"""Rebuilding a model that has forgotten from its folder: what comes out, and what is refused."""

import json
import shutil

import pytest
import run_cases as cases
import torch
from errors import refused
from peft import PeftModel

from gs_lora_peft import load_forgotten, weights_fingerprint
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.ledger.errors import FilesDifferError, InvalidLedgerError, LedgerFileError, OtherBaseModelError

FILES = ("adapter_config.json", "adapter_model.safetensors", "gs_lora_config.json")


@pytest.fixture(scope="module")
def stages(base, data, tmp_path_factory):
    """A run of three tasks, and the live model's weights before the first and after each."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    forgetter = cases.make_forgetter(base, folder, data)
    states = [cases.weights(forgetter.model)]
    for request in cases.requests():
        forgetter.forget(request)
        states.append(cases.weights(forgetter.model))
    return folder, states


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_any_number_of_tasks_merged(base, stages, count):
    """Merged, the rebuilt model is the live one to the bit; it is the object that was given, with its flags."""
    folder, states = stages
    model = cases.load_base(base)
    model.classifier.requires_grad_(False)
    rebuilt = load_forgotten(model, str(folder), tasks=count, merge=True)
    assert rebuilt is model
    assert not rebuilt.training
    assert cases.same(cases.weights(rebuilt), states[count])
    assert [p.requires_grad for p in rebuilt.classifier.parameters()] == [False, False]
    assert all(p.requires_grad for p in rebuilt.vit.parameters())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_tasks_unmerged(base, data, stages, count):
    """Unmerged, every task is an adapter of its own: all active, all frozen, together equal to the merged model."""
    folder, _ = stages
    names = [f"task_{number:03d}" for number in range(1, count + 1)]
    model = load_forgotten(cases.load_base(base), folder, tasks=count)
    assert isinstance(model, PeftModel)
    assert list(model.peft_config) == names
    assert model.active_adapters == names
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    images = data["test"][:]["pixel_values"]
    with torch.no_grad():
        expected = load_forgotten(cases.load_base(base), folder, tasks=names, merge=True)(images).logits
        assert (model(images).logits - expected).abs().max() <= 1e-5
        with model.disable_adapter():
            assert torch.equal(model(images).logits, cases.load_base(base)(images).logits)


def test_no_tasks_at_all(base, data, tmp_path, stages):
    """With no task the base model itself comes back, bare."""
    model = cases.load_base(base)
    assert load_forgotten(model, stages[0], tasks=0) is model
    assert not hasattr(model, "peft_config")
    assert cases.same(cases.weights(model), stages[1][0])


def test_some_tasks_by_name(base, stages):
    """Tasks are merged in the order in which they were carried out, however they are listed."""
    folder, _ = stages
    some = [load_forgotten(cases.load_base(base), folder, tasks=names, merge=True) for names in (
        ["task_003", "task_001"], ("task_001", "task_003")
    )]  # fmt: skip
    assert cases.same(cases.weights(some[0]), cases.weights(some[1]))
    by_hand = cases.load_base(base)
    for name in ("task_001", "task_003"):
        by_hand = PeftModel.from_pretrained(by_hand, folder / "tasks" / name).merge_and_unload()
    assert cases.same(cases.weights(some[0]), cases.weights(by_hand))


def test_it_draws_no_random_numbers(base, stages):
    """Loading does not change the state of the random generator."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    load_forgotten(cases.load_base(base), stages[0])
    load_forgotten(cases.load_base(base), stages[0], merge=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision(base, stages):
    """A model in another dtype is another base model: its rounding would make other sums."""
    model = cases.load_base(base).to(torch.bfloat16)
    with pytest.raises(OtherBaseModelError):
        load_forgotten(model, stages[0])


# Refusals


def truncated(folder):
    path = folder / "tasks" / "task_002" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def tampered(folder):
    path = folder / "tasks" / "task_002" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))


def swapped(folder):
    first, second = (folder / "tasks" / name for name in ("task_001", "task_002"))
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)


def edited(folder):
    path = folder / "forgetting.json"
    path.write_text(path.read_text().replace("cassowary", "flamingo", 1))


def unlisted(folder):
    ledger = ForgettingLedger.load(folder)
    del ledger.tasks[1].files["tasks/task_002/adapter_model.safetensors"]
    ledger.save()
    (folder / "tasks" / "task_002" / "adapter_model.safetensors").rename(folder / "tasks/task_002/adapter_model.bin")


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("damage", "kind", "parts"),
    [
        (truncated, FilesDifferError, {"problems": {"task_002/adapter_model.safetensors"}}),
        (tampered, FilesDifferError, {"problems": {"task_002/adapter_config.json"}}),
        (swapped, FilesDifferError, {"problems": {f"task_001/{name}" for name in FILES[1:]}}),
        (edited, LedgerFileError, {"reason": "edited"}),
        (unlisted, InvalidLedgerError, {"name": "task_002.files"}),
        (
            lambda folder: shutil.rmtree(folder / "tasks" / "task_002"),
            FilesDifferError,
            {"problems": {f"task_002/{name}" for name in FILES}},
        ),
        (lambda folder: (folder / "forgetting.json").unlink(), LedgerFileError, {"reason": "missing"}),
        (shutil.rmtree, InvalidLedgerError, {"name": "repo_or_folder"}),
    ],
)
def test_damaged_folders_change_nothing(base, stages, tmp_path, damage, kind, parts, merge):
    """Whatever is wrong with the folder is found before the first weight changes, and no pickle is ever looked at."""
    folder = shutil.copytree(stages[0], tmp_path / "copy")
    damage(folder)
    model = cases.load_base(base)
    with pytest.raises(kind) as error:
        load_forgotten(model, folder, merge=merge)
    found = {name: getattr(error.value, name) for name in parts}
    if kind is FilesDifferError:
        found["problems"] = {name.removeprefix("tasks/") for name in found["problems"]}
    assert found == parts
    assert cases.same(cases.weights(model), stages[1][0])
    assert not hasattr(model, "peft_config")
    if damage in (truncated, tampered):
        # Tasks whose files are whole can still be loaded.
        load_forgotten(model, folder, tasks=1, merge=merge)


@pytest.mark.parametrize(
    ("settings", "num_labels"),
    [({"seed": 9}, 6), ({"layers": 3}, 6), ({"num_labels": 4}, 4)],
)
def test_other_base_models(stages, settings, num_labels):
    """Weights that the tasks do not rest on are refused and left alone."""
    model = cases.make_model(**settings)
    fingerprint = weights_fingerprint(model)
    for merge in (True, False):
        with pytest.raises(OtherBaseModelError) as error:
            load_forgotten(model, stages[0], merge=merge)
        assert error.value.expected == ForgettingLedger.load(stages[0]).base_model
        assert (error.value.given["fingerprint"], error.value.given["num_labels"]) == (fingerprint, num_labels)
    assert weights_fingerprint(model) == fingerprint


def test_a_model_that_has_forgotten_already(base, stages):
    """Tasks cannot be put onto a model that holds them: neither as adapters nor merged."""
    model = load_forgotten(cases.load_base(base), stages[0])
    for again in (model, model.get_base_model()):
        with refused("base_model", type(again).__name__):
            load_forgotten(again, stages[0])
    model = load_forgotten(cases.load_base(base), stages[0], tasks=1, merge=True)
    with pytest.raises(OtherBaseModelError):
        load_forgotten(model, stages[0], tasks=1, merge=True)


@pytest.mark.parametrize("tasks", [4, -1, ["task_004"], "task_001", True, 1.0])
def test_tasks_that_do_not_exist(base, stages, tasks):
    """A number or name that the ledger does not have is an error that says what there is."""
    with refused("tasks", tasks[0] if isinstance(tasks, list) else tasks, InvalidLedgerError) as error:
        load_forgotten(cases.load_base(base), stages[0], tasks=tasks)
    assert error.value.fix == "The tasks in effect are: task_001, task_002, task_003."


def test_loading_needs_nothing_but_the_ledger_and_the_adapters(base, stages, tmp_path):
    """The lock file and the configuration for training on may be missing from a copy that vouches for the rest."""
    folder = tmp_path / "copy"
    data = json.loads((stages[0] / "forgetting.json").read_text())
    for name in ["forgetting.json", *(name for task in data["tasks"] for name in task["files"])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(stages[0] / name, folder / name)
    model = load_forgotten(cases.load_base(base), folder, merge=True)
    assert cases.same(cases.weights(model), stages[1][3])
    assert not (folder / "forgetting.lock").exists()
