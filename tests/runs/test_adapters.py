"""Adapters of tasks on their way from the disk into a model: read once, checked before anything changes."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import run_cases as cases
import torch
from errors import ANY
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from test_forgetter import never_trains
from torch import nn

from gs_lora_peft import ForgetRequest, ForgettingLedger, LedgerError, export_lora, load_forgotten
from gs_lora_peft.adapters import model_identity
from gs_lora_peft.adapters.attaching import _Places, attach_adapters, check_adapters, merge_adapters
from gs_lora_peft.adapters.task_files import read_adapters
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import TaskEntry
from gs_lora_peft.ledger.errors import FilesDifferError, UnusableAdapterError
from gs_lora_peft.ledger.schema import MAX_CONFIG_BYTES
from gs_lora_peft.runs.leaving import LeavesAdapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FC1, FC2, DEEP = "vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc1"
# Rank, α and rank stabilisation differ between tasks on the same layer, and agree again later.
SETTINGS = [
    ({FC1: 2, FC2: 2}, {"lora_alpha": 2}),
    ({FC1: 3, DEEP: 1}, {"lora_alpha": 1}),
    ({FC1: 2}, {"lora_alpha": 2}),
    ({FC1: 2, FC2: 2}, {"lora_alpha": 2, "use_rslora": True}),
]


@pytest.fixture(scope="module")
def random_run(base, tmp_path_factory):
    """Four tasks with random matrices."""
    folder = tmp_path_factory.mktemp("random") / "run"
    model = cases.load_base(base)
    ledger = ForgettingLedger.create(folder, base_model=model_identity(model))
    torch.manual_seed(0)
    for number, (ranks, options) in enumerate(SETTINGS):
        name = ledger.next_task_name()
        config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, init_lora_weights=False, **options)
        adapted = get_peft_model(model, config, adapter_name=name)
        export_lora(adapted, folder / "tasks" / name, adapter_name=name, base_model_name_or_path="tiny-vit")
        adapted.unload()
        files = {f"tasks/{name}/{file}": sha256_of(folder / "tasks" / name / file) for file in (CONFIG, WEIGHTS)}
        now = "2026-01-01T00:00:00+00:00"
        request = {"classes": [number]}
        ledger.append(TaskEntry(name, request, [number], started_at=now, finished_at=now, files=files))
    ledger.save()
    return folder


@pytest.fixture
def stock(base, random_run):
    """The same adapters, put onto the model by PEFT alone."""
    names = [f"task_{number:03d}" for number in range(1, 5)]
    model = PeftModel.from_pretrained(cases.load_base(base), random_run / "tasks" / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(random_run / "tasks" / name, adapter_name=name)
    model.base_model.set_adapter(names, inference_mode=True)
    return model.eval()


def test_the_model_is_the_one_that_peft_makes(base, data, random_run, stock):
    """Same parameters under the same names, flags, configurations and outputs, bit for bit."""
    model = load_forgotten(cases.load_base(base), random_run)
    assert cases.same(cases.weights(model), cases.weights(stock))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in stock.named_parameters()
    }
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert {name: config.to_dict() for name, config in model.peft_config.items()} == {
        name: config.to_dict() for name, config in stock.peft_config.items()
    }
    assert model.targeted_module_names == list(dict.fromkeys(stock.targeted_module_names))  # PEFT 0.20 repeats itself
    assert str(model) == str(stock)
    images = data["test"][:]["pixel_values"]
    with torch.no_grad():
        assert torch.equal(model(images).logits, stock(images).logits)


def test_the_model_can_be_used_as_one_from_peft(base, data, random_run, tmp_path):
    """Single adapters are chosen, deleted, saved and merged, and no two of them share anything."""
    images = data["test"][:]["pixel_values"]
    model = load_forgotten(cases.load_base(base), random_run)
    with torch.no_grad():
        model.set_adapter("task_003")
        alone = PeftModel.from_pretrained(cases.load_base(base), random_run / "tasks" / "task_003").eval()
        assert torch.equal(model(images).logits, alone(images).logits)
        for parameter in model.base_model.model.get_submodule(FC1).lora_B["task_001"].parameters():
            parameter.zero_()
        model.delete_adapter("task_001")
        assert torch.equal(model(images).logits, alone(images).logits)
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        saved = load_file(tmp_path / "task_003" / WEIGHTS)
        assert cases.same(saved, load_file(random_run / "tasks" / "task_003" / WEIGHTS))
        merged = model.merge_and_unload(adapter_names=["task_002", "task_003", "task_004"])
    expected = load_forgotten(
        cases.load_base(base), random_run, tasks=["task_002", "task_003", "task_004"], merge=True
    )
    assert cases.same(cases.weights(merged), cases.weights(expected))


def test_adapters_keep_their_precision_on_a_model_of_less(base, random_run):
    """On a bfloat16 model the matrices stay in float32, and merge as PEFT merges them."""
    adapters = read_adapters(ForgettingLedger.load(random_run), 1)
    model = attach_adapters(cases.load_base(base).to(torch.bfloat16), adapters)
    half = cases.load_base(base).to(torch.bfloat16)
    stock = PeftModel.from_pretrained(half, random_run / "tasks" / "task_001", adapter_name="task_001").eval()
    assert cases.same(cases.weights(model), cases.weights(stock))
    merged = merge_adapters(cases.load_base(base).to(torch.bfloat16), adapters)
    assert cases.same(cases.weights(merged), cases.weights(stock.merge_and_unload()))


def test_a_loaded_model_is_frozen_active_and_in_eval_mode(base, random_run):
    """As PEFT leaves it, though PEFT's walks through the model are left out."""
    model = load_forgotten(cases.load_base(base).train(), random_run)
    stock = PeftModel.from_pretrained(cases.load_base(base), random_run / "tasks/task_001", adapter_name="task_001")
    for name in ("task_002", "task_003", "task_004"):
        stock.load_adapter(random_run / "tasks" / name, name)
    stock.base_model.set_adapter(list(stock.peft_config), inference_mode=True)
    assert model.active_adapters == stock.active_adapters
    found, expected = ({n: (type(m), m.training) for n, m in one.eval().named_modules()} for one in (model, stock))
    assert found == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {n: m._active_adapter for n, m in model.named_modules() if hasattr(m, "lora_A")} == {
        n: m._active_adapter for n, m in stock.named_modules() if hasattr(m, "lora_A")
    }


