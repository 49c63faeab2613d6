"""Quantised models whose parts cannot be read are refused where weights must be exact; an adapter trains on them."""

import pytest
import run_cases as cases
import torch
from peft import get_peft_model
from torch import nn

from gs_lora_peft import (
    GSLoraConfig,
    GSLoraTrainer,
    load_forgotten,
    merge_forgotten,
    split_dataset,
    weights_fingerprint,
)
from gs_lora_peft.compat.models import quantised_part
from gs_lora_peft.errors import InvalidInputError

LAYER = "vit.layers.0.mlp.fc1"


class Packed(torch.Tensor):
    """A tensor with operators of its own, as the libraries make them."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(func)


def with_weight(make):
    """A model in which one layer has another kind of weight."""

    def quantise(model):
        layer = model.get_submodule(LAYER)
        layer.weight = nn.Parameter(make(layer.weight.detach()), requires_grad=False)
        return model

    return quantise


def noted(**attributes):
    def note(model):
        for name, value in attributes.items():
            setattr(model, name, value)
        return model

    return note


def in_config(model):
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def by_torch(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def by_bitsandbytes(model):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model.set_submodule(LAYER, bitsandbytes.nn.Linear8bitLt(16, 32, has_fp16_weights=False))
    return model


KINDS = [
    with_weight(Packed),
    with_weight(lambda weight: weight.to(torch.int8)),
    with_weight(lambda weight: weight.to(torch.float8_e4m3fn)),
    noted(is_quantized=True),
    noted(hf_quantizer=object()),
    in_config,
    by_torch,
    by_bitsandbytes,
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("quantise", KINDS)
def test_refused_where_weights_must_be_exact(base, first_task, tmp_path, quantise):
    """Forgetting in sequence, loading and merging say at once what is quantised and what to do; nothing is written."""
    model = quantise(cases.load_base(base))
    assert quantised_part(model)
    for call in (
        lambda: cases.make_forgetter(model, tmp_path / "run"),
        lambda: load_forgotten(model, first_task),
        lambda: load_forgotten(model, first_task, merge=True),
        lambda: merge_forgotten(model, first_task, tmp_path / "out"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.name == "base_model"
        assert "quantise the result" in caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        lambda model: model.half(),
        lambda model: model.double(),
        with_weight(lambda weight: weight.as_subclass(type("Named", (torch.Tensor,), {}))),
        lambda model: model.register_buffer("ids", torch.arange(4)[None]) or model,
    ],
)
def test_exact_weights_pass(base, change):
    """Half precision, integer buffers and tensors that only bear another name are not quantised."""
    assert quantised_part(change(cases.load_base(base))) is None


def test_a_fingerprint_of_what_nobody_can_read(base):
    """Tensors of another make have no bytes to compare; which one it is, is said."""
    model = with_weight(Packed)(cases.load_base(base))
    with pytest.raises(InvalidInputError) as caught:
        weights_fingerprint(model)
    assert LAYER in caught.value.name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_trains_on_torchao(base, data, tmp_path):
    """A single adapter is never merged, so that its base may be quantised, as PEFT has it."""
    pytest.importorskip("torchao")
    model = get_peft_model(by_torchao(cases.load_base(base)), GSLoraConfig(r=4, lora_alpha=4))
    split = split_dataset(data["train"], forget=["cassowary"])
    trainer = GSLoraTrainer(
        model,
        cases.make_args(output_dir=tmp_path, num_train_epochs=1),
        forget_dataset=split.forget,
        retain_dataset=split.retain,
        forget_classes=split.forget_classes,
    )
    trainer.train()
    assert any(norm > 0 for norm in trainer.groups.norms().tolist())
