"""Every option of TrainingArguments and every method of Trainer is obeyed, or refused when the trainer is made."""

import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Image
from errors import refused
from PIL import Image as Pictures
from tasks import adapter_state, arguments, differences, forget_set, peft_vit, retain_set, scoring_set, trainer_for
from transformers import TrainerCallback, TrainingArguments

from gs_lora_peft import GSLoraTrainer, GSLoraTrainingArguments
from gs_lora_peft.data.collation import ImageCollator
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.training import inherited

ONE = {"num_train_epochs": 1}
EVALUATED = {"eval_strategy": "epoch", "kwargs": {"eval_dataset": scoring_set()}}
TABLE = {
    **dict.fromkeys(inherited.OBEYED, "obeyed"),
    **dict.fromkeys(inherited.ELSEWHERE, "refused elsewhere"),
    **dict.fromkeys(inherited.BY_ARGUMENTS, "refused by the arguments"),
    **dict.fromkeys(inherited.BY_TRAINER, "refused by the trainer"),
}


def test_every_field_has_its_place():
    """A new version of transformers brings new options, which would be ignored in silence."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert not fields - TABLE.keys()
    places = (inherited.OBEYED, inherited.ELSEWHERE, inherited.BY_ARGUMENTS, inherited.BY_TRAINER)
    assert sum(map(len, places)) == len(TABLE)


@pytest.mark.parametrize(
    "settings",
    [
        *({"num_train_epochs": value} for value in (0, -1, 0.0, float("nan"), float("inf"), "3")),
        {"num_train_epochs": 0, "max_steps": -1},
        {"max_steps": 0},
        {"per_device_train_batch_size": 0},
        {"per_device_train_batch_size": 2.5},
        {"per_device_eval_batch_size": -1},
        {"gradient_accumulation_steps": 0},
        {"label_smoothing_factor": 0.1},
        *({"optim": name} for name in inherited._STEPS_IN_BACKWARD),
        *({"optim": name} for name in inherited._SCHEDULE_FREE),
        *({"train_sampling_strategy": name} for name in ("sequential", "group_by_length", "batch_rebalance")),
        {"label_names": ["label"]},
        {"hub_strategy": "checkpoint", "push_to_hub": True},
    ],
    ids=str,
)
def test_what_cannot_be_obeyed_is_refused_at_once(settings):
    """By name and value, before transformers looks at it."""
    name = next(iter(settings))
    with pytest.raises(InvalidInputError) as caught:
        GSLoraTrainingArguments("out", use_cpu=True, **settings)
    assert caught.value.name == name
    assert caught.value.value is settings[name] or caught.value.value == settings[name]
    assert TABLE[name] == "refused by the arguments"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 0.01},
        {"num_train_epochs": 0, "max_steps": 3},
        {"max_steps": -1},
        {"optim": "schedule_free_adamw", "sparsity": "none"},
        {"label_names": ["labels"]},
        {"hub_strategy": "checkpoint"},
        {"train_sampling_strategy": "random"},
    ],
    ids=str,
)
def test_what_can_be_obeyed_is_not_refused(settings):
    """The neighbours of what is refused."""
    args = GSLoraTrainingArguments("out", use_cpu=True, **settings)
    assert {name: getattr(args, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("accelerator_config", {"has_boxes": True, "dispatch": True}),
        ("accelerator_config", {"dispatch": True, "split": True}),
        ("parallelism_config", {"tp": 2}),
        ("neftune_noise_alpha", {"noise": 5.0}),
        (None, {"dispatch": True}),
        (None, {"split": True}),
    ],
)
def test_what_depends_on_the_model_and_the_processes(name, trainer):
    """Refused by the trainer, and only where it would go wrong."""
    get = trainer.get
    config = SimpleNamespace(dispatch_batches=get("dispatch"), split_batches=get("split", False))
    args = SimpleNamespace(
        world_size=2, accelerator_config=config, parallelism_config=SimpleNamespace(tp_size=get("tp", 1)),
        neftune_noise_alpha=get("noise"),
    )  # fmt: skip
    subject = SimpleNamespace(args=args, has_boxes=get("has_boxes", False), model=None)
    if name is None:
        inherited.check_by_trainer(subject)
        return
    with pytest.raises(InvalidInputError) as caught:
        inherited.check_by_trainer(subject)
    assert caught.value.name == name


# Evaluation


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One evaluated epoch with every option left alone: the adapter and the scores."""
    model = peft_vit()
    trainer = trainer_for(model, tmp_path_factory.mktemp("plain"), **ONE, **EVALUATED)
    trainer.train()
    return adapter_state(model), scores_of(trainer)


