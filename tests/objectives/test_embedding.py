"""Where the embedding of a classifier is: what goes into its head, found by structure."""

import pytest
import torch
from errors import refused
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from gs_lora_peft import FaceTransformerConfig, FaceTransformerForRecognition, GSLoraConfig
from gs_lora_peft.objectives import NoEmbeddingFoundError, captured_embeddings, find_head

torch.set_num_threads(1)

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
CLIP = {
    "vision_config": {**TINY, "projection_dim": 8},
    "text_config": {**TEXT, "projection_dim": 8},
    "projection_dim": 8,
}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FACE = {**TINY, "num_labels": 5, "head_type": "cosface"}

# Name → (model with 5 classes, path of its head)
MODELS = {
    "vit": (lambda n: ViTForImageClassification(ViTConfig(**TINY, num_labels=n)), "classifier"),
    "deit": (lambda n: DeiTForImageClassification(DeiTConfig(**TINY, num_labels=n)), "classifier"),
    "beit": (lambda n: BeitForImageClassification(BeitConfig(**TINY, num_labels=n)), "classifier"),
    "swin": (lambda n: SwinForImageClassification(SwinConfig(**SWIN, num_labels=n)), "classifier"),
    "dinov2": (lambda n: Dinov2ForImageClassification(Dinov2Config(**TINY, num_labels=n)), "classifier"),
    "convnext": (
        lambda n: ConvNextForImageClassification(ConvNextConfig(**STAGES, num_stages=2, num_labels=n)),
        "classifier",
    ),
    "resnet": (
        lambda n: ResNetForImageClassification(
            ResNetConfig(**STAGES, embedding_size=8, layer_type="basic", num_labels=n)
        ),
        "classifier.1",
    ),
    "clip": (lambda n: CLIPForImageClassification(CLIPConfig(**CLIP, num_labels=n)), "classifier"),
    "bert": (lambda n: BertForSequenceClassification(BertConfig(**TEXT, num_labels=n)), "classifier"),
    "roberta": (
        lambda n: RobertaForSequenceClassification(RobertaConfig(**TEXT, num_labels=n)),
        "classifier.out_proj",
    ),
    "face": (
        lambda n: FaceTransformerForRecognition(FaceTransformerConfig(**{**FACE, "num_labels": n})),
        "classifier",
    ),
}


def inputs_of(name):
    torch.manual_seed(1)
    if name in ("bert", "roberta"):
        return {"input_ids": torch.randint(1, 30, (3, 7))}
    size = 32 if name in ("swin", "convnext", "resnet") else 16
    return {"pixel_values": torch.randn(3, 3, size, size)}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_turns_what_was_caught_into_the_logits(name):
    """The head is the one expected, its input is one vector a sample, and from it follow exactly the logits."""
    build, path = MODELS[name]
    torch.manual_seed(0)
    model = build(5).eval()
    assert find_head(model) == path
    with captured_embeddings(model) as caught:
        logits = model(**inputs_of(name)).logits
    assert caught.embeddings.ndim == 2
    head = model.get_submodule(path)
    torch.testing.assert_close(head(caught.embeddings), logits)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("classes", [16, 32, 8])
def test_layers_as_wide_as_the_head_are_not_taken_for_it(classes):
    """As many classes as attention, the feed-forward or the adapter's rank is wide: the head is the last."""
    model = get_peft_model(MODELS["vit"][0](classes), GSLoraConfig(r=8))
    assert find_head(model) == "base_model.model.classifier"


def test_an_adapted_head_is_still_the_head():
    """LoRA on the head itself: its matrices map to the classes too, and are not the head."""
    model = get_peft_model(MODELS["vit"][0](5), LoraConfig(r=2, target_modules=["classifier"]))
    assert find_head(model) == "base_model.model.classifier"


def test_the_embedding_carries_a_gradient():
    """Prototype terms train the adapter through it."""
    model = get_peft_model(MODELS["vit"][0](5), GSLoraConfig(r=2))
    with captured_embeddings(model) as caught:
        model(**inputs_of("vit"))
    caught.embeddings.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_B" in n)


def test_models_without_one_embedding_are_refused():
    """Two heads, no head, and a model that does not say how many classes it has: each with its reason."""
    with refused("model", "DeiTForImageClassificationWithTeacher", NoEmbeddingFoundError) as error:
        find_head(DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, num_labels=5)))
    assert "distillation_classifier" in error.value.expected
    sizes = {"hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "num_attention_heads": [1, 1, 1], "key_dim": [4, 4, 4]}
    with refused("model", "LevitForImageClassificationWithTeacher", NoEmbeddingFoundError) as error:
        find_head(LevitForImageClassificationWithTeacher(LevitConfig(**sizes, num_labels=5)))
    assert "'classifier.linear', 'classifier_distill.linear'" in error.value.expected
    with refused("model.config.num_labels", None, NoEmbeddingFoundError):
        find_head(nn.Linear(4, 5))
    model = MODELS["vit"][0](5)
    model.config.num_labels = 7
    with refused("model", "ViTForImageClassification", NoEmbeddingFoundError) as error:
        find_head(model)
    assert "7" in error.value.expected


def test_a_head_on_every_token_is_refused():
    """A decoder picks the logits of the last token; its head gets a vector for each token."""
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, num_labels=5, pad_token_id=0)
    model = GPT2ForSequenceClassification(config).eval()
    with captured_embeddings(model) as caught:
        model(input_ids=torch.randint(1, 30, (3, 7)))
    with refused("the input shape of the head 'score'", (3, 7, 16), NoEmbeddingFoundError):
        _ = caught.embeddings


def test_two_forwards_are_told_apart_from_one():
    """After several forwards through the head, the embedding is ambiguous."""
    model = MODELS["vit"][0](5).eval()
    with captured_embeddings(model) as caught:
        model(**inputs_of("vit"))
        model(**inputs_of("vit"))
    with refused("calls of the head 'classifier'", 2, NoEmbeddingFoundError):
        _ = caught.embeddings
