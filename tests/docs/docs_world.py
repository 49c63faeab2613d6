"""A working directory with everything that the pages name: tiny models and data sets under the names of real ones."""

import string

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from gs_lora_peft import FaceTransformerConfig, FaceTransformerForRecognition
from gs_lora_peft.data import align_labels
from gs_lora_peft.models import FaceImageProcessor

PEOPLE = [f"person_{n:02d}" for n in range(1, 13)]
THINGS = ["tench", "cassette player", "church", "parachute"]
TOPICS = ["sports", "politics", "science"]
WORDS = ["yes", "no", "up"]
CATEGORIES = ["Coverall", "Gloves", "Mask", "Goggles"]
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def base_model():
    return AutoModelForImageClassification.from_pretrained("org/base-model")


def processor():
    return AutoImageProcessor.from_pretrained("org/base-model")


def people():
    """The data of the pages, with the ids of the model."""
    return align_labels(image_data(PEOPLE), "label", base_model().config.label2id)


def names(classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def write_vit(folder, classes):
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **TINY, **names(classes))).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def write_face_model(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = FaceTransformerConfig(image_size=16, patch_size=8, **sizes, **names(PEOPLE))
    FaceTransformerForRecognition(config).save_pretrained(folder)
    FaceImageProcessor.for_pixels("unit", image_size=16).save_pretrained(folder)


def write_detector(folder):
    torch.manual_seed(0)
    shape = {"image_size": [32, 32], "patch_size": 16, "num_detection_tokens": 4}
    config = YolosConfig(use_mid_position_embeddings=False, **shape, **TINY, **names(CATEGORIES))
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def write_text_model(folder):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=27, **TINY, **names(TOPICS))).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", *string.ascii_lowercase])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[PAD]"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=16).save_pretrained(folder)


def write_audio_model(folder):
    torch.manual_seed(0)
    config = ASTConfig(num_mel_bins=16, max_length=32, patch_size=16, **TINY, **names(WORDS))
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=16, max_length=32).save_pretrained(folder)


def pictures(classes, per_class, size, seed):
    """A pattern for each class, and noise."""
    random, patterns = (
        np.random.default_rng(seed),
        np.random.default_rng(0).integers(0, 200, (len(classes), size, size, 3)),
    )
    labels = np.arange(len(classes)).repeat(per_class)
    return (patterns[labels] + random.integers(0, 50, (len(labels), size, size, 3))).astype(np.uint8), labels


def image_data(classes, size=8):
    """Labels are numbered otherwise than in the model, as with data of one's own."""
    features, parts = Features({"image": Image(), "label": ClassLabel(names=classes[::-1])}), {}
    for seed, (split, per_class) in enumerate({"train": 4, "test": 2}.items()):
        images, labels = pictures(classes, per_class, size, seed)
        rows = {"image": list(images), "label": [len(classes) - 1 - label for label in labels.tolist()]}
        parts[split] = Dataset.from_dict(rows, features=features)
    return DatasetDict(parts)


def write_rows(folder, rows, features):
    """A data set as parquet: one file for each split."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        Dataset.from_dict(rows(split), features=features).to_parquet(folder / f"{split}.parquet")


def write_image_folder(folder):
    for seed, (split, per_class) in enumerate({"train": 4, "test": 2}.items()):
        images, labels = pictures(PEOPLE, per_class, 16, seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / PEOPLE[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pictures.fromarray(image).save(path)


def text_rows(split):
    random, count = np.random.default_rng(0), 8 if split == "train" else 2
    labels = np.arange(len(TOPICS)).repeat(count)
    return {"text": [" ".join(random.choice(list("abc" if n else "xyz"), 5)) for n in labels], "label": labels}


def audio_rows(split):
    random, count = np.random.default_rng(0), 4 if split == "train" else 2
    labels = np.arange(len(WORDS)).repeat(count)
    sounds = [{"array": random.normal(size=4000).astype(np.float32), "sampling_rate": 16000} for _ in labels]
    return {"audio": sounds, "label": labels}


def box_rows(split):
    count = 8 if split == "train" else 4
    images, _ = pictures(["image"], count, 32, 0)
    kinds = [[n % 4, (n + 1) % 4] for n in range(count)]
    boxes = [[[2.0, 2.0, 12.0, 12.0], [14.0, 14.0, 12.0, 12.0]] for _ in range(count)]
    objects = [{"bbox": box, "category": kind} for box, kind in zip(boxes, kinds, strict=True)]
    return {"image": list(images), "objects": objects}


CONFIGURATIONS = """---
configs:
- config_name: 160px
  data_files:
  - {split: train, path: train.parquet}
  - {split: test, path: test.parquet}
---
"""


def write_world(folder):
    """Writes all models and data sets, each under the name that the pages give it."""
    write_vit(folder / "org" / "base-model", PEOPLE)
    write_vit(folder / "google" / "vit-base-patch16-224", THINGS)
    write_face_model(folder / "face-model")
    write_detector(folder / "hustvl" / "yolos-tiny")
    write_text_model(folder / "org" / "topic-model")
    write_audio_model(folder / "org" / "keyword-model")
    write_image_folder(folder / "data" / "faces")
    label = {"label": ClassLabel(names=TOPICS)}
    write_rows(folder / "org" / "topics", text_rows, Features({"text": Value("string"), **label}))
    sound = {"audio": {"array": List(Value("float32")), "sampling_rate": Value("int64")}}
    write_rows(folder / "org" / "keywords", audio_rows, Features({**sound, "label": ClassLabel(names=WORDS)}))
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=CATEGORIES))}
    write_rows(folder / "org" / "boxes", box_rows, Features({"image": Image(), "objects": objects}))
    things = image_data(THINGS)
    imagenette = folder / "frgfm" / "imagenette"
    imagenette.mkdir(parents=True)
    for split, rows in things.items():
        rows.to_parquet(imagenette / f"{split}.parquet")
    (imagenette / "README.md").write_text(CONFIGURATIONS, "utf-8")
