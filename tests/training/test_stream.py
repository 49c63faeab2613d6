"""Samples to keep from a stream: which rows meet, exact resume, memory, and what is refused."""

import gc
import pickle
import weakref

import pytest
import torch
from errors import refused
from peft import get_peft_model
from tasks import (
    FORGET,
    NAMES,
    RETAIN,
    adapter_state,
    arguments,
    differences,
    forget_set,
    knowing_vit,
    peft_vit,
    samples,
    scoring_set,
    trainer_for,
)
from torch.utils.data import IterableDataset

from gs_lora_peft import GSLoraConfig, GSLoraTrainer
from gs_lora_peft.data import PairedSampler, RetainStream
from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer

BY_FORGET = {"epoch_covers": "forget", "per_device_train_batch_size": 2}  # 3 steps an epoch


class Rows(IterableDataset):
    """Rows of given classes, as torch streams them; notes which of them are still in memory while it reads."""

    def __init__(self, labels, size=8):
        self.labels, self.size, self.most, self.passes = labels, size, 0, []

    def set_epoch(self, number):
        self.passes.append(number)

    def __iter__(self):
        alive = weakref.WeakSet()
        for number, label in enumerate(self.labels):
            pixels = torch.full((3, self.size, self.size), float(number))
            alive.add(pixels)
            self.most = max(self.most, len(alive))
            yield {"pixel_values": pixels, "label": label}
            del pixels


def shuffled(seed=0, per_class=3):
    """A stream of `datasets` in two shards, with rows of all classes, in another order in each pass."""
    return samples(per_class=per_class, seed=1).to_iterable_dataset(num_shards=2).shuffle(seed=seed, buffer_size=5)


def opened(stream, keeps=RETAIN, drops=FORGET):
    rows = RetainStream(stream, "label")
    rows.keeps, rows.drops = set(keeps), set(drops)
    return rows


def numbers(rows):
    return [int(row["pixel_values"][0, 0, 0]) for row in rows]


def test_a_place_is_a_row_to_keep_pass_after_pass():
    """Rows of other classes are left out on the fly; a reader of some places gets the rows of one that reads all."""
    stream = Rows([0, 4, 1, 5, 2])
    rows = opened(stream)
    assert numbers(rows.__getitems__(list(range(7)))) == [0, 2, 4, 0, 2, 4, 0]
    assert stream.passes == [0, 1, 2]
    assert numbers(rows.__getitems__([8, 11])) == [4, 4]
    assert numbers([rows[1]]) == [2]  # back: from the start
    assert numbers(pickle.loads(pickle.dumps(rows)).__getitems__([3, 4])) == [0, 2]
    assert numbers(rows.first(2)) == [0, 2]
    assert numbers(rows.first(9)) == [0, 2, 4]


def test_passes_over_a_shuffled_stream_differ():
    """The epoch of a stream of `datasets` is its pass."""
    rows = opened(shuffled(per_class=4))
    one, two, three = ([row["pixel_values"].sum().item() for row in rows.__getitems__(range(s, s + 16))]
                       for s in (0, 16, 32))  # fmt: skip
    assert sorted(one) == sorted(two) == sorted(three)
    assert one != two != three


def test_places_may_come_in_any_order():
    rows = opened(Rows([0, 1, 2, 0, 1, 2]))
    ascending = numbers(rows.__getitems__([1, 2, 3]))
    assert numbers(rows.__getitems__([3, 1, 2])) == [ascending[2], *ascending[:2]]


def test_the_epoch_of_the_stream_itself_does_not_change():
    """Worker processes share it: a reader that changed it would give another one the rows of another pass."""
    stream = shuffled(per_class=4)
    rows = opened(stream)
    before = rows[40]["pixel_values"].sum().item()
    assert stream.epoch == 0
    stream.set_epoch(7)
    assert opened(stream)[40]["pixel_values"].sum().item() == before


def test_an_epoch_covers_the_forget_set():
    """The places go on across epochs; with a map-style retain set the retain set cycles."""
    stream, both = PairedSampler(None, 3, 2, seed=1), PairedSampler(5, 3, 2, seed=1, covers="forget")
    found = []
    for epoch in range(3):
        for sampler in (stream, both):
            sampler.set_epoch(epoch)
        found += [place for place, _ in stream]
        assert [forget for _, forget in stream] == [forget for _, forget in both]
        assert {forget for _, forget in both} == {0, 1, 2}
    assert found == list(range(12))


def stream_trainer(model, folder, stream, *, kwargs=None, **changes):
    return trainer_for(model, folder, kwargs={"retain_dataset": stream, **(kwargs or {})}, **{**BY_FORGET, **changes})


def test_classes_are_forgotten_with_a_stream_to_keep(tmp_path):
    """60 epochs over the forget set, several passes over the stream; rows to forget in the stream do no harm."""
    trainer = stream_trainer(
        peft_vit(r=8),
        tmp_path,
        shuffled(per_class=16),
        kwargs={"eval_dataset": scoring_set()},
        per_device_train_batch_size=3,
        num_train_epochs=60,
        learning_rate=2e-2,
        forget_loss="log_odds",
        forget_bound=5.0,
        forget_weight=1.0,
    )
    assert (trainer.retain_classes, trainer.forget_classes) == (list(RETAIN), list(FORGET))
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert trainer.state.global_step == 120
    assert before["eval_acc_forget"] > 0.9
    assert after["eval_acc_forget"] == 0
    assert after["eval_acc_retain"] >= 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_steps": 8, "epoch_covers": "both"},
        {"depth_weight": 1.0},
        {"sparsity": "select"},
        {"augmentation": True, "kwargs": {"augment": lambda image: image + 0.3 * torch.randn_like(image)}},
    ],
    ids=["plain", "steps", "depth", "select", "views"],
)
def test_a_training_that_resumes_is_bit_equal(tmp_path, changes):
    """In the first pass and in later ones; options that look at samples before the training take the first rows."""

    def start(folder, **more):
        return stream_trainer(peft_vit(dropout=0.2), folder, shuffled(), **changes, **more)

    through = start(tmp_path / "through", save_strategy="steps", save_steps=1)
    through.train()
    for step in (2, 7):
        torch.manual_seed(step)
        resumed = start(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "through" / f"checkpoint-{step}"))
        assert not differences(adapter_state(through.model), adapter_state(resumed.model))


