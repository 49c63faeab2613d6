"""What PEFT promises about LoRA, kept by GS_LORA on four kinds of model.

The list of behaviours follows PEFT's own tests; the code is the project's. Stock LORA is trained once for each model,
and GS_LORA compared with it.
"""

import copy
import io
import pickle
import warnings
from dataclasses import dataclass

import peft
import pytest
import torch
from models import CASES, Case
from packaging.version import Version
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.testing import assert_close

from gs_lora_peft import GSLoraConfig, GSLoraModel

KIND = "GS_LORA"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already following adapters were merged"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
    pytest.mark.filterwarnings("ignore:Already unmerged"),
]


class OnPurpose(Exception):
    pass


@pytest.fixture(params=list(CASES), scope="session")
def case(request) -> Case:
    return CASES[request.param]


@dataclass
class Outcome:
    """What training an adapter gives."""

    targets: list[str]
    trainable: list[str]
    untrained: torch.Tensor
    losses: list[float]
    state: dict[str, torch.Tensor]
    trained: torch.Tensor
    merged: torch.Tensor


def outcome(case: Case, kind: str) -> Outcome:
    model = case.wrapped(kind)
    targets, flags, untrained = model.base_model.targeted_module_names, trainable(model), case.logits(model)
    losses = train(case, model)
    state = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    trained = case.logits(model)
    return Outcome(targets, flags, untrained, losses, state, trained, case.logits(model.merge_and_unload()))


@pytest.fixture(scope="session")
def stock(case) -> Outcome:
    """Stock LORA on the same model, with the same seed."""
    return outcome(case, "LORA")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def trainable(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def train(case: Case, model: torch.nn.Module, steps: int = 4, lr: float = 0.02) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = case.loss(model)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return losses


# ---------------------------------------------------------------------------------------------- wrapping and training


def test_trains_as_stock_lora_does(case, stock):
    """The same Linears are adapted, and the same numbers come out, bit for bit, before, during and after training."""
    own = outcome(case, KIND)
    assert (own.targets, own.trainable, own.losses) == (stock.targets, stock.trainable, stock.losses)
    assert own.state.keys() == stock.state.keys() != set()
    assert all(same(tensor, stock.state[name]) for name, tensor in own.state.items())
    assert same(own.untrained, stock.untrained)
    assert same(own.trained, stock.trained)
    assert same(own.merged, stock.merged)
    assert not close(own.trained, own.untrained)


def test_has_the_tuner_interface(case):
    """Only LoRA matrices are trainable, and printing the model works."""
    model = case.wrapped(KIND)
    assert isinstance(model.base_model, GSLoraModel)
    assert model.peft_config["default"].peft_type == KIND
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable(model))
    count, total = model.get_nb_trainable_parameters()
    assert 0 < count < total
    assert KIND in repr(model.peft_config["default"])
    assert "lora_A" in repr(model)
    status = model.get_model_status()
    assert status.peft_types == {"default": KIND}
    assert status.enabled is True
    assert status.active_adapters == ["default"]


def test_default_initialisation_changes_nothing(case):
    """With B = 0 a fresh adapter leaves the outputs bit-equal, in eval and in train mode."""
    base = case.logits(case.build().eval())
    model = case.wrapped(KIND, init_lora_weights=True)
    assert same(case.logits(model), base)
    assert same(case.logits(model.train()), base)


def test_gaussian_and_orthogonal_initialisation(case):
    """The initialisations that leave the base weights alone start as a no-op, too."""
    base = case.logits(case.build().eval())
    for init in ("gaussian", "orthogonal"):
        assert close(case.logits(case.wrapped(KIND, init_lora_weights=init)), base)


def test_training_lowers_the_loss_and_leaves_the_base_alone(case):
    """Only adapter parameters get gradients; the base weights are bit-equal afterwards."""
    model = case.wrapped(KIND, init_lora_weights=True)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = train(case, model, steps=8)
    assert losses[-1] < losses[0]
    case.loss(model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name)
        if name in frozen:
            assert parameter.grad is None
            assert same(parameter, frozen[name])
    with model.disable_adapter():
        assert same(case.logits(model), case.logits(case.build().eval()))


