"""Every detector that can forget, as a tiny model with random weights, and joint batches for it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
)

NUM_LABELS = 4  # as many as box coordinates: heads must not be told apart by their width
NUM_QUERIES = 6
IMAGE_SIZE = 64
STAGES = ["stage2", "stage3", "stage4"]

DETR = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": NUM_QUERIES,
    "num_labels": NUM_LABELS,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "auxiliary_loss": False,
}
RT_DETR = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 8, 8],
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": NUM_QUERIES,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_labels": NUM_LABELS,
    "num_denoising": 10,
    "auxiliary_loss": False,
}
SMALL = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "layer_type": "basic"}


def _resnet(stages: list[str]) -> ResNetConfig:
    return ResNetConfig(**SMALL, out_features=stages)


def _detr() -> nn.Module:
    return DetrForObjectDetection(DetrConfig(backbone_config=_resnet(["stage4"]), d_model=16, **DETR))


def _conditional_detr() -> nn.Module:
    config = ConditionalDetrConfig(backbone_config=_resnet(["stage4"]), d_model=16, **DETR)
    return ConditionalDetrForObjectDetection(config)


def _dab_detr() -> nn.Module:
    return DabDetrForObjectDetection(DabDetrConfig(backbone_config=_resnet(["stage4"]), hidden_size=16, **DETR))


def _deformable_detr(**options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = DeformableDetrConfig(
            backbone_config=_resnet(STAGES), d_model=32, num_feature_levels=3, **{**DETR, **options}
        )
        return DeformableDetrForObjectDetection(config)

    return build


def _rt_detr(config: type, model: type) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return model(config(backbone_config=RTDetrResNetConfig(**SMALL, out_features=STAGES), **RT_DETR))

    return build


def _d_fine() -> nn.Module:
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8] * 4,
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8] * 4,
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        embedding_size=8,
        out_features=STAGES,
    )
    return DFineForObjectDetection(DFineConfig(backbone_config=backbone, **RT_DETR))


def _yolos() -> nn.Module:
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=[IMAGE_SIZE, IMAGE_SIZE],
        patch_size=16,
        num_detection_tokens=NUM_QUERIES,
        num_labels=NUM_LABELS,
        use_mid_position_embeddings=False,
    )
    return YolosForObjectDetection(config)


TWO_STAGE = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": NUM_QUERIES}
DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "detr": _detr,
    "conditional_detr": _conditional_detr,
    "deformable_detr": _deformable_detr(),
    "deformable_detr_box_refine": _deformable_detr(with_box_refine=True),
    "deformable_detr_two_stage": _deformable_detr(**TWO_STAGE),
    "dab_detr": _dab_detr,
    "rt_detr": _rt_detr(RTDetrConfig, RTDetrForObjectDetection),
    "rt_detr_v2": _rt_detr(RTDetrV2Config, RTDetrV2ForObjectDetection),
    "d_fine": _d_fine,
    "yolos": _yolos,
}
# Heads tied to each other but to no input embedding: stock `get_peft_model` raises NotImplementedError.
TIED = {
    "deformable_detr",
    "deformable_detr_box_refine",
    "deformable_detr_two_stage",
    "dab_detr",
    "rt_detr_v2",
    "d_fine",
}


def detector(name: str) -> nn.Module:
    """The same weights at every call, in eval mode."""
    torch.manual_seed(0)
    return DETECTORS[name]().eval()


def label(kinds: Sequence[int], forget: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Annotations of one image: categories, boxes somewhere inside it, and which of them are to be forgotten."""
    centres = 0.3 + 0.4 * torch.rand(len(kinds), 2, generator=generator)
    sizes = 0.1 + 0.4 * torch.rand(len(kinds), 2, generator=generator)
    ids = torch.tensor(kinds, dtype=torch.int64)
    return {
        "class_labels": ids,
        "boxes": torch.cat([centres, sizes], 1),
        "forget": torch.isin(ids, torch.tensor(forget)),
    }


def joint_batch(kinds: Sequence[Sequence[int]], forget: Sequence[int] = (3,), seed: int = 0) -> dict:
    """A joint batch of images with the given categories: the first half to keep, the second to forget."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(len(kinds), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "labels": [label(ids, forget, generator) for ids in kinds],
    }


# The first two images to keep, the last two to forget; all but the first hold both kinds.
MIXED = ([0, 1, 1], [2, 3], [3, 0, 3], [3, 1, 2])
