"""Kept outputs of frozen blocks change no bit of a training, and are not used where they would."""

import itertools

import pytest
import torch
from errors import refused
from tasks import (
    adapter_state,
    differences,
    forget_set,
    lower_zero,
    peft_vit,
    retain_set,
    samples,
    trainer_for,
    two_adapters,
)
from torch import nn
from transformers import TrainerCallback, ViTForImageClassification
from transformers.models.vit.modeling_vit import ViTAttention

from gs_lora_peft.data import default_collator
from gs_lora_peft.training.prefix.chain import can_be_cut, read_chain
from gs_lora_peft.training.prefix.states import StateStore, digests, kept_generators, word_sums

SAMPLES = len(retain_set()) + len(forget_set())


class Record(TrainerCallback):
    """What a training logged at every step, and how many blocks it left out and states it kept."""

    def __init__(self, trainer):
        self.trainer, self.logs, self.blocks, self.kept, self.calls = trainer, [], [], [], 0

    def on_step_end(self, args, state, control, **kwargs):
        self.blocks.append(self.trainer.prefix.block)
        self.kept.append(len(self.trainer.prefix.store))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append({name: value for name, value in logs.items() if "loss" in name or name == "grad_norm"})


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains with logs of every step, and counts the calls of the lowest block's attention."""

    def run(model, cache, resume=None, callbacks=(), **changes):
        settings = {"logging_strategy": "steps", "logging_steps": 1, "prefix_cache": cache, **changes}
        trainer = trainer_for(model, tmp_path / cache, **settings)
        record = Record(trainer)
        for callback in (*callbacks, record):
            trainer.add_callback(callback)
        lowest = model.base_model.model.vit.layers[0]
        forward = ViTAttention.forward

        def counted(self, *args, **kwargs):
            record.calls += self is lowest.attention
            return forward(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(ViTAttention, "forward", counted)
            trainer.train(resume_from_checkpoint=resume)
        assert not any("forward" in vars(module) for module in model.modules() if module is not model)
        return record, adapter_state(model)

    return run


def assert_same(first, second):
    assert first[0].logs == second[0].logs
    assert len(first[0].logs) > 3
    assert differences(first[1], second[1]) == []


CASES = {
    "plain": (peft_vit, {}),
    "earlier adapter": (two_adapters, {}),
    "earlier model": (two_adapters, {"distillation_weight": 1.0}),
    "accumulation": (peft_vit, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    "bfloat16": (peft_vit, {"bf16": True}),
    "checkpoints": (peft_vit, {"gradient_checkpointing": True}),
    "average": (peft_vit, {"ema_decay": 0.7}),
    "prototypes": (peft_vit, {"prototype_forget_weight": 0.3, "prototype_retain_weight": 0.2}),
}


@pytest.mark.parametrize(("make", "changes"), CASES.values(), ids=CASES)
def test_losses_and_weights_are_the_same(make, changes, train):
    cached, uncached = (train(lower_zero(make()), cache, **changes) for cache in ("auto", "off"))
    assert_same(cached, uncached)
    assert set(cached[0].blocks) == {2}
    assert cached[0].kept[-1] >= SAMPLES
    assert not any(uncached[0].blocks)
    assert cached[0].calls < uncached[0].calls


def test_earlier_model_uses_the_same_states(train):
    """One pass serves both forwards of a step that get the whole batch; half of a batch has states of its own."""
    record, _ = train(lower_zero(two_adapters()), "auto", distillation_weight=1.0)
    assert record.kept[-1] == SAMPLES + len(retain_set())
    retain = samples((0, 1, 2), seed=1)  # the fourth class is missing, so that distillation acts on both halves
    record, _ = train(lower_zero(two_adapters()), "auto", kwargs={"retain_dataset": retain})
    assert "distillation" in record.trainer.meter.names
    assert record.kept[-1] == len(retain) + len(forget_set())


def test_groups_that_are_dropped_while_it_trains(train):
    def small_below():
        model = peft_vit()
        with torch.no_grad():
            for name, matrix in ((n, p) for n, p in model.named_parameters() if "lora_" in n):
                matrix.mul_({"0": 0.2, "1": 0.5, "2": 1.0}[name.split("layers.")[1][0]])
        return model

    dying = {"sparsity_weight": 0.9, "learning_rate": 3e-2, "lr_scheduler_type": "constant", "num_train_epochs": 4}
    cached, uncached = (train(small_below(), cache, **dying) for cache in ("auto", "off"))
    assert_same(cached, uncached)
    assert cached[0].blocks == sorted(cached[0].blocks)
    assert set(cached[0].blocks) == {0, 1, 2}
    assert cached[0].calls < uncached[0].calls


def test_resumed_training_equals_one_that_was_not_stopped(train, tmp_path):
    whole = train(lower_zero(peft_vit()), "auto", save_strategy="epoch")
    resumed = train(lower_zero(peft_vit(seed=1)), "auto", resume=str(tmp_path / "auto" / "checkpoint-8"))
    assert resumed[0].kept[-1] > 0
    assert differences(whole[1], resumed[1]) == []


def noise(image):
    return image + 0.3 * torch.randn_like(image)


DEPTH = {"depth_weight": 1.0}
REFUSED = {
    "dropout": (lambda: peft_vit(dropout=0.3), {}),
    "augmented": (peft_vit, {"augmentation": True, "kwargs": {"augment": noise}}),
    "no room": (peft_vit, {"prefix_cache_mib": 0.001}),
}


@pytest.mark.parametrize(("make", "changes"), REFUSED.values(), ids=REFUSED)
def test_states_are_not_kept_where_they_cannot_be_used(make, changes, train):
    record, _ = train(lower_zero(make()), "auto", max_steps=3, **changes)
    assert not any(record.kept)
    with refused("prefix_cache", "on"):
        train(lower_zero(make()), "on", max_steps=3, **changes)


def test_forgetting_in_depth_sees_every_block(train):
    """Its hooks read the states behind all blocks; above them only, states are kept."""
    watched, _ = train(lower_zero(peft_vit()), "auto", max_steps=5, **DEPTH)
    assert (watched.blocks[-1], watched.kept[-1]) == (2, 0)
    cached, uncached = (
        train(lower_zero(peft_vit()), cache, depth_blocks="layers.2", **DEPTH) for cache in ("auto", "off")
    )
    assert_same(cached, uncached)
    assert cached[0].kept[-1] == SAMPLES


@pytest.mark.parametrize("blocks", ["auto", r"layers\.2"])
def test_a_step_of_relearning_changes_the_lower_blocks_too(blocks, train):
    """Their other weights and the gradient of these are neither left out nor kept."""
    cached, uncached = (
        train(lower_zero(peft_vit()), cache, depth_radius=0.1, depth_blocks=blocks, max_steps=6, **DEPTH)
        for cache in ("auto", "off")
    )
    assert_same(cached, uncached)


class Contrast:
    """A collator whose batches hold something besides tensors, which changes from batch to batch."""

    def __init__(self, kinds):
        self.kinds, self.collate = itertools.cycle(kinds), default_collator()

    def __call__(self, rows):
        return {**self.collate(rows), "contrast": next(self.kinds)}


class ContrastViT(ViTForImageClassification):
    """Has a further input, which no tensor of the batch tells."""

    def forward(self, pixel_values, contrast, **others):
        return super().forward(pixel_values if contrast in (1, [1]) else pixel_values.flip(-1), **others)


def with_contrast(model):
    model.base_model.model.__class__ = ContrastViT
    return model


@pytest.mark.parametrize(("kinds", "kept"), [((1, 2, 2), True), (([1], [2], [2]), False)], ids=["value", "list"])
def test_inputs_that_are_no_tensors_tell_samples_apart(kinds, kept, train):
    """A single value is part of the key; of anything else nobody knows which sample it belongs to."""
    cached, uncached = (
        train(
            with_contrast(lower_zero(peft_vit())), cache, kwargs={"data_collator": Contrast(kinds)}, num_train_epochs=6
        )
        for cache in ("auto", "off")
    )
    assert_same(cached, uncached)
    assert (cached[0].kept[-1] > 0) is kept
    if not kept:
        with refused("prefix_cache", "on"):
            train(with_contrast(lower_zero(peft_vit())), "on", kwargs={"data_collator": Contrast(kinds)}, max_steps=2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_generator_of_the_device_is_kept_too(device, monkeypatch):
    """Of the accelerator as well as of the CPU; in place of one stands a record of what it is given back."""
    given = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: ("state", where))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, where: given.append((state, where)))
    where, before = torch.device(device), torch.get_rng_state()
    with kept_generators(where):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert given == ([] if device == "cpu" else [(("state", where), where)])


def test_everything_trains(train):
    record, _ = train(peft_vit(), "on", max_steps=2)
    assert (record.blocks, record.kept) == ([0, 0], [0, 0])


# Parts


class Block(nn.Module):
    """Returns the state, alone or in a tuple with something else."""

    def __init__(self, extra=()):
        super().__init__()
        self.linear, self.extra = nn.Linear(4, 4), extra

    def forward(self, state, flag=None):
        output = self.linear(state)
        return (output, *[None if item is None else output * item for item in self.extra]) if self.extra else output


class Stack(nn.Module):
    """Blocks one after another; `reads` is a block whose output the end reads, too."""

    def __init__(self, blocks, order=(0, 1, 2), reads=None):
        super().__init__()
        self.embed, self.blocks, self.order, self.reads = nn.Linear(3, 4), nn.ModuleList(blocks), order, reads

    def forward(self, x):
        state, read = self.embed(x), 0.0
        for number in self.order:
            output = self.blocks[number](state, flag=True)
            state = output if isinstance(output, torch.Tensor) else output[0]
            read = state if number == self.reads else read
        return {"logits": state + read}


def chain_of(model):
    x = torch.randn(5, 3)
    blocks = {path: module for path, module in model.named_modules() if isinstance(module, Block)}
    return read_chain(model, blocks, lambda: model(x), 5), lambda: model(x)


@pytest.mark.parametrize("extra", [(), (None,)], ids=["tensor", "tuple"])
def test_chain_is_found_and_can_be_cut(extra):
    model = Stack([Block(extra) for _ in range(3)], order=(2, 0, 1))
    chain, forward = chain_of(model)
    assert [link.module for link in chain.blocks] == [model.blocks[number] for number in (2, 0, 1)]
    assert chain.source.module is model.embed
    assert can_be_cut(model, chain, 2, forward)


@pytest.mark.parametrize(
    ("model", "length"),
    [
        (Stack([Block((2.0,)) for _ in range(3)]), 0),
        (Stack([Block(), Block((2.0,)), Block()]), 1),
        (Stack([Block() for _ in range(3)], order=(0, 0, 1, 2)), 0),
    ],
    ids=["two tensors", "two tensors later", "called twice"],
)
def test_other_blocks_are_no_chain(model, length):
    assert len(chain_of(model)[0].blocks) == length


def test_model_that_reads_a_lower_block_cannot_be_cut():
    model = Stack([Block() for _ in range(3)], reads=0)
    chain, forward = chain_of(model)
    assert len(chain.blocks) == 3
    assert can_be_cut(model, chain, 1, forward)
    assert not can_be_cut(model, chain, 2, forward)


def test_digests_tell_contents_apart():
    images = torch.randn(4, 3, 5, 5)
    images[2] = images[0]
    first = digests({"pixel_values": images}, 4)
    assert first[0] == first[2] != first[1]
    assert digests({"pixel_values": images[:2]}, 2) == first[:2]
    mask = torch.ones(4, 2, dtype=torch.int64)
    assert digests({"pixel_values": images, "mask": mask}, 4)[0] != first[0]
    assert digests({"pixel_values": images.reshape(4, 75)}, 4)[0] != first[0]


def test_word_sums_tell_signs_apart():
    """Values ±1 differ in one bit of a word."""
    bits = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)))
    sums = word_sums(bits.view(torch.uint8))
    assert len({tuple(row) for row in sums.tolist()}) == len(bits)


def test_a_state_that_differs_is_noticed():
    store = StateStore(limit=100)
    assert store.add(["a", "b"], torch.ones(2, 3))
    assert store.add(["b", "c"], torch.ones(2, 3))
    assert store.size == 36
    assert not store.add(["d", "a"], torch.zeros(2, 3))
    assert torch.equal(store.get(["a", "d"]), torch.tensor([[1.0] * 3, [0.0] * 3]))


def test_new_views_of_every_epoch_do_not_fill_the_memory(train):
    """A transform of the data set makes them, which no option tells."""
    generator = torch.Generator().manual_seed(0)

    def shaken(rows):
        return {**rows, "pixel_values": [x + torch.randn(x.shape, generator=generator) for x in rows["pixel_values"]]}

    data = {"retain_dataset": retain_set().with_transform(views(shaken)), "forget_dataset": forget_set()}
    record, _ = train(lower_zero(peft_vit()), "auto", num_train_epochs=6, kwargs=data)
    assert max(record.kept) <= 2 * SAMPLES
    assert record.kept[-1] == 0


def views(change):
    """A transform that gets tensors."""

    def transform(rows):
        return change({**rows, "pixel_values": [torch.tensor(pixels) for pixels in rows["pixel_values"]]})

    return transform