def test_gradient_checkpointing_gives_the_same_gradients(case):
    """Recomputing activations changes neither the loss nor the adapter's gradients."""
    if case.name == "mlp":
        pytest.skip("a plain module has no gradient checkpointing")
    gradients = []
    for checkpointing in (False, True):
        model = case.build()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model = get_peft_model(model, case.config(KIND)).train()
        case.loss(model).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_base(case, dtype, autocast):
    """`autocast_adapter_dtype` keeps the adapter in float32 over a half-precision base, and training works."""
    model = get_peft_model(case.build().to(dtype), case.config(KIND), autocast_adapter_dtype=autocast)
    expected = torch.float32 if autocast else dtype
    assert {p.dtype for n, p in model.named_parameters() if ".lora_" in n} == {expected}
    assert {p.dtype for n, p in model.named_parameters() if ".lora_" not in n} == {dtype}
    case.loss(model.train()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if ".lora_" in n)


def test_rank_and_alpha_patterns(case):
    """Single modules may have another rank and another scaling."""
    some = "c_fc" if case.name == "gpt2" else "intermediate.dense" if case.name == "bert" else "fc1"
    model = case.wrapped(KIND, rank_pattern={some: 2}, alpha_pattern={some: 16})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    assert layers
    for name, layer in layers.items():
        assert layer.r["default"] == (2 if name.endswith(some) else 4)
        assert layer.scaling["default"] == (8.0 if name.endswith(some) else 2.0)


def test_rank_stabilised_scaling(case):
    """`use_rslora` divides by √r."""
    model = case.wrapped(KIND, use_rslora=True)
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)} == {8 / 4**0.5}


def test_dropout_acts_in_training_only(case):
    """`lora_dropout` makes training outputs random and leaves evaluation deterministic."""
    model = case.wrapped(KIND, lora_dropout=0.5)
    assert same(case.logits(model), case.logits(case.wrapped(KIND)))
    model.train()
    assert not same(case.logits(model), case.logits(model))


# ------------------------------------------------------------------------------------------------------ save and load


def test_save_and_load(case, tmp_path):
    """The folder holds safetensors and a config; loading it onto a fresh base gives bit-equal outputs, frozen."""
    model = case.wrapped(KIND)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert PeftConfig.from_pretrained(tmp_path).peft_type == KIND
    loaded = PeftModel.from_pretrained(case.build(), tmp_path)
    assert same(case.logits(loaded), case.logits(model))
    assert trainable(loaded) == []
    assert trainable(PeftModel.from_pretrained(case.build(), tmp_path, is_trainable=True)) == trainable(model)


def test_loaded_adapter_trains_on(case, tmp_path):
    """A saved adapter can be loaded as trainable and trained further."""
    case.wrapped(KIND).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path, is_trainable=True)
    losses = train(case, loaded)
    assert losses[-1] < losses[0]


def test_selected_adapters(case, tmp_path):
    """`selected_adapters` writes those adapters and no others, each into a folder of its name."""
    model = case.add(case.wrapped(KIND), KIND, "other")
    case.add(model, KIND, "third", seed=5)
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert (tmp_path / "other" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "third").exists()
    assert not (tmp_path / "adapter_model.safetensors").exists()
    model.set_adapter("other")
    assert same(case.logits(PeftModel.from_pretrained(case.build(), tmp_path / "other")), case.logits(model))
    with pytest.raises(ValueError, match="nothing"):
        model.save_pretrained(tmp_path, selected_adapters=["nothing"])


def test_state_dict_round_trip(case):
    """The adapter's state dict has no adapter name, and puts the same adapter into another model under any name."""
    model = case.wrapped(KIND)
    state = get_peft_model_state_dict(model)
    assert state
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in state)
    other = case.wrapped(KIND, adapter_name="other", init_lora_weights=True)
    result = set_peft_model_state_dict(other, state, adapter_name="other")
    assert not result.unexpected_keys
    assert same(case.logits(other), case.logits(model))


def test_low_cpu_mem_usage(case, tmp_path):
    """Matrices made on the meta device are filled on loading, for the first adapter and for a second one."""
    model = case.wrapped(KIND)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.build(), tmp_path, low_cpu_mem_usage=True)
    loaded.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert same(case.logits(loaded), case.logits(model))
    loaded.set_adapter("other")
    assert same(case.logits(loaded), case.logits(model))
    empty = get_peft_model(case.build(), case.config(KIND), low_cpu_mem_usage=True)
    assert {p.device.type for n, p in empty.named_parameters() if ".lora_" in n} == {"meta"}


