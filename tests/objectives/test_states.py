"""The states behind the blocks: those of a real model, pooled as asked, with gradient, and nothing left behind."""

import pytest
import torch
from errors import refused
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from gs_lora_peft.objectives import block_paths, captured_states


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, num_labels=4,
        )
    ).eval()  # fmt: skip


PIXELS = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_states_are_those_that_transformers_returns(vit):
    with captured_states(vit) as captured:
        hidden = vit(pixel_values=PIXELS, output_hidden_states=True).hidden_states
    assert captured.paths == block_paths(vit)
    for path, expected in zip(captured.paths, hidden[1:], strict=True):
        assert torch.equal(captured.pooled("token")[path], expected[:, 0])
        assert torch.equal(captured.pooled("mean")[path], expected.mean(1))


def test_padding_does_not_count(vit):
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    with captured_states(vit) as captured:
        vit(pixel_values=PIXELS)
    for path, states in captured.pooled("mean", mask).items():
        torch.testing.assert_close(states[0], captured.outputs[path][0, :2].mean(0))
        torch.testing.assert_close(states[1], captured.outputs[path][1].mean(0))


@pytest.mark.parametrize(("mask", "last"), [([1, 1, 1, 0], 2), ([0, 1, 1, 1], 3), (None, 3)])
def test_behind_causal_attention_the_last_token_is_read(mask, last):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
    model = GPT2ForSequenceClassification(config).eval()
    rows = torch.tensor([[5, 6, 7, 8]])
    attention = None if mask is None else torch.tensor([mask])
    with captured_states(model) as captured:
        logits = model(input_ids=rows if mask is None else rows * attention, attention_mask=attention).logits
    for path, states in captured.pooled("token", attention).items():
        assert torch.equal(states[0], captured.outputs[path][0, last])
    read_by_the_head = model.transformer.ln_f(captured.pooled("token", attention)[captured.paths[-1]])
    torch.testing.assert_close(model.score(read_by_the_head), logits)


def test_blocks_of_an_encoder_are_read_at_the_first_token_beside_a_decoder():
    sizes = {"d_model": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForSequenceClassification(
        BartConfig(vocab_size=9, num_labels=2, eos_token_id=2, **sizes, **heads)
    ).eval()
    with captured_states(model) as captured:
        model(input_ids=torch.tensor([[5, 6, 7, 2]]))
    assert {path: "decoder" in path for path in captured.paths} == {
        path: path in captured.causal for path in captured.paths
    }
    assert len(captured.causal) == 1


def test_a_head_that_reads_the_last_token_is_known_where_attention_does_not_say_so():
    config = BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2, num_labels=2, pad_token_id=0)
    model = BloomForSequenceClassification(config).eval()
    with captured_states(model) as captured:
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    (path,) = captured.paths
    assert torch.equal(captured.pooled("token")[path], captured.outputs[path][:, -1])


def test_paths_and_gradients_hold_in_a_peft_model_and_the_hooks_are_removed(vit):
    paths = block_paths(vit)
    model = get_peft_model(vit, LoraConfig(target_modules=["fc1"]))
    with captured_states(model) as captured:
        model(pixel_values=PIXELS)
    assert list(captured.pooled("token")) == paths
    assert captured.pooled("token")[paths[-1]].requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_a_block_that_takes_no_part_is_named(vit):
    vit.unused = torch.nn.Linear(2, 2)
    with captured_states(vit, ["unused"]) as captured:
        vit(pixel_values=PIXELS)
    with refused("blocks that took part in the forward", []):
        captured.pooled("token")
