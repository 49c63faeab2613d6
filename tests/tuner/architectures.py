"""Architectures to search for blocks in, and what is in them, as one reads it in their source.

An expectation maps a block path, numbers written as N, to how many such blocks there are and the names of the
feed-forward Linears in each.
"""

from collections.abc import Callable

import torch
import transformers
from torch import nn

Expectation = dict[str, tuple[int, str]]

FC = "fc1 fc2"
MLP = "mlp.fc1 mlp.fc2"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
BERT = "intermediate.dense output.dense"
WAV2VEC = "feed_forward.intermediate_dense feed_forward.output_dense"
CONFORMER = "ffn1.intermediate_dense ffn1.output_dense ffn2.intermediate_dense ffn2.output_dense"
T5 = "layer.N.DenseReluDense.wi layer.N.DenseReluDense.wo"
NEOX = "mlp.dense_h_to_4h mlp.dense_4h_to_h"


def from_config(model: str, config: str, **settings) -> Callable[[], nn.Module]:
    """A builder of a transformers model from its default config, without memory for its weights."""

    def build() -> nn.Module:
        values = {name: value() if callable(value) else value for name, value in settings.items()}
        with torch.device("meta"):
            return getattr(transformers, model)(getattr(transformers, config)(**values))

    return build


def auto_model(model_type: str) -> Callable[[], nn.Module]:
    """A builder of the bare model of a type from its default config, without memory for its weights."""

    def build() -> nn.Module:
        with torch.device("meta"):
            return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type))

    return build


def detr(name: str, stages: tuple[str, ...] = ("stage4",), **settings) -> Callable[[], nn.Module]:
    """A detection model with a small ResNet of transformers' own, so that timm is not needed."""

    def resnet():
        return transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=list(stages)
        )

    settings = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, **settings}
    return from_config(f"{name}ForObjectDetection", f"{name}Config", backbone_config=resnet, **settings)


