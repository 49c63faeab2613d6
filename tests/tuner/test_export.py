"""The plain LoRA form: what it leaves out, who can load it, and that the same adapter gives the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from models import CASES, Case, vit
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from processes import in_new_process
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from gs_lora_peft import GSLoraConfig, LoraGroups, export_lora
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.tuner.export import drop_zero_pairs

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]

VIT = CASES["vit"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def with_zeros(model: nn.Module, *indices: int, adapter_name: str = "default") -> Any:
    """Set some groups of an adapter to zero."""
    groups = LoraGroups(model, adapter_name)
    with torch.no_grad():
        for parameter, index in zip(groups.parameters, groups.group_of, strict=True):
            if index in indices or not indices:
                parameter.zero_()
    return model


def sparse_vit(**options: Any) -> PeftModel:
    return with_zeros(VIT.wrapped("GS_LORA", **options), 0)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def reloaded(folder: Path, case: Case = VIT) -> PeftModel:
    return PeftModel.from_pretrained(case.build(), folder)


# ------------------------------------------------------------------------------------------------- what it consists of


def test_zero_groups_are_left_out(tmp_path):
    """Tensors and targets of a zero group are gone, all others are there as they were; outputs are bit-equal."""
    model = sparse_vit()
    assert export_lora(model, tmp_path) == tmp_path
    assert set(files_of(tmp_path)) == {CONFIG, WEIGHTS}
    everything, kept = get_peft_model_state_dict(model), load_file(tmp_path / WEIGHTS)
    assert kept.keys() == {name for name in everything if ".layers.1." in name}
    assert all(torch.equal(tensor, everything[name]) for name, tensor in kept.items())
    loaded = reloaded(tmp_path)
    assert [n for n, m in loaded.named_modules() if isinstance(m, LoraLayer)] == [
        "base_model.model.vit.layers.1.mlp.fc1",
        "base_model.model.vit.layers.1.mlp.fc2",
    ]
    assert torch.equal(VIT.logits(loaded), VIT.logits(model))


def test_configuration_is_plain_and_readable(tmp_path):
    """Type LORA, the few fields that decide the outputs, sorted, with a final newline; nothing of this package."""
    export_lora(sparse_vit(), tmp_path)
    text = (tmp_path / CONFIG).read_text()
    assert config_of(tmp_path) == {
        "auto_mapping": {
            "base_model_class": "ViTForImageClassification",
            "parent_library": "transformers.models.vit.modeling_vit",
        },
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": ["vit.layers.1.mlp.fc1", "vit.layers.1.mlp.fc2"],
        "task_type": None,
    }
    assert list(config_of(tmp_path)) == sorted(config_of(tmp_path))
    assert text.endswith("}\n")
    assert "gs" not in text.lower()


@pytest.mark.parametrize("zeros", [(), (0,), (0, 2, 3), (1,), (0, 1, 2, 3)])
def test_size_follows_the_active_groups(tmp_path, zeros):
    """The file is as large as what is active, plus at most 4 KiB."""
    model = get_peft_model(vit(4), GSLoraConfig(r=8, init_lora_weights=False))
    dense = sum(t.numel() * t.element_size() for t in get_peft_model_state_dict(model).values())
    if zeros:
        with_zeros(model, *zeros)
    export_lora(model, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size <= (4 - len(zeros)) / 4 * dense + 4096


def test_every_group_zero(tmp_path):
    """Nothing forgotten, or everything dropped: still an adapter that PEFT loads, and it changes nothing."""
    model = with_zeros(VIT.wrapped("GS_LORA"))
    export_lora(model, tmp_path)
    assert not load_file(tmp_path / WEIGHTS)
    assert sum(map(len, files_of(tmp_path).values())) < 1000
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(vit()))
    expected = files_of(tmp_path)
    assert files_of(export_lora(tmp_path, tmp_path / "again")) == expected


def test_fresh_adapter_is_empty(tmp_path):
    """An untrained adapter has lora_B = 0 everywhere and so adds nothing."""
    export_lora(VIT.wrapped("GS_LORA", init_lora_weights=True), tmp_path)
    assert not load_file(tmp_path / WEIGHTS)
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(vit()))


def test_a_pair_with_one_zero_factor_is_left_out(tmp_path):
    """By matrix, one factor may be zero and the other not; their product is zero all the same."""
    model = VIT.wrapped("GS_LORA", group_by="matrix")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.0.mlp.fc1.lora_A" in name or "layers.1.mlp.fc2.lora_B" in name:
                parameter.zero_()
    export_lora(model, tmp_path)
    assert config_of(tmp_path)["target_modules"] == ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc1"]
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(model))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_dropping_keeps_exactly_the_pairs_that_act(pairs):
    """A pair is kept if and only if neither factor is zero; what is kept is sorted and bit-equal."""
    tensors = {}
    for index, (a, b) in reversed(list(enumerate(pairs))):
        tensors[f"base_model.model.m{index}.lora_B.weight"] = torch.full((3, 2), 0.5 * b)
        tensors[f"base_model.model.m{index}.lora_A.weight"] = torch.full((2, 3), -1.5 * a)
    kept = drop_zero_pairs(tensors)
    expected = [f"base_model.model.m{i}.lora_{k}.weight" for i, (a, b) in enumerate(pairs) if a and b for k in "AB"]
    assert list(kept) == sorted(expected)
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)


def test_frozen_groups_do_not_matter(tmp_path):
    """Exporting in the middle of training, with groups frozen, gives what exporting afterwards gives."""
    model = sparse_vit()
    export_lora(model, tmp_path / "plain")
    LoraGroups(model).freeze_zero_groups()
    export_lora(model, tmp_path / "frozen")
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "frozen")


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("kind", ["GS_LORA", "LORA"])
def test_every_kind_of_model(tmp_path, case, kind):
    """Bit-equal outputs on all models of the conformance test, for stock LORA adapters, too."""
    model = with_zeros(case.wrapped(kind), 0)
    export_lora(model, tmp_path)
    assert torch.equal(case.logits(reloaded(tmp_path, case)), case.logits(model))
    assert config_of(tmp_path).get("fan_in_fan_out", False) == (case.name == "gpt2")


def test_conv1d_is_written_even_where_peft_found_it_out(tmp_path):
    """GPT-2's transposed Linears load without a warning from the exported form."""
    case = CASES["gpt2"]
    export_lora(case.wrapped("GS_LORA", fan_in_fan_out=False), tmp_path)
    assert config_of(tmp_path)["fan_in_fan_out"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"fc1": 2}},
        {"alpha_pattern": {r".*\.fc2": 16}},
        {"use_rslora": True},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"layers.1.mlp.fc1": 3}, "use_rslora": True},
        {"rank_pattern": {"layers.0.mlp.fc1": 2}, "alpha_pattern": {"nowhere": 5}},
        # Sorted, "[0-9]" comes first and would win; as given, it comes last.
        {"rank_pattern": {"mlp.fc1": 2, "layers.[0-9].mlp.fc[0-9]": 3}},
        {"alpha_pattern": {"mlp.fc1": 2, "layers.[0-9].mlp.fc[0-9]": 3}, "rank_pattern": {"fc2": 1}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_ranks_and_scalings_are_kept(tmp_path, options):
    """Patterns are written as far as remaining modules use them, and give every module its rank and scaling."""
    model = sparse_vit(**options)
    export_lora(model, tmp_path)
    loaded = reloaded(tmp_path)
    for name, layer in loaded.named_modules():
        if isinstance(layer, LoraLayer):
            original = model.get_submodule(name)
            assert layer.r["default"] == original.r["default"]
            assert layer.scaling["default"] == original.scaling["default"]
    assert torch.equal(VIT.logits(loaded), VIT.logits(model))
    patterns = {**config_of(tmp_path).get("rank_pattern", {}), **config_of(tmp_path).get("alpha_pattern", {})}
    assert not [key for key in patterns if "layers.0" in key or "nowhere" in key]


def test_half_precision(tmp_path):
    """The dtype of the matrices is kept."""
    model = get_peft_model(vit().bfloat16(), VIT.config("GS_LORA"), autocast_adapter_dtype=False)
    export_lora(model, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    loaded = PeftModel.from_pretrained(vit().bfloat16(), tmp_path, autocast_adapter_dtype=False)
    assert torch.equal(VIT.logits(loaded), VIT.logits(model))


class TwoStacks(nn.Module):
    """A stack at the root whose module names are also the ends of another stack's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = self._stack()
        self.decoder = nn.Module()
        self.decoder.layers = self._stack()

    @staticmethod
    def _stack() -> nn.ModuleList:
        return nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc10": nn.Linear(4, 4)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, *self.decoder.layers]:
            x = x + layer["fc10"](torch.tanh(layer["fc1"](x)))
        return x


def test_names_that_are_ends_of_other_names(tmp_path):
    """A list would hit both stacks; the regular expression hits the one that is meant, without a missing key."""
    torch.manual_seed(0)
    base = TwoStacks().eval()
    state = base.state_dict()
    model = get_peft_model(
        base, GSLoraConfig(target_modules=r"layers\.\d\.fc1", init_lora_weights=False, lora_alpha=8)
    )
    export_lora(model, tmp_path)
    assert config_of(tmp_path)["target_modules"] == r"layers\.0\.fc1|layers\.1\.fc1"
    fresh = TwoStacks().eval()
    fresh.load_state_dict(state)
    x = torch.randn(2, 4)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert loaded.base_model.targeted_module_names == ["layers.0.fc1", "layers.1.fc1"]
    assert torch.equal(loaded(x), model(x))


def test_ambiguous_names_inside_one_adapter(tmp_path):
    """If only the stack at the root survives, the folder alone shows the ambiguity, too."""
    model = get_peft_model(TwoStacks(), GSLoraConfig(target_modules=["fc1"], init_lora_weights=False))
    with_zeros(model, 2, 3)
    model.save_pretrained(tmp_path / "training")
    export_lora(model, tmp_path / "model")
    export_lora(tmp_path / "training", tmp_path / "folder")
    assert config_of(tmp_path / "model")["target_modules"] == r"layers\.0\.fc1|layers\.1\.fc1"
    assert files_of(tmp_path / "model") == files_of(tmp_path / "folder")


def test_many_modules_are_found_exactly(tmp_path):
    """PEFT shortens long lists of targets; the adapter still sits where it was."""
    model = get_peft_model(vit(24), GSLoraConfig(r=1, init_lora_weights=False, target_modules="attention"))
    with_zeros(model, *range(0, 24, 2))
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(vit(24), tmp_path)
    adapted = [n for n, m in loaded.named_modules() if isinstance(m, LoraLayer)]
    assert len(adapted) == 12 * 4
    assert all(int(name.split(".layers.")[1].split(".")[0]) % 2 for name in adapted)
    assert torch.equal(VIT.logits(loaded), VIT.logits(model.eval()))


# ---------------------------------------------------------------------------------------------------- reproducibility


def test_same_bytes_twice_and_from_a_folder(tmp_path):
    """Model twice, folder, export of an export, over an older export, onto itself: always the same two files."""
    model = sparse_vit(rank_pattern={"fc2": 2})
    model.save_pretrained(tmp_path / "training")
    expected = files_of(export_lora(model, tmp_path / "first"))
    assert files_of(export_lora(model, tmp_path / "second")) == expected
    assert files_of(export_lora(tmp_path / "training", tmp_path / "folder")) == expected
    assert files_of(export_lora(str(tmp_path / "first"), str(tmp_path / "export"))) == expected
    export_lora(VIT.wrapped("GS_LORA"), tmp_path / "first")
    assert files_of(export_lora(model, tmp_path / "first")) == expected
    assert files_of(export_lora(tmp_path / "first", tmp_path / "first")) == expected


def test_same_bytes_whatever_the_adapter_is_called(tmp_path):
    """The name of the adapter leaves no trace."""
    export_lora(sparse_vit(), tmp_path / "a")
    model = with_zeros(VIT.wrapped("GS_LORA", adapter_name="task_001"), 0, adapter_name="task_001")
    export_lora(model, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.slow
def test_same_bytes_in_another_process(tmp_path):
    """Neither the process nor the order in which strings hash matters."""
    sparse_vit(target_modules=["mlp.fc1", "mlp.fc2", "q_proj"]).save_pretrained(tmp_path / "training")
    expected = files_of(export_lora(tmp_path / "training", tmp_path / "here"))
    code = "import sys; from gs_lora_peft import export_lora; export_lora(sys.argv[1], sys.argv[2])"
    in_new_process(code, str(tmp_path / "training"), str(tmp_path / "there"))
    assert files_of(tmp_path / "there") == expected


def test_name_of_the_base_model(tmp_path):
    """By default the name the base was loaded by, from the model as from the folder; another one can be given."""
    vit().save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    base = type(vit()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, VIT.config("GS_LORA"))
    model.save_pretrained(tmp_path / "training")
    export_lora(model, tmp_path / "model")
    export_lora(tmp_path / "training", tmp_path / "folder")
    assert config_of(tmp_path / "model")["base_model_name_or_path"] == str(tmp_path / "base")
    assert files_of(tmp_path / "model") == files_of(tmp_path / "folder")
    export_lora(model, tmp_path / "named", base_model_name_or_path="org/base")
    assert config_of(tmp_path / "named")["base_model_name_or_path"] == "org/base"


# ----------------------------------------------------------------------------------------- loading without the package

STOCK_LOADER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
from peft import AutoPeftModel, PeftModel

def bases(folder):
    return getattr(transformers, scenario["base_class"]).from_pretrained(folder + "/base").eval()

def peft_model(folder):
    return PeftModel.from_pretrained(bases(folder), folder + "/adapter")

def auto_peft_model(folder):
    return AutoPeftModel.from_pretrained(folder + "/adapter").eval()

def load_adapter(folder):
    model = bases(folder)
    model.load_adapter(folder + "/adapter")
    return model

def merged(folder):
    return peft_model(folder).merge_and_unload()

results = {}
for name, scenario in json.load(open(sys.argv[1])).items():
    expected = torch.load(scenario["folder"] + "/expected.pt")
    for loader in (peft_model, auto_peft_model, load_adapter, merged):
        with torch.no_grad():
            logits = loader(scenario["folder"])(**expected["batch"]).logits
        close = torch.allclose(logits, expected["logits"], atol=1e-4 if logits.dtype == torch.float32 else 0.05)
        results[f"{name}/{loader.__name__}"] = "equal" if torch.equal(logits, expected["logits"]) else "close" * close
assert "gs_lora_peft" not in sys.modules, "the package was imported"
print(json.dumps(results))
"""

SCENARIOS: dict[str, tuple[str, dict[str, Any], tuple[int, ...] | None]] = {
    "vit": ("vit", {}, (0,)),
    "vit_patterns": ("vit", {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 3}, "use_rslora": True}, (1,)),
    "vit_all_zero": ("vit", {}, ()),
    "vit_attention": ("vit", {"target_modules": "attention", "group_by": "module"}, (0, 3, 5)),
    "vit_bfloat16": ("vit", {}, (0,)),
    "bert": ("bert", {}, (1,)),
    "gpt2": ("gpt2", {}, (0,)),
}


@pytest.fixture(scope="module")
def stock_results(tmp_path_factory) -> dict[str, str]:
    """How each loader of each scenario compares, found out in one process that never imports the package."""
    root = tmp_path_factory.mktemp("stock")
    index = {}
    for name, (case_name, options, zeros) in SCENARIOS.items():
        case, folder = CASES[case_name], root / name
        base = case.build()
        base = base.bfloat16() if name.endswith("bfloat16") else base
        base.save_pretrained(folder / "base")
        base = type(base).from_pretrained(folder / "base").eval()
        torch.manual_seed(1)
        model = with_zeros(get_peft_model(base, case.config("GS_LORA", **options)).eval(), *zeros)
        export_lora(model, folder / "adapter")
        batch = {k: v.to(base.dtype) if v.is_floating_point() else v for k, v in case.batch.items()}
        torch.save({"batch": batch, "logits": case.logits(model)}, folder / "expected.pt")
        index[name] = {"folder": str(folder), "base_class": type(base).__name__}
    (root / "index.json").write_text(json.dumps(index))
    return json.loads(in_new_process(STOCK_LOADER, str(root / "index.json")).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["peft_model", "auto_peft_model", "load_adapter"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_loads_bit_equal_without_the_package(stock_results, scenario, loader):
    """Stock PEFT and transformers give the outputs of the training form, bit for bit (but see `export_lora` on
    half-precision bases)."""
    rounds = scenario == "vit_bfloat16" and loader == "load_adapter"
    assert stock_results[f"{scenario}/{loader}"] == ("close" if rounds else "equal")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_merges_without_the_package(stock_results, scenario):
    """Merged by stock PEFT the outputs agree up to rounding."""
    assert stock_results[f"{scenario}/merged"] in ("equal", "close")


# ----------------------------------------------------------------------------------------------------------- choosing


def test_which_adapter(tmp_path):
    """The active one, or the one that is named, active or not; several active ones have to be told apart."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two")
    export_lora(model, tmp_path / "active")
    export_lora(model, tmp_path / "two", adapter_name="two")
    with_one = VIT.logits(model)
    assert torch.equal(VIT.logits(reloaded(tmp_path / "active")), with_one)
    model.set_adapter("two")
    assert torch.equal(VIT.logits(reloaded(tmp_path / "two")), VIT.logits(model))
    model.base_model.set_adapter(["one", "two"])
    with refused("adapter_name", None) as error:
        export_lora(model, tmp_path / "none")
    assert "['one', 'two']" in error.value.expected
    with refused("adapter_name", "three") as error:
        export_lora(model, tmp_path / "none", adapter_name="three")
    assert "['one', 'two']" in error.value.expected
    assert not (tmp_path / "none").exists()


def test_after_the_active_adapter_was_deleted(tmp_path):
    """PeftModel may go on naming a deleted adapter; exporting another one works."""
    model = VIT.add(VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two"), "GS_LORA", "three")
    model.base_model.set_adapter(["one", "two", "three"])
    model.delete_adapter("one")
    export_lora(model, tmp_path, adapter_name="two")
    model.set_adapter("two")
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(model))


def test_weighted_adapters_can_be_exported(tmp_path):
    """All tasks together as one adapter: the exact sum by concatenation."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two", target_modules="attention")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "all", combination_type="cat")
    model.set_adapter("all")
    export_lora(model, tmp_path)
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(model))


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def saved(tmp_path) -> Path:
    VIT.wrapped("GS_LORA").save_pretrained(tmp_path / "training")
    return tmp_path / "training"


