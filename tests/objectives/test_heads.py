"""Which models have a class head, how many classes it has, and in what forms a forward may give its logits."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import get_peft_model
from test_embedding import CLIP, MODELS, TEXT, TINY, inputs_of
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2ForSequenceClassification,
    PatchTSTConfig,
    PatchTSTForClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForImageClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto import modeling_auto

from gs_lora_peft import GSLoraConfig
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.objectives import ClassificationObjective, check_class_head, head_size

torch.set_num_threads(1)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
STAGE = {"depths": [1], "sr_ratios": [1], "hidden_sizes": [8], "patch_sizes": [3], "strides": [2], "mlp_ratios": [1]}
SEGFORMER = {**STAGE, "num_encoder_blocks": 1, "num_attention_heads": [1], "decoder_hidden_size": 8}
CONVOLUTIONS = {"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (4,), "num_feat_extract_layers": 1}
WAV2VEC2 = {**SIZES, **CONVOLUTIONS, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
AST = {**SIZES, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 16, "num_mel_bins": 16}
VIDEO = {**TINY, "num_frames": 2, "tubelet_size": 2}
SERIES = {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "use_cls_token": True}

# Name → (model with n classes, inputs of three samples)
CLASSIFIERS = {
    **{name: (build, lambda name=name: inputs_of(name)) for name, (build, _) in MODELS.items()},
    "two heads": (
        lambda n: DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, num_labels=n)),
        lambda: inputs_of("vit"),
    ),
    "segformer": (
        lambda n: SegformerForImageClassification(SegformerConfig(**SEGFORMER, num_labels=n)),
        lambda: inputs_of("vit"),
    ),
    "gpt2": (lambda n: GPT2ForSequenceClassification(GPT2Config(**GPT2, num_labels=n)), lambda: inputs_of("bert")),
    "wav2vec2": (
        lambda n: Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAV2VEC2, num_labels=n)),
        lambda: {"input_values": torch.randn(3, 400)},
    ),
    "spectrograms": (
        lambda n: ASTForAudioClassification(ASTConfig(**AST, num_labels=n)),
        lambda: {"input_values": torch.randn(3, 16, 16)},
    ),
    "video": (
        lambda n: VideoMAEForVideoClassification(VideoMAEConfig(**VIDEO, num_labels=n)),
        lambda: {"pixel_values": torch.randn(3, 2, 3, 16, 16)},
    ),
}

# Class of transformers → (settings of its configuration, what to use in its place)
WITHOUT_A_HEAD = {
    "ViTModel": (TINY, "ViTForImageClassification"),
    "ViTForMaskedImageModeling": (TINY, "ViTForImageClassification"),
    "CLIPModel": (CLIP, "CLIPForImageClassification"),
    "CLIPVisionModel": (TINY, "CLIPForImageClassification"),
    "BertModel": (TEXT, "BertForSequenceClassification"),
    "BertForTokenClassification": (TEXT, "BertForSequenceClassification"),
    "BertForQuestionAnswering": (TEXT, "BertForSequenceClassification"),
    "BertForMultipleChoice": (TEXT, "BertForSequenceClassification"),
    "BertForMaskedLM": (TEXT, "BertForSequenceClassification"),
    "GPT2LMHeadModel": (GPT2, "GPT2ForSequenceClassification"),
    "SegformerForSemanticSegmentation": (SEGFORMER, "SegformerForImageClassification"),
    "Wav2Vec2ForAudioFrameClassification": (WAV2VEC2, "Wav2Vec2ForSequenceClassification"),
    "DPTForDepthEstimation": ({}, "your own `objective`"),
}


def of_transformers(name: str) -> nn.Module:
    """A model of a class of transformers; its weights are never read."""
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**WITHOUT_A_HEAD[name][0]))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_every_kind_are_taken_bare_and_with_an_adapter(name):
    """Also with two classes, the number every configuration starts with: the head counts, not the number."""
    build, inputs = CLASSIFIERS[name]
    for classes in (5, 2):
        model = build(classes).eval()
        check_class_head(model)
        assert head_size(model) == classes
    batch = {**inputs(), "labels": torch.tensor([0, 1, 1])}
    _, outputs = ClassificationObjective(1.0, "auto").evaluation_step(model, batch)
    assert outputs["logits"].shape == (3, 2)
    if name == "vit":
        adapted = get_peft_model(model, GSLoraConfig(r=2))
        check_class_head(adapted)
        assert head_size(adapted) == 2


def test_the_automatic_classes_of_transformers_say_the_same():
    """Every class that transformers loads as a classifier is one here (timm's wrapper too), and no other is."""
    tables = {name: table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")}
    of_samples = ("IMAGE", "SEQUENCE", "VIDEO", "AUDIO", "TIME_SERIES")
    taken = {f"MODEL_FOR_{kind}_CLASSIFICATION_MAPPING_NAMES" for kind in of_samples}
    classifiers, others = set(), set()
    for table, names in tables.items():
        for found in names.values():
            (classifiers if table in taken else others).update([found] if isinstance(found, str) else found)
    for names in (classifiers, others):
        names -= {name for name in names if name.startswith("FaceTransformer")}  # ours, entered beside them
    assert "TimmWrapperForImageClassification" in classifiers
    others -= {name for name in others if "ObjectDetection" in name}
    for names, expected in ((classifiers, True), (others - classifiers, False)):
        for name in names:
            model = type(name, (nn.Module,), {"__module__": "transformers.models.any.modeling_any"})()
            assert accepted(model) == expected, name


def accepted(model: nn.Module) -> bool:
    try:
        check_class_head(model)
    except InvalidInputError:
        return False
    return True


@pytest.mark.parametrize("name", WITHOUT_A_HEAD)
def test_models_without_a_class_head_are_refused_with_what_to_use_in_their_place(name):
    """Their configurations say "2 classes" as every one does; training would fail, or mean something else."""
    model = of_transformers(name)
    with pytest.raises(InvalidInputError) as error:
        check_class_head(model, "base_model")
    assert (error.value.name, error.value.value) == ("base_model", name)
    assert WITHOUT_A_HEAD[name][1] in error.value.fix


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"num_labels": 1}, 1),
        ({"num_labels": 3, "problem_type": "regression"}, "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
    ],
)
def test_heads_that_do_not_choose_one_class_are_refused(settings, value):
    """Numbers and several labels at once have no probability of *the* class; the head alone looks like any other."""
    with pytest.raises(InvalidInputError) as error:
        check_class_head(ViTForImageClassification(ViTConfig(**TINY, **settings)))
    assert error.value.value == value