# Models with their heads, so that whatever must not be matched is there.
VISION: dict[str, tuple[Callable[[], nn.Module], Expectation]] = {
    "vit": (from_config("ViTForImageClassification", "ViTConfig"), {"vit.layers.N": (12, MLP)}),
    "vit, one layer": (
        from_config("ViTForImageClassification", "ViTConfig", num_hidden_layers=1),
        {"vit.layers.N": (1, MLP)},
    ),
    "vit, h = d": (
        from_config("ViTForImageClassification", "ViTConfig", intermediate_size=768),
        {"vit.layers.N": (12, MLP)},
    ),
    "deit": (from_config("DeiTForImageClassification", "DeiTConfig"), {"deit.layers.N": (12, MLP)}),
    "beit": (
        from_config("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
        {"beit.layers.N": (12, MLP)},
    ),
    "vit-msn": (from_config("ViTMSNForImageClassification", "ViTMSNConfig"), {"vit.layers.N": (12, MLP)}),
    "ijepa": (from_config("IJepaForImageClassification", "IJepaConfig"), {"ijepa.layers.N": (12, MLP)}),
    "vit-mae": (
        from_config("ViTMAEForPreTraining", "ViTMAEConfig"),
        {"vit.layers.N": (12, MLP), "decoder.decoder_layers.N": (8, MLP)},
    ),
    "data2vec-vision": (
        from_config("Data2VecVisionForImageClassification", "Data2VecVisionConfig"),
        {"data2vec_vision.encoder.layer.N": (12, BERT)},
    ),
    "videomae": (
        from_config("VideoMAEForVideoClassification", "VideoMAEConfig"),
        {"videomae.encoder.layer.N": (12, BERT)},
    ),
    "swin": (
        from_config("SwinForImageClassification", "SwinConfig"),
        {"swin.encoder.layers.N.blocks.N": (12, MLP)},
    ),
    "swinv2": (
        from_config("Swinv2ForImageClassification", "Swinv2Config"),
        {"swinv2.encoder.layers.N.blocks.N": (12, BERT)},
    ),
    "dinov2": (from_config("Dinov2ForImageClassification", "Dinov2Config"), {"dinov2.encoder.layer.N": (12, MLP)}),
    "dinov2 with registers": (
        from_config("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
        {"encoder.layer.N": (12, MLP)},
    ),
    "dinov3": (
        from_config("DINOv3ViTModel", "DINOv3ViTConfig"),
        {"model.layer.N": (12, "mlp.up_proj mlp.down_proj")},
    ),
    "dinov3, gated": (
        from_config("DINOv3ViTModel", "DINOv3ViTConfig", use_gated_mlp=True),
        {"model.layer.N": (12, GATED)},
    ),
    "clip": (
        from_config("CLIPModel", "CLIPConfig"),
        {"text_model.encoder.layers.N": (12, MLP), "vision_model.encoder.layers.N": (12, MLP)},
    ),
    "siglip": (  # its pooling head has attention and an MLP, too
        from_config("SiglipModel", "SiglipConfig"),
        {"text_model.encoder.layers.N": (12, MLP), "vision_model.encoder.layers.N": (12, MLP)},
    ),
    "siglip2": (
        from_config("Siglip2Model", "Siglip2Config"),
        {"text_model.encoder.layers.N": (12, MLP), "vision_model.encoder.layers.N": (12, MLP)},
    ),
    "owl-vit": (
        from_config("OwlViTForObjectDetection", "OwlViTConfig"),
        {"owlvit.text_model.encoder.layers.N": (12, MLP), "owlvit.vision_model.encoder.layers.N": (12, MLP)},
    ),
    "pvt": (
        from_config("PvtForImageClassification", "PvtConfig"),
        {"pvt.encoder.block.N.N": (8, "mlp.dense1 mlp.dense2")},
    ),
    "pvt-v2": (
        from_config("PvtV2ForImageClassification", "PvtV2Config"),
        {"pvt_v2.encoder.layers.N.blocks.N": (8, "mlp.dense1 mlp.dense2")},
    ),
    "segformer": (
        from_config("SegformerForSemanticSegmentation", "SegformerConfig"),
        {"segformer.stages.N.blocks.N": (8, MLP)},
    ),
    "levit": (
        from_config("LevitForImageClassification", "LevitConfig"),
        {"levit.encoder.stages.N.layers.N": (14, "module.linear_up.linear module.linear_down.linear")},
    ),
    "mobilevit": (
        from_config("MobileViTForImageClassification", "MobileViTConfig"),
        {"mobilevit.encoder.layer.N.transformer.layer.N": (9, BERT)},
    ),
    "cvt": (from_config("CvtForImageClassification", "CvtConfig"), {"cvt.encoder.stages.N.layers.N": (13, BERT)}),
    "hiera": (
        from_config("HieraForImageClassification", "HieraConfig"),
        {"hiera.encoder.stages.N.layers.N": (24, MLP)},
    ),
}

DETECTION: dict[str, tuple[Callable[[], nn.Module], Expectation]] = {
    "yolos": (from_config("YolosForObjectDetection", "YolosConfig"), {"vit.encoder.layer.N": (12, BERT)}),
    "detr": (detr("Detr"), {"model.encoder.layers.N": (6, MLP), "model.decoder.layers.N": (6, MLP)}),
    "conditional detr": (
        detr("ConditionalDetr"),
        {"model.encoder.layers.N": (6, MLP), "model.decoder.layers.N": (6, MLP)},
    ),
    "deformable detr": (
        detr("DeformableDetr", ("stage2", "stage3", "stage4"), with_box_refine=True, two_stage=True),
        {"model.encoder.layers.N": (6, MLP), "model.decoder.layers.N": (6, MLP)},
    ),
    "dab-detr": (detr("DabDetr"), {"model.encoder.layers.N": (6, FC), "model.decoder.layers.N": (6, MLP)}),
    "rt-detr": (
        from_config("RTDetrForObjectDetection", "RTDetrConfig"),
        {"model.encoder.aifi.N.layers.N": (1, MLP), "model.decoder.layers.N": (6, MLP)},
    ),
    "rt-detr v2": (
        from_config("RTDetrV2ForObjectDetection", "RTDetrV2Config"),
        {"model.encoder.aifi.N.layers.N": (1, MLP), "model.decoder.layers.N": (6, MLP)},
    ),
    "d-fine": (
        from_config("DFineForObjectDetection", "DFineConfig"),
        {
            "model.encoder.aifi.N.layers.N": (1, "mlp.layers.N mlp.layers.N"),
            "model.decoder.layers.N": (6, "mlp.layers.N mlp.layers.N"),
        },
    ),
    "mask2former": (
        from_config("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig"),
        {
            "model.pixel_level_module.encoder.swin.encoder.layers.N.blocks.N": (24, MLP),
            "model.pixel_level_module.decoder.encoder.layers.N": (6, FC),
            "model.transformer_module.decoder.layers.N": (9, FC),
        },
    ),
    "maskformer": (
        from_config("MaskFormerForInstanceSegmentation", "MaskFormerConfig"),
        {
            "model.pixel_level_module.encoder.model.encoder.layers.N.blocks.N": (24, BERT),
            "model.transformer_module.decoder.layers.N": (6, MLP),
        },
    ),
    "oneformer": (
        from_config("OneFormerForUniversalSegmentation", "OneFormerConfig"),
        {
            "model.pixel_level_module.encoder.swin.encoder.layers.N.blocks.N": (12, MLP),
            "model.pixel_level_module.decoder.encoder.layers.N": (6, FC),
            "model.transformer_module.decoder.query_transformer.decoder.layers.N": (2, "linear1 linear2"),
            "model.transformer_module.decoder.layers.N": (9, "ffn.linear1 ffn.linear2"),
        },
    ),
    "sam": (
        from_config("SamModel", "SamConfig"),
        {
            "vision_encoder.layers.N": (12, "mlp.lin1 mlp.lin2"),
            "mask_decoder.transformer.layers.N": (2, "mlp.lin1 mlp.lin2"),
        },
    ),
    "grounding dino": (
        from_config("GroundingDinoForObjectDetection", "GroundingDinoConfig"),
        {
            "model.backbone.conv_encoder.model.swin.encoder.layers.N.blocks.N": (12, MLP),
            "model.text_backbone.encoder.layer.N": (12, BERT),
            "model.encoder.layers.N": (
                6,
                "text_enhancer_layer.fc1 text_enhancer_layer.fc2 deformable_layer.fc1 deformable_layer.fc2",
            ),
            "model.decoder.layers.N": (6, FC),
        },
    ),
}

TEXT: dict[str, tuple[Callable[[], nn.Module], Expectation]] = {
    "funnel": (
        from_config("FunnelModel", "FunnelConfig"),
        {
            "encoder.blocks.N.N": (12, "ffn.linear_1 ffn.linear_2"),
            "decoder.layers.N": (2, "ffn.linear_1 ffn.linear_2"),
        },
    ),
    "bert": (from_config("BertForSequenceClassification", "BertConfig"), {"bert.encoder.layer.N": (12, BERT)}),
    "bert, h = d": (from_config("BertModel", "BertConfig", intermediate_size=768), {"encoder.layer.N": (12, BERT)}),
    "roberta": (from_config("RobertaForMaskedLM", "RobertaConfig"), {"roberta.encoder.layer.N": (12, BERT)}),
    "distilbert": (
        from_config("DistilBertForSequenceClassification", "DistilBertConfig"),
        {"distilbert.transformer.layer.N": (6, "ffn.lin1 ffn.lin2")},
    ),
    "gpt2": (from_config("GPT2LMHeadModel", "GPT2Config"), {"transformer.h.N": (12, "mlp.c_fc mlp.c_proj")}),
    "llama": (from_config("LlamaForCausalLM", "LlamaConfig"), {"model.layers.N": (32, GATED)}),
    "qwen3": (from_config("Qwen3ForCausalLM", "Qwen3Config"), {"model.layers.N": (32, GATED)}),
    "mistral": (from_config("MistralForCausalLM", "MistralConfig"), {"model.layers.N": (32, GATED)}),
    "phi3": (from_config("Phi3ForCausalLM", "Phi3Config"), {"model.layers.N": (32, "mlp.gate_up_proj mlp.down_proj")}),
    "t5": (
        from_config("T5ForConditionalGeneration", "T5Config"),
        {"encoder.block.N": (6, T5), "decoder.block.N": (6, T5)},
    ),
    "t5, gated": (
        from_config("T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", num_layers=1),
        {
            f"{stack}.block.N": (1, " ".join(f"layer.N.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")))
            for stack in ("encoder", "decoder")
        },
    ),
    "whisper": (
        from_config("WhisperForConditionalGeneration", "WhisperConfig"),
        {"model.encoder.layers.N": (4, FC), "model.decoder.layers.N": (4, FC)},
    ),
    "modernbert": (
        from_config("ModernBertForMaskedLM", "ModernBertConfig"),
        {"model.layers.N": (22, "mlp.Wi mlp.Wo")},
    ),
}

# The bare models of further types. What is odd about them is why they are here.
OTHERS: dict[str, Expectation] = {
    "albert": {"encoder.albert_layer_groups.N.albert_layers.N": (1, "ffn ffn_output")},  # one layer, used 12 times
    "audio-spectrogram-transformer": {"layers.N": (12, MLP)},
    "bart": {"encoder.layers.N": (12, FC), "decoder.layers.N": (12, FC)},
    "blip-2": {
        "vision_model.encoder.layers.N": (39, MLP),
        "qformer.encoder.layer.N": (12, "intermediate_query.dense output_query.dense"),
        "language_model.model.decoder.layers.N": (12, FC),
    },
    "bloom": {"h.N": (2, NEOX)},
    "clap": {"text_model.encoder.layer.N": (12, BERT), "audio_model.audio_encoder.layers.N.blocks.N": (12, BERT)},
    "codegen": {"h.N": (28, "mlp.fc_in mlp.fc_out")},
    "convbert": {"encoder.layer.N": (12, BERT)},
    "ctrl": {"h.N": (48, "ffn.N ffn.N")},  # a bare Sequential
    "data2vec-audio": {"encoder.layers.N": (12, WAV2VEC)},
    "deberta-v2": {"encoder.layer.N": (24, BERT)},
    "decision_transformer": {"encoder.h.N": (3, "mlp.c_fc mlp.c_proj")},
    "dpt": {"encoder.layer.N": (12, BERT)},
    "electra": {"encoder.layer.N": (12, BERT)},
    "falcon_h1": {"layers.N": (32, "feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj")},
    "flava": {
        f"{name}_model.encoder.layer.N": (n, BERT) for name, n in (("text", 12), ("image", 12), ("multimodal", 6))
    },
    "focalnet": {"encoder.stages.N.layers.N": (12, MLP)},  # mixes tokens by modulation
    "glpn": {"encoder.block.N.N": (8, "mlp.dense1 mlp.dense2")},
    "gpt_neox": {"layers.N": (44, NEOX)},
    "groupvit": {"text_model.encoder.layers.N": (12, MLP), "vision_model.encoder.stages.N.layers.N": (12, MLP)},
    "hubert": {"encoder.layers.N": (12, WAV2VEC)},
    "imagegpt": {"h.N": (24, "mlp.c_fc mlp.c_proj")},
    "lightglue": {"transformer_layers.N": (9, "self_mlp.fc1 self_mlp.fc2 cross_mlp.fc1 cross_mlp.fc2")},  # 2d → 2d → d
    "longt5": {"encoder.block.N": (6, T5), "decoder.block.N": (6, T5)},
    "luke": {"encoder.layer.N": (12, BERT)},
    "lxmert": {
        "encoder.layer.N": (9, BERT),
        "encoder.x_layers.N": (5, "lang_inter.dense lang_output.dense visn_inter.dense visn_output.dense"),
        "encoder.r_layers.N": (5, BERT),
    },
    "mobilebert": {  # four feed-forwards a layer, beside bottlenecks of the same shape
        "encoder.layer.N": (24, f"{BERT} " + " ".join(["ffn.N.intermediate.dense ffn.N.output.dense"] * 3))
    },
    "mpnet": {"encoder.layer.N": (12, BERT)},
    "mpt": {"blocks.N": (24, "ffn.up_proj ffn.down_proj")},
    "opt": {"decoder.layers.N": (12, FC)},
    "patchtst": {"encoder.layers.N": (3, "ff.N ff.N")},
    "perceiver": {"encoder.self_attends.N": (26, "mlp.dense1 mlp.dense2")},
    "prophetnet": {
        f"{s}.layers.N": (12, "feed_forward.intermediate feed_forward.output") for s in ("encoder", "decoder")
    },
    "recurrent_gemma": {"layers.N": (26, "mlp_block.gate_proj mlp_block.up_proj mlp_block.down_proj")},
    "reformer": {"encoder.layers.N": (6, "feed_forward.dense.dense feed_forward.output.dense")},
    "rwkv": {"blocks.N": (32, "feed_forward.key feed_forward.value")},  # a feed-forward with a `key`
    "sam2": {
        "vision_encoder.backbone.blocks.N": (12, "mlp.proj_in mlp.proj_out"),
        "mask_decoder.transformer.layers.N": (2, "mlp.proj_in mlp.proj_out"),
    },
    "speecht5": {"encoder.wrapped_encoder.layers.N": (12, WAV2VEC), "decoder.wrapped_decoder.layers.N": (6, WAV2VEC)},
    "swin2sr": {"encoder.stages.N.layers.N": (36, BERT)},
    "timesformer": {"encoder.layer.N": (12, BERT)},
    "vilt": {"encoder.layer.N": (12, BERT)},
    "vitdet": {"encoder.layer.N": (12, MLP)},
    "wav2vec2": {"encoder.layers.N": (12, WAV2VEC)},
    "wav2vec2-conformer": {"encoder.layers.N": (12, CONFORMER)},
    "xclip": {
        "text_model.encoder.layers.N": (12, MLP),
        "vision_model.encoder.layers.N": (12, MLP),
        "mit.encoder.layers.N": (1, MLP),
        "prompts_generator.decoder.N": (2, "mlp.N mlp.N"),
    },
    "xglm": {"layers.N": (24, FC)},
    "xlm": {"ffns.N": (12, "lin1 lin2")},  # all attentions in one list, all feed-forwards in another
    "xlnet": {"layer.N": (24, "ff.layer_1 ff.layer_2")},  # attention is bare parameters
}
