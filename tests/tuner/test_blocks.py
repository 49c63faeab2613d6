"""Finding blocks and feed-forward Linears by structure."""

import re
import sys
import warnings

import pytest
import torch
import transformers
from architectures import DETECTION, OTHERS, TEXT, VISION, auto_model, detr, from_config
from errors import refused
from handwritten import (
    Attention,
    Attributes,
    B,
    Block,
    Classifier,
    FeedForward,
    FlatBlock,
    LucidrainsAttention,
    LucidrainsViT,
    Mlp,
    TimmWrapper,
    TorchvisionViT,
    stack,
    timm_vit,
)
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.tuner.blocks import NoFFNFoundError, find_attention_blocks, find_blocks_of, find_ffn_blocks


def counted(blocks: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """Blocks in the form of `architectures.Expectation`."""

    def numberless(path: str) -> str:
        return re.sub(r"(?<![^.])\d+(?![^.])", "N", path)

    found: dict[str, tuple[int, str]] = {}
    for block, linears in blocks.items():
        assert all(linear.startswith(f"{block}.") for linear in linears)
        names = numberless(" ".join(linears).replace(f"{block}.", "").replace(" ", ".|.")).replace(".|.", " ")
        key = numberless(block)
        assert found.get(key, (0, names))[1] == names, f"blocks {key} differ"
        found[key] = (found.get(key, (0,))[0] + 1, names)
    return found


@pytest.mark.parametrize("name", [*VISION, *DETECTION, *TEXT])
def test_architecture(name):
    build, expected = {**VISION, **DETECTION, **TEXT}[name]
    model = build()
    blocks = find_ffn_blocks(model)
    assert counted(blocks) == expected
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    flat = [path for linears in blocks.values() for path in linears]
    assert flat == sorted(flat, key=order.__getitem__)
    assert find_blocks_of(model, flat) == {path: block for block, linears in blocks.items() for path in linears}


@pytest.mark.parametrize("model_type", OTHERS)
def test_further_architecture(model_type):
    assert counted(find_ffn_blocks(auto_model(model_type)())) == OTHERS[model_type]


def test_dinov2_gated():
    blocks = counted(find_ffn_blocks(from_config("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True)()))
    # Packed up to some release of transformers, separate since.
    names = ("mlp.weights_in mlp.weights_out", "mlp.gate_proj mlp.up_proj mlp.down_proj")
    assert blocks in [{"encoder.layer.N": (12, name)} for name in names]


# timm needs torchvision, which has no build for every platform: these carry timm's and torchvision's module names.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (timm_vit(), {"blocks.N": (2, "mlp.fc1 mlp.fc2")}),
        (timm_vit(depth=1), {"blocks.N": (1, "mlp.fc1 mlp.fc2")}),
        (timm_vit(h=8), {"blocks.N": (2, "mlp.fc1 mlp.fc2")}),
        (timm_vit(kind="gated"), {"blocks.N": (2, "mlp.gate mlp.up mlp.down")}),
        (timm_vit(kind="gated", h=8), {"blocks.N": (2, "mlp.gate mlp.up mlp.down")}),
        (timm_vit(kind="packed"), {"blocks.N": (2, "mlp.w12 mlp.down")}),
        (timm_vit(kind="packed", h=8), {"blocks.N": (2, "mlp.w12 mlp.down")}),
        (timm_vit(kind="conv1d"), {"blocks.N": (2, "mlp.c_fc mlp.c_proj")}),
        (timm_vit(kind="conv1d", h=8), {"blocks.N": (2, "mlp.c_fc mlp.c_proj")}),
        (TimmWrapper(), {"timm_model.layers.N.blocks.N": (3, "mlp.fc1 mlp.fc2")}),
        (LucidrainsViT(), {"transformer.layers.N": (2, "N.fn.fn.net.N N.fn.fn.net.N")}),
        (LucidrainsViT(wrap="prenorm"), {"transformer.layers.N": (2, "N.fn.net.N N.fn.net.N")}),
        (LucidrainsViT(wrap=""), {"transformer.layers.N": (2, "N.net.N N.net.N")}),
        (LucidrainsViT(wrap="", depth=1, h=8), {"transformer.layers.N": (1, "N.net.N N.net.N")}),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32), 3), {"layers.N": (3, "linear1 linear2")}),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1), {"layers.N": (1, "linear1 linear2")}),
        (nn.Transformer(8, 2, 1, 1, 32), {f"{s}coder.layers.N": (1, "linear1 linear2") for s in ("en", "de")}),
        (stack(B(8, 32), B(8, 32)), {"layers.N": (2, "b.N b.N")}),
        (stack(FlatBlock(8, 32), FlatBlock(8, 8)), {"layers.N": (2, "fc1 fc2")}),
        (Attributes(), {"block1": (1, "mlp.fc1 mlp.fc2"), "block2": (1, "mlp.fc1 mlp.fc2")}),
        (nn.Sequential(Attributes(), nn.Linear(10, 2)), {f"N.block{i}": (1, "mlp.fc1 mlp.fc2") for i in (1, 2)}),
        (nn.Sequential(timm_vit(), nn.Linear(10, 2)), {"N.blocks.N": (2, "mlp.fc1 mlp.fc2")}),
        (stack(*[m for _ in range(2) for m in (Attention(8), Mlp(8, 32))]), {"layers.N": (2, "fc1 fc2")}),
        (stack(Attention(8), Mlp(8, 32)), {"layers.N": (1, "fc1 fc2")}),
    ],
)  # fmt: skip
def test_handwritten(model, expected):
    assert counted(find_ffn_blocks(model)) == expected