def check_refused(folder: Path, name: str, value: Any, said: str = "") -> InvalidInputError:
    """An export that is refused writes nothing; its error."""
    with refused(name, value) as error:
        export_lora(folder, folder.parent / "out")
    assert said in error.value.expected
    assert not (folder.parent / "out").exists()
    return error.value


def test_missing_files(saved):
    """No folder, no config, no weights: the error names the file."""
    check_refused(saved / "nowhere", "model_or_folder", str(saved / "nowhere"), "'adapter_config.json'")
    (saved / CONFIG).rename(saved / "other.json")
    check_refused(saved, "model_or_folder", str(saved), "'adapter_config.json'")
    (saved / "other.json").rename(saved / CONFIG)
    (saved / WEIGHTS).unlink()
    check_refused(saved, "model_or_folder", str(saved), "'adapter_model.safetensors'")


def test_pickled_weights_are_never_read(saved):
    """A pickle could run anything; it is not even opened."""
    torch.save(load_file(saved / WEIGHTS), saved / "adapter_model.bin")
    (saved / WEIGHTS).unlink()
    check_refused(saved, "model_or_folder", str(saved), "'adapter_model.safetensors'")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved, keep):
    """A file that was cut off is noticed, wherever the cut is."""
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    error = check_refused(saved, "model_or_folder", str(saved))
    assert isinstance(error.__cause__, SafetensorError)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"LORA"', "\ufeff{}"])
