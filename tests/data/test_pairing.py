"""Pairs: their order over epochs and processes, how they are read, and how they become a batch."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import ClassLabel, Dataset, Features, Image as Images
from errors import refused
from hypothesis import given, settings, strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import BatchSampler, DataLoader
from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast, ViTImageProcessor

from gs_lora_peft.data import ImageCollator, PairedCollator, PairedDataset, PairedSampler, default_collator
from gs_lora_peft.data.collation import TensorCollator

TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"ant": 0})))
SIZES = {
    "num_retain": st.integers(1, 40),
    "num_forget": st.integers(1, 25),
    "global_batch_size": st.integers(1, 12),
    "seed": st.integers(0, 2**31),
}


def epoch_of(sampler: PairedSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(deadline=None)
@given(**SIZES, epoch=st.integers(0, 50))
def test_order_is_a_pure_function_of_seed_and_epoch(epoch, **sizes):
    """Resume rests on it: a fresh sampler, asked for one epoch only, gives what a used one gives."""
    used = PairedSampler(**sizes)
    epoch_of(used, 3)
    torch.manual_seed(epoch)  # the global generator must not matter
    assert epoch_of(used, epoch) == epoch_of(PairedSampler(**sizes), epoch)


def covered_half(num_retain, num_forget, covers, **_) -> int:
    """Which half of a pair an epoch runs over: 0 to keep, 1 to forget."""
    return int(covers == "both" and num_forget > num_retain)


@settings(deadline=None)
@given(**SIZES, covers=st.sampled_from(["both", "retain"]), epoch=st.integers(0, 5))
def test_an_epoch_shows_every_sample_of_the_larger_set_once_then_fills_its_last_batch(epoch, **sizes):
    """Nothing is left out, and every batch is full, so that all processes get as much."""
    sampler = PairedSampler(**sizes)
    half = covered_half(**sizes)
    seen = [pair[half] for pair in epoch_of(sampler, epoch)]
    size, batch = (sizes["num_retain"], sizes["num_forget"])[half], sizes["global_batch_size"]
    assert sorted(seen[:size]) == list(range(size))
    assert len(seen) == len(sampler) == -(-size // batch) * batch
    assert seen[size:] == (seen * batch)[: len(seen) - size]


@settings(deadline=None)
@given(**SIZES, covers=st.sampled_from(["both", "retain"]), epochs=st.integers(1, 6))
def test_samples_of_the_set_that_cycles_are_seen_equally_often_over_epochs(epochs, **sizes):
    """It cycles on across epochs: at any moment counts differ by one at most."""
    sampler = PairedSampler(**sizes)
    half = 1 - covered_half(**sizes)
    seen = [pair[half] for epoch in range(epochs) for pair in epoch_of(sampler, epoch)]
    size = (sizes["num_retain"], sizes["num_forget"])[half]
    for stop in {len(seen), len(seen) // 2, len(seen) // 3}:
        counts = Counter(seen[:stop])
        values = [counts[i] for i in range(size)]
        assert max(values) - min(values) <= 1
    for start in range(0, len(seen) - size + 1, size):
        assert sorted(seen[start : start + size]) == list(range(size))


@settings(deadline=None)
@given(**SIZES, epoch=st.integers(0, 5))
def test_where_no_less_stays_than_goes_the_published_order_is_taken(epoch, num_retain, num_forget, **rest):
    """The usual case: figures that were measured over the retain set hold bit for bit."""
    sizes = {"num_retain": max(num_retain, num_forget), "num_forget": min(num_retain, num_forget), **rest}
    assert epoch_of(PairedSampler(**sizes), epoch) == epoch_of(PairedSampler(**sizes, covers="retain"), epoch)


@settings(deadline=None)
@given(
    num_retain=st.integers(1, 40),
    num_forget=st.integers(1, 25),
    processes=st.integers(1, 4),
    per_process=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_number_of_processes_sees_the_same_global_batches(num_retain, num_forget, processes, per_process, seed):
    """What one process does with a batch of n·b, n processes do with batches of b."""
    sampler = PairedSampler(num_retain, num_forget, processes * per_process, seed)
    whole = list(BatchSampler(sampler, processes * per_process, drop_last=False))
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, per_process, drop_last=False), processes, rank))
        for rank in range(processes)
    ]
    assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == whole


def test_seeds_epochs_and_sets_have_orders_of_their_own():
    """Neighbouring seeds and epochs must not repeat each other, nor the two sets go in step."""
    orders = {
        tuple(pair[half] for pair in epoch_of(PairedSampler(30, 30, 1, seed), epoch))
        for seed in range(4)
        for epoch in range(4)
        for half in (0, 1)
    }
    assert len(orders) == 32


def test_drop_last_cuts_the_incomplete_batch_off():
    """`dataloader_drop_last` shortens an epoch instead of repeating samples."""
    sampler = PairedSampler(10, 3, global_batch_size=4, drop_last=True)
    assert len(sampler) == 8
    assert len({pair[0] for pair in sampler}) == 8
    assert len({pair[1] for pair in PairedSampler(3, 10, global_batch_size=4, drop_last=True)}) == 8
    for sizes in ({"num_forget": 3}, {"num_forget": 10, "covers": "retain"}):
        with refused("dataloader_drop_last", True):
            PairedSampler(3, **sizes, global_batch_size=4, drop_last=True)


@pytest.mark.parametrize("name", ["num_retain", "num_forget", "global_batch_size"])
def test_sizes_below_one_are_refused(name):
    """An empty set would make an endless or an empty loop."""
    sizes = {"num_retain": 2, "num_forget": 2, "global_batch_size": 2, name: 0}
    with refused(name, 0):
        PairedSampler(**sizes)


def columns(offset: int, rows: int) -> Dataset:
    return Dataset.from_dict({"x": [[offset + i, 0.5] for i in range(rows)], "label": list(range(rows))})


class Listed(torch.utils.data.Dataset):
    """A map-style data set that knows nothing of batches."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize("form", ["arrow", "torch format", "transform", "list"])
