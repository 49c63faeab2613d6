"""Detectors whose heads are tied to each other but to no input embedding, on which stock PEFT raises.

Deformable DETR, DAB-DETR, RT-DETRv2 and D-FINE, from tiny random configurations.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from detectors import TIED, detector
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gs_lora_peft import GSLoraConfig, LoraGroups, export_lora


@pytest.fixture(params=sorted(TIED))
def build(request) -> Callable[[], nn.Module]:
    return partial(detector, request.param)


def wrapped(build: Callable[[], nn.Module]) -> PeftModel:
    model = build()
    torch.manual_seed(1)
    return get_peft_model(model, GSLoraConfig(init_lora_weights=False, lora_alpha=8)).eval()


def outputs(model: nn.Module) -> Tensor:
    """Logits and boxes of one image, side by side."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result = model(pixel_values=image)
    return torch.cat([result.logits, result.pred_boxes], dim=-1)


def test_wraps_and_changes_the_outputs(build):
    """The adapter sits on encoder and decoder blocks, takes effect, and leaves the configuration's tying alone."""
    base = outputs(build())
    model = wrapped(build)
    assert model.config.tie_word_embeddings
    names = LoraGroups(model).names
    assert len(names) == 3
    assert sum(".decoder." in name for name in names) == 2
    assert (outputs(model) - base).abs().max() > 1e-4
    with model.disable_adapter():
        assert torch.equal(outputs(model), base)


def test_saves_and_reloads(build, tmp_path):
    """The same outputs from the training form, on the first adapter and on a second one."""
    model = wrapped(build)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(outputs(loaded), outputs(model))
    loaded.load_adapter(tmp_path, adapter_name="again")
    loaded.set_adapter("again")
    assert torch.equal(outputs(loaded.eval()), outputs(model))


def test_merges_and_unloads(build):
    """The merged detector is a plain one, and unloading gives the base back."""
    expected = outputs(wrapped(build))
    merged = wrapped(build).merge_and_unload()
    assert type(merged) is type(build())
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    torch.testing.assert_close(outputs(merged), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(outputs(wrapped(build).unload()), outputs(build()))


def test_plain_form(build, tmp_path):
    """Stock PEFT asks such models for input embeddings that they do not have. Hiding the tying while it loads is
    enough, as the docstring of `export_lora` says; the outputs are bit-equal."""
    model = wrapped(build)
    groups = LoraGroups(model)
    groups.proximal_step(groups.norms().min().item() * 1.001, scale="none")
    assert len(groups.zero_groups()) == 1
    export_lora(model, tmp_path)
    base = build()
    with pytest.raises(NotImplementedError):
        get_peft_model(build(), LoraConfig(target_modules=["fc1"]))
    base.config.tie_word_embeddings = False
    loaded = PeftModel.from_pretrained(base, tmp_path)
    base.config.tie_word_embeddings = True
    assert torch.equal(outputs(loaded), outputs(model))