def test_auto_peft_model(case, tmp_path):
    """`AutoPeftModel` finds base and adapter from the adapter's folder alone."""
    if case.name == "mlp":
        pytest.skip("a plain module has no from_pretrained")
    case.build().save_pretrained(tmp_path / "base")
    base = type(case.build()).from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = get_peft_model(base, case.config(KIND)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert same(case.logits(loaded), case.logits(model))


def test_auto_peft_model_for_causal_lm(tmp_path):
    """The task's own class works with `task_type`, and generates."""
    case = CASES["gpt2"]
    case.build().save_pretrained(tmp_path / "base")
    base = type(case.build()).from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = get_peft_model(base, case.config(KIND, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert same(case.logits(loaded), case.logits(model))
    tokens = case.batch["input_ids"][:1]
    assert loaded.generate(input_ids=tokens, max_new_tokens=2, do_sample=False).shape[1] > tokens.shape[1]


def test_adapter_of_another_shape_is_refused(case, tmp_path):
    """Weights of another rank do not load silently."""
    case.wrapped(KIND, r=2).save_pretrained(tmp_path)
    other = case.wrapped(KIND)
    with pytest.raises(RuntimeError, match="lora_A"):
        set_peft_model_state_dict(other, load_file(tmp_path / "adapter_model.safetensors"))


# -------------------------------------------------------------------------------------------------------------- merge


def test_merge_and_unload(case):
    """The merged model is a plain model with the adapter's outputs."""
    model = case.wrapped(KIND)
    before = case.logits(model)
    merged = model.merge_and_unload()
    assert type(merged) is type(case.build())
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    assert not hasattr(merged, "peft_config")
    assert close(case.logits(merged), before)
    assert not close(case.logits(merged), case.logits(case.build().eval()))


def test_merge_and_unmerge(case):
    """Merging keeps the outputs, unmerging gives the base weights back up to rounding, both more than once."""
    model = case.wrapped(KIND)
    before = case.logits(model)
    with model.disable_adapter():
        base = case.logits(model)
    for _ in range(2):
        model.merge_adapter()
        assert close(case.logits(model), before)
        model.unmerge_adapter()
        assert close(case.logits(model), before)
    with model.disable_adapter():
        assert close(case.logits(model), base)


def test_disabling_a_merged_adapter_unmerges_it(case):
    """`disable_adapter()` gives the base's outputs from a merged model, too."""
    model = case.wrapped(KIND)
    model.merge_adapter()
    with model.disable_adapter():
        assert close(case.logits(model), case.logits(case.build().eval()))


def test_safe_merge_equals_merge_and_refuses_nan(case):
    """`safe_merge=True` gives the same weights, and a broken adapter leaves the base as it was."""
    plain, safe = case.wrapped(KIND).merge_and_unload(), case.wrapped(KIND).merge_and_unload(safe_merge=True)
    assert close(case.logits(plain), case.logits(safe))
    broken = case.wrapped(KIND)
    layer = next(m for m in broken.modules() if isinstance(m, LoraLayer))
    before = layer.get_base_layer().weight.detach().clone()
    layer.lora_A["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="default"):
        broken.merge_adapter(safe_merge=True)
    assert same(layer.get_base_layer().weight, before)


def test_merging_several_equals_merging_one_after_another(case):
    """`adapter_names=[one, two]` merges in that order, bit for bit."""
    together = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two").merge_and_unload(
        adapter_names=["one", "two"]
    )
    one = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    one.merge_adapter(["one"])
    one.merge_adapter(["two"])
    assert same(case.logits(together), case.logits(one))
    only_two = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    only_two.set_adapter("two")
    expected = case.logits(only_two)
    only_two.set_adapter("one")
    assert close(case.logits(only_two.merge_and_unload(adapter_names=["two"])), expected)


def test_unload(case):
    """`unload` gives the untouched base back, which can be wrapped once more without a warning."""
    base = case.logits(case.build().eval())
    model = case.wrapped(KIND).unload()
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert same(case.logits(model), base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT reads it
        again = get_peft_model(model, case.config(KIND, init_lora_weights=True))
    assert same(case.logits(again.eval()), base)


# --------------------------------------------------------------------------------------------------- several adapters


def test_disable_adapter(case):
    """Inside `disable_adapter()` the model is the base, also when nested; outside, nothing has changed."""
    model = case.wrapped(KIND)
    base, before, flags = case.logits(case.build().eval()), case.logits(model), trainable(model)
    with model.disable_adapter():
        assert same(case.logits(model), base)
        with model.disable_adapter():
            assert same(case.logits(model), base)
        assert same(case.logits(model), base)
    assert same(case.logits(model), before)
    assert trainable(model) == flags
    with pytest.raises(OnPurpose), model.disable_adapter():
        raise OnPurpose
    assert same(case.logits(model), before)
    assert trainable(model) == flags


def test_switching_adapters(case):
    """The active adapter decides outputs and, chosen by name, what trains; unknown and taken names are refused."""
    model = case.wrapped(KIND, adapter_name="one")
    with_one = case.logits(model)
    case.add(model, KIND, "two")
    assert same(case.logits(model), with_one)
    assert all(".one." in name for name in trainable(model))
    model.set_adapter("two")
    assert not same(case.logits(model), with_one)
    assert model.active_adapters == ["two"]
    assert all(".two." in name for name in trainable(model))
    model.set_adapter("one")
    assert same(case.logits(model), with_one)
    with pytest.raises(ValueError, match="three"):
        model.set_adapter("three")
    if Version(peft.__version__) >= Version("0.21"):  # before, the adapter was replaced without a word
        with pytest.raises(ValueError, match="two"):
            model.add_adapter("two", case.config(KIND))
        assert set(model.peft_config) == {"one", "two"}


def test_loading_a_second_adapter(case, tmp_path):
    """`load_adapter` brings an adapter under any name, without touching the one that is active."""
    other = case.add(case.wrapped(KIND), KIND, "two")
    other.set_adapter("two")
    other.save_pretrained(tmp_path)
    model = case.wrapped(KIND)
    before = case.logits(model)
    model.load_adapter(tmp_path / "two", adapter_name="loaded")
    assert same(case.logits(model), before)
    model.set_adapter("loaded")
    assert same(case.logits(model), case.logits(other))


def test_several_active_adapters_add_up(case):
    """Two active adapters act together, in forward and in the merged weights."""
    model = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    model.base_model.set_adapter(["one", "two"])
    both = case.logits(model)
    model.set_adapter("one")
    assert not close(both, case.logits(model))
    model.base_model.set_adapter(["one", "two"])
    assert close(case.logits(model.merge_and_unload()), both)


def test_deleting_adapters(case):
    """Deleting an inactive adapter changes nothing; deleting the active one makes another active; the last leaves the
    base."""
    model = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    with_one = case.logits(model)
    case.add(model, KIND, "three", seed=7)
    model.delete_adapter("two")
    assert same(case.logits(model), with_one)
    assert set(model.peft_config) == {"one", "three"}
    assert not any(".two." in name for name, _ in model.named_parameters())
    model.set_adapter("three")
    with_three = case.logits(model)
    model.set_adapter("one")
    model.delete_adapter("one")
    assert model.active_adapters == ["three"]
    assert model.active_adapter == "three"
    assert same(case.logits(model), with_three)
    model.delete_adapter("three")
    assert model.active_adapters == []
    # PeftModel itself refuses to be called without an adapter; the tuner does not.
    assert same(case.logits(model.base_model), case.logits(case.build().eval()))
    with pytest.raises(ValueError, match="three"):
        model.delete_adapter("three")


def test_mixed_batch(case):
    """`adapter_names` gives every sample of a batch its own adapter, or none."""
    model = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    names = ["one", "two", "__base__", "one"]
    mixed = case.logits(model, adapter_names=names)
    with_one = case.logits(model)
    model.set_adapter("two")
    expected = {"one": with_one, "two": case.logits(model)}
    with model.disable_adapter():
        expected["__base__"] = case.logits(model)
    for row, name in enumerate(names):
        assert close(mixed[row], expected[name][row])
    with pytest.raises(ValueError, match="typo"):
        case.logits(model, adapter_names=["one", "two", "typo", "one"])


@pytest.mark.parametrize("rslora", [False, True])
def test_weighted_adapter_by_concatenation(case, rslora):
    """`cat` is the exact weighted sum of the adapters."""
    model = case.wrapped(KIND, adapter_name="one", use_rslora=rslora)
    case.add(model, KIND, "two", r=2, use_rslora=rslora)
    model.add_weighted_adapter(["one", "two"], [0.5, -1.0], "both", combination_type="cat")
    for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
        expected = 0.5 * layer.get_delta_weight("one") - layer.get_delta_weight("two")
        assert_close(layer.get_delta_weight("both"), expected, atol=1e-5, rtol=1e-4)
    assert model.active_adapters == ["one"]
    model.set_adapter("both")
    assert not close(case.logits(model), case.logits(case.build().eval()))


@pytest.mark.parametrize("combination", ["svd", "linear"])
def test_weighted_adapter_of_one_is_itself(case, combination):
    """The approximate combinations are right where they can be exact: one adapter, weight 1."""
    model = case.wrapped(KIND, adapter_name="one")
    before = case.logits(model)
    model.add_weighted_adapter(["one"], [1.0], "copy", combination_type=combination)
    model.set_adapter("copy")
    assert close(case.logits(model), before)


def test_weighted_adapter_survives_saving(case, tmp_path):
    """A weighted adapter is an adapter like any other."""
    model = case.add(case.wrapped(KIND, adapter_name="one"), KIND, "two")
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    assert same(case.logits(PeftModel.from_pretrained(case.build(), tmp_path / "both")), case.logits(model))


# ----------------------------------------------------------------------------------- copies, integrations, compilation


def test_deepcopy(case):
    """A copy gives the same outputs and has parameters of its own."""
    model = case.wrapped(KIND)
    before = case.logits(model)
    twin = copy.deepcopy(model)
    assert same(case.logits(twin), before)
    train(case, twin)
    assert not same(case.logits(twin), before)
    assert same(case.logits(model), before)
    assert trainable(twin) == trainable(model)


def test_pickle_and_torch_save(case):
    """A wrapped model survives pickling and `torch.save`."""
    model = case.wrapped(KIND)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert same(case.logits(twin), case.logits(model))
        assert twin.peft_config["default"] == model.peft_config["default"]
        assert trainable(twin) == trainable(model)


def test_inject_adapter_in_model(case):
    """The functional interface puts in the same layers as `get_peft_model`, without a wrapper around the model."""
    base = case.build()
    torch.manual_seed(1)
    model = inject_adapter_in_model(case.config(KIND), base).eval()
    assert model is base
    assert same(case.logits(model), case.logits(case.wrapped(KIND)))
    state = get_peft_model_state_dict(model)
    twin = inject_adapter_in_model(case.config(KIND, init_lora_weights=True), case.build()).eval()
    set_peft_model_state_dict(twin, state)
    assert same(case.logits(twin), case.logits(model))


def test_inject_from_state_dict(case):
    """The keys of a state dict can say which modules are adapted."""
    state = get_peft_model_state_dict(inject_adapter_in_model(case.config(KIND), case.build()))
    some = {
        name: tensor
        for name, tensor in state.items()
        if name.split(".lora_")[0] == next(iter(state)).split(".lora_")[0]
    }
    with pytest.warns(RuntimeWarning):
        model = inject_adapter_in_model(case.config(KIND), case.build(), state_dict=some)
    assert sum(isinstance(m, LoraLayer) for m in model.modules()) == 1


def test_transformers_add_and_load_adapter(case, tmp_path):
    """transformers' own `add_adapter`, `save_pretrained`, `load_adapter`, disable, enable and delete."""
    if case.name == "mlp":
        pytest.skip("not a transformers model")
    model = case.build()
    base = case.logits(model)
    torch.manual_seed(1)
    model.add_adapter(case.config(KIND))
    model.eval()
    before = case.logits(model)
    assert same(before, case.logits(case.wrapped(KIND)))
    model.disable_adapters()
    assert same(case.logits(model), base)
    model.enable_adapters()
    assert same(case.logits(model), before)
    model.save_pretrained(tmp_path)
    loaded = case.build()
    loaded.load_adapter(str(tmp_path))
    assert same(case.logits(loaded), before)
    assert loaded.active_adapters() == ["default"]
    model.delete_adapter("default")
    assert same(case.logits(model), base)


def test_a_second_kind_in_one_model_is_refused(case):
    """A PeftModel holds one type of adapter; the other one gets PEFT's error and leaves no trace."""
    model = case.wrapped(KIND)
    with pytest.raises(ValueError, match="GS_LORA"):
        model.add_adapter("other", case.config("LORA"))
    assert set(model.peft_config) == {"default"}


def test_compiled_model(case):
    """A compiled model gives the same outputs (graph capture only; code generation is torch's business)."""
    if case.name not in ("mlp", "vit"):
        pytest.skip("capturing one Transformer is enough")
    model = case.wrapped(KIND)
    expected = case.logits(model)
    torch._dynamo.reset()
    assert close(case.logits(torch.compile(model, backend="eager")), expected)


def test_conv1d_is_recognised_without_being_told():
    """GPT-2's transposed Linears need no `fan_in_fan_out`; PEFT sets it, with a warning."""
    case = CASES["gpt2"]
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = case.wrapped(KIND, fan_in_fan_out=False)
    assert same(case.logits(model), case.logits(case.wrapped(KIND)))


def test_config_classes_stay_apart():
    """A GS_LORA configuration is a LoRA configuration; the other way round it is not."""
    assert issubclass(GSLoraConfig, LoraConfig)
    assert not isinstance(LoraConfig(), GSLoraConfig)
