"""Walks through public bug reports about adapters: made, saved, loaded and merged. Each docstring names the
reports; a repository without an owner is one of huggingface's."""

import copy
import warnings

import pytest
import report_cases as cases
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
)

from gs_lora_peft import ForgetRequest, GSLoraConfig, LedgerError, export_lora, load_forgotten, merge_forgotten
from gs_lora_peft.errors import InvalidInputError


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=cases.pixels(cases.arrays(2)[0])).logits


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A forgetter with two requests carried out, and its folder. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("run") / "run"
    forgetter = cases.forgetter_for(base, folder)
    forgetter.run([ForgetRequest(["bee"]), ForgetRequest(["elk"])])
    return forgetter, folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Plain LoRA of the model that has forgotten one kind."""
    return export_lora(trained, tmp_path_factory.mktemp("exported"))


# Made


def test_targets_that_the_model_lacks_are_an_error_and_leave_it_alone(base):
    """peft#40, OptimalScale/LMFlow#125: q_proj and v_proj of another model were accepted and did nothing."""
    model = cases.load(base)
    before = cases.weights(model)
    with pytest.raises(ValueError) as error:
        get_peft_model(model, GSLoraConfig(target_modules=["query_key_value"]))
    assert "query_key_value" in str(error.value)
    assert cases.same(cases.weights(model), before)


def test_a_target_that_is_absent_is_told_beside_one_that_is_there(base):
    """peft#3554: of several targets those that the model lacks were skipped without a word."""
    with pytest.warns(UserWarning, match="down_proj"):
        model = get_peft_model(cases.load(base), GSLoraConfig(target_modules=["fc1", "down_proj"]))
    assert {name.split(".")[-4] for name, part in model.named_parameters() if part.requires_grad} == {"fc1"}


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
UNNAMED = {
    "swin": (
        SwinForImageClassification,
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
        2,
    ),
    "beit": (BeitForImageClassification, BeitConfig(**TINY, intermediate_size=32, image_size=32, patch_size=8), 2),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config(**TINY, mlp_ratio=2, image_size=32, patch_size=8), 2),
    "dinov2, gated": (
        Dinov2ForImageClassification,
        Dinov2Config(**TINY, mlp_ratio=2, image_size=32, patch_size=8, use_swiglu_ffn=True),
        3,
    ),
}


@pytest.mark.parametrize("kind", UNNAMED)
def test_nobody_has_to_name_modules(kind):
    """peft#659: "Is it necessary to provide target_modules?" Not here, in each block of any of these."""
    build, config, in_a_block = UNNAMED[kind]
    model = get_peft_model(build(config), GSLoraConfig(init_lora_weights=False))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * in_a_block
    assert not [name for name in adapted if "attention" in name]
    x = cases.pixels(cases.arrays(1)[0])
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        without = model(pixel_values=x).logits
    assert not torch.equal(model(pixel_values=x).logits, without)


