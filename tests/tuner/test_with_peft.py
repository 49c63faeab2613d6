"""What the rest of PEFT does with a GS_LORA adapter, and the limits that docs/peft.md names, with their ways out."""

import copy
import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from errors import refused
from models import CASES, vit
from packaging.version import Version
from peft import (
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from gs_lora_peft import GSLoraConfig, LoraGroups, export_lora

VIT = CASES["vit"]
FFN = [f"vit.layers.{block}.mlp.fc{number}" for block in (0, 1) for number in (1, 2)]
recent = pytest.mark.skipif(Version(peft.__version__) < Version("0.21"), reason="newer than this PEFT")


def adapted(model: nn.Module) -> list[str]:
    names = (name for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return [name.removeprefix("base_model.model.") for name in names]


# ------------------------------------------------------------------------------------------ what a configuration holds


@pytest.mark.parametrize("targets", ["ffn", "attention"])
def test_a_used_configuration_names_its_modules(targets):
    """`target_modules` are names that PEFT reads as LoRA's; used for another model, the keyword is answered anew."""
    config = GSLoraConfig(target_modules=targets)
    model = get_peft_model(vit(2), config)
    assert adapted(get_peft_model(vit(2), LoraConfig(target_modules=config.target_modules))) == adapted(model)
    assert (config.is_structural, config.structural_target) == (True, targets)
    assert len(adapted(get_peft_model(vit(3), config))) == 3 * len(adapted(model)) // 2


class TwoTowers(nn.Module):
    """The path of every module of the outer tower is the end of another module's path."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = vit(1).vit.layers
        self.inner = nn.Module()
        self.inner.layers = vit(1).vit.layers


def test_names_that_end_another_name_become_a_pattern():
    """Where a list of names would match further modules, the configuration holds a regular expression."""
    config = GSLoraConfig(block_pattern=r"^layers\.0$")
    model = get_peft_model(TwoTowers(), config)
    expected = ["layers.0.mlp.fc1", "layers.0.mlp.fc2"]
    assert adapted(model) == adapted(get_peft_model(TwoTowers(), LoraConfig(target_modules=config.target_modules)))
    assert adapted(model) == expected
    assert (config.structural_target, type(config.to_dict()["target_modules"])) == ("ffn", str)


def test_excluded_modules_are_not_among_the_names():
    """Who reads the names need not know of `exclude_modules`."""
    config = GSLoraConfig(exclude_modules=["fc1"])
    model = get_peft_model(vit(), config)
    assert sorted(config.target_modules) == adapted(model) == ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"]


COPIES: dict[str, Callable[[GSLoraConfig], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "replace": lambda config: dataclasses.replace(config, r=4),
    "to_dict": lambda config: GSLoraConfig(**config.to_dict()),
    "json": lambda config: GSLoraConfig(**json.loads(json.dumps(config.to_dict()))),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_remember_the_keyword(way):
    """However a used configuration is copied, it names the same modules and still answers its keyword."""
    config = GSLoraConfig(r=4, block_pattern=r"layers\.0")
    get_peft_model(vit(), config)
    twin = COPIES[way](config)
    assert twin == config
    assert twin.structural_target == "ffn"
    assert adapted(get_peft_model(vit().vit, twin)) == ["layers.0.mlp.fc1", "layers.0.mlp.fc2"]


def test_other_targets_are_read_as_what_they_are():
    """A value that takes the place of the names, or names that were changed, are the user's choice."""
    config = GSLoraConfig()
    get_peft_model(vit(), config)
    assert not dataclasses.replace(config, target_modules=["fc1"]).is_structural
    assert dataclasses.replace(config, target_modules="attention").structural_target == "attention"
    config.target_modules.discard("vit.layers.0.mlp.fc1")
    assert not config.is_structural
    assert adapted(get_peft_model(vit(), config)) == FFN[1:]
    with refused("resolved_from", "mlp"):
        GSLoraConfig(resolved_from="mlp")


def test_adapters_saved_with_the_keyword_can_be_loaded(tmp_path):
    """Files that name the keyword alone, as earlier versions wrote them, load, also below another head."""
    model = VIT.wrapped("GS_LORA")
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    assert (values["target_modules"], values["resolved_from"]) == (FFN, "ffn")
    del values["resolved_from"]
    path.write_text(json.dumps({**values, "target_modules": "ffn"}))
    assert torch.equal(VIT.logits(PeftModel.from_pretrained(vit(), tmp_path)), VIT.logits(model))
    config = PeftConfig.from_pretrained(tmp_path)
    assert adapted(get_peft_model(vit().vit, config)) == [name.removeprefix("vit.") for name in FFN]


@pytest.mark.parametrize("rank", [4, 0.999])
@pytest.mark.parametrize("options", [{}, {"exclude_modules": ["fc1"]}, {"block_pattern": r"layers\.1"}], ids=str)
def test_save_as_lora(tmp_path, rank, options):
    """PEFT's conversion writes an adapter that stock PEFT loads, with the same outputs."""
    from peft.tuners.lora.conversion import save_as_lora

    model = VIT.wrapped("GS_LORA", **options)
    save_as_lora(tmp_path, model, rank=rank)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    loaded = PeftModel.from_pretrained(vit(), tmp_path).eval()
    assert adapted(loaded) == adapted(model)
    torch.testing.assert_close(VIT.logits(loaded), VIT.logits(model), atol=1e-2 if rank < 1 else 1e-5, rtol=0)


# ---------------------------------------------------------------------------------- where PEFT goes by the type's name


def test_hotswap(tmp_path):
    """`hotswap_adapter` puts another adapter of the type in the place of one, also with another rank."""
    other = VIT.wrapped("GS_LORA", r=2, lora_alpha=3)
    other.save_pretrained(tmp_path)
    model = VIT.wrapped("GS_LORA")
    before = VIT.logits(model)
    hotswap_adapter(model, str(tmp_path), adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(VIT.logits(model), VIT.logits(other), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(VIT.logits(model), before, atol=1e-3)
    VIT.wrapped("GS_LORA", use_rslora=True).save_pretrained(tmp_path / "scaled")
    with pytest.raises(ValueError, match="use_rslora"):
        hotswap_adapter(model, str(tmp_path / "scaled"), adapter_name="default", torch_device="cpu")


@recent
def test_flat_shards_are_noticed_on_saving():
    """Matrices that an engine has cut up are no adapter; saving them warns, as with LORA."""
    model = VIT.wrapped("GS_LORA")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model_state_dict(model)
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    layer.lora_A["default"].weight = nn.Parameter(torch.zeros(0))
    with pytest.warns(UserWarning, match="shards"):
        get_peft_model_state_dict(model)


def test_mamba_kernels_read_weights_past_lora():
    """Modules whose weights are read without a call are refused, as with LORA."""
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="out_proj"):
        get_peft_model(MambaForCausalLM(config), GSLoraConfig(target_modules=["out_proj"]))


class MyLora(nn.Module, LoraLayer):
    """A LoRA layer for a module that PEFT does not support, without matrices of its own."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name


def test_layers_of_the_users_own_make():
    """A layer registered with PEFT takes its place; nobody says that no module was found."""
    config = GSLoraConfig(target_modules=["lstm"])
    config._register_custom_module({nn.LSTM: MyLora})
    model = nn.ModuleDict({"lstm": nn.LSTM(10, 20)})
    with pytest.warns(UserWarning, match="LSTM"):
        assert isinstance(get_peft_model(model, config).base_model.model["lstm"], MyLora)


def mixture() -> Qwen3MoeForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "head_dim": 8, "vocab_size": 32}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(num_experts_per_tok=2, mlp_only_layers=[0], **sizes, **counts))


@pytest.mark.parametrize("inject", [get_peft_model, lambda model, config: inject_adapter_in_model(config, model)])
@pytest.mark.parametrize("targets", ["ffn", "attention", "all-linear", ["q_proj"], r".*\.q_proj"])
def test_fused_experts_are_never_left_out_silently(targets, inject):
    """However the modules are chosen, experts without Linears are named, once."""
    with pytest.warns(UserWarning, match=r"model\.layers\.1\.mlp\.experts") as caught:
        inject(mixture(), GSLoraConfig(target_modules=targets))
    assert sum("fused" in str(warning.message) for warning in caught) == 1


# ---------------------------------------------------------------------------------------------- limits, and ways out


@pytest.fixture
def plain(tmp_path):
    """A model with a GS_LORA adapter, and the folder of its plain form."""
    model = VIT.wrapped("GS_LORA")
    return model, export_lora(model, tmp_path / "plain")


def test_mixed_models_take_the_plain_form(plain):
    """PEFT's list of types for mixed models is closed; the exported adapter goes in."""
    model, folder = plain
    with pytest.raises(ValueError, match="GS_LORA"):
        get_peft_model(vit(), GSLoraConfig(), mixed=True)
    mixed = PeftMixedModel.from_pretrained(vit(), str(folder), "one").eval()
    assert torch.equal(VIT.logits(mixed), VIT.logits(model))


def test_intruder_dimensions_of_the_plain_form(plain):
    """PEFT compares the type's name with LORA; the exported adapter passes."""
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    model, folder = plain
    with pytest.raises(ValueError):
        reduce_intruder_dimension(model, logging_sink=None)
    loaded = PeftModel.from_pretrained(vit(), folder)
    reduce_intruder_dimension(loaded, logging_sink=None)
    assert loaded.active_adapters == ["intruder_reduced"]


def test_a_plain_adapter_in_a_model_of_the_type(plain):
    """PEFT holds one type in a PeftModel; the matrices go in under a configuration of the type."""
    model, folder = plain
    other = VIT.wrapped("GS_LORA", target_modules="attention")
    with pytest.raises(ValueError, match="GS_LORA"):
        other.load_adapter(folder, adapter_name="plain")
    config = LoraConfig.from_pretrained(folder)
    own = GSLoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules))
    other.add_adapter("plain", own)
    set_peft_model_state_dict(other, load_peft_weights(str(folder), device="cpu"), adapter_name="plain")
    other.set_adapter("plain")
    assert torch.equal(VIT.logits(other), VIT.logits(model))


def test_the_card_that_peft_writes_lacks_the_tag(tmp_path):
    """PEFT adds the tag `lora` for the type of that name alone; the plain form has it."""
    model = VIT.wrapped("GS_LORA")
    export_lora(model, tmp_path / "plain")
    tags = PeftModel.from_pretrained(vit(), tmp_path / "plain")._get_peft_specific_model_tags()
    assert set(tags) - set(model._get_peft_specific_model_tags()) == {"lora"}


# -------------------------------------------------------------------------------------------------- initialisations


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "mica", "eva"])
def test_initialisations_leave_the_base_alone(init, tmp_path):
    """The adapter begins as nothing on untouched weights, and is published as plain LoRA."""
    before = vit().state_dict()
    model = VIT.wrapped("GS_LORA", init_lora_weights=init)
    after = {name.replace(".base_layer", ""): value for name, value in model.get_base_model().state_dict().items()}
    assert all(value.equal(after[name]) for name, value in before.items())
    torch.testing.assert_close(VIT.logits(model), VIT.logits(vit()), atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    VIT.loss(model).backward()
    optimizer.step()
    assert len(LoraGroups(model).active_groups()) == 2
    assert not torch.equal(VIT.logits(model), VIT.logits(vit()))
    model.save_pretrained(tmp_path / "own")
    export_lora(model, tmp_path / "plain")
    for folder in ("own", "plain"):
        assert torch.equal(VIT.logits(PeftModel.from_pretrained(vit(), tmp_path / folder)), VIT.logits(model))


def test_eva(tmp_path):
    """PEFT fills an adapter from data and moves ranks; groups, saving and export go by what it leaves."""
    from peft import EvaConfig, initialize_lora_eva_weights

    model = VIT.wrapped("GS_LORA", init_lora_weights="eva", eva_config=EvaConfig(rho=2.0), block_pattern=r"layers\.\d")
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    batches = [{"pixel_values": part} for part in images.split(8)]
    initialize_lora_eva_weights(
        model,
        batches,
        forward_fn=lambda model, batch: model(**batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        nn.init.normal_(layer.lora_B["default"].weight)
    assert LoraGroups(model).names == ["vit.layers.0", "vit.layers.1"]
    model.save_pretrained(tmp_path / "own")
    export_lora(model, tmp_path / "plain")
    for folder in ("own", "plain"):
        assert torch.equal(VIT.logits(PeftModel.from_pretrained(vit(), tmp_path / folder)), VIT.logits(model))