def test_face_layout():
    linears = find_ffn_blocks(LucidrainsViT(depth=6))["transformer.layers.5"]
    assert linears == ["transformer.layers.5.1.fn.fn.net.0", "transformer.layers.5.1.fn.fn.net.3"]


def test_torchvision_layout():
    blocks = find_ffn_blocks(TorchvisionViT())
    assert list(blocks) == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    for block, linears in blocks.items():
        assert linears == [f"{block}.mlp.0", f"{block}.mlp.3"]


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 4),
    d=st.sampled_from([2, 4, 8]),
    h=st.sampled_from([2, 4, 8, 16]),
    kind=st.sampled_from(["mlp", "gated", "packed", "conv1d", "lucidrains", "torch", "flat", "nameless"]),
    wrap=st.booleans(),
)
def test_depth_width_and_wrapping_do_not_matter(depth, d, h, kind, wrap):
    with torch.device("meta"):
        if kind == "lucidrains":
            model, count = LucidrainsViT(depth, d, h), 2
        elif kind == "torch":
            model, count = TorchvisionViT(depth, d, h), 2
        elif kind in ("flat", "nameless"):
            model, count = stack(*[(FlatBlock if kind == "flat" else B)(d, h) for _ in range(depth)]), 2
        else:
            model, count = timm_vit(depth, d, h, kind), 3 if kind == "gated" else 2
    blocks = find_ffn_blocks(model)
    assert [len(linears) for linears in blocks.values()] == [count] * depth
    assert not any(word in path for linears in blocks.values() for path in linears for word in ("att", "qkv", "head"))
    if wrap:
        outer = nn.Module()
        outer.backbone, outer.head = model, nn.Linear(d, d)
        prefixed = {f"backbone.{b}": [f"backbone.{path}" for path in linears] for b, linears in blocks.items()}
        assert find_ffn_blocks(outer) == prefixed


def test_what_only_looks_like_a_feed_forward_is_not_taken():
    class Decoy(Block):
        def __init__(self, d):
            super().__init__(d, Mlp(d, 4 * d))
            self.adapter = Mlp(d, 2)
            self.router = Mlp(d, 4)
            self.query_pos_head = Mlp(d, 2 * d)
            self.laurel_left, self.laurel_right = nn.Linear(d, 2), nn.Linear(2, d)
            self.norm1 = nn.Module()
            self.norm1.mlp = Mlp(d, 4 * d)
            self.attn.output_mlp = Mlp(d, 4 * d)
            self.attn.relative_position_bias = Mlp(d, 4 * d)

    model = Classifier([Decoy(8) for _ in range(2)], 8)
    model.bbox_embed = nn.ModuleList(Mlp(8, 8) for _ in range(2))
    model.pool = nn.Module()
    model.pool.attention, model.pool.mlp = nn.MultiheadAttention(8, 2), Mlp(8, 32)
    assert find_ffn_blocks(model) == {f"blocks.{i}": [f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.fc2"] for i in (0, 1)}


def test_experts_that_are_linears():
    class Moe(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 4)
            self.experts = nn.ModuleList(Mlp(8, 32) for _ in range(4))

    (linears,) = find_ffn_blocks(stack(Block(8, Moe()))).values()
    assert linears == [f"layers.0.mlp.experts.{i}.fc{j}" for i in range(4) for j in (1, 2)]


def test_mlp_head_on_layers_without_feed_forward_is_no_feed_forward():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attention(8)

    model = Classifier([Layer() for _ in range(2)], 8)
    for name in ("mlp_head", "head"):  # one by name, one by shape alone
        setattr(model, name, nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)))
        with refused("model", "Classifier", NoFFNFoundError) as error:
            find_ffn_blocks(model)
        assert "('blocks.0.attn', 'blocks.1.attn')" in error.value.expected
    assert list(find_attention_blocks(model)) == ["blocks.0", "blocks.1"]
    model.blocks = nn.ModuleList(Attention(8) for _ in range(2))
    with refused("model", "Classifier", NoFFNFoundError) as error:
        find_ffn_blocks(model)
    assert "('blocks.0', 'blocks.1')" in error.value.expected


