"""Walks through public bug reports about pictures, rows and labels. Each docstring names the
reports; a repository without an owner is one of huggingface's."""

import io

import numpy as np
import pytest
import report_cases as cases
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image as Images, Value
from errors import refused
from PIL import Image

from gs_lora_peft import ForgetRequest, GSLoraTrainer, split_dataset
from gs_lora_peft.data import align_labels, default_collator
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.errors import InvalidInputError


def trained(base, folder, dataset, **changes):
    trainer = cases.trainer_for(cases.adapted(base), folder, dataset, **changes)
    trainer.train()
    return trainer


def pixels_of(dataset) -> torch.Tensor:
    """What reaches the model of a data set's rows."""
    rows = [dataset[number] for number in range(len(dataset))]
    return default_collator(cases.PROCESSOR, "label", dataset)(rows)["pixel_values"]


def of_cells(cells, feature=None) -> Dataset:
    """One row for each cell, all of the first kind."""
    features = Features({"image": feature or Images(), "label": ClassLabel(names=cases.NAMES)})
    return Dataset.from_dict({"image": list(cells), "label": [0] * len(cells)}, features=features)


# Rows and columns


def test_unused_columns_may_be_removed(base, tmp_path, plain):
    """transformers#17894, transformers#31262: the default of the stock Trainer took `image` away."""
    dataset = cases.pictures().add_column("file", [f"{number}.png" for number in range(30)])
    trainer = trained(
        base, tmp_path, dataset, remove_unused_columns=True, kwargs={"eval_dataset": cases.data()["test"]}
    )
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)
    assert trainer.evaluate()["eval_acc_retain"] == 1


def test_columns_are_removed_behind_a_transform(base, tmp_path, plain):
    """transformers#22119, datasets#6069: columns were removed before the transform that reads them."""

    def transform(rows):
        return {"pixel_values": list(cases.pixels(rows["image"])), "label": rows["label"]}

    dataset = cases.pictures().with_transform(transform)
    trainer = trained(base, tmp_path, dataset, remove_unused_columns=True)
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)


def test_the_picture_column_may_have_any_name(base, tmp_path, plain):
    """transformers#27535: the column of pictures is no argument of the model's forward."""
    dataset = cases.pictures(column="image_path")
    trainer = trained(base, tmp_path, dataset, remove_unused_columns=True)
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)


def test_a_transform_that_cannot_be_pickled_meets_workers(base, tmp_path, plain):
    """diffusers#1692: a local function and `dataloader_num_workers`."""
    dataset = cases.pictures().with_transform(lambda rows: {name: list(cells) for name, cells in rows.items()})
    trainer = trained(base, tmp_path, dataset, dataloader_num_workers=1, num_train_epochs=6)
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)


@pytest.mark.parametrize(("half", "name"), [("forget_dataset", "forget"), ("retain_dataset", "epoch_covers")])
def test_a_stream_is_refused_at_once_and_a_collected_one_works(base, tmp_path, plain, half, name):
    """transformers#20089, transformers#33674, datasets#5773: a stream has no length, and no row by number. One of
    samples to keep needs an epoch of another length."""
    split = split_dataset(cases.pictures(), ["bee"])
    sets = {"forget_dataset": split.forget, "retain_dataset": split.retain}
    stream = sets[half].to_iterable_dataset()
    kwargs = {"args": cases.arguments(tmp_path), "processing_class": cases.PROCESSOR}
    with refused(name):
        GSLoraTrainer(cases.adapted(base), **kwargs, **{**sets, half: stream})
    collected = Dataset.from_list(list(stream), features=split.retain.features)
    trainer = GSLoraTrainer(cases.adapted(base), **kwargs, **{**sets, half: collected})
    trainer.train()
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)


def test_a_class_of_one_sample_is_never_held_out(base, tmp_path):
    """embeddings-benchmark/mteb#519: stratified splitting stopped at a class of a single member."""
    dataset = cases.pictures()
    dataset = dataset.select([number for number in range(30) if number not in range(1, 6)])  # one ant is left
    trainer = trained(base, tmp_path, dataset, validation_fraction=0.2, eval_strategy="epoch")
    assert 0 in trainer.train_dataset.retain["label"]
    assert 0 not in trainer.eval_dataset["label"]
    assert set(trainer.eval_dataset["label"]) == {1, 2, 3, 4}
    assert cases.accuracy(trainer.model)["bee"] == 0


# Pictures


