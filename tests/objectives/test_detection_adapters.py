"""From a detector to an adapter and back, for every detector: groups, steps, export, reload, merge."""

import copy
from pathlib import Path

import pytest
import torch
from detectors import DETECTORS, MIXED, TIED, detector, joint_batch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from gs_lora_peft import GSLoraConfig, LoraGroups, export_lora
from gs_lora_peft.adapters.attaching import attach_adapters, merge_adapters
from gs_lora_peft.adapters.task_adapter import read_adapter
from gs_lora_peft.compat.models import batch_norm_frozen, head_tying_hidden
from gs_lora_peft.objectives.detection.objective import DetectionObjective

LAYERS = {
    "yolos": ["vit.encoder.layer.0", "vit.encoder.layer.1"],
    **{
        name: ["model.encoder.aifi.0.layers.0", "model.decoder.layers.0", "model.decoder.layers.1"]
        for name in ("rt_detr", "rt_detr_v2", "d_fine")
    },
}
DETR_LAYERS = ["model.encoder.layers.0", "model.decoder.layers.0", "model.decoder.layers.1"]


def outputs(model: nn.Module) -> Tensor:
    """Logits and boxes of two images, side by side, in eval mode."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result = model.eval()(pixel_values=images)
    return torch.cat([result.logits, result.pred_boxes], dim=-1)


def trained(name: str) -> tuple[PeftModel, list[float]]:
    """The detector after three optimizer steps in training mode, and their losses."""
    base = detector(name)
    torch.manual_seed(1)
    model = get_peft_model(base, GSLoraConfig(r=4, lora_alpha=4))
    objective = DetectionObjective(model, 0.5, 50.0, prototype_forget_weight=0.1, prototype_retain_weight=0.1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch, losses = joint_batch(MIXED), []
    with batch_norm_frozen(model):
        for _ in range(3):
            model.train()
            loss = objective.training_step(model, batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return model, losses


@pytest.fixture(scope="module", params=DETECTORS)
def run(request, tmp_path_factory) -> tuple[str, PeftModel, list[float], Path]:
    """A detector's name, its trained model with one group dropped, the losses, and the plain export."""
    name = request.param
    model, losses = trained(name)
    groups = LoraGroups(model)
    groups.proximal_step(groups.norms().min().item() * 1.001, scale="none")
    return name, model, losses, export_lora(model, tmp_path_factory.mktemp(name))


def test_every_encoder_and_decoder_layer_is_a_group(run):
    """What is kept or dropped together is a layer of the encoder or of the decoder, and nothing else."""
    name, model, _, _ = run
    assert sorted(LoraGroups(model).names) == sorted(LAYERS.get(name, DETR_LAYERS))
    assert len(LoraGroups(model).zero_groups()) == 1


def test_three_steps_change_the_adapter_and_nothing_else(run):
    """The loss stays finite in training mode, gradients reach every group, and parameters and buffers of the base
    are what they were: the adapter alone gives the result."""
    name, model, losses, _ = run
    assert all(torch.isfinite(torch.tensor(losses)))
    assert len(set(losses)) == 3
    groups = [group for group in LoraGroups(model).names if group not in LoraGroups(model).zero_groups()]
    state = model.state_dict()
    for group in groups:
        moved = [value for key, value in state.items() if f".{group}." in key and "lora_B" in key]
        assert moved
        assert all(value.abs().sum() > 0 for value in moved)
    before = detector(name).state_dict()
    after = copy.deepcopy(model).unload().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], value) for key, value in after.items())


def test_export_reloads_with_stock_peft(run):
    """Bit-equal outputs in a plain `PeftModel`; detectors with tied heads need `tie_word_embeddings` hidden, by hand
    or by the helper, which puts it back."""
    name, model, _, folder = run
    base = detector(name)
    if name in TIED:
        with pytest.raises(NotImplementedError):
            get_peft_model(detector(name), LoraConfig(target_modules=["fc1"]))
        with pytest.raises(NotImplementedError):
            PeftModel.from_pretrained(detector(name), folder)
        base.config.tie_word_embeddings = False
    loaded = PeftModel.from_pretrained(base, folder)
    assert type(loaded.peft_config["default"]) is LoraConfig
    assert torch.equal(outputs(loaded), outputs(model))
    base = detector(name)
    with head_tying_hidden(base):
        loaded = PeftModel.from_pretrained(base, folder)
    assert base.config.to_dict() == detector(name).config.to_dict()
    assert torch.equal(outputs(loaded), outputs(model))


def test_reloads_through_this_package(run, tmp_path):
    """The training form, and the plain form as `load_forgotten` attaches it, without touching the configuration."""
    name, model, _, folder = run
    model.save_pretrained(tmp_path)
    expected = outputs(model)
    assert torch.equal(outputs(PeftModel.from_pretrained(detector(name), tmp_path)), expected)
    attached = attach_adapters(detector(name), [read_adapter(folder)])
    assert torch.equal(outputs(attached), expected)
    assert attached.config.to_dict() == detector(name).config.to_dict()


def test_merged_weights_equal_the_adapter(run):
    """Merging gives a plain detector of the same outputs, both from the model and from the file."""
    name, model, _, folder = run
    expected = outputs(model)
    merged = copy.deepcopy(model).merge_and_unload()
    assert type(merged) is type(detector(name))
    torch.testing.assert_close(outputs(merged), expected, atol=1e-4, rtol=1e-4)
    # The weights: a processor may round the same product in another way if it lies elsewhere in memory.
    of_file, of_model = merge_adapters(detector(name), [read_adapter(folder)]).state_dict(), merged.state_dict()
    assert of_file.keys() == of_model.keys()
    assert all(torch.equal(value, of_model[key]) for key, value in of_file.items())