def scores_of(trainer):
    row = next(row for row in trainer.state.log_history if "eval_h_mean" in row)
    return {name: row[name] for name in row if name.startswith(("eval_acc", "eval_n", "eval_h", "eval_drop"))}


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_eval_metrics": True, "per_device_eval_batch_size": 5},
        {"eval_do_concat_batches": False, "per_device_eval_batch_size": 5},
        {"batch_eval_metrics": True, "eval_do_concat_batches": False},
        {"eval_accumulation_steps": 1, "per_device_eval_batch_size": 5},
        {"eval_use_gather_object": True},
        {"include_for_metrics": ["inputs", "loss"]},
        {"accelerator_config": {"even_batches": False}, "per_device_eval_batch_size": 5},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"remove_unused_columns": True},
        {"bf16_full_eval": True},
        {"eval_on_start": True},
    ],
    ids=str,
)
def test_options_that_must_not_change_the_result(tmp_path, plain, settings):
    """The same adapter bit for bit, in the same dtype, and the same scores during training and after it."""
    model = peft_vit()
    trainer = trainer_for(model, tmp_path, **{**ONE, **EVALUATED, **settings})
    trainer.train()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not differences(plain[0], adapter_state(model))
    if "eval_on_start" not in settings and "bf16_full_eval" not in settings:
        assert scores_of(trainer) == plain[1]
    after = trainer.score(scoring_set())
    assert after["acc_retain"] == pytest.approx(plain[1]["eval_acc_retain"], abs=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Told(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("train")

    def on_prediction_step(self, args, state, control, **kwargs):
        self.events.append("prediction")


def test_the_measurement_before_training_tells_nobody(tmp_path, capfd):
    """Callbacks hear of predictions after training has begun, as many as there are batches; the bar ends up full."""
    told = Told()
    kwargs = {"eval_dataset": scoring_set(), "callbacks": [told]}
    trainer = trainer_for(peft_vit(), tmp_path, **{**ONE, **EVALUATED, "kwargs": kwargs}, disable_tqdm=False)
    trainer.train()
    assert told.events == ["train", "prediction"]
    assert trainer.accuracy_forget_before == {"eval": 1.0}
    assert "4/4" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("metric", "better"),
    [("acc_forget", False), ("eval_acc_forget", False), ("acc_old", False), ("acc_retain", True), ("loss", False)],
)
def test_the_best_model_is_the_one_that_forgot(metric, better):
    """transformers takes everything but a loss for the better the larger; what is still known is not."""
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    args = GSLoraTrainingArguments("out", use_cpu=True, metric_for_best_model=metric, **best)
    assert args.greater_is_better is better
    args = GSLoraTrainingArguments("out", use_cpu=True, metric_for_best_model=metric, greater_is_better=True, **best)
    assert args.greater_is_better is True


@pytest.mark.parametrize("metric", ["H", "accuracy", "eval_acc", "ap_retain", "f1"])
def test_a_metric_that_evaluation_does_not_give(tmp_path, metric):
    """At construction, with the names that there are; not after an epoch. Metrics of one's own have any name."""
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": metric}
    with pytest.raises(InvalidInputError) as caught:
        trainer_for(peft_vit(), tmp_path, **EVALUATED, **best)
    assert caught.value.name == "metric_for_best_model"
    assert "h_mean" in caught.value.expected
    own = {"eval_dataset": scoring_set(), "compute_metrics": lambda prediction: {metric.removeprefix("eval_"): 1.0}}
    trainer_for(peft_vit(), tmp_path, **{**EVALUATED, "kwargs": own}, **best)
    with pytest.raises(InvalidInputError):
        trainer_for(peft_vit(), tmp_path, **{**EVALUATED, **best, "metric_for_best_model": "h_mean"},
                    prediction_loss_only=True)  # fmt: skip


def test_a_metric_of_a_role_that_has_no_samples(tmp_path):
    """`acc_old` without earlier tasks would be missing after the first epoch."""
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": "acc_old"}
    with refused("metric_for_best_model", "acc_old"):
        trainer_for(peft_vit(), tmp_path, **EVALUATED, **best)


# Data


def pictures(dataset):
    """Rows as a file holds them: a picture, its label, and columns that nobody reads."""
    labels = [int(label) for label in dataset["label"]]
    pixels = np.arange(192, dtype="uint8").reshape(8, 8, 3)
    images = [Pictures.fromarray(pixels + np.uint8(label)) for label in labels]
    columns = {"image": images, "label": labels, "path": ["x"] * len(images)}
    return Dataset.from_dict(columns).cast_column("image", Image())


def processed(images, return_tensors):
    return {"pixel_values": torch.stack([torch.tensor(np.array(image)).permute(2, 0, 1) / 255 for image in images])}


def test_unused_columns_are_removed_from_pairs_and_evaluation_alike(tmp_path):
    """The collator's own columns stay, whatever the model's forward takes; a transform sees every column."""
    seen = []

    class Watched(ImageCollator):
        def __call__(self, rows):
            seen.append(set(rows[0]))
            return super().__call__(rows)

    def transform(batch):
        assert "path" in batch
        return batch

    sets = {
        "forget_dataset": pictures(forget_set()),
        "retain_dataset": pictures(retain_set()).with_transform(transform),
        "eval_dataset": pictures(scoring_set()),
        "data_collator": Watched(processed),
    }
    settings = {**ONE, "eval_strategy": "epoch", "remove_unused_columns": True, "prototype_retain_weight": 0.1}
    trainer_for(peft_vit(), tmp_path, kwargs=sets, **settings).train()
    assert seen
    assert set().union(*seen) == {"image", "label"}


def test_a_collator_that_reads_a_removed_column_is_told_so(tmp_path):
    """A collator of one's own does not say which columns it reads."""

    def collate(rows):
        return {**processed([row["image"] for row in rows], "pt"), "labels": torch.tensor(0)}

    sets = {"forget_dataset": pictures(forget_set()), "retain_dataset": pictures(retain_set())}
    kwargs = {**sets, "data_collator": collate}
    trainer = trainer_for(peft_vit(), tmp_path, kwargs=kwargs, remove_unused_columns=True)
    with pytest.raises(InvalidInputError) as caught:
        trainer.train()
    assert caught.value.name == "remove_unused_columns"


def test_a_batch_size_that_leaves_no_batch_is_refused_at_once(tmp_path):
    """With `dataloader_drop_last`."""
    with refused("dataloader_drop_last", True):
        trainer_for(peft_vit(), tmp_path, per_device_train_batch_size=64, dataloader_drop_last=True)


def test_a_smaller_batch_is_found_and_training_starts_anew(tmp_path):
    """Out of memory in the second step: the samples of the first are in no mean that is logged afterwards."""
    trainer = trainer_for(peft_vit(), tmp_path, auto_find_batch_size=True, logging_strategy="epoch", **ONE)
    whole, calls = trainer.task_objective.training_step, []

    def step(model, inputs, **kwargs):
        calls.append(len(inputs["labels"]))
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory.")
        return whole(model, inputs, **kwargs)

    trainer.task_objective.training_step = step
    trainer.train()
    assert calls[:3] == [8, 8, 6]  # accelerate tries nine tenths
    assert trainer.meter.sums()[2] == 0
    assert sum("retain_loss" in row for row in trainer.state.log_history) == 1


def test_the_size_of_a_batch_counts_both_halves(tmp_path, caplog):
    """What the log says and what throughput is computed from: samples to keep and samples to forget."""
    trainer = trainer_for(peft_vit(), tmp_path, gradient_accumulation_steps=2, log_level="info", **ONE)
    assert trainer.get_total_train_batch_size(trainer.args) == 16
    assert trainer.num_examples(trainer.get_train_dataloader()) == 32
    assert trainer.num_examples(trainer.get_eval_dataloader(scoring_set())) == 48
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO):
            trainer.train()
    finally:
        transformers.utils.logging.disable_propagation()
        transformers.utils.logging.set_verbosity_error()
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "Joint batches: 4 samples to keep and as many to forget" in said
    assert "accumulation) = 16" in said