def test_not_eval_by_chance(base, random_run):
    """The mode is set while the model is made: nothing walks through it afterwards."""
    model = load_forgotten(cases.load_base(base).train(), random_run)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("targets", [["fc1"], ["mlp.fc1", "0.mlp.fc2"], [FC1], ["c1", "", "vit", "fc1."], []])
def test_targets_are_those_that_peft_finds(base, targets):
    """Endings of paths, looked up together instead of one by one."""
    model, config = cases.load_base(base), LoraConfig(target_modules=targets)
    found = {path for path, _ in model.named_modules() if path and check_target_module_exists(config, path)}
    assert _Places(model).targeted(config) == found


def test_layers_do_not_share_hooks(base, random_run):
    """Adapters of one layer that are made alike are still objects of their own."""
    model = load_forgotten(cases.load_base(base), random_run)
    layer = model.base_model.model.get_submodule(FC1)
    seen = []
    layer.lora_A["task_001"].register_forward_hook(lambda *_: seen.append("task_001"))
    layer(torch.zeros(1, 16))
    assert seen == ["task_001"]
    assert isinstance(layer.lora_A["task_003"], nn.Linear)
    assert layer.lora_A["task_003"] is not layer.lora_A["task_001"]


_opened = []
_watching = []


def _watch(event, arguments):
    if _watching and event == "open" and str(arguments[0]).startswith(_watching[0]):
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)