def test_reading_a_batch_is_reading_its_rows(form):
    """The fast path for `datasets` gives what one row after another gives, with formats and transforms."""
    retain, forget = columns(0, 7), columns(100, 3)
    if form == "torch format":
        retain, forget = retain.with_format("torch"), forget.with_format("torch")
    elif form == "transform":
        retain = retain.with_transform(lambda rows: {"x": [[2 * v for v in x] for x in rows["x"]]})
    elif form == "list":
        retain, forget = Listed([retain[i] for i in range(7)]), Listed([forget[i] for i in range(3)])
    paired = PairedDataset(retain, forget)
    pairs = [(5, 0), (2, 2), (5, 1)]
    batch = paired.__getitems__(pairs)
    assert len(paired) == 7
    for (kept, gone), pair in zip(batch, pairs, strict=True):
        for row, expected in zip((kept, gone), paired[pair], strict=True):
            assert row.keys() == expected.keys()
            for name in row:
                np.testing.assert_array_equal(row[name], expected[name])


def test_a_loader_reads_whole_batches_at_once():
    """The loader's fetcher must take the batched path; one by one `datasets` is several times slower."""
    calls = []

    class Watched(PairedDataset):
        def __getitem__(self, pair):
            calls.append(pair)
            return super().__getitem__(pair)

    paired = Watched(columns(0, 6).with_format("torch"), columns(100, 4).with_format("torch"))
    sampler = PairedSampler(6, 4, 3)
    loader = DataLoader(paired, batch_size=3, sampler=sampler, collate_fn=PairedCollator(TensorCollator()))
    batches = list(loader)
    assert not calls
    assert [len(batch["labels"]) for batch in batches] == [6, 6]
    for batch in batches:
        assert (batch["x"][:3, 0] < 100).all()
        assert (batch["x"][3:, 0] >= 100).all()


@pytest.mark.parametrize("bad", [None, iter([1]), {"label": 3}.values()])
@pytest.mark.parametrize("which", ["retain", "forget"])
def test_sets_without_length_or_rows_are_refused(bad, which):
    """A stream has no epoch."""
    sets = {"retain": columns(0, 2), "forget": columns(0, 2), which: bad}
    with refused(which, type(bad).__name__):
        PairedDataset(**sets)


@pytest.mark.parametrize("which", ["retain", "forget"])
def test_empty_sets_are_refused(which):
    """A pair needs a sample of each set."""
    sets = {"retain": columns(0, 2), "forget": columns(0, 2), which: columns(0, 0)}
    with refused(which, "an empty data set"):
        PairedDataset(**sets)


