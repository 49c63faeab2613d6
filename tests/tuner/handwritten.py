"""Vision Transformers as people write them by hand, each in the module names of a code base one meets."""

from collections import OrderedDict

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Attention(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)


class Mlp(nn.Module):
    def __init__(self, d: int, h: int):
        super().__init__()
        self.fc1 = nn.Linear(d, h)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(h, d)


class GatedMlp(nn.Module):
    def __init__(self, d: int, h: int, packed: bool = False):
        super().__init__()
        if packed:
            self.w12 = nn.Linear(d, 2 * h)
        else:
            self.gate = nn.Linear(d, h)
            self.up = nn.Linear(d, h)
        self.down = nn.Linear(h, d)


class Conv1DMlp(nn.Module):
    def __init__(self, d: int, h: int):
        super().__init__()
        self.c_fc = Conv1D(h, d)
        self.c_proj = Conv1D(d, h)


class Block(nn.Module):
    """timm's block."""

    def __init__(self, d: int, mlp: nn.Module):
        super().__init__()
        self.norm1 = nn.LayerNorm(d)
        self.attn = Attention(d)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = mlp


class Classifier(nn.Module):
    """timm's ViT: `blocks.N`, and a head with hidden layers that must not be taken for a feed-forward."""

    def __init__(self, blocks: list[nn.Module], d: int):
        super().__init__()
        self.patch_embed = nn.Linear(48, d)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d), nn.Linear(d, 10))


def timm_vit(depth: int = 2, d: int = 8, h: int = 32, kind: str = "mlp") -> nn.Module:
    mlps = {
        "mlp": lambda: Mlp(d, h),
        "gated": lambda: GatedMlp(d, h),
        "packed": lambda: GatedMlp(d, h, packed=True),
        "conv1d": lambda: Conv1DMlp(d, h),
    }
    return Classifier([Block(d, mlps[kind]()) for _ in range(depth)], d)


class SwinStage(nn.Module):
    def __init__(self, d: int, depth: int, downsample: bool):
        super().__init__()
        if downsample:
            self.downsample = nn.Module()
            self.downsample.reduction = nn.Linear(2 * d, d)
        self.blocks = nn.Sequential(*[Block(d, Mlp(d, 4 * d)) for _ in range(depth)])
        for block in self.blocks:  # Swin V2's relative position MLP: d → h → d if there are d heads
            block.attn.cpb_mlp = nn.Sequential(nn.Linear(d, 512), nn.ReLU(), nn.Linear(512, d))


class TimmWrapper(nn.Module):
    """transformers' TimmWrapper around timm's Swin."""

    def __init__(self, d: int = 8, depths: tuple[int, ...] = (2, 1)):
        super().__init__()
        self.timm_model = nn.Module()
        self.timm_model.layers = nn.Sequential(
            *[SwinStage(d * 2**stage, depth, stage > 0) for stage, depth in enumerate(depths)]
        )
        self.timm_model.head = nn.Linear(d * 2 ** len(depths), 10)


class MLPBlock(nn.Sequential):
    def __init__(self, d: int, h: int):
        super().__init__(nn.Linear(d, h), nn.GELU(), nn.Dropout(), nn.Linear(h, d), nn.Dropout())


class EncoderBlock(nn.Module):
    def __init__(self, d: int, h: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.self_attention = nn.MultiheadAttention(d, 2)
        self.ln_2 = nn.LayerNorm(d)
        self.mlp = MLPBlock(d, h)


class TorchvisionViT(nn.Module):
    def __init__(self, depth: int = 2, d: int = 8, h: int = 32):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, d, 4)
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{i}", EncoderBlock(d, h)) for i in range(depth))
        )
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(d, 10)))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn


class PreNorm(nn.Module):
    def __init__(self, d: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.fn = fn


class LucidrainsAttention(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.to_qkv = nn.Linear(d, 3 * d, bias=False)
        self.to_out = nn.Sequential(nn.Linear(d, d), nn.Dropout())


LucidrainsAttention.__name__ = "Attention"


class FeedForward(nn.Module):
    def __init__(self, d: int, h: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Dropout(), nn.Linear(h, d), nn.Dropout())


class LucidrainsViT(nn.Module):
    """`transformer.layers.N` = [attention, feed-forward], bare, in PreNorm, or in Residual(PreNorm) (face models)."""

    def __init__(self, depth: int = 2, d: int = 8, h: int = 32, wrap: str = "residual"):
        super().__init__()
        wrappers = {
            "": lambda module: module,
            "prenorm": lambda module: PreNorm(d, module),
            "residual": lambda module: Residual(PreNorm(d, module)),
        }
        layers = [[LucidrainsAttention(d), FeedForward(d, h)] for _ in range(depth)]
        self.patch_to_embedding = nn.Linear(48, d)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(nn.ModuleList(map(wrappers[wrap], pair)) for pair in layers)
        self.mlp_head = nn.Sequential(nn.LayerNorm(d))
        self.loss = nn.Module()  # CosFace: one matrix, no Linear
        self.loss.weight = nn.Parameter(torch.zeros(10, d))


class A(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(d, d) for _ in range(4))


class B(nn.Module):
    """A block in which nothing is called what it is; attention shows by its projections."""

    def __init__(self, d: int, h: int):
        super().__init__()
        self.a = A(d)
        self.b = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d))


class FlatBlock(nn.Module):
    """Everything is a Linear of the block itself; with h = d all shapes are the same."""

    def __init__(self, d: int, h: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.fc1 = nn.Linear(d, h)
        self.fc2 = nn.Linear(h, d)


class Attributes(nn.Module):
    """Blocks that are attributes, not elements of a list."""

    def __init__(self, d: int = 8, h: int = 32):
        super().__init__()
        self.block1 = Block(d, Mlp(d, h))
        self.block2 = Block(d, Mlp(d, h))
        self.head = nn.Linear(d, 10)


def stack(*blocks: nn.Module) -> nn.Module:
    """A model with a `layers` list."""
    model = nn.Module()
    model.layers = nn.ModuleList(blocks)
    return model