def test_nothing_is_pinned_without_an_accelerator(tmp_path, recwarn):
    """PyTorch warns of it at every data loader."""
    args = GSLoraTrainingArguments(str(tmp_path), use_cpu=True)
    assert args.dataloader_pin_memory == torch.accelerator.is_available()


# Methods


def test_methods_of_the_trainer_work(tmp_path):
    """What scripts call after training."""
    trainer = trainer_for(
        peft_vit(), tmp_path, kwargs={"eval_dataset": scoring_set()}, logging_strategy="epoch", **ONE
    )
    result = trainer.train()
    assert trainer.get_num_trainable_parameters() == sum(p.numel() for p in trainer.groups.parameters)
    assert trainer.get_learning_rates()
    assert trainer.predict(scoring_set()).predictions.shape == (48, 6)
    assert trainer.evaluate()["eval_acc_retain"] is not None
    assert set(trainer.evaluate({"near": scoring_set()})) >= {"eval_near_acc_retain"}
    trainer.save_metrics("train", result.metrics)
    trainer.log_metrics("train", result.metrics)
    trainer.save_state()
    trainer.save_model()
    trainer.create_model_card()
    written = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "README.md", "trainer_state.json", "train_results.json"} <= written
    assert "training_args.bin" not in written
    assert trainer.floating_point_ops({"pixel_values": torch.zeros(2, 3, 8, 8)}) > 0