def test_broken_configuration(saved, text):
    """Only a JSON object is a configuration."""
    (saved / CONFIG).write_text(text, encoding="utf-8")
    error = check_refused(saved, "model_or_folder", str(saved))
    assert isinstance(error.__cause__, ValueError)


def test_configuration_that_is_no_text(saved):
    """Bytes that are no UTF-8 get the same error."""
    (saved / CONFIG).write_bytes(b"\xff\xfe\x00")
    error = check_refused(saved, "model_or_folder", str(saved))
    assert isinstance(error.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"r": None},
        {"lora_alpha": None},
        {"use_dora": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
    ],
)
def test_adapters_without_a_plain_form(saved, changes):
    """What the plain form would silently lose is refused."""
    (saved / CONFIG).write_text(json.dumps({**config_of(saved), **changes}))
    check_refused(saved, *next(iter(changes.items())))


def test_tensors_that_are_no_pairs(saved):
    """Trained heads, embeddings, biases and lone factors are refused by name; so is an empty file."""
    tensors = load_file(saved / WEIGHTS)
    for extra in ("base_model.model.classifier.weight", "base_model.model.fc.lora_embedding_A"):
        save_file({**tensors, extra: torch.zeros(2, 2)}, saved / WEIGHTS)
        check_refused(saved, "tensors", [extra])
    name = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != name}, saved / WEIGHTS)
    check_refused(saved, "tensors", [name])
    save_file({}, saved / WEIGHTS)
    check_refused(saved, "tensors", [])


