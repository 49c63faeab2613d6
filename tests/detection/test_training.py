"""`GSLoraTrainer` on a detector: batches, checks, scores and what an adapter alone reproduces."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from detection_cases import (
    NAMES,
    adapter,
    annotated,
    answers,
    arguments,
    forgetter,
    knowing_yolos,
    own_findings,
    processor,
)
from detectors import detector
from errors import refused
from peft import PeftModel, get_peft_model
from transformers import LevitConfig, LevitForImageClassification

from gs_lora_peft import GSLoraTrainer, export_lora, split_dataset
from gs_lora_peft.data import prepare_boxes, train_validation_split
from gs_lora_peft.data.pairing import PairedCollator
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.training.checks import classes_of_task

PLACE, OTHER = [0.3, 0.3, 0.3, 0.3], [0.7, 0.7, 0.3, 0.3]


def trainer(model, folder, split=None, **kwargs) -> GSLoraTrainer:
    split = split or split_dataset(own_findings()["train"], ["cat"], label_column="objects")
    given = {"forget_classes": split.forget_classes, "processing_class": processor(), **kwargs}
    settings = given.pop("settings", {})
    torch.manual_seed(0)
    return GSLoraTrainer(
        get_peft_model(model, adapter()),
        arguments(output_dir=str(folder), **settings),
        forget_dataset=split.forget,
        retain_dataset=split.retain,
        label_column="objects",
        **given,
    )


def test_forgets_and_reports_average_precision(tmp_path):
    """From an AP of 1 to 0 for the category, nearly all kept for the others; the best model is chosen by H."""
    run = trainer(
        knowing_yolos(),
        tmp_path,
        eval_dataset=own_findings()["test"],
        settings={"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
    )
    assert (run.forget_classes, run.retain_classes) == ([2], [0, 1, 3])
    before = run.score(own_findings()["test"])
    assert before["ap_forget"] > 0.99
    run.train()
    assert run.accuracy_forget_before == {"eval": before["ap_forget"]}
    last = run.evaluate()
    assert last["eval_ap_forget"] < 0.01
    assert last["eval_ap_retain"] > 0.7
    assert last["eval_h_mean"] == pytest.approx(run.state.best_metric)
    logged = [row for row in run.state.log_history if "retain_confidence" in row]
    assert logged[-1]["forget_confidence"] < 0.2 < logged[0]["forget_confidence"]


def test_mixed_images_are_marked_in_both_halves(tmp_path):
    """An image with both kinds serves twice, with all annotations of both and a mask that says which is which."""
    data = annotated([[(0, PLACE), (2, OTHER)], [(1, PLACE)], [(2, PLACE), (3, OTHER)]])
    split = split_dataset(data, ["cat"], old=["dog"], label_column="objects")
    run = trainer(knowing_yolos(), tmp_path, split)
    assert (run.forget_classes, run.retain_classes) == ([2], [0, 1])
    labels = [label for batch in run.get_train_dataloader() for label in batch["labels"]]
    assert all(torch.equal(label["forget"], label["class_labels"] == 2) for label in labels)
    shown = {tuple(label["class_labels"].tolist()) for label in labels}
    assert shown == {(0, 2), (1,), (2,)}  # the dog was forgotten before
    mine = PairedCollator(lambda rows: {"labels": [{"class_labels": torch.tensor([2]), "forget": "mine"}]}, [2])
    assert mine([(None, None)])["labels"][0]["forget"] == "mine"


def test_what_cannot_be_trained_is_refused(tmp_path):
    """Boxes without a word on what to forget, without a processor, with views that leave boxes behind, held out of
    sets that share images."""
    with refused("forget_classes", None):
        trainer(knowing_yolos(), tmp_path, forget_classes=None)
    with refused("forget_classes", [2, 9]):
        trainer(knowing_yolos(), tmp_path, forget_classes=[2, 9])
    with refused("processing_class", "NoneType"):
        trainer(knowing_yolos(), tmp_path, processing_class=None)
    with refused("augmentation", True):
        trainer(knowing_yolos(), tmp_path, settings={"augmentation": True})
    with refused("validation_fraction", 0.3):
        trainer(knowing_yolos(), tmp_path, settings={"validation_fraction": 0.3})
    small = detector("yolos")
    small.config.num_labels = 3
    with refused("label", 3):
        trainer(small, tmp_path)
    with pytest.raises(ValueError, match=r"read from a datasets\.Dataset"):
        classes_of_task(
            [{"objects": {"category": [2]}}], [{"objects": {"category": [1]}}], "objects", torch.nn.Identity(), [2]
        )
    labels = Dataset.from_dict({"label": [0, 1]})
    with refused("forget_classes", [1]):
        classes_of_task(labels.select([0]), labels.select([1]), "label", torch.nn.Identity(), [1])
    assert classes_of_task(labels.select([0]), labels.select([1]), "label", torch.nn.Identity(), [0]) == ([0], [1])


@pytest.mark.parametrize("name", ["forget", "retain", "evaluation", "evaluation ('bare')"])
def test_a_set_without_objects_is_named(tmp_path, name):
    """There is nothing to forget, to keep or to score in it; a maximum of nothing would end in NumPy."""
    split = split_dataset(own_findings()["train"], ["cat"], label_column="objects")
    bare = annotated([[], []])
    changes = {
        "forget": {"split": replace(split, forget=bare)},
        "retain": {"split": replace(split, retain=bare)},
        "evaluation": {"eval_dataset": bare},
    }.get(name, {"eval_dataset": {"bare": bare}})
    with refused(f"'objects' of the {name} set", []):
        trainer(knowing_yolos(), tmp_path, **changes)


def test_the_advice_on_held_out_boxes_can_be_followed(tmp_path):
    """Neither `eval_strategy` nor `validation_fraction` sends users of boxes to the other."""
    with refused("eval_strategy", "epoch") as error:
        trainer(knowing_yolos(), tmp_path, settings={"eval_strategy": "epoch"})
    assert "train_validation_split" in error.value.fix
    with refused("validation_fraction", 0.3) as error:
        trainer(knowing_yolos(), tmp_path, settings={"eval_strategy": "epoch", "validation_fraction": 0.3})
    assert "train_validation_split" in error.value.fix
    assert "`eval_strategy`" in error.value.fix
    train, held_out = train_validation_split(own_findings()["train"], "objects", 0.25)
    split = split_dataset(train, ["cat"], label_column="objects")
    trainer(knowing_yolos(), tmp_path, split, eval_dataset=held_out, settings={"eval_strategy": "epoch"})
    forgetter(knowing_yolos(), tmp_path / "sequence")


def test_boxes_that_are_numbered_otherwise_than_the_model(tmp_path):
    """The advice is what works on boxes, which `align_labels` refuses."""
    model = knowing_yolos()
    model.config.id2label = dict(enumerate(reversed(NAMES)))
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    with refused("training data: 'objects': class 0", "ant") as error:
        forgetter(model, tmp_path)
    assert "prepare_boxes(dataset, 'objects', label2id=model.config.label2id)" in error.value.fix
    forgetter(model, tmp_path, data=prepare_boxes(own_findings(), "objects", label2id=model.config.label2id))
    bare = DatasetDict(train=own_findings()["train"], test=annotated([[], []]))
    with refused("evaluation data"):
        forgetter(knowing_yolos(), tmp_path / "bare", data=bare)


def test_a_detector_with_batch_norm_is_reproduced(tmp_path):
    """RT-DETR normalises outside its backbone; its adapter alone gives the model that was trained."""
    run = trainer(detector("rt_detr"), tmp_path, settings={"num_train_epochs": 1})
    run.train()
    expected = answers(run.model)
    loaded = PeftModel.from_pretrained(detector("rt_detr"), export_lora(run.model, tmp_path / "plain"))
    assert torch.equal(answers(loaded), expected)
    assert not torch.allclose(answers(detector("rt_detr")), expected)


def test_a_classifier_with_batch_norm_is_reproduced(tmp_path):
    """LeViT normalises by batches in every layer: statistics that training moved would be in no adapter."""

    def levit():
        torch.manual_seed(0)
        model = LevitForImageClassification(
            LevitConfig(
                image_size=32,
                hidden_sizes=[16, 16, 16],
                num_attention_heads=[2, 2, 2],
                depths=[1, 1, 1],
                key_dim=[4, 4, 4],
                num_labels=4,
                id2label=dict(enumerate(NAMES)),
            )
        )
        with torch.no_grad():
            for _ in range(20):  # statistics under which something gets through
                model.train()(pixel_values=torch.randn(8, 3, 32, 32))
        return model.eval()

    random = np.random.default_rng(0)
    rows = {"pixel_values": random.normal(3, 2, (16, 3, 32, 32)).astype(np.float32), "label": list(range(4)) * 4}
    split = split_dataset(Dataset.from_dict(rows).with_format("torch"), [3])
    torch.manual_seed(0)
    model = get_peft_model(levit(), adapter())
    run = GSLoraTrainer(
        model,
        arguments(output_dir=str(tmp_path), num_train_epochs=1),
        forget_dataset=split.forget,
        retain_dataset=split.retain,
    )
    run.train()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # LeViT's activations lie transposed in memory; torch then multiplies in another order where weights train.
        expected = model.eval().requires_grad_(False)(pixel_values=images).logits
        loaded = PeftModel.from_pretrained(levit(), export_lora(model, tmp_path / "plain")).eval()
        assert torch.equal(loaded(pixel_values=images).logits, expected)
        assert not torch.allclose(levit()(pixel_values=images).logits, expected)


def shifted(rows):
    """The next category of every object."""
    objects = [{**own, "category": [(c + 1) % len(NAMES) for c in own["category"]]} for own in rows["objects"]]
    return {**rows, "objects": objects}


@pytest.mark.parametrize("half", ["forget", "retain"])
def test_categories_that_a_transform_renumbers_are_refused(tmp_path, half):
    """Images are chosen by the stored categories; a transform that crops objects away is none of that kind."""
    data = annotated([[(0, PLACE)], [(2, PLACE)], [(1, PLACE), (3, OTHER)]])
    split = split_dataset(data, ["cat"], label_column="objects")
    trainer(knowing_yolos(), tmp_path, split)
    with pytest.raises(InvalidInputError) as caught:
        trainer(knowing_yolos(), tmp_path, replace(split, **{half: getattr(split, half).with_transform(shifted)}))
    assert f"row 0 of the {half} set" in caught.value.name

    def emptied(rows):
        objects = [{name: values[:1] for name, values in own.items()} for own in rows["objects"]]
        return {**rows, "objects": objects}

    cropped = replace(split, retain=split.retain.with_transform(emptied))
    run = trainer(knowing_yolos(), tmp_path, cropped)
    assert next(iter(run.get_train_dataloader()))
