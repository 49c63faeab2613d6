"""The tuner: where LoRA goes, what is refused, and that nothing but a choice by name changes which adapter trains."""

import copy
import warnings
from contextlib import nullcontext

import peft
import pytest
import torch
from errors import refused
from models import CASES, MLP, encoder, vit
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import CLIPConfig, CLIPModel

from gs_lora_peft import GSLoraConfig, GSLoraModel, LoraGroups, NoFFNFoundError
from gs_lora_peft.tuner import trainable_adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
]

VIT = CASES["vit"]


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def two_adapters() -> PeftModel:
    """Adapter "task_001" frozen, "task_002" in training, both active: a later task on top of an earlier one."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="task_001"), "GS_LORA", "task_002")
    model.set_adapter("task_002")
    model.base_model.set_adapter(["task_001", "task_002"])
    return model


def train_one_step(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    VIT.loss(model).backward()
    optimizer.step()
    model.eval()


# --------------------------------------------------------------------------------------------- which adapter trains


def test_activating_several_adapters_makes_none_of_them_trainable():
    """`set_adapter([a, b])` says what takes part in the forward, not what trains."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two")
    before = flags(model)
    model.base_model.set_adapter(["one", "two"])
    assert model.active_adapters == ["one", "two"]
    assert flags(model) == before
    assert trainable_adapters(model) == ["one"]
    model.base_model.set_adapter(("two", "one"))
    assert flags(model) == before


def test_choosing_one_adapter_by_name_makes_it_train():
    """The one way to change what trains: the name alone, or in a list of one; frozen with `inference_mode`."""
    model = two_adapters()
    model.set_adapter("task_001")
    assert trainable_adapters(model) == ["task_001"]
    model.base_model.set_adapter(["task_002"])
    assert trainable_adapters(model) == ["task_002"]
    model.set_adapter("task_002", inference_mode=True)
    assert trainable_adapters(model) == []
    model = two_adapters()
    model.base_model.set_adapter(["task_001", "task_002"], inference_mode=True)
    assert trainable_adapters(model) == []


class OnPurpose(Exception):
    pass


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_disable_adapter_keeps_the_flags(nested, raises):
    """Leaving `disable_adapter()`, nested or by an exception, does not wake a frozen adapter."""
    model = two_adapters()
    before, outputs = flags(model), VIT.logits(model)
    expectation = pytest.raises(OnPurpose) if raises else nullcontext()
    with expectation, model.disable_adapter():
        assert not any(flags(model).values())
        with model.disable_adapter() if nested else nullcontext():
            assert torch.equal(VIT.logits(model), VIT.logits(vit()))
        if raises:
            raise OnPurpose
    assert flags(model) == before
    assert torch.equal(VIT.logits(model), outputs)


def test_enabling_what_is_enabled_changes_nothing():
    """`enable_adapter_layers()` without a matching disable is no way to unfreeze an adapter."""
    model = two_adapters()
    before = flags(model)
    model.base_model.enable_adapter_layers()
    assert flags(model) == before
    model.base_model.disable_adapter_layers()
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    assert flags(model) == before


def test_inference_adapter_stays_frozen(tmp_path):
    """An adapter that was loaded for inference does not begin to train because it was disabled once."""
    VIT.wrapped("GS_LORA").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(vit(), tmp_path)
    with model.disable_adapter():
        pass
    assert trainable_adapters(model) == []


def test_choices_made_while_disabled_count():
    """Another adapter chosen, gradients asked for, or an adapter added inside `disable_adapter()`: kept on leaving."""
    model = two_adapters()
    with model.disable_adapter():
        model.set_adapter("task_001")
    assert trainable_adapters(model) == ["task_001"]
    with model.disable_adapter():
        model.set_requires_grad("task_002")
    assert trainable_adapters(model) == ["task_001", "task_002"]
    model.set_requires_grad("task_002", False)
    before = flags(model)
    with model.disable_adapter():
        VIT.add(model, "GS_LORA", "task_003")
    assert {name: flag for name, flag in flags(model).items() if ".task_003." not in name} == before
    assert trainable_adapters(model) == ["task_001"]


def test_adding_an_adapter_keeps_the_flags():
    """A new adapter neither trains by itself nor changes the others, whatever is active."""
    model = two_adapters()
    before = flags(model)
    VIT.add(model, "GS_LORA", "task_003")
    after = flags(model)
    assert {name: after[name] for name in before} == before
    assert trainable_adapters(model) == ["task_002"]
    assert model.active_adapters == ["task_001", "task_002"]