@pytest.mark.parametrize(
    "first",
    [{"target_modules": "attention"}, {"r": 8}, {"target_modules": ["fc1", "classifier"]}, {"group_by": "module"}],
    ids=str,
)
def test_a_second_configuration_on_the_same_base_takes_the_place_of_the_first(base, tmp_path, first):
    """peft#2295: a cell run twice; matrices of the first settings stayed, trained, and were saved along."""
    second = {"r": 2, "lora_alpha": 2, "block_pattern": r"layers\.0"}
    model = cases.load(base)
    with warnings.catch_warnings(action="ignore"):  # PEFT says that there was an adapter
        get_peft_model(model, GSLoraConfig(**first))
        torch.manual_seed(1)
        model = get_peft_model(model, GSLoraConfig(**second))
    fresh = cases.adapted(base, **second)
    trainable = {name for name, parameter in fresh.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable
    results = []
    for number, one in enumerate([model, fresh]):
        trainer = cases.trainer_for(one, tmp_path / str(number), num_train_epochs=2)
        trainer.train()
        results.append(cases.weights(one, "lora_"))
        export_lora(one, tmp_path / f"export-{number}")
    assert cases.same(*results)
    loaded = PeftModel.from_pretrained(cases.load(base), tmp_path / "export-0")
    assert torch.equal(logits(loaded), logits(model))


def test_an_earlier_adapter_of_another_name_stays(base):
    """peft#2295, the other way round: only the name that is made anew is taken off."""
    model = cases.adapted(base, "kept", target_modules="attention", init_lora_weights=False)
    kept = cases.weights(model, ".kept.")
    model.add_adapter("new", GSLoraConfig(r=2))
    assert kept
    assert cases.same(cases.weights(model, ".kept."), kept)


@pytest.mark.filterwarnings("ignore:Adapter name 'lora'")
@pytest.mark.parametrize("name", ["lora", "lora_A", "weight", "base_layer", "default_0"])
def test_awkward_names_of_adapters_are_saved_and_loaded(base, tmp_path, name):
    """peft#2699: an adapter called "lora" came back with fresh weights."""
    model = cases.adapted(base, name, init_lora_weights=False)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    export_lora(model, tmp_path / "plain")
    saved = PeftModel.from_pretrained(cases.load(base), tmp_path / "saved" / name, adapter_name=name)
    plain = PeftModel.from_pretrained(cases.load(base), tmp_path / "plain", adapter_name=name)
    assert torch.equal(logits(saved), expected)
    assert torch.equal(logits(plain), expected)


class WeightedHead(nn.Module):
    """A ViT whose parts are called as in the report."""

    def __init__(self, folder):
        super().__init__()
        self.pair_weighted_averaging = cases.load(folder)

    def forward(self, pixel_values, **kwargs):
        return self.pair_weighted_averaging(pixel_values, **kwargs)


def test_weight_in_the_name_of_a_module(base, tmp_path):
    """peft#2772: every "weight" in a key was replaced, so that the adapter stayed at its start."""
    model = get_peft_model(WeightedHead(base), GSLoraConfig(init_lora_weights=False))
    export_lora(model, tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        loaded = PeftModel.from_pretrained(WeightedHead(base), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(model), logits(cases.load(base)))


def compiled(model):
    return torch.compile(model, backend="eager")


def test_a_compiled_base_gives_an_adapter_for_any(base, tmp_path):
    """peft#2957, pytorch-image-models#1566: modules were called `_orig_mod…`, which fitted compiled models alone."""
    model = get_peft_model(compiled(cases.load(base)), GSLoraConfig(init_lora_weights=False, rank_pattern={"fc1": 2}))
    export_lora(model, tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        loaded = PeftModel.from_pretrained(cases.load(base), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model))
    torch.testing.assert_close(logits(compiled(loaded)), logits(model))


def test_a_run_on_a_compiled_base_fits_any(base, run, tmp_path):
    """peft#2957: the same for requests, loading and merging; what was compiled forgets, too."""
    whole = compiled(cases.load(base))
    forgetter = cases.forgetter_for(base, tmp_path / "run", base=whole)
    forgetter.run([ForgetRequest(["bee"]), ForgetRequest(["elk"])])
    assert cases.same(cases.weights(forgetter.model), cases.weights(run[0].model))
    assert cases.forgot(whole, "bee", "elk")
    for other in (cases.load(base), compiled(cases.load(base))):
        assert cases.forgot(load_forgotten(other, tmp_path / "run"), "bee", "elk")
    merge_forgotten(compiled(cases.load(base)), tmp_path / "run", tmp_path / "merged")
    assert cases.forgot(AutoModelForImageClassification.from_pretrained(tmp_path / "merged"), "bee", "elk")


def test_matrices_that_lie_across_memory_are_saved(base, tmp_path):
    """safetensors/safetensors#469, transformers#34623: "You are trying to save a non contiguous tensor"."""
    model = cases.adapted(base)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape[::-1]).T
    export_lora(model, tmp_path / "plain")
    model.save_pretrained(tmp_path / "saved")
    for folder in ("plain", "saved"):
        loaded = PeftModel.from_pretrained(cases.load(base), tmp_path / folder)
        assert cases.same(cases.weights(loaded, "lora_"), cases.weights(model, "lora_"))


# Loaded


def test_what_was_trained_acts_after_loading(base, exported):
    """peft#515, trl#386: the loaded adapter, or the merged model, gave what the base gives."""
    assert cases.forgot(cases.load(base))
    loaded = PeftModel.from_pretrained(cases.load(base), exported)
    assert cases.forgot(loaded, "bee")
    assert cases.forgot(loaded.merge_and_unload(), "bee")


def test_loading_is_silent_and_complete(base, run):
    """peft#1323, peft#2118: keys that looked missing were reported, those that were missing were not."""
    with warnings.catch_warnings(action="error", category=UserWarning):
        model = load_forgotten(cases.load(base), run[1])
    assert cases.forgot(model, "bee", "elk")


@pytest.mark.parametrize("change", ["weights", "width", "layers"])
def test_another_base_model_is_refused_unchanged(base, run, change):
    """peft#1932: an adapter was put on another base without a word."""
    other = (
        cases.load(base)
        if change == "weights"
        else cases.vit(**({"hidden_size": 32} if change == "width" else {"num_hidden_layers": 3}))
    )
    with torch.no_grad():
        other.classifier.bias[0] += 1e-4
    before = cases.weights(other)
    with pytest.raises(LedgerError):
        load_forgotten(other, run[1])
    assert cases.same(cases.weights(other), before)


def test_a_second_load_into_the_same_base_is_refused(base, run):
    """unslothai/unsloth#2981: a loop over checkpoints piled adapters up in one base model."""
    model = cases.load(base)
    loaded = load_forgotten(model, run[1], tasks=1)
    expected = logits(loaded)
    with pytest.raises(ValueError) as error:
        load_forgotten(model, run[1])
    assert "base_model" in str(error.value)
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(load_forgotten(loaded.unload(), run[1], tasks=1)), expected)