def test_live_models_without_a_plain_form(tmp_path):
    """The same checks hold for models: other tuners, DoRA, trained heads."""
    case = CASES["gpt2"]
    models = {
        "IA3": get_peft_model(case.build(), IA3Config(target_modules=["c_attn"], feedforward_modules=[])),
        "PROMPT_TUNING": get_peft_model(case.build(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "use_dora": get_peft_model(case.build(), LoraConfig(target_modules=["c_fc"], use_dora=True)),
        "modules_to_save": get_peft_model(case.build(), LoraConfig(target_modules=["c_fc"], modules_to_save=["ln_f"])),
    }
    for kind, model in models.items():
        with pytest.raises(InvalidInputError) as error:
            export_lora(model, tmp_path / "out")
        assert kind in (error.value.name, error.value.value)
    assert not (tmp_path / "out").exists()


def test_adapter_for_another_architecture_is_not_loaded_silently(tmp_path):
    """PEFT itself refuses a plain adapter whose modules the model does not have."""
    export_lora(sparse_vit(), tmp_path)
    with pytest.raises(ValueError, match=r"mlp\.fc1"):
        PeftModel.from_pretrained(CASES["bert"].build(), tmp_path)


def test_older_export_is_replaced_as_a_whole(tmp_path):
    """Exporting again into the same folder leaves nothing of the old adapter and no temporary file."""
    export_lora(VIT.wrapped("GS_LORA", target_modules="attention"), tmp_path)
    model = sparse_vit()
    export_lora(model, tmp_path)
    assert set(files_of(tmp_path)) == {CONFIG, WEIGHTS}
    assert torch.equal(VIT.logits(reloaded(tmp_path)), VIT.logits(model))


def test_base_model_under_another_head(tmp_path):
    """A head of another size is not part of the adapter: the plain form loads, and adapts the same modules."""
    export_lora(sparse_vit(), tmp_path)
    loaded = PeftModel.from_pretrained(vit(labels=7), tmp_path)
    assert VIT.logits(loaded).shape == (4, 7)


def test_headless_model(tmp_path):
    """Without a task's head the names start at the root, and still nothing else is hit."""
    vit().vit.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), VIT.config("GS_LORA")).eval()
    export_lora(with_zeros(model, 1), tmp_path / "adapter")
    assert config_of(tmp_path / "adapter")["target_modules"] == ["layers.0.mlp.fc1", "layers.0.mlp.fc2"]
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**VIT.batch).last_hidden_state, model(**VIT.batch).last_hidden_state)