class OwnModel(PreTrainedModel):
    """A user's model, whose head is sized by an attribute of its own."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Linear(6, 8)
        self.head = nn.Linear(8, config.people)
        self.post_init()

    def forward(self, x):
        return self.head(self.embed(x))


class OnAViT(ViTModel):
    """A user's class below one that has no head."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, config.num_labels)


def test_models_of_ones_own_are_taken_whatever_they_call_their_number_of_classes():
    """The default `num_labels` of 2 must not make labels above 1 invalid."""
    for model, size in (
        (OwnModel(PreTrainedConfig(people=5)), None),
        (OwnModel(PreTrainedConfig(people=5, num_labels=5)), 5),
        (OwnModel(PreTrainedConfig(people=2)), 2),
        (OnAViT(ViTConfig(**TINY, num_labels=7)), 7),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), None),
        (PatchTSTForClassification(PatchTSTConfig(**SERIES, d_model=16, num_hidden_layers=1, num_targets=4)), None),
    ):
        check_class_head(model)
        assert head_size(model) == size


# What a forward gives

LOGITS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(3, 6, 8)
FORMS = {
    "a tensor": LOGITS,
    "a tuple": (LOGITS, HIDDEN),
    "a list": [LOGITS],
    "a tuple behind a loss": (torch.tensor(0.5), LOGITS),
    "a tuple behind no loss": (None, LOGITS),
    "a named tuple": namedtuple("Answer", ["hidden", "logits"])(HIDDEN, LOGITS),
    "a dict": {"hidden": HIDDEN, "logits": LOGITS},
    "a dict of one": {"scores": LOGITS},
    "a dict with another name": {"prediction_logits": LOGITS, "hidden": HIDDEN},
    "a ModelOutput": ImageClassifierOutput(logits=LOGITS, hidden_states=(HIDDEN,)),
    "an object": SimpleNamespace(logits=LOGITS, hidden=HIDDEN),
}


def answer(outputs, labels=(0, 3, 1)):
    """What the objective makes of a model's output."""

    class Fixed(nn.Module):
        def forward(self, x):
            return outputs

    batch = {"x": torch.ones(3), "labels": torch.tensor(labels)}
    return ClassificationObjective(1.0, "auto").evaluation_step(Fixed(), batch)[1]["logits"]


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_every_form_of_output(form):
    """Models outside of transformers give tensors, tuples and dicts; a row of a tensor is not the whole of it."""
    assert torch.equal(answer(FORMS[form]), LOGITS)


@pytest.mark.parametrize("shape", [(3, 7, 4), (3, 4, 5, 5), (3,), (3, 1), (2, 4), (6, 4)])
def test_logits_of_another_shape_are_named(shape):
    """Of tokens, of pixels, of one number, of another number of samples: a loss over them means something else."""
    with pytest.raises(InvalidInputError) as error:
        answer({"logits": torch.zeros(shape)})
    assert error.value.value == shape


@pytest.mark.parametrize("outputs", [{"a": LOGITS, "b": HIDDEN}, {}, None, (None,), "logits"])
def test_outputs_without_logits_are_named(outputs):
    """Which of several tensors is meant is not guessed."""
    with pytest.raises(InvalidInputError) as error:
        answer(outputs)
    assert error.value.name == "the model's output"


@pytest.mark.parametrize("labels", [(0, 4, 1), (0, -1, 1)])
def test_labels_outside_the_logits_are_named(labels):
    """A model of one's own does not say how many classes it has before it is asked."""
    with pytest.raises(InvalidInputError) as error:
        answer(LOGITS, labels)
    assert error.value.value == sorted(labels)