def test_the_base_model_is_there_while_the_adapter_is_off(base, run):
    """peft#940, peft#493, peft#850: with the adapter off, something that was trained went on acting."""
    expected = logits(cases.load(base))
    model = load_forgotten(cases.load(base), run[1])
    forgotten = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), forgotten)
    assert torch.equal(logits(model.unload()), expected)


def test_requests_build_on_each_other(base, run):
    """peft#1064: which of two adapters, trained one after the other, stands on what."""
    forgetter, folder = run
    first = load_forgotten(cases.load(base), folder, tasks=1)
    assert cases.forgot(first, "bee")
    both = load_forgotten(cases.load(base), folder, merge=True)
    assert cases.same(cases.weights(both), cases.weights(forgetter.model))
    assert cases.forgot(both, "bee", "elk")


def test_adapters_of_one_base_can_be_switched(base, exported, tmp_path):
    """peft#463, peft#2438: switching, and loading for training, gave the base model's answers now and then."""
    other = cases.adapted(base, init_lora_weights=False, r=2)
    export_lora(other, tmp_path)
    model = PeftModel.from_pretrained(cases.load(base), exported, adapter_name="bee", is_trainable=True)
    model.load_adapter(tmp_path, adapter_name="other")
    for _ in range(2):
        model.set_adapter("other")
        assert torch.equal(logits(model), logits(other))
        model.set_adapter("bee")
        assert cases.forgot(model.train(), "bee")


def test_training_goes_on_from_a_loaded_adapter(base, trained, tmp_path):
    """lerobot#3459: a loaded adapter was replaced by a fresh one when training went on."""
    trained.save_pretrained(tmp_path / "saved")
    model = PeftModel.from_pretrained(cases.load(base), tmp_path / "saved", is_trainable=True)
    trainer = cases.trainer_for(model, tmp_path / "out", kwargs={"eval_dataset": cases.data()["test"]})
    assert cases.same(cases.weights(model, "lora_"), cases.weights(trained, "lora_"))
    assert trainer.evaluate()["eval_acc_forget"] == 0
    trainer.train()
    assert cases.forgot(model, "bee")


