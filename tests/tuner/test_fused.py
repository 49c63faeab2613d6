"""Fused LoRA layers compute what stock LoRA does, and leave everything else to it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gs_lora_peft.tuner import fused_lora


def adapted(dtype=torch.float32, **config):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6, bias=False)).to(dtype)
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["0", "2"], "init_lora_weights": False, **config}
    return get_peft_model(base, LoraConfig(**options)).train()


def step(model, x):
    """Output, gradients of the factors and of the input."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def is_fused(model, x):
    return "FusedLinear" in type(model(x).grad_fn).__name__


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(4, 5, 6), (20, 6)])
def test_same_as_stock_up_to_rounding(dtype, tolerance, shape):
    model, x = adapted(dtype), torch.randn(shape, dtype=dtype)
    stock = step(model, x)
    with fused_lora(model, "default"):
        assert is_fused(model, x)
        fused = step(model, x)
    assert not is_fused(model, x)
    for one, other in zip(stock, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance * one.abs().max().item())


def test_second_derivatives_pass():
    model, x = adapted(torch.float64), torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    with fused_lora(model, "default"):
        assert torch.autograd.gradgradcheck(model, x)


def test_zero_adapter_is_the_base_bit_for_bit():
    model, x = adapted(), torch.randn(20, 6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_("lora_B" not in name)
    with model.disable_adapter():
        expected = model(x)
    with fused_lora(model, "default"):
        assert is_fused(model, x)
        assert torch.equal(model(x), expected)


def test_a_copy_has_its_own_weights():
    model, x = adapted(), torch.randn(20, 6)
    with fused_lora(model, "default"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert is_fused(other, x)
        assert other(x).abs().sum() > 0


def hooked(model):
    for place in (0, 2):
        model.base_model.model[place].lora_A["default"].register_forward_hook(lambda *args: None)


def two_active(model):
    model.add_adapter("other", LoraConfig(r=3, target_modules=["0", "2"]))
    model.base_model.set_adapter(["default", "other"])


@pytest.mark.parametrize(
    ("config", "change", "rows"),
    [
        ({"lora_dropout": 0.5}, None, 20),
        ({"use_dora": True}, None, 20),
        ({"lora_bias": True}, None, 20),
        ({}, nn.Module.eval, 20),
        ({}, hooked, 20),
        ({}, two_active, 20),
        ({}, None, 5),  # fewer rows than the weight has columns
    ],
    ids=["dropout", "dora", "bias", "evaluation", "hook", "two adapters", "few rows"],
)
def test_others_run_as_stock(config, change, rows):
    model, x = adapted(**config), torch.randn(rows, 6)
    if change is not None:
        change(model)
    torch.manual_seed(1)
    expected = model(x)
    with fused_lora(model, "default"):
        assert not is_fused(model, x)
        torch.manual_seed(1)
        assert torch.equal(model(x), expected)


def test_autocast_runs_as_stock():
    model, x = adapted(), torch.randn(20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with fused_lora(model, "default"):
            assert torch.equal(model(x), expected)