def picture(mode: str, size=(20, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_images_of_every_mode_become_three_channels(mode):
    """Real collections mix grey, palette and transparent pictures; a ViT takes three channels."""
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    rows = [{"image": picture(mode), "label": 3}, {"image": picture("RGB", (8, 12)), "label": 1}]
    batch = ImageCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [3, 1]
    alone = processor(images=[rows[0]["image"].convert("RGB")], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(batch["pixel_values"][0], alone)


def test_a_processor_of_one_channel_gets_grey_images():
    """A model of grey images was trained on one channel; three would not fit its first layer."""
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    batch = ImageCollator(processor)([{"image": picture("L"), "label": 0}, {"image": picture("RGB"), "label": 1}])
    assert batch["pixel_values"].shape == (2, 1, 8, 8)


def test_arrays_and_named_columns_work_too():
    """Images may be arrays, and columns may have other names."""
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    rows = [{"photo": np.zeros((10, 10, 3), dtype=np.uint8), "person": np.int64(2)}]
    batch = ImageCollator(processor, image_column="photo", label_column="person")(rows)
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    assert batch["labels"].dtype == torch.int64


def test_rows_without_the_image_column_are_named():
    """The error lists what the row has instead."""
    collate = ImageCollator(ViTImageProcessor())
    with refused("image_column", "image") as error:
        collate([{"photo": picture("RGB"), "label": 0}])
    assert "['label', 'photo']" in error.value.expected


def test_default_collator_follows_the_processor_and_the_label_column():
    """Without a collator of one's own, images go through the processor and labels arrive as `labels`."""
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    for column in ("label", "person"):
        rows = [{"image": picture("RGB"), column: 4}, {"image": picture("L"), column: 5}]
        batch, expected = (
            default_collator(processor, column)(rows),
            ImageCollator(processor, label_column=column)(rows),
        )
        assert batch.keys() == expected.keys()
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert batch["labels"].tolist() == [4, 5]
    for column in ("label", "labels", "person"):
        batch = default_collator(None, column)([{"x": torch.ones(2), column: 4}, {"x": torch.ones(2), column: 5}])
        assert batch["labels"].tolist() == [4, 5]
        assert batch["x"].shape == (2, 2)


@pytest.mark.parametrize("other", ["label", "labels", "label_ids"])
def test_labels_come_from_the_label_column_alone(other):
    """Another column with a usual name of labels must not take their place, in silence."""
    for row in ({"person": 4, other: 1}, {other: 1, "person": 4}):
        batch = TensorCollator("person")([{"x": torch.ones(2), **row}])
        assert set(batch) == {"x", "labels"}
        assert batch["labels"].tolist() == [4]


def pictures(column: str = "image") -> Dataset:
    rows = {column: [picture("RGB") for _ in range(3)], "label": [0, 1, 0]}
    return Dataset.from_dict(rows, features=Features({column: Images(), "label": ClassLabel(names=["ant", "bee"])}))


@pytest.mark.parametrize("processing_class", [None, TOKENIZER], ids=["nothing", "a tokenizer"])
def test_pictures_without_an_image_processor_are_refused_before_training(processing_class):
    """torch would say "Could not infer dtype" of the file's class, and only once training starts."""
    with refused("row 0 of the training data, column 'photo'", "a picture") as error:
        default_collator(processing_class, dataset=pictures("photo"))
    assert "AutoImageProcessor" in error.value.fix
    with refused("row 0 of the batch, column 'photo'", "a picture"):
        default_collator(processing_class)([{"photo": picture("RGB"), "label": 0}])


def to_tensors(rows: dict) -> dict:
    pixels = [torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image in rows["image"]]
    return {"pixel_values": pixels, "label": rows["label"]}


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (pictures().with_transform(to_tensors), "pixel_values"),
        (pictures().with_format("torch"), "image"),
        (pictures().map(to_tensors, batched=True).with_format("torch", columns=["pixel_values", "label"]), None),
        (pictures("label_ids").add_column("pixel_values", [[0.0], [1.0], [2.0]]), None),
    ],
    ids=["a transform", "a format", "a column left out", "a column that is not collated"],
)
def test_pictures_that_become_tensors_need_no_processor(dataset, name):
    """A data set may know of a column of pictures that never reaches the collator as such."""
    name = name or "pixel_values"
    batch = default_collator(None, dataset=dataset)([dataset[index] for index in range(3)])
    assert isinstance(batch[name], torch.Tensor)
    assert len(batch[name]) == 3
    assert batch["labels"].tolist() == [0, 1, 0]


def test_a_processor_of_several_kinds_prepares_images_with_its_own():
    """CLIP's processor holds a tokenizer and an image processor; the latter is meant."""
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    data = pictures()
    whole, alone = (default_collator(kind, dataset=data) for kind in (CLIPProcessor(processor, TOKENIZER), processor))
    rows = [data[index] for index in range(3)]
    assert torch.equal(whole(rows)["pixel_values"], alone(rows)["pixel_values"])
    assert whole(rows)["pixel_values"].shape == (3, 3, 16, 16)