def grey_cells():
    """Grey pictures of 8 bits."""
    return [Image.fromarray(cell).convert("L") for cell in cases.arrays(1)[0]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("stored", ["opened", "PNG", "TIFF"])
def test_sixteen_bits_keep_their_greys(mode, stored):
    """python-pillow/Pillow#3011, python-pillow/Pillow#2574, python-pillow/Pillow#5991: 16-bit grey became white."""
    deep = []
    for cell in grey_cells():
        values = (np.asarray(cell).astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2")
        picture = Image.frombytes(mode, cell.size, values.tobytes())
        if stored != "opened":
            picture.save(stream := io.BytesIO(), stored)
            picture = Image.open(io.BytesIO(stream.getvalue()))
        deep.append(picture)
    rows = [{"image": picture, "label": 0} for picture in deep]
    batch = default_collator(cases.PROCESSOR, "label", None)(rows)
    assert torch.equal(batch["pixel_values"], pixels_of(of_cells(grey_cells())))
    assert batch["pixel_values"].std() > 0.1


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_formats_do_not_turn_pictures(base, tmp_path, plain, form):
    """datasets#6394: `with_format("torch")` gave (H, W, C), later (C, H, W)."""
    trainer = trained(base, tmp_path, cases.pictures().with_format(form))
    assert cases.same(cases.weights(trainer.model, "lora_"), plain)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_grey_pictures_reach_a_model_of_three_channels(form):
    """transformers#25694: "Unsupported number of image dimensions: 2"."""
    dataset = of_cells(grey_cells())
    expected = cases.pixels([cell.convert("RGB") for cell in grey_cells()])
    assert torch.equal(pixels_of(dataset.with_format(form)), expected)


@pytest.mark.parametrize("shape", [(1, 40, 3), (40, 1, 3), (3, 40, 3), (3, 1, 3)])
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_narrow_pictures_keep_their_colours(shape, form):
    """transformers#31950: of (1, 1000, 3) the first number was taken for the channels."""
    cell = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = cases.pixels([Image.fromarray(cell)])
    assert torch.equal(pixels_of(of_cells([Image.fromarray(cell)]).with_format(form)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_the_same_decoded_or_not(orientation):
    """datasets#6739, dataset-viewer#2605: the orientation in the EXIF data was ignored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8))
    picture.save(stream := io.BytesIO(), "PNG", exif=exif)
    cell = {"bytes": stream.getvalue(), "path": None}
    decoded, raw = of_cells([cell]), of_cells([cell], Images(decode=False))
    assert decoded[0]["image"].size == ((8, 24) if orientation > 4 else (24, 8))
    assert torch.equal(pixels_of(raw), pixels_of(decoded))


def test_a_broken_file_is_named_and_can_be_left_out(base, tmp_path):
    """python-pillow/Pillow#4678, python-pillow/Pillow#5141: an UnidentifiedImageError deep in training does not
    say which file."""
    dataset = cases.pictures().cast_column("image", Images(decode=False))
    rows = list(dataset)
    rows[17]["image"] = {"bytes": b"<html>404</html>", "path": "cow/17.png"}
    dataset = Dataset.from_list(rows, features=dataset.features)
    trainer = cases.trainer_for(model := cases.adapted(base), tmp_path, dataset)
    with pytest.raises(InvalidInputError) as error:
        trainer.train()
    assert "17" in error.value.name
    assert "image" in error.value.name
    rest = dataset.select([number for number in range(30) if number != 17])
    trainer = cases.trainer_for(model, tmp_path, rest)
    trainer.train()
    assert cases.forgot(model, "bee")


# Labels and names


@pytest.mark.parametrize("turned", [False, True])
def test_ids_written_as_text_align_labels(turned):
    """datasets#2457: `label2id` of a model on the Hub held text, and so did `id2label`."""
    names = ["elk", "ant", "dog", "bee", "cow"]
    dataset = cases.pictures(1, names=names)
    mapping = {name: str(number) for number, name in enumerate(cases.NAMES)}
    mapping = {number: name for name, number in mapping.items()} if turned else mapping
    aligned = align_labels(dataset, "label", mapping)
    assert [aligned.features["label"].names[number] for number in aligned["label"]] == names
    assert aligned["label"] == [cases.NAMES.index(name) for name in names]


def test_classes_numbered_otherwise_never_pass_for_each_other(base, tmp_path):
    """transformers#12069, optimum#197, pytorch/vision#714: data set and model number the same classes differently."""
    names = ["bee", "ant", "cow", "dog", "elk"]
    swap = {0: 1, 1: 0}
    dataset = cases.data().map(lambda row: {"label": swap.get(row["label"], row["label"])})
    dataset = dataset.cast_column("label", ClassLabel(names=names))
    run = tmp_path / "run"
    with pytest.raises(ValueError) as error:
        cases.forgetter_for(base, run, dataset)
    assert (error.value.name, error.value.value) == ("training data: 'label': class 0", "bee")
    assert not run.exists()
    forgetter = cases.forgetter_for(base, run, align_labels(dataset, "label", cases.load(base).config.label2id))
    assert forgetter.forget(ForgetRequest(["bee"])).forgotten
    assert cases.forgot(forgetter.model, "bee")


def test_names_that_are_numbers_are_no_ids(base, tmp_path):
    """pytorch/vision#714: folders called 1, 10, 100, 2, 3 get the ids 0 to 4."""
    names = ["1", "10", "100", "2", "3"]
    model = cases.load(base)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    data = DatasetDict(
        {name: part.cast_column("label", ClassLabel(names=names)) for name, part in cases.data().items()}
    )
    forgetter = cases.forgetter_for(base, tmp_path / "run", data, base=model)
    by_name = forgetter.forget(ForgetRequest(["2"]))
    by_id = forgetter.forget(ForgetRequest([2]))
    assert (by_name.classes, by_id.classes) == ([3], [2])
    assert cases.forgot(forgetter.model, "dog", "cow")
    with pytest.raises(UnknownClassError):
        forgetter.forget(ForgetRequest(["4"]))


def test_a_head_without_the_last_class_is_refused_before_training(base, tmp_path):
    """datasets#6446, transformers#10449, ultralytics/ultralytics#4514: 36 classes in the data, 35 in the head."""
    dataset = cases.data().cast_column("label", ClassLabel(names=[*cases.NAMES, "fox"]))
    with pytest.raises(ValueError) as error:
        cases.forgetter_for(base, tmp_path / "run", dataset)
    assert "label" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", [-1, None])
def test_rows_without_a_label_are_named(base, tmp_path, bad):
    """EricFillion/happy-transformer#248: "Target -1 is out of bounds"."""
    dataset = cases.pictures().cast_column("label", Value("int64"))
    rows = list(dataset)
    rows[4]["label"] = bad
    dataset = Dataset.from_list(rows, features=dataset.features)
    for call in (
        lambda: split_dataset(dataset, [1]),
        lambda: cases.forgetter_for(base, tmp_path / "run", dataset),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "row 4" in str(error.value)
        assert str(bad) in str(error.value)


def test_a_model_without_names_takes_those_of_the_data(tmp_path):
    """transformers#3093: `num_labels` alone leaves LABEL_0, LABEL_1, ... in the configuration."""
    placeholders = {number: f"LABEL_{number}" for number in range(5)}
    model = cases.vit(id2label=placeholders, label2id={name: number for number, name in placeholders.items()}).eval()
    forgetter = cases.forgetter_for(None, tmp_path / "run", base=model)
    assert forgetter.label_names == cases.NAMES
    assert forgetter.forget(ForgetRequest(["dog"])).class_names == ["dog"]


@pytest.mark.parametrize(
    "name",
    [
        "crane, bird; grey: #1",
        "größte Ameise 🐜",
        "x" * 300,
        "'quoted' \"twice\"",
        "../../etc/passwd",
        "- yes\n",
        "NaN",
    ],
)
def test_any_name_of_a_class_survives_the_ledger(base, tmp_path, name):
    """ultralytics/yolov5#7049: commas, quotes and other signs in the names of classes."""
    names = ["ant", name, "cow", "dog", "elk"]
    model = cases.load(base)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: number for number, label in enumerate(names)}
    data = DatasetDict(
        {part: rows.cast_column("label", ClassLabel(names=names)) for part, rows in cases.data().items()}
    )
    run = tmp_path / "run"
    args = cases.arguments("not-used", num_train_epochs=1)
    first = cases.forgetter_for(base, run, data, base=model, args=args)
    first.forget(ForgetRequest([name]))
    again = type(first.ledger).load(run)
    assert again.tasks[0].class_names == [name]
    assert again.tasks[0].classes == [1]
    assert {path.name for path in run.iterdir()} >= {"forgetting.json", "tasks"}
    assert not [path for path in run.rglob("*") if name[:20] in path.name and name != "NaN"]


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_heads_of_another_kind_are_refused_and_nothing_is_made(base, tmp_path, problem):
    """transformers#16003: a head for several labels looks like any other until the loss is computed."""
    model = cases.load(base)
    model.config.problem_type = problem
    with pytest.raises(InvalidInputError) as error:
        cases.forgetter_for(base, tmp_path / "run", base=model)
    assert problem in str(error.value.value)
    assert not (tmp_path / "run").exists()


def test_a_request_for_every_class_is_refused_before_training(base, tmp_path):
    """OPTML-Group/Unlearn-Saliency#14: without anything to keep, everything is lost."""
    forgetter = cases.forgetter_for(base, tmp_path / "run")
    with pytest.raises(ValueError) as error:
        forgetter.forget(ForgetRequest(cases.NAMES))
    assert "retain" in str(error.value)
    assert cases.forgot(forgetter.model)
    forgetter.forget(ForgetRequest(cases.NAMES[:4]))
    before = cases.weights(forgetter.model)
    with pytest.raises(ValueError) as error:
        forgetter.forget(ForgetRequest(cases.NAMES[4:]))
    assert "retain" in str(error.value)
    assert cases.same(cases.weights(forgetter.model), before)
