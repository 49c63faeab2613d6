"""Forgets with a tiny model of every listed architecture, and writes what works into docs/reference/models.md.

    python .ci/docs/model_matrix.py                           # `make models`; a minute or two on one core
    python .ci/docs/model_matrix.py "audio classification"    # one task; the other tables stay

A row is a fact: a model was made from its configuration with random weights, forgot two classes for two steps by both
recipes, left plain LoRA, and stock PEFT gave the same answers with it. A test makes one row of each task again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "models.md"
sys.path.append(str(ROOT / "tests"))

from detectors import DETECTORS, IMAGE_SIZE, NUM_LABELS, detector
from peft import PeftModel

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainingArguments, NoFFNFoundError, find_ffn_blocks

CLASSES = 4
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": CLASSES,
}
PATCHES = {"image_size": 16, "patch_size": 8}
STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_labels": CLASSES}
WORDS = {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}
DECODER = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "pad_token_id": 0}
SOUND = {"conv_dim": [8, 8], "conv_kernel": [10, 8], "conv_stride": [5, 4], "num_feat_extract_layers": 2}
WHISPER = {
    "d_model": 16,
    **{f"{side}_{name}": size for side in ("encoder", "decoder")
       for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))},
    "num_mel_bins": 8, "max_source_positions": 16, "vocab_size": 60, "num_labels": CLASSES,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
# Layers that are left out at random in training (`layerdrop`) are not there for the recipe deep.
SPEECH = {
    "layerdrop": 0.0,
    **TINY,
    **SOUND,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}


def segformer() -> dict[str, Any]:
    """Four stages, each narrower than usual."""
    return {
        "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4,
        "sr_ratios": [1] * 4, "decoder_hidden_size": 8, "num_labels": CLASSES,
    }  # fmt: skip


# Task → architecture → class without "Config" and "ForXxx", and the settings that make it tiny.
MODELS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "image classification": {
        "ViT": ("ViT", {**TINY, **PATCHES}),
        "DeiT": ("DeiT", {**TINY, **PATCHES}),
        "BEiT": ("Beit", {**TINY, **PATCHES}),
        "Data2Vec vision": ("Data2VecVision", {**TINY, **PATCHES}),
        "ViT-MSN": ("ViTMSN", {**TINY, **PATCHES}),
        "DINOv2": ("Dinov2", {**TINY, **PATCHES, "mlp_ratio": 2}),
        "DINOv2 with registers": ("Dinov2WithRegisters", {**TINY, **PATCHES, "mlp_ratio": 2}),
        "Swin": ("Swin", {**STAGES, "image_size": 16, "patch_size": 4, "window_size": 2}),
        "Swin v2": ("Swinv2", {**STAGES, "image_size": 16, "patch_size": 4, "window_size": 2}),
        "FocalNet": ("FocalNet", {"embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [1, 1],
                                  "focal_windows": [3, 3], "image_size": 16, "num_labels": CLASSES}),
        "SegFormer": ("Segformer", segformer()),
        "PVT": ("Pvt", {**segformer(), "sequence_reduction_ratios": [1] * 4, "image_size": 32}),
        "ConvNeXt": ("ConvNext", {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_labels": CLASSES}),
        "ResNet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_labels": CLASSES}),
    },
    "text classification": {
        "BERT": ("Bert", {**TINY, **WORDS}),
        "RoBERTa": ("Roberta", {**TINY, **WORDS}),
        "DistilBERT": ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": CLASSES,
                                      **WORDS}),
        "ELECTRA": ("Electra", {**TINY, **WORDS, "embedding_size": 16}),
        "DeBERTa v2": ("DebertaV2", {**TINY, **WORDS}),
        "ALBERT": ("Albert", {**TINY, **WORDS, "embedding_size": 16}),
        "MPNet": ("MPNet", {**TINY, **WORDS}),
        "ModernBERT": ("ModernBert", {**TINY, **WORDS}),
        "XLNet": ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": 40,
                            "num_labels": CLASSES}),
        "GPT-2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "pad_token_id": 0,
                           "num_labels": CLASSES}),
        "Llama": ("Llama", {**TINY, **DECODER}),
        "Mistral": ("Mistral", {**TINY, **DECODER}),
        "Qwen 3": ("Qwen3", {**TINY, **DECODER}),
        "Gemma 2": ("Gemma2", {**TINY, **DECODER}),
    },
    "audio classification": {
        "AST": ("AST", {**TINY, "num_mel_bins": 16, "max_length": 16, "patch_size": 8}),
        "wav2vec 2.0": ("Wav2Vec2", SPEECH),
        "HuBERT": ("Hubert", SPEECH),
        "WavLM": ("WavLM", SPEECH),
        "Data2Vec audio": ("Data2VecAudio", {**SPEECH, "num_conv_pos_embeddings": 1}),
        "Whisper": ("Whisper", WHISPER),
    },
}  # fmt: skip
HEADS = {
    "image classification": "ImageClassification",
    "text classification": "SequenceClassification",
    "audio classification": "AudioClassification",
}
SPOKEN = ("Wav2Vec2", "Hubert", "WavLM", "Data2VecAudio")  # their audio classifiers are called so


@dataclass(frozen=True)
class Row:
    """What was found with one architecture."""

    task: str
    name: str
    blocks: str
    fast: str
    deep: str
    stock: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.blocks} | {self.fast} | {self.deep} | {self.stock} |"


def architectures() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Task, name and a function that makes the tiny model."""
    for task, models in MODELS.items():
        for name, (kind, settings) in models.items():
            yield task, name, _builder(kind, "SequenceClassification" if kind in SPOKEN else HEADS[task], settings)
    for name in DETECTORS:
        yield "object detection", name.replace("_", "-"), lambda name=name: detector(name)