def test_quantised_linears():
    class PackedLinear(nn.Module):  # torch's quantised Linear: the weight is a method
        def __init__(self, d_in, d_out):
            super().__init__()
            self.in_features, self.out_features = d_in, d_out

        def weight(self):
            raise AssertionError("need not be unpacked")

    class Linear4bit(nn.Linear):  # bitsandbytes: the weight is one packed column
        def __init__(self, d_in, d_out):
            super().__init__(d_in, d_out)
            self.weight = nn.Parameter(torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8), requires_grad=False)

    class GroupedLinear(nn.Linear):
        def __init__(self, d_in, d_out):
            super().__init__(d_in, d_out)
            self.weight = nn.Parameter(torch.zeros(2, d_out, d_in))

    for kind in (PackedLinear, Linear4bit, GroupedLinear):
        model = timm_vit(depth=1)
        model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2 = kind(8, 32), kind(32, 8)
        if kind is GroupedLinear:
            with refused("model", kind=NoFFNFoundError) as error:
                find_ffn_blocks(model)
            assert "3-D" in error.value.expected
        else:
            assert find_ffn_blocks(model) == {"blocks.0": ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (auto_model("mixtral"), "3-D parameters ('layers.0.mlp.experts', "),
        (auto_model("qwen3_moe"), "3-D parameters"),
        (auto_model("fnet"), "no attention"),
        (auto_model("mobilevitv2"), "convolutional ('encoder.layer.2.transformer.layer.0.ffn.conv1"),
        (auto_model("vits"), "convolutional"),
        (auto_model("resnet"), "no attention"),
        (auto_model("mamba"), "mixes tokens ('layers.0', "),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), "no attention"),
        (lambda: nn.MultiheadAttention(8, 2), ""),
    ],
)
def test_error_says_why_and_what_to_set(build, reason):
    model = build()
    with refused("model", type(model).__name__, NoFFNFoundError) as error:
        find_ffn_blocks(model)
    assert reason in error.value.expected
    assert 'target_modules=["fc1", "fc2"]' in error.value.fix
    names = (name for name, module in model.named_modules() if type(module) is nn.Linear)
    assert next(names, "") in error.value.fix