@pytest.mark.parametrize("is_trainable", [False, True])
def test_loading_an_adapter_keeps_the_flags(tmp_path, is_trainable):
    """`load_adapter` decides about the adapter it loads and about no other one."""
    model = two_adapters()
    model.save_pretrained(tmp_path, selected_adapters=["task_001"])
    before = flags(model)
    model.load_adapter(tmp_path / "task_001", adapter_name="loaded", is_trainable=is_trainable)
    after = flags(model)
    assert {name: after[name] for name in before} == before
    # Up to PEFT 0.20 an adapter that is not active does not train, whatever `is_trainable` says.
    loaded_trains = is_trainable and Version(peft.__version__) >= Version("0.21")
    assert trainable_adapters(model) == (["loaded", "task_002"] if loaded_trains else ["task_002"])


@pytest.mark.parametrize("deleted", ["task_001", "task_002", "task_003"])
def test_deleting_an_adapter_keeps_the_flags(deleted):
    """What remains trains or rests as before, and stays active."""
    model = two_adapters()
    VIT.add(model, "GS_LORA", "task_003")
    before = flags(model)
    model.delete_adapter(deleted)
    after = flags(model)
    assert after == {name: flag for name, flag in before.items() if f".{deleted}." not in name}
    assert model.active_adapters == [name for name in ("task_001", "task_002") if name != deleted]
    assert {tuple(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)} == {
        tuple(model.active_adapters)
    }


def test_deleting_the_only_active_adapter_activates_another_one_frozen():
    """The successor takes part in the forward on every layer; it does not begin to train unasked."""
    model = VIT.wrapped("GS_LORA", adapter_name="one", target_modules="attention")
    VIT.add(model, "GS_LORA", "two")
    model.delete_adapter("one")
    assert model.active_adapters == ["two"]
    assert model.active_adapter == "two"
    assert trainable_adapters(model) == []
    lone = VIT.wrapped("GS_LORA", adapter_name="zero")
    VIT.add(lone, "GS_LORA", "two")
    lone.set_adapter("two")
    assert torch.equal(VIT.logits(model), VIT.logits(lone))


def test_deleting_an_adapter_where_layers_skip_the_active_one():
    """A layer that leaves out a zero group must not make the tuner believe that nothing is active."""
    model = VIT.add(VIT.wrapped("GS_LORA", adapter_name="one"), "GS_LORA", "two")
    groups = LoraGroups(model, "one")
    with torch.no_grad():
        for parameter, index in zip(groups.parameters, groups.group_of, strict=True):
            parameter.mul_(float(index != 0))
    groups.freeze_zero_groups()
    outputs = VIT.logits(model)
    model.delete_adapter("two")
    assert model.active_adapters == ["one"]
    assert torch.equal(VIT.logits(model), outputs)
    VIT.add(model, "GS_LORA", "three")
    assert torch.equal(VIT.logits(model), outputs)


def test_stale_active_adapter_is_fixed_by_choosing_one():
    """PEFT's limit that the docstring names: after deleting the adapter that PeftModel calls active while several
    stay active, choose one by name. The tuner itself and the groups work all along."""
    model = VIT.add(two_adapters(), "GS_LORA", "task_003")
    model.base_model.set_adapter(["task_001", "task_002", "task_003"])
    model.delete_adapter("task_002")
    assert model.active_adapters == ["task_001", "task_003"]
    assert VIT.logits(model.base_model).isfinite().all()
    assert len(LoraGroups(model, "task_003")) == 2
    model.set_adapter("task_003")
    with model.disable_adapter():
        assert torch.equal(VIT.logits(model), VIT.logits(vit()))


def test_only_the_adapter_that_trains_changes():
    """The purpose of it all: after everything above, a step of the optimizer moves one adapter only."""
    model = two_adapters()
    with model.disable_adapter():
        VIT.logits(model)
    VIT.add(model, "GS_LORA", "task_003")
    model.delete_adapter("task_003")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_one_step(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".task_002." in name for name in changed)


def test_flags_survive_copying_while_disabled():
    """A deep copy made inside `disable_adapter()` can be enabled on its own."""
    model = two_adapters()
    before = flags(model)
    with model.disable_adapter():
        twin = copy.deepcopy(model)
    twin.base_model.enable_adapter_layers()
    assert flags(twin) == before


