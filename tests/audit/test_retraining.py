"""A retrained model is the yardstick for "gone", so it must never have seen the classes, and be the same each time."""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Image, List, Value
from detectors import DETECTORS
from errors import ANY, refused
from transformers import RTDetrImageProcessor, ViTConfig, ViTForImageClassification, ViTModel

from gs_lora_peft.audit import RetrainRecipe, retrain, retrained_models
from gs_lora_peft.audit.retraining.plan import Plan
from gs_lora_peft.cli import DIGITS_RECIPE, load_digits
from gs_lora_peft.data import DetectionCollator, RowCollator, remove_classes
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.training import ResumableTrainer

NAMES = ["ant", "bee", "cat", "dog"]
SHORT = {"epochs": 2, "batch_size": 8, "warmup": 0}


def rows(count=24, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    pixels = rng.normal(size=(count, 1, 4, 4)).astype(np.float32) + labels[:, None, None, None]
    features = Features({"pixel_values": Array3D((1, 4, 4), "float32"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format("torch")


def vit(**changes):
    config = {
        "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 16, "hidden_dropout_prob": 0.1,
        "id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)},
    }  # fmt: skip
    return ViTForImageClassification(ViTConfig(**config | changes)).eval()


class Spy(RowCollator):
    """Collates, and notes what training sees. Stops the training at a call, as a kill would."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches, self.stop_at = [], stop_at

    def __call__(self, rows):
        batch = super().__call__(rows)
        self.batches.append(batch)
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        return batch


def same(first, second):
    return all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


def folders(cache):
    return {path.name for path in cache.iterdir()}


@pytest.fixture
def untrainable(monkeypatch):
    def train(*args, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(ResumableTrainer, "train", train)


def test_a_training_too_short_to_change_anything_is_refused(tmp_path):
    """Its only step comes while the learning rate is still 0: the reference would be its start."""
    with refused("recipe.epochs", 0.01) as error:
        retrain(vit(), rows(), [0], recipe={"epochs": 0.01}, cache=tmp_path, disable_tqdm=True)
    assert "--retrain-epochs" in error.value.fix
    assert not list(tmp_path.rglob("*.safetensors"))
    retrain(vit(), rows(), [0], recipe={"epochs": 0.01, "warmup": 0}, cache=tmp_path, disable_tqdm=True)


def test_left_out_classes_are_never_seen_and_the_head_stays(tmp_path):
    spy = Spy()
    model = retrain(vit(), rows(), ["bee", 3], recipe=SHORT, data_collator=spy, cache=tmp_path)
    assert set(torch.cat([batch["labels"] for batch in spy.batches]).tolist()) == {0, 2}
    whole = rows()
    unseen = remove_classes(whole, ["bee", "dog"])["pixel_values"][:].flatten(1)
    seen = torch.cat([batch["pixel_values"] for batch in spy.batches]).flatten(1)
    assert (seen[:, None] == unseen[None]).all(-1).any(1).all()
    assert len(seen) >= 2 * len(unseen)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.classifier.out_features == 4
    assert not model.training


def test_names_of_the_model_are_read_by_id(tmp_path, untrainable):
    """A configuration may list them in any order. Labels without names are ids of the model."""
    data = rows().cast_column("label", Value("int64")).with_format("torch")
    reversed_names = dict(reversed(list(enumerate(NAMES))))
    model = vit(id2label=reversed_names, label2id={name: number for number, name in reversed_names.items()})
    assert list(model.config.id2label) == [3, 2, 1, 0]
    assert set(Plan.of(model, data, ["ant"], cache=tmp_path).kept["label"][:].tolist()) == {1, 2, 3}
    # With a gap, the place of a name is not its id.
    gaps = {0: "ant", 1: "bee", 2: "cat", 4: "dog"}
    model.config.id2label = gaps
    with refused("classes", ["dog"], UnknownClassError):
        Plan.of(model, data, ["dog"], cache=tmp_path)


def test_boxes_of_left_out_categories_are_never_seen_but_all_images_are(tmp_path):
    features = Features(
        {
            "image": Image(),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=["a", "b", "c", "d"])),
            },
        }
    )
    images = [np.full((64, 64, 3), shade, dtype=np.uint8) for shade in range(0, 120, 20)]
    objects = [{"bbox": [[4, 4, 20, 20], [30, 30, 24, 24]], "category": [n % 4, 3]} for n in range(5)]
    objects.append({"bbox": [[8, 8, 30, 30]], "category": [3]})
    dataset = Dataset.from_dict({"image": images, "objects": objects}, features=features)
    seen, shades = [], set()

    class BoxSpy(DetectionCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            seen.extend(torch.cat([label["class_labels"] for label in batch["labels"]]).tolist())
            shades.update(int(np.asarray(row["image"])[0, 0, 0]) for row in rows)
            return batch

    collate = BoxSpy(RTDetrImageProcessor(size={"height": 64, "width": 64}))
    recipe = {"epochs": 1, "batch_size": 2}
    detector = DETECTORS["rt_detr"]()
    model = retrain(
        detector, dataset, ["d"], recipe=recipe, data_collator=collate, label_column="objects", cache=tmp_path
    )
    assert set(seen) == {0, 1, 2}
    assert shades == set(range(0, 120, 20))
    assert model.config.num_labels == detector.config.num_labels


def test_a_repeat_reads_the_same_model_and_other_wishes_give_others(tmp_path, request):
    def make(model=None, data=None, classes=(1,), seed=0, **recipe):
        return retrain(model or vit(), data or rows(), list(classes), recipe=SHORT | recipe, seed=seed, cache=tmp_path)

    first = make()
    assert not list(tmp_path.rglob("checkpoint*"))
    others = [
        make(seed=1),
        make(classes=[1, 2]),
        make(classes=[]),
        make(learning_rate=1e-2),
        make(data=rows(seed=3)),
        make(data=rows(28)),
        make(vit(intermediate_size=24)),
    ]
    assert len(folders(tmp_path)) == 1 + len(others)
    request.getfixturevalue("untrainable")
    assert same(make(vit()), first)
    assert not any(same(other, first) for other in others)


def test_the_weights_of_the_model_do_not_matter_and_do_not_change(tmp_path):
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = retrain(model, rows(), ["ant"], recipe=SHORT, cache=tmp_path / "one")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(5)
    again = retrain(vit(), rows(), ["ant"], recipe=SHORT, cache=tmp_path / "two")
    assert same(again, made)


@pytest.mark.parametrize(("stop_at", "remaining"), [(3, 12), (5, 9), (9, 6)])
def test_a_stopped_training_goes_on_and_ends_at_the_same_weights(tmp_path, stop_at, remaining):
    recipe = SHORT | {"epochs": 4, "batch_size": 6}  # 3 batches an epoch
    whole = retrain(vit(), rows(), ["ant"], recipe=recipe, data_collator=Spy(), cache=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        # One batch more is collated for the digest of the first rows.
        retrain(vit(), rows(), ["ant"], recipe=recipe, data_collator=Spy(1 + stop_at), cache=tmp_path / "killed")
    spy = Spy()
    resumed = retrain(vit(), rows(), ["ant"], recipe=recipe, data_collator=spy, cache=tmp_path / "killed")
    assert same(resumed, whole)
    assert folders(tmp_path / "whole") == folders(tmp_path / "killed")
    assert len(spy.batches) == 1 + remaining


def test_random_augmentation_does_not_miss_the_cache(tmp_path):
    class Noisy(Spy):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return {**batch, "pixel_values": batch["pixel_values"] + torch.randn(1)}

    made = retrain(vit(), rows(), ("ant",), recipe=SHORT, data_collator=Noisy(), cache=tmp_path)
    assert same(retrain(vit(), rows(), ("ant",), recipe=SHORT, data_collator=Noisy(), cache=tmp_path), made)
    assert len(folders(tmp_path)) == 1


def test_a_cut_off_model_is_trained_again(tmp_path):
    made = retrain(vit(), rows(), ["ant"], recipe=SHORT, cache=tmp_path)
    (weights,) = tmp_path.rglob("model.safetensors")
    weights.unlink()
    assert same(retrain(vit(), rows(), ["ant"], recipe=SHORT, cache=tmp_path), made)
    assert weights.is_file()


def test_several_models_are_trained_one_by_one_when_they_are_asked_for(tmp_path):
    models = retrained_models(vit(), rows(), ["ant"], 2, recipe=SHORT, seed=4, cache=tmp_path)
    assert not list(tmp_path.iterdir())
    first = next(models)
    assert len(folders(tmp_path)) == 1
    (second,) = models
    assert not same(first, second)
    assert same(second, retrain(vit(), rows(), ["ant"], recipe=SHORT, seed=5, cache=tmp_path))
    assert len(folders(tmp_path)) == 2


def test_a_backbone_is_kept_below_a_new_head(tmp_path):
    torch.manual_seed(7)
    pretrained = vit()
    pretrained.save_pretrained(tmp_path / "with_head")
    ViTModel(pretrained.config, add_pooling_layer=False).save_pretrained(tmp_path / "without_head")
    recipe = SHORT | {"learning_rate": 1e-12, "weight_decay": 0}
    for start in ("with_head", "without_head"):
        model = retrain(
            vit(), rows(), ["ant"], recipe=recipe | {"start": str(tmp_path / start)}, cache=tmp_path / "cache"
        )
        loaded = ViTModel.from_pretrained(tmp_path / start, add_pooling_layer=False)
        for name, value in loaded.state_dict().items():
            torch.testing.assert_close(model.vit.state_dict()[name], value)
        assert not torch.allclose(model.classifier.weight, pretrained.classifier.weight, atol=1e-3)
    assert len(folders(tmp_path / "cache")) == 2


def test_a_recipe_comes_from_a_dictionary_and_is_checked():
    recipe = RetrainRecipe.of({"epochs": 5, "training": {"max_grad_norm": 0.5}})
    assert recipe == RetrainRecipe(epochs=5, training={"max_grad_norm": 0.5})
    assert RetrainRecipe.of(recipe) is recipe
    assert RetrainRecipe.of(None) == RetrainRecipe()
    with refused("recipe", ["epoch"]):
        RetrainRecipe.of({"epoch": 5})
    with refused("epochs", 0):
        RetrainRecipe.of({"epochs": 0})
    with refused("schedule", "up"):
        RetrainRecipe(schedule="up")
    with refused("training", "seed"):
        RetrainRecipe(training={"seed": 3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3


def test_bad_input_is_refused_before_any_work(tmp_path, untrainable):
    def fails(name, value=ANY, *, kind=None, model=None, data=None, classes=("ant",), **options):
        with refused(name, value, *([kind] if kind else [])):
            retrained_models(
                model or vit(), rows() if data is None else data, list(classes), cache=tmp_path, **options
            )

    fails("classes", ["ape"], kind=UnknownClassError, classes=["ape"])
    fails("classes", [0, 1, 2, 3], classes=NAMES)
    fails("label", 3, model=vit(id2label={0: "ant", 1: "bee"}, label2id={"ant": 0, "bee": 1}))
    fails("count", 0, count=0)
    fails("seed", -1, seed=-1)
    fails("recipe", ["lr"], recipe={"lr": 1})
    fails("model", "Linear", model=torch.nn.Linear(2, 2))
    fails("dataset", ["train"], data={"train": rows()})
    fails("recipe.training", {"eval_strategy": "never"}, recipe={"training": {"eval_strategy": "never"}})
    fails("recipe.start", "no/such model", recipe={"start": "no/such model"})
    other = tmp_path / "other"
    vit(hidden_size=16).save_pretrained(other)
    fails("recipe.start", str(other), recipe={"start": str(other)})
    assert folders(tmp_path) == {"other"}


@pytest.mark.slow
def test_real_digits_without_one_digit(tmp_path):
    data = load_digits()
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.06, num_labels=10,
    )  # fmt: skip
    recipe = dataclasses.replace(DIGITS_RECIPE, epochs=8)
    model = retrain(
        ViTForImageClassification(config), data["train"], ["three"], recipe=recipe, cache=tmp_path, disable_tqdm=True
    )
    test = data["test"][:]
    with torch.no_grad():
        predicted = model(pixel_values=test["pixel_values"]).logits.argmax(-1)
    hits, three = predicted == test["label"], test["label"] == 3
    assert hits[~three].float().mean() > 0.7
    assert not (predicted == 3).any()


def test_no_bar_is_shown_where_bars_are_off(tmp_path, capfd):
    """Neither of the training nor of the files that it writes and reads."""
    retrain(vit(), rows(), [], recipe=SHORT, cache=tmp_path, disable_tqdm=True)
    assert "%|" not in capfd.readouterr().err
