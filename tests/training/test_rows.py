"""What a row holds decides how it is collated: text, sound and pictures of any form are forgotten end to end."""

import functools
import string

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from peft import get_peft_model
from tasks import arguments, ffn_trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    BertConfig,
    BertForSequenceClassification,
    CLIPImageProcessor,
    CLIPProcessor,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainer
from gs_lora_peft.data import default_collator, split_dataset
from gs_lora_peft.data.collation import TensorCollator
from gs_lora_peft.errors import InvalidInputError

NAMES = ["ant", "bee", "cow"]
TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    # As the common recipe writes them.
    "id2label": {str(number): name for number, name in enumerate(NAMES)},
    "label2id": {name: str(number) for number, name in enumerate(NAMES)},
}
WORDS = ["[PAD]", *string.ascii_lowercase]
RATE = 16000
LABEL = ClassLabel(names=NAMES)


def tokenizer():
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=16)


def texts(per_class=6, seed=0) -> Dataset:
    """Two to seven words out of each class's own; a column of text and one of numbers stay in the rows."""
    random = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), per_class)
    rows = [
        " ".join(random.choice(list("abcdefghi"[3 * label : 3 * label + 3]), random.integers(2, 8)))
        for label in labels
    ]
    features = Features({"text": Value("string"), "idx": Value("int64"), "label": LABEL})
    data = Dataset.from_dict({"text": rows, "idx": range(len(rows)), "label": labels}, features=features)
    return data.map(lambda row: dict(tokenizer()(row["text"])))


def extractor():
    return ASTFeatureExtractor(num_mel_bins=16, max_length=16, mean=-4.0, std=4.0)


def sounds(per_class=6, seed=0) -> Dataset:
    """Tones of each class's own pitch, of several lengths."""
    random = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), per_class)
    waves = [
        np.sin(np.arange(random.integers(2000, 3000)) * (0.1 + 0.5 * label) + random.random()) for label in labels
    ]
    features = Features({"audio": List(Value("float32")), "label": LABEL})
    return Dataset.from_dict({"audio": waves, "label": labels}, features=features)


def pictures(per_class=6, seed=0) -> Dataset:
    """Noisy copies of one pattern for each class, as PNG."""
    patterns = np.random.default_rng(9).integers(40, 215, (3, 8, 8, 3))
    labels = np.tile(np.arange(3), per_class)
    noise = np.random.default_rng(seed).integers(-40, 41, (len(labels), 8, 8, 3))
    features = Features({"image": Image(), "label": LABEL})
    images = list((patterns[labels] + noise).astype(np.uint8))
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


VIT = ViTImageProcessor(size={"height": 8, "width": 8})


def with_pixels(labels, *others):
    """A transform as `datasets` documents them: it calls the labels what it likes, and may keep the images."""

    def transform(rows):
        kept = {name: rows[name] for name in others}
        return {"pixel_values": VIT(rows["image"], return_tensors="pt")["pixel_values"], labels: rows["label"], **kept}

    return transform


def transformed(*columns, **kwargs):
    return pictures(**kwargs).with_transform(with_pixels(*columns))


KINDS = {
    "text": (texts, tokenizer),
    "sound": (sounds, extractor),
    "transform to labels": (functools.partial(transformed, "labels"), lambda: None),
    "transform and processor": (functools.partial(transformed, "label", "image"), lambda: VIT),
    "torch format": (lambda **kwargs: pictures(**kwargs).with_format("torch"), lambda: VIT),
}