# Merged


def test_merging_twice_is_merging_once(base, run, trained):
    """peft#1355: the difference was added again at each call."""
    model = copy.deepcopy(trained)
    with warnings.catch_warnings(action="ignore"):
        model.merge_adapter()
        once = logits(model)
        model.merge_adapter()
        assert torch.equal(logits(model), once)
    merged = load_forgotten(cases.load(base), run[1], merge=True)
    before = cases.weights(merged)
    with pytest.raises(LedgerError):
        load_forgotten(merged, run[1], merge=True)
    assert cases.same(cases.weights(merged), before)


def test_a_merged_model_is_an_ordinary_one(base, run, tmp_path):
    """peft#2405, safetensors/safetensors#98: the file of a merged model could not be read, or tensors shared
    memory."""
    given = cases.load(base)
    before = cases.weights(given)
    out = merge_forgotten(given, run[1], tmp_path / "merged")
    assert cases.same(cases.weights(given), before)
    model = AutoModelForImageClassification.from_pretrained(out)
    assert cases.same(cases.weights(model), cases.weights(run[0].model))
    with safe_open(out / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_never_merged_into(base, run, tmp_path):
    """transformers#31293, peft#1043, peft#2321: merging into 4 or 8 bits rounds the weights once more."""
    model = torch.ao.quantization.quantize_dynamic(cases.load(base), {nn.Linear}, dtype=torch.qint8)
    for carry_out in (
        lambda: merge_forgotten(model, run[1], tmp_path / "out"),
        lambda: load_forgotten(model, run[1]),
        lambda: cases.forgetter_for(base, tmp_path / "run", base=model),
    ):
        with pytest.raises(InvalidInputError) as error:
            carry_out()
        assert error.value.name == "base_model"
    assert not list(tmp_path.iterdir())


class Normed(ViTForImageClassification):
    """A ViT behind BatchNorm, whose statistics move in training mode."""

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm2d(3)
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        return super().forward(self.norm(pixel_values), **kwargs)


def test_statistics_of_the_base_do_not_move(tmp_path):
    """peft#1732: running means changed in training and were not saved, so that the loaded model was another one."""
    torch.manual_seed(0)
    base = Normed(cases.vit().config).eval()
    model = get_peft_model(copy.deepcopy(base), GSLoraConfig(r=4, lora_alpha=4))
    cases.trainer_for(model, tmp_path / "out", num_train_epochs=2).train()
    export_lora(model, tmp_path / "adapter")
    assert not torch.equal(logits(model), logits(base))
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_in_half_precision_is_trained_and_merged_exactly(base, tmp_path, dtype):
    """diffusers#6086, diffusers#10910, peft#1388: adapters in 16 bits would not train, or merged to other answers."""
    run = tmp_path / "run"
    forgetter = cases.forgetter_for(base, run, base=cases.load(base, dtype=dtype))
    assert forgetter.forget(ForgetRequest(["bee"])).forgotten
    with safe_open(run / "tasks" / "task_001" / "adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    merged = load_forgotten(cases.load(base, dtype=dtype), run, merge=True)
    assert {tensor.dtype for tensor in merged.state_dict().values()} == {dtype}
    assert cases.same(cases.weights(merged), cases.weights(forgetter.model))
    assert cases.forgot(merged, "bee")


def test_a_base_without_a_name_is_saved_without_one(tmp_path, recwarn):
    """peft#3646, predibase/lorax#315: a model made from a configuration is called "", which was looked up on the
    Hub."""
    model = get_peft_model(cases.vit(), GSLoraConfig(init_lora_weights=False))
    model.save_pretrained(tmp_path / "saved")
    export_lora(model, tmp_path / "plain")
    for folder in ("saved", "plain"):
        assert (
            not PeftModel.from_pretrained(cases.vit(), tmp_path / folder)
            .peft_config["default"]
            .to_dict()["base_model_name_or_path"]
        )
    assert not [str(warning.message) for warning in recwarn if "config file" in str(warning.message)]
