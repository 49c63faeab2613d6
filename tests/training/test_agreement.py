"""What is learned is what was chosen: labels that a transform or a collator renumbers never reach the weights."""

import functools

import pytest
import torch
from datasets import Value
from tasks import (
    FORGET,
    NAMES,
    RETAIN,
    adapter_state,
    arguments,
    differences,
    ffn_trainer,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
)

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainer, split_dataset
from gs_lora_peft.data import default_collator
from gs_lora_peft.errors import InvalidInputError


def renumbered(rows, column="labels", only=None):
    """A transform that gives the next class; `only` where the row is bright."""
    pixels = torch.as_tensor(rows["pixel_values"])
    labels = torch.as_tensor(rows["label"])
    changed = torch.ones(len(labels), dtype=bool) if only is None else pixels.mean(dim=(1, 2, 3)) == only
    return {"pixel_values": list(pixels), column: torch.where(changed, (labels + 1) % 6, labels).tolist()}


def hidden_column(data):
    """Without a transform: a format shows other labels than the stored ones."""
    other = data.with_format(None).add_column("labels", [(int(label) + 1) % 6 for label in data["label"]])
    return other.with_format("torch", columns=["pixel_values", "labels"])


DIFFERING = {
    "transform": lambda data: data.with_format(None).with_transform(renumbered),
    "own name": lambda data: data.with_format(None).with_transform(functools.partial(renumbered, column="label")),
    "format": hidden_column,
    "integers": lambda data: data.with_format(None).cast_column("label", Value("int64")).with_transform(renumbered),
}


def trainer(folder, retain, forget, **kwargs):
    return GSLoraTrainer(peft_vit(), arguments(folder), forget_dataset=forget, retain_dataset=retain, **kwargs)


def finetuner(folder, retain, forget):
    return ffn_trainer(knowing_vit(), arguments(folder, "ffn"), forget_dataset=forget, retain_dataset=retain)


@pytest.mark.parametrize("make", [trainer, finetuner])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("kind", DIFFERING)
def test_other_labels_than_the_stored_ones_are_refused_at_once(tmp_path, make, half, kind):
    """In either half, whatever renumbers them, and whatever column holds them."""
    sets = [retain_set(), forget_set()]
    sets[half] = DIFFERING[kind](sets[half])
    with pytest.raises(InvalidInputError) as caught:
        make(tmp_path, *sets)
    assert f"row 0 of the {['retain', 'forget'][half]} set" in caught.value.name
    assert caught.value.value == ([*RETAIN, *FORGET][4 * half] + 1) % 6


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_forgetter_is_not_made_of_them(tmp_path, part):
    """Request [0] would forget class 1 while the ledger says 0."""
    data = {"train": samples(), "test": samples(seed=5)}
    data[part] = DIFFERING["integers"](data[part])
    with pytest.raises(InvalidInputError):
        ContinualForgetter(knowing_vit(), data, tmp_path / "run", args=arguments(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_single_row_is_noticed_in_its_batch(tmp_path):
    """A row that no sample was taken of is refused when its batch comes, and before the step that would learn it."""
    forget = samples(FORGET, 3, seed=2).with_format(None)
    odd = float(torch.as_tensor(forget[2]["pixel_values"])[None].mean(dim=(1, 2, 3)))
    run = trainer(tmp_path, retain_set(), forget.with_transform(functools.partial(renumbered, only=odd)))
    with pytest.raises(InvalidInputError) as caught:
        run.train()
    assert "row 2 of the forget set" in caught.value.name


class Shifting:
    """A collator of one's own."""

    def __call__(self, rows):
        batch = default_collator()(rows)
        return {**batch, "labels": (batch["labels"] + 1) % 6}


@pytest.mark.parametrize("unused", [False, True])
def test_a_collator_that_renumbers_changes_no_weight(tmp_path, unused):
    """Also behind the filter of `remove_unused_columns`; and no ledger is written."""
    model = peft_vit()
    before = adapter_state(model)
    sets = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    run = GSLoraTrainer(model, arguments(tmp_path, remove_unused_columns=unused), **sets, data_collator=Shifting())
    with pytest.raises(InvalidInputError):
        run.train()
    assert not differences(before, adapter_state(model))
    data = {"train": samples(), "test": samples(seed=5)}
    args = arguments(tmp_path, max_steps=1)
    forgetter = ContinualForgetter(knowing_vit(), data, tmp_path / "run", args=args, data_collator=Shifting())
    with pytest.raises(InvalidInputError):
        forgetter.forget(ForgetRequest([NAMES[0]]))
    assert not (tmp_path / "run" / "forgetting.json").exists()


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars", "labels", "collator"])
def test_labels_that_agree_pass(tmp_path, form):
    """A format of tables, a transform and a collator that leave the labels alone, and one that mixes them."""
    if form == "polars":
        pytest.importorskip("polars")
    data = samples(per_class=2).with_format(None)
    if form == "labels":
        data = data.with_transform(lambda rows: {"pixel_values": rows["pixel_values"], "labels": rows["label"]})
    elif form != "collator":
        data = data.with_format(form)
    args = arguments(tmp_path, max_steps=1)
    forgetter = ContinualForgetter(
        knowing_vit(),
        {"train": data, "test": data},
        tmp_path / "run",
        args=args,
        data_collator=default_collator() if form == "collator" else None,
    )
    assert forgetter.forget(ForgetRequest([2])).classes == [2]
    split = split_dataset(data, [2])
    assert len(trainer(tmp_path, split.retain, split.forget).train_dataset[0, 0]) == 2


def test_names_of_the_model_serve_labels_without_names(tmp_path):
    """`forget aardvark` where the column is int64: the model says what its classes are called."""
    data = samples(per_class=2).cast_column("label", Value("int64"))
    forgetter = ContinualForgetter(
        knowing_vit(), {"train": data, "test": data}, tmp_path / "run", args=arguments(tmp_path, max_steps=1)
    )
    entry = forgetter.forget(ForgetRequest([NAMES[3]]))
    assert (entry.classes, entry.class_names) == ([3], [NAMES[3]])
    placeholders = knowing_vit()
    placeholders.config.id2label = {number: f"LABEL_{number}" for number in range(6)}
    placeholders.config.label2id = {f"LABEL_{number}": number for number in range(6)}
    other = ContinualForgetter(placeholders, {"train": data, "test": data}, tmp_path / "other")
    assert other.label_names is None