@pytest.mark.parametrize("prepare", [None, VIT], ids=["no processor", "a processor"])
@pytest.mark.parametrize("columns", [("labels",), ("label",), ("label", "image"), ("label_ids", "image")])
def test_pixels_of_a_transform_are_taken_as_they_are(columns, prepare):
    """With and without `processing_class`, whatever the labels are called, and with the images left in the rows."""
    data, plain = transformed(*columns), pictures()
    numbers = [4, 0, 5]
    expected = default_collator(VIT, dataset=plain)([plain[index] for index in numbers])
    batch = default_collator(prepare, dataset=data)([data[index] for index in numbers])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def untrained(kind):
    torch.manual_seed(0)
    if kind == "text":
        return BertForSequenceClassification(BertConfig(**TINY, vocab_size=len(WORDS), max_position_embeddings=16))
    if kind == "sound":
        sizes = {"num_mel_bins": 16, "max_length": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
        return ASTForAudioClassification(ASTConfig(**TINY, **sizes))
    return ViTForImageClassification(ViTConfig(**TINY, image_size=8, patch_size=4))


@functools.cache
def knowing_weights(kind):
    model = untrained(kind).train()
    data, prepare = (part() for part in KINDS.get(kind, (pictures, lambda: VIT)))
    batch = default_collator(prepare, dataset=data)([data[index] for index in range(len(data))])
    labels = batch.pop("labels")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()
    return model.state_dict()


def knowing(kind):
    family = kind if kind in ("text", "sound") else "image"
    model = untrained(family)
    model.load_state_dict(knowing_weights(family))
    return model.eval()


def settings(folder):
    return arguments(
        folder, num_train_epochs=12, learning_rate=2e-2, forget_weight=0.5, forget_loss="log_odds", forget_bound=3.0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_forgotten_whatever_the_rows_hold(tmp_path, kind):
    """With the trainer: text of unequal length, raw sound, pictures behind formats and transforms."""
    make, prepare = KINDS[kind]
    split = split_dataset(make(), ["bee"])
    model = get_peft_model(knowing(kind), GSLoraConfig(r=4))
    sets = {"forget_dataset": split.forget, "retain_dataset": split.retain, "eval_dataset": make(per_class=4, seed=1)}
    trainer = GSLoraTrainer(model, settings(tmp_path), **sets, processing_class=prepare())
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_acc_forget"] == before["eval_acc_retain"] == 1
    assert after["eval_acc_forget"] == 0
    assert after["eval_acc_retain"] >= 0.8


@pytest.mark.parametrize("kind", ["text", "sound", "transform to labels"])
def test_a_sequence_of_requests_scores_and_forgets(tmp_path, kind):
    """`ContinualForgetter` scores with the same collator; names and ids as text reach ledger and request."""
    make, prepare = KINDS[kind]
    data = DatasetDict(train=make(), test=make(per_class=4, seed=1))
    forgetter = ContinualForgetter(
        knowing(kind),
        data,
        tmp_path / "run",
        config=GSLoraConfig(r=4),
        args=settings(tmp_path),
        processing_class=prepare(),
    )
    entry = forgetter.forget(ForgetRequest(["bee"]))
    assert entry.scores["before"]["acc_forget"] == 1
    assert entry.scores["after"]["acc_forget"] == 0
    assert entry.scores["after"]["acc_retain"] >= 0.8
    assert forgetter.ledger.label_names == NAMES
    assert entry.class_names == ["bee"]


def test_columns_are_removed_where_a_sequence_is_scored(tmp_path):
    """`remove_unused_columns` with a collator that cannot take the text itself, as in the trainer."""
    data = texts()
    forgetter = ContinualForgetter(
        untrained("text"),
        DatasetDict(train=data, test=data),
        tmp_path / "run",
        config=GSLoraConfig(r=4),
        args=arguments(tmp_path, max_steps=1, remove_unused_columns=True),
        data_collator=DataCollatorWithPadding(tokenizer()),
    )
    assert "acc_forget" in forgetter.forget(ForgetRequest(["bee"])).scores["after"]


@pytest.mark.parametrize("kind", ["text", "sound"])
def test_the_baseline_takes_them_too(tmp_path, kind):
    """Fine-tuning collates as the trainer does."""
    make, prepare = KINDS[kind]
    split = split_dataset(make(), ["bee"])
    sets = {"forget_dataset": split.forget, "retain_dataset": split.retain}
    tuner = ffn_trainer(knowing(kind), arguments(tmp_path, "ffn", max_steps=1), **sets, processing_class=prepare())
    assert tuner.train().training_loss > 0


def test_texts_are_padded_as_the_stock_trainer_does():
    """To the longest of the batch, with the tokenizer's own padding; columns that no model takes are left out."""
    data = texts()
    batch = default_collator(tokenizer(), dataset=data)([data[index] for index in (0, 1, 2, 3)])
    longest = max(len(data[index]["input_ids"]) for index in (0, 1, 2, 3))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(batch[name].shape == (4, longest) for name in ("input_ids", "attention_mask"))
    assert batch["attention_mask"].sum(1).tolist() == [len(data[index]["input_ids"]) for index in (0, 1, 2, 3)]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert batch["labels"].tolist() == [0, 1, 2, 0]


WAVE = np.sin(np.arange(2500) / 5).astype(np.float32)


class Decoder:
    """As `datasets` gives it with torchcodec."""

    def get_all_samples(self):
        raise AssertionError("`datasets` has a shorter way")

    def __getitem__(self, key):
        return {"array": WAVE, "sampling_rate": RATE}[key]


@pytest.mark.parametrize(
    "cell",
    [
        WAVE.tolist(),
        torch.from_numpy(WAVE),
        {"array": WAVE, "sampling_rate": RATE, "path": None},
        Decoder(),
        np.stack([WAVE, WAVE]),
        np.stack([WAVE, WAVE], axis=1),
    ],
    ids=["list", "tensor", "decoded", "decoder", "channels first", "channels last"],
)
def test_sound_of_any_form_is_the_same(cell):
    """Arrays, what `datasets` decodes, and several channels."""
    expected = extractor()(WAVE, sampling_rate=RATE, return_tensors="pt")["input_values"]
    batch = default_collator(extractor())([{"audio": cell, "label": 1}])
    assert torch.allclose(batch["input_values"], expected, atol=1e-6)
    assert batch["labels"].tolist() == [1]


def test_sounds_of_unequal_length_are_padded_where_the_model_wants_waves():
    """Wav2Vec2 takes the wave itself; by itself or within a processor that has a tokenizer, too."""
    waves = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    for prepare in (waves, Wav2Vec2Processor(waves, tokenizer())):
        batch = default_collator(prepare)([{"audio": WAVE[:500], "label": 0}, {"audio": WAVE[:300], "label": 1}])
        assert batch["input_values"].shape == (2, 500)
        assert batch["attention_mask"].sum(1).tolist() == [500, 300]
        ready = [{"input_values": WAVE[:500], "label": 0}, {"input_values": WAVE[:300], "label": 1}]
        assert default_collator(prepare)(ready)["input_values"].shape == (2, 500)


def test_a_processor_of_several_kinds_prepares_what_a_row_holds():
    """Pictures, text, or both, in one row."""
    prepare = CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), tokenizer()
    )
    collate = default_collator(prepare)
    image = pictures()[0]["image"]
    tokens = [{"input_ids": list(range(1, 4)), "label": 0}, {"input_ids": [1], "label": 1}]
    assert set(collate([{"image": image, "label": 0}])) == {"pixel_values", "labels"}
    assert collate(tokens)["input_ids"].shape == (2, 3)
    both = collate([{"image": image, **row} for row in tokens])
    assert both["pixel_values"].shape == (2, 3, 16, 16)
    assert both["input_ids"].shape == (2, 3)
    assert both["labels"].tolist() == [0, 1]