def test_a_search_makes_a_fresh_adapter_for_each_trial(tmp_path):
    """Each trial starts from an adapter of its own and obeys what the search has set; the larger H wins."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = []

    def model_init(trial=None):
        made.append(peft_vit())
        return made[-1]

    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    trainer = GSLoraTrainer(None, arguments(tmp_path, max_steps=9), model_init=model_init, **data)

    def space(trial):
        return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-6, 0.1]), "ema_decay": 0.1}

    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-6, 0.1]})
    best = trainer.hyperparameter_search(space, n_trials=4, sampler=sampler)
    assert best.hyperparameters["learning_rate"] == 0.1
    assert 0 < best.objective <= 1
    trials = made[1:]
    assert len(trials) == 2  # as many as the space has values
    assert [bool(differences(adapter_state(made[0]), adapter_state(model))) for model in trials] == [True, True]
    assert trainer.objective is trainer.task_objective


@pytest.mark.parametrize("without", ["model_init", "eval_dataset", "direction"])
def test_what_a_search_needs(tmp_path, without):
    """Said before the first trial."""
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    if without == "eval_dataset":
        del data["eval_dataset"]
    given = {"model": peft_vit()} if without == "model_init" else {"model_init": lambda: peft_vit()}
    trainer = GSLoraTrainer(args=arguments(tmp_path), **given, **data)
    with pytest.raises(InvalidInputError) as caught:
        trainer.hyperparameter_search(direction="minimize" if without == "direction" else None)
    assert caught.value.name == without


def test_a_model_or_what_makes_one(tmp_path):
    """Exactly one of them; and nothing with it that belongs to a single model."""
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for name, given in (
        ("model", {}),
        ("model", {"model": peft_vit(), "model_init": lambda: peft_vit()}),
        ("objective", {"model_init": lambda: peft_vit(), "objective": object()}),
        ("optimizers", {"model_init": lambda: peft_vit(), "optimizers": (optimizer, None)}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            GSLoraTrainer(args=arguments(tmp_path), **given, **data)
        assert caught.value.name == name
    trainer = GSLoraTrainer(args=arguments(tmp_path, max_steps=2), model_init=lambda: peft_vit(), **data)
    assert trainer.train().global_step == 2
    assert trainer.groups.active_groups()


@pytest.mark.parametrize(("settings", "wrong"), [({"hub_model_id": "./x"}, "hub_model_id"), ({}, "output_dir")])
def test_where_to_publish_is_checked_when_the_trainer_is_made(tmp_path, settings, wrong):
    """A training whose result cannot be published under this name does not begin."""
    trainer_for(peft_vit(), tmp_path / "a..b", **settings)
    with pytest.raises(InvalidInputError) as caught:
        trainer_for(peft_vit(), tmp_path / "a..b", push_to_hub=True, **settings)
    assert caught.value.name == wrong