# ---------------------------------------------------------------------------------------------------- where LoRA goes


def adapted(model: nn.Module) -> list[str]:
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]


def test_ffn_is_the_default():
    """Both Linears of every block's feed-forward, and nothing else."""
    assert adapted(get_peft_model(vit(), GSLoraConfig())) == [
        f"vit.layers.{block}.mlp.fc{number}" for block in (0, 1) for number in (1, 2)
    ]


def test_attention():
    """All projections of every block's attention."""
    paths = adapted(get_peft_model(vit(), GSLoraConfig(target_modules="attention")))
    assert len(paths) == 8
    assert all(".attention." in path for path in paths)


@pytest.mark.parametrize(
    "targets", [["mlp.fc1"], {"mlp.fc1"}, r"vit\.layers\.\d\.mlp\.fc1", "vit.layers.[01].mlp.fc1"]
)
def test_explicit_targets_are_read_as_peft_reads_them(targets):
    """A list matches suffixes, a string is a regular expression on full names; the blocks are found all the same."""
    model = get_peft_model(vit(), GSLoraConfig(target_modules=targets))
    stock = get_peft_model(vit(), LoraConfig(target_modules=targets))
    assert adapted(model) == adapted(stock) == ["vit.layers.0.mlp.fc1", "vit.layers.1.mlp.fc1"]
    assert LoraGroups(model).names == ["vit.layers.0", "vit.layers.1"]


def test_all_linear():
    """PEFT's own keyword keeps its meaning: every Linear but the head."""
    model = get_peft_model(vit(), GSLoraConfig(target_modules="all-linear"))
    assert adapted(model) == adapted(get_peft_model(vit(), LoraConfig(target_modules="all-linear")))


def clip() -> CLIPModel:
    torch.manual_seed(0)
    stack = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPModel(
        CLIPConfig(
            text_config={**stack, "vocab_size": 40, "max_position_embeddings": 8},
            vision_config={**stack, "image_size": 8, "patch_size": 4},
            projection_dim=8,
        )
    )


def test_block_patterns_choose_a_stack():
    """In a model with two stacks, patterns on block paths choose one of them, or some of its blocks."""
    everything = adapted(get_peft_model(clip(), GSLoraConfig()))
    assert len(everything) == 8
    vision = adapted(get_peft_model(clip(), GSLoraConfig(block_pattern="vision_model")))
    assert vision == [path for path in everything if path.startswith("vision_model")]
    assert len(vision) == 4
    assert adapted(get_peft_model(clip(), GSLoraConfig(exclude_blocks="text_model"))) == vision
    last = GSLoraConfig(block_pattern="vision_model", exclude_blocks=r"layers\.0$")
    assert adapted(get_peft_model(clip(), last)) == [path for path in vision if ".layers.1." in path]
    with refused("block_pattern", "audio_model"):
        get_peft_model(clip(), GSLoraConfig(block_pattern="audio_model"))


def test_block_patterns_survive_saving(tmp_path):
    """A loaded adapter sits on the same blocks."""
    config = GSLoraConfig(block_pattern="vision_model", init_lora_weights=False, target_modules="attention")
    model = get_peft_model(clip(), config)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip(), tmp_path)
    assert adapted(loaded) == adapted(model)
    assert loaded.peft_config["default"].block_pattern == "vision_model"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("excluded", [["fc1"], r".*\.fc1"])
def test_exclude_modules_works_with_structural_targets(excluded):
    """PEFT's own exclusion is read on top of what the structure gives."""
    model = get_peft_model(vit(), GSLoraConfig(exclude_modules=excluded))
    assert adapted(model) == ["vit.layers.0.mlp.fc2", "vit.layers.1.mlp.fc2"]
    with pytest.raises(ValueError, match="exclude_modules"):
        get_peft_model(vit(), GSLoraConfig(exclude_modules=r".*\.fc[12]"))