def test_pictures_in_the_only_column_of_them_are_found():
    """CIFAR-100 calls it `img`."""
    data = pictures().rename_column("image", "img")
    for rows in (data, data.cast_column("img", Image(decode=False)), data.with_format("torch")):
        collate = default_collator(VIT, dataset=rows)
        assert collate.image_column == "img"
        found = collate([rows[0]])["pixel_values"]
        assert torch.equal(found, VIT(data[0]["img"], return_tensors="pt")["pixel_values"])


SOUND = {"array": WAVE, "sampling_rate": 8000}


@pytest.mark.parametrize(
    ("prepare", "row"),
    [
        (tokenizer, {"text": "a b", "label": 0}),
        (extractor, {"file": "a.wav", "label": 0}),
        (extractor, {"audio": SOUND, "label": 0}),
        (extractor, {"audio": None, "label": 0}),
        (tokenizer, {"input_ids": [1, 2], "label": None}),
        (tokenizer, {"input_ids": [1, 2], "label": 0.5}),
        (tokenizer, {"input_ids": [1, 2]}),
        (lambda: VIT, {"image": pictures()[0]["image"], "label": "cat"}),
        (lambda: None, {"audio": SOUND, "label": 0}),
        (lambda: None, {"x": [1.0], "box": {"left": 1}, "label": 0}),
        (lambda: None, {"x": [1.0], "words": ["a", "b"], "label": 0}),
    ],
    ids=[
        "no tokens", "no sound", "another rate", "an empty cell", "no label", "half a label", "no column", "text",
        "no extractor", "a mapping", "a list of text",
    ],
)  # fmt: skip
def test_rows_that_nothing_can_be_made_of_are_named(prepare, row):
    """Not by an error from within transformers or torch."""
    with pytest.raises(InvalidInputError) as caught:
        default_collator(prepare(), dataset=[row])([row])
    assert caught.value.fix


