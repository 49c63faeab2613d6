"""The adapter in the root of a repository: the sum of all tasks, for every loader there is."""

import json
import tempfile
from pathlib import Path

import composite_cases as cases
import hub_cases
import numpy as np
import pytest
import torch
from errors import refused
from hub_refusals import ledger_refused
from hypothesis import given, settings, strategies as st
from peft import AutoPeftModel, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, ViTForImageClassification

from gs_lora_peft import ForgettingLedger, load_forgotten
from gs_lora_peft.hub.composite import write_composite
from gs_lora_peft.ledger.errors import InvalidLedgerError

FILES = ("adapter_config.json", "adapter_model.safetensors")


def products(folder, model=None):
    """What stock PEFT makes of an adapter: ΔW by module, in float64."""
    model = PeftModel.from_pretrained(model or cases.Names(), folder, low_cpu_mem_usage=True, torch_device="cpu")
    layers = {p: m for p, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert all(not parameter.is_meta for parameter in model.parameters())
    for layer in layers.values():
        layer.double()
    return {path: layer.get_delta_weight("default").detach() for path, layer in layers.items()}


def summed(ledger):
    total = {}
    for entry in ledger.active_tasks:
        for path, product in products(ledger.folder / "tasks" / entry.name).items():
            total[path] = total.get(path, 0) + product
    return total


def relative(found, expected):
    return max(float((found[path] - expected[path]).norm() / expected[path].norm()) for path in expected)


@pytest.fixture
def random_run(tmp_path):
    """Three tasks with different ranks on different modules of the model with difficult names, saved."""
    model = cases.Names()
    ledger = cases.new_ledger(model, tmp_path / "run")
    cases.write_task(model, ledger, {"fc1": 2, "layers.1.fc1": 1}, alpha=2, seed=1)
    cases.write_task(model, ledger, {"layers.1.fc1": 1, "decoder.layers.1.fc1": 4, "layers.1.fc11": 1}, seed=2)
    cases.write_task(model, ledger, {"fc1": 2, "layers.11.fc1": 3, "(fc1)": 1, "layers+.fc1": 2}, rslora=True, seed=3)
    ledger.save()
    return ledger


# The sum

ranks = st.dictionaries(st.sampled_from(sorted(cases.SHAPES)), st.integers(1, 4), min_size=1)
tasks = st.fixed_dictionaries(
    {
        "modules": ranks,
        "alpha": st.sampled_from([1, 0.5, 3, 16]),
        "rslora": st.booleans(),
        "zero": st.sets(st.sampled_from(sorted(cases.SHAPES)), max_size=3),
    }
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(wanted=st.lists(tasks, min_size=2, max_size=4))
def test_it_is_the_sum_of_the_tasks(wanted):
    """Whatever the ranks, scalings and zero groups: ΔW is the sum, and no rank is beyond the module's dimensions."""
    with tempfile.TemporaryDirectory() as folder:
        model = cases.Names()
        ledger = cases.new_ledger(model, Path(folder, "run"))
        for seed, task in enumerate(wanted):
            cases.write_task(model, ledger, **task, seed=seed)
        report = write_composite(ledger, Path(folder, "root"))
        found = products(Path(folder, "root"))
        expected = {path: product for path, product in summed(ledger).items() if product.any()}
        if expected:
            assert found.keys() == expected.keys()
            assert relative(found, expected) <= 1e-6
        else:
            assert len(found) == 1
            assert not any(product.any() for product in found.values())
        tensors = load_file(Path(folder, "root", FILES[1]))
        for name, tensor in tensors.items():
            path = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
            assert min(tensor.shape) <= min(cases.SHAPES[path])
        assert report.rank == max(min(tensor.shape) for tensor in tensors.values())
        assert report.relative_error <= 1e-6
        assert set(report.recompressed) <= found.keys()


def test_concatenation_loses_nothing(random_run, tmp_path):
    """As long as the ranks fit, the matrices are those of the tasks, with powers of two folded in bit for bit."""
    report = write_composite(random_run, tmp_path / "root")
    assert report.recompressed == []
    assert report.relative_error == 0.0
    root = load_file(tmp_path / "root" / FILES[1])
    first, second = (load_file(random_run.folder / "tasks" / name / FILES[1]) for name in ("task_001", "task_002"))
    name = "base_model.model.layers.1.fc1.lora_{}.weight"
    assert torch.equal(root[name.format("A")], torch.cat([first[name.format("A")], second[name.format("A")]]))
    assert torch.equal(
        root[name.format("B")], torch.cat([2 * first[name.format("B")], second[name.format("B")]], dim=1)
    )


def test_no_module_catches_the_rank_of_another(random_run, tmp_path):
    """Names that end, begin or read like others keep their own rank and scaling, wherever they stand in the file."""
    write_composite(random_run, tmp_path / "root")
    model = PeftModel.from_pretrained(cases.Names(), tmp_path / "root")
    layers = {p: m for p, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert {path: layer.r["default"] for path, layer in layers.items()} == {
        "fc1": 4,
        "layers.1.fc1": 2,
        "layers.11.fc1": 3,
        "layers.1.fc11": 1,
        "decoder.layers.1.fc1": 4,
        "layers+.fc1": 2,
        "(fc1)": 1,
    }
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}


def test_a_module_left_alone_stays_so(tmp_path):
    """A module whose name ends like that of an adapted one gets no LoRA layer."""
    model = cases.Names()
    ledger = cases.new_ledger(model, tmp_path / "run")
    for seed in range(2):
        cases.write_task(model, ledger, {"fc1": 1, "layers.1.fc1": 1 + seed}, seed=seed)
    write_composite(ledger, tmp_path / "root")
    assert products(tmp_path / "root").keys() == {"fc1", "layers.1.fc1"}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_gives_the_best_of_that_rank(random_run, tmp_path, limit):
    """With `max_rank` each module is as near to the sum as its rank allows, and the report says how near."""
    report = write_composite(random_run, tmp_path / "root", max_rank=limit)
    found, expected = products(tmp_path / "root"), summed(random_run)
    errors = {}
    for path, product in expected.items():
        values = np.linalg.svd(product.numpy(), compute_uv=False)
        errors[path] = np.linalg.norm(values[limit:]) / np.linalg.norm(values)
        assert relative({path: found[path]}, {path: product}) == pytest.approx(errors[path], rel=1e-4, abs=1e-6)
    assert report.rank == limit
    assert report.relative_error == pytest.approx(max(errors.values()), rel=1e-4)
    ranks = {"fc1": 4, "layers.1.fc1": 2, "layers.11.fc1": 3, "decoder.layers.1.fc1": 4, "layers+.fc1": 2}
    assert report.recompressed == sorted(path for path, rank in ranks.items() if rank > limit)


def test_one_task_above_the_limit(tmp_path):
    """A single task is copied only where its ranks are within `max_rank`."""
    model = cases.Names()
    ledger = cases.new_ledger(model, tmp_path / "run")
    cases.write_task(model, ledger, {"fc1": 3, "(fc1)": 1})
    report = write_composite(ledger, tmp_path / "root", max_rank=2)
    assert (report.rank, report.recompressed) == (2, ["fc1"])
    assert 0.0 < report.relative_error < 1.0
    write_composite(ledger, tmp_path / "copy", max_rank=3)
    assert same_files(tmp_path / "copy", ledger.folder / "tasks" / "task_001")


def same_files(first, second):
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


def test_half_precision_is_widened(tmp_path):
    """Folding a scaling into half-precision matrices would round it: the sum is stored in float32."""
    model = cases.Names()
    ledger = cases.new_ledger(model, tmp_path / "run")
    for seed, dtype in enumerate([torch.bfloat16, torch.float16]):
        cases.write_task(model, ledger, {"fc1": 2}, alpha=3, rslora=True, seed=seed, dtype=dtype)
    write_composite(ledger, tmp_path / "root")
    assert {tensor.dtype for tensor in load_file(tmp_path / "root" / FILES[1]).values()} == {torch.float32}
    assert relative(products(tmp_path / "root"), summed(ledger)) <= 1e-6


@pytest.mark.parametrize("limit", [None, 2])
def test_the_same_tasks_give_the_same_bytes(random_run, tmp_path, limit):
    """Publishing again uploads nothing: the bytes depend on the tasks alone. The caller's threads are as before."""
    for threads, name in ((1, "first"), (2, "second")):
        torch.set_num_threads(threads)
        try:
            write_composite(ForgettingLedger.load(random_run.folder), tmp_path / name, max_rank=limit)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert same_files(tmp_path / "first", tmp_path / "second")


# Real runs and real loaders


def test_one_trained_task_is_copied(first_task, base, tmp_path):
    """The root of a run with one task is that task, byte for byte, and gives the live model's logits to the bit."""
    folder, live = first_task
    report = write_composite(ForgettingLedger.load(folder), tmp_path / "root")
    assert same_files(tmp_path / "root", folder / "tasks" / "task_001")
    assert (report.recompressed, report.relative_error) == ([], 0.0)
    model = PeftModel.from_pretrained(hub_cases.load_base(base), tmp_path / "root")
    assert hub_cases.logits(model) == live


@pytest.fixture(scope="module")
def uneven(base, tmp_path_factory):
    """Three tasks on the tiny ViT whose modules need ranks from 2 to 9, and the logits with all of them merged."""
    folder = tmp_path_factory.mktemp("uneven") / "run"
    model = hub_cases.load_base(base)
    ledger = cases.new_ledger(model, folder)
    fc1, fc2, deep = "vit.layers.0.mlp.fc1", "vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"
    cases.write_task(model, ledger, {fc1: 2, fc2: 2}, alpha=0.05, seed=1)
    cases.write_task(model, ledger, {fc2: 4, deep: 4}, alpha=0.2, rslora=True, seed=2)
    cases.write_task(model, ledger, {fc2: 3}, alpha=0.1, seed=3)
    ledger.save()
    return folder, hub_cases.logits(load_forgotten(hub_cases.load_base(base), folder, merge=True))


def native(base, root):
    model = ViTForImageClassification.from_pretrained(base)
    model.load_adapter(root)
    return model


def auto(base, root):
    return AutoPeftModel.from_pretrained(root)


def stock(base, root):
    return PeftModel.from_pretrained(hub_cases.load_base(base), root)


@pytest.mark.parametrize("load", [stock, native, auto])
@pytest.mark.filterwarnings("error:.*pattern keys.*:RuntimeWarning")
def test_every_loader_gives_the_merged_model(base, uneven, tmp_path, load):
    """PEFT, AutoPeftModel and transformers' own loader read ranks and scalings as they are meant."""
    folder, merged = uneven
    root = tmp_path / "root"
    write_composite(ForgettingLedger.load(folder), root)
    config = json.loads((root / FILES[0]).read_text())
    assert sorted([config["r"], *config["rank_pattern"].values()]) == [2, 4, 9]
    # The name by which AutoPeftModel finds the base model.
    (root / FILES[0]).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    found = hub_cases.logits(load(base, str(root)))
    assert np.abs(np.subtract(found, merged)).max() <= 1e-5
    assert np.abs(np.subtract(hub_cases.logits(hub_cases.load_base(base)), merged)).max() > 0.1


def test_a_trained_run(base, finished, tmp_path):
    """The root of a real run does what the live model does with all tasks merged."""
    folder, live = finished
    report = write_composite(ForgettingLedger.load(folder), tmp_path / "root")
    assert report.rank <= 16  # the smaller dimension of every layer
    assert np.abs(np.subtract(hub_cases.logits(stock(base, tmp_path / "root")), live)).max() <= 1e-5


def test_transposed_layers(tmp_path):
    """GPT-2's `Conv1D` keeps its weight the other way round; the adapter says so."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=4)).eval()
    tokens = torch.arange(4)[None]
    ledger = cases.new_ledger(model, tmp_path / "run")
    for seed in range(2):
        cases.write_task(model, ledger, {"transformer.h.0.mlp.c_fc": 1 + seed}, alpha=0.3, seed=seed)
    ledger.save()
    write_composite(ledger, tmp_path / "root")
    assert json.loads((tmp_path / "root" / FILES[0]).read_text())["fan_in_fan_out"] is True
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(model, tmp_path / "root")
        found = adapted(tokens).logits
        merged = load_forgotten(adapted.unload(), ledger.folder, merge=True)(tokens).logits
    assert (found - merged).abs().max() <= 1e-5


# Nothing to add up, and files that are not what they should be


def test_without_a_task_in_effect_nothing_changes(base, uneven, tmp_path):
    """When every task is revoked the root is an adapter that every loader takes and that changes nothing."""
    ledger = ForgettingLedger.load(uneven[0])
    for name in ("task_001", "task_002", "task_003"):
        ledger.revoke(name)
    report = write_composite(ledger, tmp_path / "root")
    assert report.rank == 0
    assert not load_file(tmp_path / "root" / FILES[1])
    expected = hub_cases.logits(hub_cases.load_base(base))
    for load in (stock, native):
        assert hub_cases.logits(load(base, str(tmp_path / "root"))) == expected


def test_without_any_task_there_is_nothing_to_write(random_run, tmp_path):
    """An adapter has to name a module; without any file of a task there is none to name."""
    empty = cases.new_ledger(cases.Names(), tmp_path / "empty")
    with refused(f"tasks of the ledger in '{empty.folder}'", kind=InvalidLedgerError):
        write_composite(empty, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_changed_file_is_not_summed_up(random_run, tmp_path):
    """Hashes are checked first, and nothing is written."""
    path = random_run.folder / "tasks" / "task_002" / FILES[1]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with ledger_refused("task_002/adapter_model.safetensors"):
        write_composite(random_run, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "8"])
def test_limits_that_are_none(random_run, tmp_path, limit):
    """`max_rank` is a positive number or nothing."""
    with refused("max_rank", limit):
        write_composite(random_run, tmp_path / "root", max_rank=limit)