def test_second_adapter_on_other_modules():
    """Adapters of one model may sit on different modules; each has its own groups and its own place in the sum."""
    model = VIT.wrapped("GS_LORA", adapter_name="one")
    VIT.add(model, "GS_LORA", "two", target_modules="attention", r=2)
    VIT.add(model, "GS_LORA", "three", target_modules=["classifier"])
    assert len(LoraGroups(model, "one").parameters) == 8
    assert len(LoraGroups(model, "two").parameters) == 16
    assert LoraGroups(model, "three").names == ["classifier"]
    with_one = VIT.logits(model)
    model.base_model.set_adapter(["one", "two"])
    assert not torch.equal(VIT.logits(model), with_one)
    model.set_adapter("one")
    assert torch.equal(VIT.logits(model), with_one)


def test_weighted_adapter_over_different_modules():
    """Keywords, lists and regular expressions mix; the sum is exact on every module, and no setting is disturbed."""
    model = VIT.wrapped("GS_LORA", adapter_name="one", block_pattern=r"layers\.0$")
    VIT.add(model, "GS_LORA", "two", target_modules="attention", use_rslora=True)
    VIT.add(model, "GS_LORA", "three", target_modules=["mlp.fc1"], r=2)
    configs = dict(model.peft_config)
    model.add_weighted_adapter(["one", "two", "three"], [1.0, 2.0, -1.0], "all", combination_type="cat")
    assert {name: model.peft_config[name] for name in configs} == configs
    weights = {"one": 1.0, "two": 2.0, "three": -1.0}
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 2 + 8 + 1
    for layer in layers:
        expected = sum(w * layer.get_delta_weight(n) for n, w in weights.items() if n in layer.lora_A)
        torch.testing.assert_close(layer.get_delta_weight("all"), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown"):
        model.add_weighted_adapter(["one", "unknown"], [1.0, 1.0], "none", combination_type="cat")
    assert {name: model.peft_config[name] for name in configs} == configs


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["task.1", "a.b.c", "."])
def test_adapter_names_with_dots_are_refused(name):
    """A dot would split a parameter's name; the error offers another name, and the model is as before."""
    with refused("adapter_name", name) as error:
        get_peft_model(vit(), GSLoraConfig(), adapter_name=name)
    assert repr(name.replace(".", "_")) in error.value.fix
    model = VIT.wrapped("GS_LORA")
    before = flags(model)
    with refused("adapter_name", name):
        model.add_adapter(name, GSLoraConfig())
    assert set(model.peft_config) == {"default"}
    assert flags(model) == before


@pytest.mark.parametrize(
    ("targets", "path", "kind"),
    [
        (["projection"], "vit.embeddings.patch_embeddings.projection", "Conv2d"),
        (r".*layernorm_(before|after)", "vit.layers.0.layernorm_before", "LayerNorm"),
        (r"vit\.layers\.0", "vit.layers.0", "ViTLayer"),
        (r".*\.(fc1|projection)", "vit.embeddings.patch_embeddings.projection", "Conv2d"),
    ],
)
def test_targets_that_are_no_linear_are_refused(targets, path, kind):
    """A target that would get LoRA without forming a group is named, and the model is left as it was."""
    base = vit()
    with refused("target_modules", targets if isinstance(targets, str) else set(targets)) as error:
        get_peft_model(base, GSLoraConfig(target_modules=targets))
    assert f"{path!r} ({kind})" in error.value.expected
    assert "exclude_modules" in error.value.fix
    assert adapted(base) == []
    assert all(flags(base).values())


def test_embeddings_are_refused():
    """Embeddings have LoRA matrices of another make, which no group would hold."""
    with refused("target_modules", {"word_embeddings"}) as error:
        get_peft_model(CASES["bert"].build(), GSLoraConfig(target_modules=["word_embeddings"]))
    assert "word_embeddings' (Embedding)" in error.value.expected


def test_excluding_what_is_no_linear_is_a_way_out():
    """The fix in the message works."""
    config = GSLoraConfig(target_modules=r".*\.(fc1|projection)", exclude_modules=["projection"])
    assert adapted(get_peft_model(vit(), config)) == ["vit.layers.0.mlp.fc1", "vit.layers.1.mlp.fc1"]


@pytest.mark.parametrize("targets", [["self_attn"], ["out_proj"]])
def test_packed_attention_is_refused(targets):
    """`nn.MultiheadAttention` never calls its output projection, so that LoRA on it would silently do nothing."""
    with refused("target_modules", set(targets)) as error:
        get_peft_model(encoder(), GSLoraConfig(target_modules=targets))
    assert "MultiheadAttention" in error.value.expected