def test_partly_fused_experts_warn():
    with torch.device("meta"):
        config = transformers.Qwen2MoeConfig(num_hidden_layers=2)
        model = transformers.Qwen2MoeModel(config)
    with pytest.warns(UserWarning, match=r"layers\.0\.mlp\.experts"):
        blocks = find_ffn_blocks(model)
    assert counted(blocks) == {
        "layers.N": (2, " ".join(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")))
    }


def test_no_warning_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_ffn_blocks(timm_vit())


class TestPatterns:
    clip = staticmethod(from_config("CLIPModel", "CLIPConfig"))

    def test_are_searched_in_block_paths(self):
        model = self.clip()
        vision = [f"vision_model.encoder.layers.{i}" for i in range(12)]
        assert list(find_ffn_blocks(model, "vision_model")) == vision
        assert list(find_ffn_blocks(model, exclude_blocks="^text_model")) == vision
        assert list(find_ffn_blocks(model, r"vision.*\.(10|11)$")) == vision[10:]
        assert list(find_ffn_blocks(model, "vision", r"\.[0-9]$")) == vision[10:]
        assert list(find_attention_blocks(model, "vision", r"\.[0-9]$")) == vision[10:]

    @pytest.mark.parametrize("find", [find_ffn_blocks, find_attention_blocks])
    def test_that_leave_nothing(self, find):
        with refused("block_pattern", "audio") as error:
            find(self.clip(), "audio")
        assert "'text_model.encoder.layers.0', " in error.value.expected
        assert "(24 in all)" in error.value.expected
        with refused("exclude_blocks", "."):
            find(self.clip(), exclude_blocks=".")
        with refused("block_pattern", "text") as error:
            find(self.clip(), "text", "model")
        assert "'model'" in error.value.expected

    @pytest.mark.parametrize("find", [find_ffn_blocks, find_attention_blocks])
    def test_that_leave_nothing_out(self, find):
        """Blocks that were meant to be left alone would be adapted; the error lists those that there are."""
        with refused("exclude_blocks", "vison_model") as error:
            find(self.clip(), exclude_blocks="vison_model")
        assert "'text_model.encoder.layers.0', " in error.value.expected
        with refused("exclude_blocks", "vision_model") as error:
            find(self.clip(), "text_model", "vision_model")
        assert "block_pattern='text_model'" in error.value.expected
        with refused("block_pattern", "audio"):
            find(self.clip(), "audio", "vision_model")

    @pytest.mark.parametrize("name", ["block_pattern", "exclude_blocks"])
    def test_that_are_invalid(self, name):
        with refused(name, "layers.("):
            find_ffn_blocks(timm_vit(), **{name: "layers.("})


class TestWrappedByPeft:
    targets = r".*\.mlp\.fc[12]"

    def test_gives_the_paths_of_the_model_underneath(self):
        model = timm_vit()
        expected, attention = find_ffn_blocks(model), find_attention_blocks(model)
        wrapped = get_peft_model(model, LoraConfig(target_modules=self.targets, modules_to_save=["head"]))
        wrapped.add_adapter("second", LoraConfig(target_modules=r".*\.(qkv|fc1)"))
        for view in (model, wrapped, wrapped.base_model, wrapped.get_base_model()):
            assert find_ffn_blocks(view) == expected
            assert find_attention_blocks(view) == attention
            for linears in expected.values():
                assert all(view.get_submodule(path).in_features in (8, 32) for path in linears)

    def test_injected_into_part_of_a_model(self):
        model = nn.Sequential(timm_vit(), nn.Linear(10, 2))
        expected = find_ffn_blocks(model)
        model[0] = inject_adapter_in_model(LoraConfig(target_modules=self.targets), model[0])
        assert find_ffn_blocks(model) == expected

    def test_conv1d_and_multihead_attention(self):
        for model, targets in ((timm_vit(kind="conv1d"), ["c_fc", "c_proj"]), (TorchvisionViT(), ["self_attention"])):
            expected = find_ffn_blocks(model)
            assert find_ffn_blocks(get_peft_model(model, LoraConfig(target_modules=targets))) == expected

    def test_blocks_of(self):
        model = get_peft_model(timm_vit(), LoraConfig(target_modules=self.targets))
        assert find_blocks_of(model, ["blocks.1.mlp.fc2", "head.0"]) == {
            "blocks.1.mlp.fc2": "blocks.1",
            "head.0": "head.0",
        }


PERCEIVER = "attention.self.query attention.self.key attention.self.value attention.output.dense"


class TestAttention:
    def test_projections_of_the_same_blocks(self):
        linears = find_attention_blocks(auto_model("bert")())["encoder.layer.3"]
        expected = ["self.query", "self.key", "self.value", "output.dense"]
        assert linears == [f"encoder.layer.3.attention.{name}" for name in expected]
        for model in (
            timm_vit(),
            from_config("SiglipModel", "SiglipConfig")(),
            LucidrainsViT(),
            stack(FlatBlock(8, 8)),
        ):
            assert list(find_attention_blocks(model)) == list(find_ffn_blocks(model))

    @pytest.mark.parametrize(
        ("build", "expected"),
        [
            (timm_vit, {"blocks.N": (2, "attn.qkv attn.proj")}),
            (TimmWrapper, {"timm_model.layers.N.blocks.N": (3, "attn.qkv attn.proj")}),  # without `cpb_mlp`
            (LucidrainsViT, {"transformer.layers.N": (2, "N.fn.fn.to_qkv N.fn.fn.to_out.N")}),
            (lambda: stack(FlatBlock(8, 8)), {"layers.N": (1, "q_proj k_proj v_proj out_proj")}),
            (lambda: stack(B(8, 8)), {"layers.N": (1, "a.to_q a.to_k a.to_v a.to_out")}),
            (auto_model("vit"), {"layers.N": (12, " ".join(f"attention.{n}_proj" for n in "qkvo"))}),
            (auto_model("gpt2"), {"h.N": (12, "attn.c_attn attn.c_proj")}),
            (auto_model("mixtral"), {"layers.N": (32, " ".join(f"self_attn.{n}_proj" for n in "qkvo"))}),
            (auto_model("xlm"), {"attentions.N": (12, "q_lin k_lin v_lin out_lin")}),
            (auto_model("perceiver"), {"encoder.self_attends.N": (26, PERCEIVER)}),
        ],
    )  # fmt: skip
    def test_projections(self, build, expected):
        assert counted(find_attention_blocks(build())) == expected

    def test_as_list_elements_are_blocks_of_their_own(self):
        model = from_config("LevitModel", "LevitConfig")()
        attention, ffn = find_attention_blocks(model), find_ffn_blocks(model)
        assert len(attention) == len(ffn) == 14
        assert not set(attention) & set(ffn)
        flat = [path for linears in attention.values() for path in linears]
        assert find_blocks_of(model, flat) == {path: block for block, linears in attention.items() for path in linears}

    def test_deformable_offsets_are_no_projections(self):
        model = detr("DeformableDetr", ("stage2", "stage3", "stage4"))()
        linears = find_attention_blocks(model)["model.encoder.layers.0"]
        assert [path.rpartition(".")[2] for path in linears] == ["value_proj", "output_proj"]

    def test_multihead_attention_is_refused(self):
        with pytest.raises(InvalidInputError) as error:
            find_attention_blocks(TorchvisionViT())
        assert error.value.name.endswith("encoder_layer_0.self_attention")
        assert "'ffn'" in error.value.fix
        model = from_config("Mask2FormerModel", "Mask2FormerConfig")()
        with pytest.raises(InvalidInputError) as error:
            find_attention_blocks(model)
        assert "transformer_module" in error.value.name
        assert len(find_attention_blocks(model, exclude_blocks="transformer_module")) == 30

    @pytest.mark.parametrize("model_type", ["fnet", "resnet", "mamba", "xlnet"])
    def test_absent(self, model_type):
        model = auto_model(model_type)()
        with refused("model", type(model).__name__):
            find_attention_blocks(model)


class TestBlocksOf:
    def test_block_else_element_else_own_path(self):
        model = timm_vit()
        model.neck = nn.ModuleList([nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 8))})])
        paths = ["head.3", "patch_embed", "neck.0.a.0", "blocks.0.attn.qkv", "blocks.1.mlp.fc1"]
        blocks = find_blocks_of(model, iter(paths))
        assert list(blocks) == paths
        assert list(blocks.values()) == ["head.3", "patch_embed", "neck.0.a", "blocks.0", "blocks.1"]

    def test_without_any_feed_forward(self):
        with torch.device("meta"):
            model = transformers.MixtralForCausalLM(transformers.MixtralConfig(num_hidden_layers=2))
        blocks = find_blocks_of(model, ["model.layers.1.self_attn.q_proj", "lm_head"])
        assert blocks == {"model.layers.1.self_attn.q_proj": "model.layers.1", "lm_head": "lm_head"}

    def test_unknown_path(self):
        with refused("module_paths", "blocks.7.mlp.fc1") as error:
            find_blocks_of(timm_vit(), ["blocks.7.mlp.fc1"])
        assert "'blocks.0.attn.qkv'" in error.value.expected

    def test_layout_of_lists_in_a_list(self):
        model = stack(nn.ModuleList([LucidrainsAttention(8), FeedForward(8, 32)]))
        assert find_blocks_of(model, ["layers.0.0.to_qkv", "layers.0.1.net.0"]) == {
            "layers.0.0.to_qkv": "layers.0",
            "layers.0.1.net.0": "layers.0",
        }


def lines_run(function, *args):
    """How many lines of Python a call runs: its cost, the same on every machine."""
    lines, before = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    sys.settrace(trace)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return lines


def test_twice_the_layers_take_twice_the_work():
    """A search over pairs of modules would take four times as much."""
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    few, many = (from_config("ViTModel", "ViTConfig", num_hidden_layers=layers, **small)() for layers in (12, 24))
    find_ffn_blocks(few)  # the first call also fills caches
    assert lines_run(find_ffn_blocks, many) < 2.2 * lines_run(find_ffn_blocks, few)