def _builder(kind: str, head: str, settings: dict[str, Any]) -> Callable[[], Any]:
    def build() -> Any:
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings)
        return getattr(transformers, f"{kind}For{head}")(config).eval()

    return build


def data_of(task: str, model: Any) -> tuple[Dataset, dict[str, Any]]:
    """Two rows of every class with random inputs that fit the model, and the arguments that name them."""
    generator = torch.Generator().manual_seed(0)
    labels = list(range(CLASSES)) * 2
    if task == "object detection":
        boxes = [[[8.0, 8.0, 24.0, 24.0]] for _ in range(2 * NUM_LABELS)]
        objects = [{"bbox": box, "category": [n % NUM_LABELS]} for n, box in enumerate(boxes)]
        pixels = torch.rand(2 * NUM_LABELS, IMAGE_SIZE, IMAGE_SIZE, 3, generator=generator)
        from PIL import Image

        images = [Image.fromarray((image * 255).to(torch.uint8).numpy()) for image in pixels]
        processor = transformers.DetrImageProcessor(do_resize=False, do_pad=False)
        return Dataset.from_dict({"image": images, "objects": objects}), {
            "label_column": "objects",
            "processing_class": processor,
        }
    name, shape = _input_of(task, model)
    values = (
        torch.randint(3, 40, (2 * CLASSES, *shape), generator=generator)
        if name == "input_ids"
        else torch.randn(2 * CLASSES, *shape, generator=generator)
    )
    rows = Dataset.from_dict({name: values.numpy(), "label": labels}).with_format("torch")
    return rows, {}


def _input_of(task: str, model: Any) -> tuple[str, tuple[int, ...]]:
    config = model.config
    if task == "text classification":
        return "input_ids", (8,)
    if task == "image classification":
        size = getattr(config, "image_size", 32)
        return "pixel_values", (3, size, size)
    if config.model_type == "whisper":
        return "input_features", (config.num_mel_bins, 2 * config.max_source_positions)
    if config.model_type == "audio-spectrogram-transformer":
        return "input_values", (config.max_length, config.num_mel_bins)
    return "input_values", (400,)


def row_of(task: str, name: str, build: Callable[[], Any]) -> Row:
    """Tries everything with one architecture."""
    try:
        found = find_ffn_blocks(build())
    except NoFFNFoundError:
        return Row(task, name, "none", "no", "no", "–")
    return Row(task, name, str(len(found)), _tried(task, build, "fast"), *_deep_and_stock(task, build))


def _tried(task: str, build: Callable[[], Any], recipe: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _outcome(lambda: _forget(task, build, recipe, folder))


def _deep_and_stock(task: str, build: Callable[[], Any]) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        deep = _outcome(lambda: _forget(task, build, "deep", folder))
        if deep != "yes":
            return deep, "–"
        return deep, _outcome(lambda: _loaded_by_stock_peft(task, build, folder))


def _outcome(action: Callable[[], bool]) -> str:
    try:
        return "yes" if action() else "no"
    except Exception as error:
        print(f"    {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return "no"


def _forget(task: str, build: Callable[[], Any], recipe: str, folder: str) -> bool:
    model = build()
    rows, options = data_of(task, model)
    args = GSLoraTrainingArguments(
        folder, recipe=recipe, max_steps=2, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True
    )
    forgetter = ContinualForgetter(model, DatasetDict(train=rows, test=rows), folder, args=args, **options)
    entry = forgetter.forget(ForgetRequest([1, 2]))
    return bool(entry.groups["active"])


def _loaded_by_stock_peft(task: str, build: Callable[[], Any], folder: str) -> bool:
    """Whether the adapter of the run changes the answers of the base model as the run's own model has them."""
    from gs_lora_peft import load_forgotten

    rows, _ = data_of(task, build())
    with torch.no_grad():
        base, mine = build(), load_forgotten(build(), folder).eval()
        if task == "object detection":
            inputs = {"pixel_values": torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)}
        else:
            name = next(name for name in rows.column_names if name != "label")
            inputs = {name: rows[:2][name]}
        before = base(**inputs).logits
        stock = PeftModel.from_pretrained(base, f"{folder}/tasks/task_001").eval()
        after = stock(**inputs).logits
        return torch.equal(after, mine(**inputs).logits) and not torch.equal(after, before)


def page_with(text: str, rows: list[Row]) -> str:
    """The page with new tables of the tasks that were tried."""
    head = "| Architecture | Blocks found | `fast` | `deep` | Stock PEFT loads it |\n| --- | --- | --- | --- | --- |"
    for task in dict.fromkeys(row.task for row in rows):
        lines = "\n".join(str(row) for row in rows if row.task == task)
        table = f"## {task.capitalize()}\n\n{head}\n{lines}\n"
        text = re.sub(rf"## {task.capitalize()}\n\n(\|.*\n)*", lambda _, table=table: table, text)
    return text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the logs of tiny models that forget nothing."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main() -> None:
    """Tries all, or those of the named tasks, and writes the page."""
    rows = []
    for task, name, build in architectures():
        if sys.argv[1:] and task not in sys.argv[1:]:
            continue
        with quiet():
            rows.append(row_of(task, name, build))
        print(f"{task}: {rows[-1]}", file=sys.stderr, flush=True)
    PAGE.write_text(page_with(PAGE.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