def test_refused_second_adapter_leaves_the_first_alone():
    """The check comes before any change, so that a failed `add_adapter` leaves no half-made adapter."""
    model = VIT.wrapped("GS_LORA")
    before, outputs = flags(model), VIT.logits(model)
    for targets in ({"projection"}, r".*\.(fc1|projection)"):
        with refused("target_modules", targets):
            model.add_adapter("second", GSLoraConfig(target_modules=targets))
    with pytest.raises(ValueError, match="nowhere"):  # the error of PEFT from 0.21 on, and of this package before
        model.add_adapter("second", GSLoraConfig(target_modules=["nowhere"]))
    assert set(model.peft_config) == {"default"}
    assert flags(model) == before
    assert torch.equal(VIT.logits(model), outputs)


def test_model_without_a_transformer_is_refused_clearly():
    """No feed-forward, no guess: the error says why and what to set."""
    with refused("model", "MLP", NoFFNFoundError):
        get_peft_model(MLP(), GSLoraConfig())


# ------------------------------------------------------------------------------------------- PyTorch's own encoder


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def with_lora(layers: int = 2, **options) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(encoder(layers), GSLoraConfig(init_lora_weights=False, lora_alpha=8, **options)).eval()


def test_lora_acts_in_the_encoders_fused_path(tokens):
    """In eval mode without gradients PyTorch would read the weights and ignore LoRA; here it agrees with training."""
    model = with_lora()
    with torch.no_grad():
        evaluated, trained, base = model(tokens), model.train()(tokens), encoder().eval()(tokens)
    torch.testing.assert_close(evaluated, trained, atol=1e-5, rtol=1e-5)
    assert (evaluated - base).abs().max() > 1e-3
    torch.testing.assert_close(model.eval().merge_and_unload()(tokens), evaluated, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", ["0$", "1$", "2$"])
def test_padding_masks_work_where_some_layers_are_adapted(tokens, blocks):
    """Nested tensors, which only the fused path understands, are not handed to adapted layers."""
    model = with_lora(3, block_pattern=rf"layers\.{blocks}")
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        evaluated, trained = model(tokens, padding), model.train()(tokens, padding)
    torch.testing.assert_close(evaluated, trained, atol=1e-5, rtol=1e-5)


def test_unloading_gives_the_fused_path_back(tokens):
    """After `unload` the model is what it was, fused path included, so that outputs are bit-equal."""
    base = encoder().eval()
    with torch.no_grad():
        expected = base(tokens)
        model = get_peft_model(base, GSLoraConfig())
        model.add_adapter("second", GSLoraConfig())
        assert base.encoder.layers[0].activation_relu_or_gelu == 0
        assert torch.equal(model.unload()(tokens), expected)
    assert base.encoder.layers[0].activation_relu_or_gelu == 2
    assert base.encoder.use_nested_tensor


def test_untouched_encoders_keep_the_fused_path():
    """Only an encoder with LoRA in it leaves the fused path."""
    model = get_peft_model(encoder(), GSLoraConfig(target_modules=["head"]))
    assert model.base_model.model.encoder.layers[0].activation_relu_or_gelu == 2


def test_fused_path_with_the_functional_interface(tokens):
    """`inject_adapter_in_model` keeps no tuner and works all the same."""
    torch.manual_seed(1)
    model = inject_adapter_in_model(GSLoraConfig(init_lora_weights=False, lora_alpha=8), encoder()).eval()
    with torch.no_grad():
        assert torch.equal(model(tokens), with_lora()(tokens))


# ------------------------------------------------------------------------------------------------------------- others


def test_wrapping_warns_of_nothing():
    """An ordinary wrapped model, saved and loaded, gives the user nothing to worry about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT reads it
        model = get_peft_model(vit(), GSLoraConfig())
        model.add_adapter("second", GSLoraConfig())
        with model.disable_adapter():
            VIT.logits(model)
    assert isinstance(model.base_model, GSLoraModel)


def test_plain_lora_beside_gs_lora_in_transformers_own_interface():
    """transformers lets kinds of adapters mix in one model; the groups of each adapter stay its own."""
    model = vit()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]), "plain")
    with pytest.warns(UserWarning, match="peft_config"):
        model.add_adapter(GSLoraConfig(), "sparse")
    assert len(LoraGroups(model, "sparse").parameters) == 8
    assert len(LoraGroups(model, "plain").parameters) == 4
    assert trainable_adapters(model) == ["sparse"]