class Listed(torch.utils.data.Dataset):
    """A data set of torch, which knows nothing of columns and names its labels as models do."""

    def __init__(self, numbers, broken=()):
        self.numbers, self.broken, self.data = numbers, broken, transformed("labels")

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("the disk is gone")
        return self.data[self.numbers[index]]


def test_rows_of_a_torch_data_set(tmp_path):
    """Labels are found as in other rows; an error of its own stays, with a note on the row."""
    sets = {"forget_dataset": Listed([1, 4]), "retain_dataset": Listed([0, 2, 3])}
    model = get_peft_model(knowing("image"), GSLoraConfig(r=2))
    trainer = GSLoraTrainer(model, arguments(tmp_path, max_steps=1), **sets, processing_class=VIT)
    assert (trainer.forget_classes, trainer.retain_classes) == ([1], [0, 2])
    assert trainer.train().training_loss > 0
    sets["retain_dataset"].broken = (2,)
    with pytest.raises(OSError) as caught:
        trainer.train()
    assert any("row 2 of the retain set" in note for note in caught.value.__notes__)


def test_rows_of_unequal_length_without_a_tokenizer_say_what_to_give():
    """torch says "expected sequence of length 3 at dim 1"."""
    rows = [{"input_ids": [1, 2, 3], "label": 0}, {"input_ids": [1, 2], "label": 1}]
    with pytest.raises(InvalidInputError) as caught:
        TensorCollator()(rows)
    assert caught.value.name == "row 1 of the batch, column 'input_ids'"
    assert "processing_class" in caught.value.fix


@pytest.mark.parametrize("broken", ["retain", "forget", "evaluation"])
def test_a_broken_picture_is_named_while_it_is_trained_or_scored_on(tmp_path, broken):
    """Which set, which row, which column; Pillow names none of them."""
    parts = {"retain": [0, 2, 3, 5], "forget": [1, 4], "evaluation": [6, 8, 7]}
    data = pictures().cast_column("image", Image(decode=False))
    rows = [
        {**row, "image": {"bytes": b"", "path": None}} if n == parts[broken][-1] else row for n, row in enumerate(data)
    ]
    data = Dataset.from_list(rows, features=data.features).cast_column("image", Image())
    sets = {name: data.select(numbers) for name, numbers in parts.items()}
    model = get_peft_model(knowing("image"), GSLoraConfig(r=2))
    trainer = GSLoraTrainer(
        model,
        arguments(tmp_path, max_steps=2),
        forget_dataset=sets["forget"],
        retain_dataset=sets["retain"],
        eval_dataset=sets["evaluation"],
        processing_class=VIT,
    )
    with pytest.raises(InvalidInputError) as caught:
        trainer.evaluate() if broken == "evaluation" else trainer.train()
    row, whole = len(parts[broken]) - 1, parts[broken][-1]
    assert (
        caught.value.name
        == f"row {row} of the {broken} set (row {whole} of the data it was drawn from), column 'image'"
    )