@pytest.mark.parametrize("merge", [True, False])
def test_every_file_is_opened_once(base, random_run, tmp_path, merge):
    """What was hashed is what is used: nobody can change a file between the check and the reading."""
    folder = shutil.copytree(random_run, tmp_path / "run")
    files = [str(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    model = cases.load_base(base)
    _watching.append(str(folder))
    try:
        load_forgotten(model, folder, merge=merge)
        opened = sorted(_opened)
    finally:
        _watching.clear()
        _opened.clear()
    assert opened == sorted(files)


# Files for which a ledger vouches, but which are not what this package writes


def change(name, **values):
    def damage(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def rewrite(make):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        save_file({name: tensor.contiguous() for name, tensor in make(tensors).items()}, folder / WEIGHTS)

    return damage


def lying_header(folder):
    (folder / WEIGHTS).write_bytes((2**50).to_bytes(8, "little") + b'{"a": 1}')


def short_data(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def other_architecture(folder):
    change(CONFIG, r=2, rank_pattern={}, target_modules=[FC1.replace("fc1", "fc9"), FC2])(folder)
    rewrite(lambda tensors: {name.replace("fc1", "fc9"): tensor for name, tensor in tensors.items()})(folder)


A = f"base_model.model.{FC1}.lora_A.weight"
B = f"base_model.model.{FC1}.lora_B.weight"
NAN = rewrite(lambda tensors: {**tensors, B: tensors[B] * float("nan")})
NO_SCALE = change(CONFIG, lora_alpha=0)
SCALING = f"the scaling of {FC1}"
# How a file is damaged, which one is blamed (none if it only does not fit the model), and what in it, where known.
BAD = [
    (lying_header, WEIGHTS, None),
    (short_data, WEIGHTS, None),
    (lambda folder: (folder / WEIGHTS).write_bytes(b""), WEIGHTS, None),
    (rewrite(lambda tensors: {**tensors, "classifier.weight": tensors[A] + 1}), WEIGHTS, "the keys"),
    (rewrite(lambda tensors: {k: v for k, v in tensors.items() if k != B}), WEIGHTS, "the keys"),
    (rewrite(lambda tensors: {A: tensors[A][None], B: tensors[B]}), WEIGHTS, FC1),
    (rewrite(lambda tensors: {A: tensors[A].int(), B: tensors[B]}), WEIGHTS, FC1),
    (rewrite(lambda tensors: {**tensors, A: tensors[A][:1], B: tensors[B][:, :1]}), CONFIG, f"the rank of {FC1}"),
    (rewrite(lambda tensors: {**tensors, A: tensors[A][:, :8]}), None, FC1),
    (other_architecture, None, FC1.replace("fc1", "fc9")),
    (rewrite(lambda tensors: {k: v for k, v in tensors.items() if "fc1" in k}), None, "target_modules"),
    (change(CONFIG, peft_type="LOHA"), CONFIG, CONFIG),
    (change(CONFIG, r="2"), CONFIG, f"r in {CONFIG}"),
    (change(CONFIG, lora_alpha=None), CONFIG, f"lora_alpha in {CONFIG}"),
    (change(CONFIG, rank_pattern=[1]), CONFIG, f"rank_pattern in {CONFIG}"),
    (change(CONFIG, rank_pattern={"(": 3}), CONFIG, f"rank_pattern in {CONFIG}"),
    (change(CONFIG, alpha_pattern={FC1: "much"}), CONFIG, None),
    (change(CONFIG, target_modules="("), CONFIG, f"target_modules in {CONFIG}"),
    (change(CONFIG, target_modules=[FC1]), None, "target_modules"),
    (change(CONFIG, target_modules="all-linear"), None, "target_modules"),
    (change(CONFIG, use_dora=True), CONFIG, ANY),
    (change(CONFIG, modules_to_save=["classifier"]), CONFIG, ANY),
    (change(CONFIG, task_type="SEQ_CLS"), CONFIG, "task_type"),
    (change(CONFIG, task_type="no such task"), CONFIG, None),
    # Numbers that spoil a model without a word, and those that PEFT or torch chokes on half-way.
    (NAN, WEIGHTS, FC1),
    (rewrite(lambda tensors: {**tensors, A: tensors[A] / 0}), WEIGHTS, FC1),
    (rewrite(lambda tensors: {**tensors, A: tensors[A].to(torch.float8_e4m3fn)}), WEIGHTS, FC1),
    (rewrite(lambda tensors: {**tensors, A: tensors[A].to(torch.complex64)}), WEIGHTS, FC1),
    (rewrite(lambda tensors: {**tensors, B: tensors[B] * 1e6}), None, FC1),
    (rewrite(lambda tensors: {**tensors, A: tensors[A] + 3e38, B: tensors[B] + 3e38}), None, FC1),
    (NO_SCALE, CONFIG, SCALING),
    (change(CONFIG, lora_alpha=10**6), CONFIG, SCALING),
    (change(CONFIG, alpha_pattern={FC1: 10**6}), CONFIG, SCALING),
    (change(CONFIG, lora_alpha=10**6, use_rslora=True), CONFIG, SCALING),
    (change(CONFIG, lora_alpha=10**400), CONFIG, None),
    # Code, other models, and searches that never end.
    (change(CONFIG, auto_mapping={"base_model_class": "X", "parent_library": "os"}), CONFIG, ANY),
    (change(CONFIG, auto_mapping={"base_model_class": "X", "parent_library": "transformersx.y"}), CONFIG, ANY),
    (change(CONFIG, auto_mapping={"base_model_class": "X"}), CONFIG, ANY),
    (change(CONFIG, auto_mapping=["os", "system"]), CONFIG, ANY),
    (change(CONFIG, base_model_name_or_path="somebody/else"), CONFIG, None),
    (change(CONFIG, target_modules="(v+i*t*)+x"), CONFIG, f"target_modules in {CONFIG}"),
    (change(CONFIG, target_modules=[FC1, FC2, 3]), CONFIG, f"target_modules in {CONFIG}"),
    (change(CONFIG, rank_pattern={"(v+)+x": 2}), CONFIG, f"rank_pattern in {CONFIG}"),
    (change(CONFIG, alpha_pattern={"(v+)+x": 2}), CONFIG, f"alpha_pattern in {CONFIG}"),
    (change(CONFIG, exclude_modules="(v+)+x"), CONFIG, f"exclude_modules in {CONFIG}"),
    (change(CONFIG, layers_to_transform=[0], layers_pattern="(v+)+x"), CONFIG, f"layers_to_transform in {CONFIG}"),
    (lambda folder: (folder / CONFIG).write_text("[" * 100_000), CONFIG, ANY),
]


def vouch(folder):
    """Makes the ledger vouch for whatever the first task's files are now."""
    ledger = ForgettingLedger.load(folder)
    for name in ledger.tasks[0].files:
        ledger.tasks[0].files[name] = sha256_of(folder / name)
    ledger.save()


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("damage", "file", "name"), BAD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_adapters_change_nothing(base, random_run, tmp_path, damage, file, name, merge):
    """Even if the hashes are right: an adapter that PEFT would choke on, or read otherwise, never reaches it."""
    folder = shutil.copytree(random_run, tmp_path / "run")
    damage(folder / "tasks" / "task_001")
    vouch(folder)
    model = cases.load_base(base)
    before = cases.weights(model)
    with pytest.raises(UnusableAdapterError) as error:
        load_forgotten(model, folder, merge=merge)
    assert (error.value.task, error.value.file) == ("task_001", file)
    assert name is ANY or error.value.name == name
    assert cases.same(cases.weights(model), before)
    assert not hasattr(model, "peft_config")


def test_a_configuration_that_nobody_writes_is_not_read(base, random_run, tmp_path):
    """Even if its hash is right."""
    folder = shutil.copytree(random_run, tmp_path / "run")
    (folder / "tasks" / "task_001" / CONFIG).write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    vouch(folder)
    with pytest.raises(FilesDifferError) as error:
        load_forgotten(cases.load_base(base), folder)
    assert list(error.value.problems) == [f"tasks/task_001/{CONFIG}"]


def test_files_swapped_under_a_run(base, data, one_task):
    """A run keeps the weights it opened: later changes of its files reach no model and no task."""
    forgetter = cases.make_forgetter(base, one_task, data)
    forgetter.forget(ForgetRequest(["cassowary"]))
    before = cases.weights(forgetter.model)
    path = one_task / "tasks" / "task_001" / WEIGHTS
    content = path.read_bytes()
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    for action in (lambda: forgetter.revoke("task_002"), lambda: forgetter.forget(ForgetRequest(["flamingo"]))):
        with pytest.raises(FilesDifferError) as error:
            action()
        assert list(error.value.problems) == [f"tasks/task_001/{WEIGHTS}"]
        assert cases.same(cases.weights(forgetter.model), before)
    path.write_bytes(content)
    forgetter.forget(ForgetRequest(["flamingo"]))
    assert cases.same(
        cases.weights(forgetter.model), cases.weights(load_forgotten(cases.load_base(base), one_task, merge=True))
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "forgetting.json").unlink(),
        lambda folder: (folder / "tasks" / "task_001" / WEIGHTS).unlink(),
        lambda folder: (folder / "tasks" / "task_001" / CONFIG).write_text("{}"),
        lambda folder: shutil.rmtree(folder / "tasks"),
    ],
)
def test_damage_is_found_before_a_request_trains(base, data, one_task, tmp_path, monkeypatch, damage):
    """What is deleted or changed while the run is open stops the next request, until it is restored."""
    forgetter = cases.make_forgetter(base, one_task, data)
    whole = shutil.copytree(one_task, tmp_path / "whole")
    before = cases.weights(forgetter.model)
    damage(one_task)
    with monkeypatch.context() as patched:
        never_trains(patched)
        for action in (forgetter.forget, lambda request: forgetter.run([ForgetRequest(["bumblebee"]), request])):
            with pytest.raises(LedgerError):
                action(ForgetRequest(["cassowary"]))
    assert cases.same(cases.weights(forgetter.model), before)
    shutil.copytree(whole, one_task, dirs_exist_ok=True)
    assert forgetter.forget(ForgetRequest(["cassowary"])).name == "task_002"
    assert len(ForgettingLedger.load(one_task).tasks) == 2


def test_a_damaged_task_can_be_revoked(base, data, one_task):
    """The way out where no copy is left: the weights come from the base model, not from the file that is gone."""
    forgetter = cases.make_forgetter(base, one_task, data)
    (one_task / "tasks" / "task_001" / WEIGHTS).unlink()
    forgetter.revoke("task_001")
    assert cases.same(cases.weights(forgetter.model), cases.weights(cases.load_base(base)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_base_of_any_dtype_forgets(base, data, tmp_path, dtype):
    """Training, merging and opening again; the weights keep their dtype."""
    model = cases.load_base(base).to(dtype)
    args = cases.make_args(max_steps=2, learning_rate=1e-3, save_strategy="no")
    forgetter = cases.make_forgetter(model, tmp_path / "run", data, args=args)
    forgetter.forget(ForgetRequest(["cassowary"]))
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    again = load_forgotten(cases.load_base(base).to(dtype), tmp_path / "run", merge=True)
    assert cases.same(cases.weights(again), cases.weights(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_an_update_is_measured_against_weights_of_any_dtype(base, random_run, dtype):
    """The size of an update is compared with the weights, whatever they are stored in."""
    adapters = read_adapters(ForgettingLedger.load(random_run), 1)
    check_adapters(cases.load_base(base).to(dtype), adapters)
    tiny = cases.load_base(base)
    for path in adapters[0].pairs:
        weight = torch.zeros_like(tiny.get_submodule(path).weight)
        weight[0, 0] = 2**-6
        tiny.get_submodule(path).weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    huge = [replace(adapters[0], pairs={path: (a * 1e3, b * 1e3) for path, (a, b) in adapters[0].pairs.items()})]
    with pytest.raises(UnusableAdapterError) as error:
        check_adapters(tiny, huge)
    assert error.value.file is None


@pytest.mark.parametrize("damage", [NAN, NO_SCALE])
def test_a_new_task_is_read_like_any_other(base, data, one_task, monkeypatch, damage):
    """What training leaves on the disk is checked before it is merged; nothing of it is recorded otherwise."""
    forgetter = cases.make_forgetter(base, one_task, data)
    before, ledger = cases.weights(forgetter.model), forgetter.ledger.to_dict()
    export = LeavesAdapter.export
    monkeypatch.setattr(
        LeavesAdapter, "export", lambda *args: (export(*args), damage(one_task / "tasks" / "task_002"))
    )
    with pytest.raises(UnusableAdapterError) as error:
        forgetter.forget(ForgetRequest(["cassowary"]))
    assert error.value.task == "task_002"
    assert cases.same(cases.weights(forgetter.model), before)
    assert forgetter.ledger.to_dict() == ledger


def test_what_is_recorded_is_what_was_merged(base, data, one_task, monkeypatch):
    """The hashes in the ledger are those of the bytes that were merged, not of what lies there a moment later."""
    forgetter = cases.make_forgetter(base, one_task, data)
    record = forgetter._record

    def swapped_first(change):
        path = one_task / "tasks" / "task_002" / WEIGHTS
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
        return record(change)

    monkeypatch.setattr(forgetter, "_record", swapped_first)
    forgetter.forget(ForgetRequest(["cassowary"]))
    with pytest.raises(FilesDifferError) as error:
        load_forgotten(cases.load_base(base), one_task)
    assert list(error.value.problems) == [f"tasks/task_002/{WEIGHTS}"]


def test_what_concerns_another_machine_is_left_out(base, random_run, tmp_path):
    """A `runtime_config` in a published configuration is ignored, as PEFT does."""
    folder = shutil.copytree(random_run, tmp_path / "run")
    change(CONFIG, runtime_config={"ephemeral_gpu_offload": True})(folder / "tasks" / "task_001")
    ledger = ForgettingLedger.load(folder)
    ledger.tasks[0].files[f"tasks/task_001/{CONFIG}"] = sha256_of(folder / "tasks" / "task_001" / CONFIG)
    ledger.save()
    expected = load_forgotten(cases.load_base(base), random_run)
    assert cases.same(cases.weights(load_forgotten(cases.load_base(base), folder)), cases.weights(expected))