def test_worker_processes_change_nothing(tmp_path):
    """Each of them reads the same stream, over several epochs."""
    models = [peft_vit(), peft_vit()]
    for workers, model in enumerate(models):
        stream_trainer(model, tmp_path, shuffled(), dataloader_num_workers=2 * workers).train()
    assert not differences(*map(adapter_state, models))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_share_no_pass_over_the_stream(tmp_path):
    """Three workers read a shuffled stream over several passes: each row comes once in each pass, in another order, at
    the places where a single process meets it."""
    read: dict[int, list[float]] = {0: [], 3: []}
    for workers, found in read.items():
        kwargs = {"forget_dataset": forget_set(24)}  # an epoch over it is four passes over the stream
        changes = {"dataloader_num_workers": workers, "per_device_train_batch_size": 4}
        trainer = stream_trainer(peft_vit(layers=1), tmp_path, shuffled(), kwargs=kwargs, **changes)
        loader = trainer.get_train_dataloader()
        for epoch in range(2):
            loader.set_epoch(epoch)
            for batch in loader:
                half = len(batch["pixel_values"]) // 2
                found += batch["pixel_values"][:half].double().sum(dim=(1, 2, 3)).tolist()
    size = 3 * len(RETAIN)
    passes = [read[3][start : start + size] for start in range(0, len(read[3]), size)]
    assert len(passes) == 8
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len(set(passes[0])) == size
    assert len({tuple(one) for one in passes}) == len(passes)
    assert read[3] == read[0]


def test_no_rows_are_held(tmp_path):
    """As many rows are in memory after 400 of them as after 40: those of one batch and the next one."""
    most = []
    for length in (40, 400):
        stream = Rows([number % 6 for number in range(length)])
        stream_trainer(peft_vit(layers=1), tmp_path, stream, max_steps=length // 4).train()
        most.append(stream.most)
        gc.collect()
    assert most[0] == most[1] <= 8


def test_a_training_that_passes_over_a_set_to_keep_is_refused(tmp_path):
    """Methods that measure all samples to keep say so at the start, by the name of the argument."""
    trainer = ForgettingTrainer(
        knowing_vit(),
        arguments(tmp_path, "ssd", **BY_FORGET),
        method=get_method("ssd"),
        forget_dataset=forget_set(),
        retain_dataset=shuffled(),
    )
    with refused("retain_dataset"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("epoch_covers", {"epoch_covers": "both"}),
        ("epoch_covers", {"epoch_covers": "retain", "max_steps": 3}),
        ("validation_fraction", {"validation_fraction": 0.2}),
        ("prototype_forget_weight", {"prototype_forget_weight": 0.5}),
        ("prototype_retain_weight", {"prototype_retain_weight": 0.5}),
    ],
)
def test_options_that_need_the_whole_set_are_refused(tmp_path, name, changes):
    """Before anything is read."""
    with refused(name):
        stream_trainer(peft_vit(), tmp_path, shuffled(), **changes)


def test_states_are_not_kept(tmp_path):
    """The cache of the frozen prefix would grow with the stream."""
    trainer = stream_trainer(peft_vit(), tmp_path, shuffled(), prefix_cache="on")
    with refused("prefix_cache"):
        trainer.train()


def test_workers_of_a_stream_of_torch_are_refused(tmp_path):
    """It may give each worker other rows."""
    with refused("dataloader_num_workers", 1):
        stream_trainer(peft_vit(), tmp_path, Rows([0, 1]), dataloader_num_workers=1)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([4, 5], "retain_dataset"),
        ([], "retain_dataset"),
        ([0, 6], "row 1 of the retain set, column 'label'"),
        ([0, -1], "row 1 of the retain set, column 'label'"),
        ([0, None], "row 1 of the retain set, column 'label'"),
    ],
    ids=["none to keep", "empty", "not in the head", "negative", "no label"],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, labels, name):
    """While they are read."""
    with refused(name):
        stream_trainer(peft_vit(), tmp_path, Rows(labels)).train()


def test_a_stream_with_other_names_is_refused(tmp_path):
    """Names of a stream of `datasets` are known before a row is read."""
    features = samples().features.copy()
    features["label"] = type(features["label"])(names=["zebra", *features["label"].names[1:]])
    with refused("'label': class 0", "zebra"):
        stream_trainer(peft_vit(), tmp_path, shuffled().cast(features))


def test_a_model_without_a_known_head_is_refused(tmp_path):
    """All other classes of the head are kept; so their number must be known."""
    base = knowing_vit()
    model = get_peft_model(base, GSLoraConfig(r=3))
    base.config.id2label = dict(enumerate(NAMES[:2]))  # as many as by default, and no layer with two outputs
    with refused("retain_dataset"):
        GSLoraTrainer(model, arguments(tmp_path, **BY_FORGET), forget_dataset=forget_set(), retain_dataset=shuffled())
