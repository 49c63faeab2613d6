"""A run: its loss, accumulation and mixed precision, its logs, its evaluation, what it leaves and what it costs."""

import json
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tasks import (
    FORGET,
    NAMES,
    RETAIN,
    adapter_state,
    differences,
    forget_set,
    knowing_vit,
    peft_vit,
    retain_set,
    samples,
    scoring_set,
    trainable,
    trainer_for,
    two_adapters,
)
from torch import nn
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, TrainerCallback, ViTImageProcessor

import gs_lora_peft
from gs_lora_peft import GSLoraConfig, GSLoraTrainer, LoraGroups
from gs_lora_peft.methods import SparsityCallback
from gs_lora_peft.objectives import auto_forget_bound

PACKAGE = str(Path(gs_lora_peft.__file__).parent)


class Recorder(TrainerCallback):
    """Keeps each step's gradients and gradient norm, as the optimizer gets them."""

    def __init__(self, model):
        self.model = model
        self.gradients, self.weights = [], []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append(adapter_state(self.model))


def record(model, folder, **settings):
    recorder = Recorder(model)
    kwargs = settings.pop("kwargs", {})
    trainer = trainer_for(model, folder, kwargs={**kwargs, "callbacks": [recorder]}, **settings)
    trainer.train()
    return trainer, recorder


def reference_gradient(model, trainer, batches, forget_weight, bound, kind="cross_entropy", penalty=0.0):
    """Two separate forwards in float64 for each micro-batch; the mean over micro-batches."""
    model = model.double()
    for pairs in batches:
        retain, forget = ([pair[half] for pair in pairs] for half in (0, 1))
        losses = []
        for dataset, rows in ((trainer.train_dataset.retain, retain), (trainer.train_dataset.forget, forget)):
            part = dataset[rows]
            logits = model(pixel_values=part["pixel_values"].double()).logits
            losses.append(F.cross_entropy(logits, part["label"], reduction="none"))
        p = torch.exp(-losses[1])
        bounded = torch.log((1 - p) / p) if kind == "log_odds" else losses[1].mean()
        loss = losses[0].mean() + forget_weight * torch.relu(bound - bounded).mean()
        if penalty:
            blocks = {}
            for name, p in model.named_parameters():
                if "lora_" in name:
                    blocks.setdefault(name.split(".layers.")[1].split(".")[0], []).append(p)
            loss = loss + penalty * sum(sum(p.square().sum() for p in group).sqrt() for group in blocks.values())
        (loss / len(batches)).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def pairs_of(trainer, steps: int, batch: int):
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(0)
    pairs = list(sampler)
    return [pairs[i * batch : (i + 1) * batch] for i in range(steps)]


# The loss


@pytest.mark.parametrize("bound", ["auto", 0.05, 30.0])
@pytest.mark.parametrize(
    ("sparsity", "kind"), [("none", "log_odds"), ("none", "cross_entropy"), ("penalty", "cross_entropy")]
)
def test_first_steps_gradient_is_that_of_the_loss(tmp_path, bound, sparsity, kind):
    """Mean CE to keep + β · bounded CE to forget + α Σ ‖g‖, against a slow reference in float64."""
    model, reference = peft_vit(init_lora_weights=False), peft_vit(init_lora_weights=False)
    settings = {"forget_weight": 0.7, "forget_bound": bound, "sparsity": sparsity, "sparsity_weight": 0.3}
    settings["forget_loss"] = kind
    trainer, recorder = record(model, tmp_path, max_grad_norm=0.0, max_steps=1, **settings)
    expected = reference_gradient(
        reference,
        trainer,
        pairs_of(trainer, 1, 4),
        0.7,
        auto_forget_bound(6, kind) if bound == "auto" else bound,
        kind,
        penalty=0.3 if sparsity == "penalty" else 0.0,
    )
    assert expected.keys() == recorder.gradients[0].keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(recorder.gradients[0][name].double(), gradient, rtol=1e-3, atol=1e-6)


def test_one_forward_for_each_micro_batch(tmp_path):
    """Both halves share one forward, and the model is not asked for a loss of its own."""
    model, calls = peft_vit(), []
    model.get_base_model().register_forward_hook(
        lambda module, args, kwargs, output: calls.append((len(kwargs["pixel_values"]), kwargs.get("labels"))),
        with_kwargs=True,
    )
    trainer_for(model, tmp_path, num_train_epochs=1, gradient_accumulation_steps=2).train()
    assert calls == [(8, None)] * 4


def test_only_the_adapter_changes_and_the_forget_set_is_forgotten(tmp_path):
    """The whole point, in small: classes 4 and 5 go, 0 to 3 stay, no base weight moves."""
    model = peft_vit(r=8)
    before = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
    trainer = trainer_for(model, tmp_path, num_train_epochs=15, learning_rate=2e-2, forget_weight=1.0)
    scores = trainer.score(scoring_set())
    assert scores["acc_forget"] > 0.9
    assert scores["acc_retain"] > 0.9
    trainer.train()
    after = trainer.score(scoring_set(), accuracy_forget_before=scores["acc_forget"])
    assert after["acc_forget"] <= 0.1
    assert after["acc_retain"] > 0.9
    assert after["h_mean"] > 0.85
    assert not differences(before, {n: p for n, p in model.named_parameters() if "lora_" not in n})


# Accumulation and precision


def test_accumulating_four_small_batches_is_one_large_batch(tmp_path):
    """Gradient norms and weights agree; without the right scale the gradient would be four times too large."""
    runs = []
    for batch, accumulate in ((16, 1), (4, 4)):
        model = peft_vit(init_lora_weights=False)
        data = {"retain_dataset": retain_set(8), "forget_dataset": forget_set(8)}
        trainer, recorder = record(
            model,
            tmp_path,
            kwargs=data,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            forget_bound=50.0,
            max_grad_norm=1e9,
            logging_strategy="steps",
            logging_steps=1,
            optim="sgd",
            learning_rate=0.05,
        )
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((norms, losses, recorder.gradients, adapter_state(model)))
    (norms, losses, gradients, weights), (other_norms, other_losses, other_gradients, other_weights) = runs
    assert len(norms) == 6
    assert other_norms == pytest.approx(norms, rel=1e-4)
    assert other_losses == pytest.approx(losses, rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(other_gradients[0][name], gradient, rtol=1e-4, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=1e-5)


def test_the_last_incomplete_accumulation_window_is_a_mean_too(tmp_path):
    """16 samples in batches of 3 are 6 micro-batches; accumulating 4 leaves a window of 2, divided by 2, not by 4."""
    model = peft_vit(init_lora_weights=False)
    trainer, recorder = record(
        model,
        tmp_path,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        forget_bound=50.0,
        forget_weight=0.5,
        max_grad_norm=0.0,
        learning_rate=1e-7,  # 0 would change no weight, which is an error
        sparsity="none",
    )
    assert len(recorder.gradients) == 2
    windows = pairs_of(trainer, 6, 3)
    for gradients, window in zip(recorder.gradients, (windows[:4], windows[4:]), strict=True):
        expected = reference_gradient(peft_vit(init_lora_weights=False), trainer, window, 0.5, 50.0)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name].double(), gradient, rtol=1e-3, atol=1e-6)


def test_bf16_autocast_trains_float32_matrices(tmp_path):
    """Mixed precision on CPU: close to the float32 run, and the adapter stays float32."""
    losses = {}
    for bf16 in (False, True):
        model = peft_vit()
        trainer = trainer_for(
            model,
            tmp_path,
            bf16=bf16,
            kwargs={"eval_dataset": scoring_set()},
            eval_strategy="epoch",
            logging_strategy="epoch",
            sparsity_weight=0.2,
        )
        dtypes = []
        hook = model.base_model.model.classifier.register_forward_hook(
            lambda module, args, output, dtypes=dtypes: dtypes.append(output.dtype)
        )
        trainer.train()
        hook.remove()
        assert set(dtypes) == {torch.bfloat16 if bf16 else torch.float32}
        assert {p.dtype for p in trainer.groups.parameters} == {torch.float32}
        losses[bf16] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


# Data


def test_pictures_are_read_through_the_processor(tmp_path):
    """Rows with PIL images need nothing but the model's processor; labels may have another column name."""
    from datasets import Dataset, Features, Image as ImageFeature, Value

    def pictures(classes):
        rng = np.random.default_rng(0)
        rows = [Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8)) for _ in range(4)]
        features = Features({"image": ImageFeature(), "person": Value("int64")})
        return Dataset.from_dict({"image": rows, "person": list(classes) * 2}, features=features)

    trainer = trainer_for(
        peft_vit(),
        tmp_path,
        kwargs={
            "retain_dataset": pictures((0, 1)),
            "forget_dataset": pictures((4, 5)),
            "label_column": "person",
            "processing_class": ViTImageProcessor(size={"height": 8, "width": 8}),
        },
        num_train_epochs=1,
    )
    assert trainer.train().global_step == 1
    assert trainer.score(pictures((0, 4)))["n_retain"] == 2


class PlainClassifier(nn.Module):
    """A user's module: no configuration, and logits in a form of its own."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.body, self.people = nn.Linear(192, 24), nn.Linear(24, 6)

    def forward(self, pixel_values):
        hidden = self.body(pixel_values.flatten(1)).relu()
        logits = self.people(hidden)
        return {"tensor": logits, "tuple": (logits, hidden), "dict": {"hidden": hidden, "logits": logits}}[self.form]


def test_a_module_of_ones_own_trains_and_is_scored_in_whatever_form_its_logits_are(tmp_path):
    """From the forward to the scores: a tensor, a tuple and a dict make no difference."""
    found = []
    for form in ("tensor", "tuple", "dict"):
        torch.manual_seed(0)
        model = get_peft_model(PlainClassifier(form), GSLoraConfig(r=2, target_modules=["body"]))
        trainer = trainer_for(model, tmp_path, kwargs={"eval_dataset": scoring_set()})
        before = adapter_state(model)
        trainer.train()
        assert differences(before, adapter_state(model))
        scores = {name: value for name, value in trainer.evaluate().items() if "acc" in name or "loss" in name}
        found.append((scores, adapter_state(model)))
    for scores, state in found[1:]:
        assert scores == found[0][0]
        assert not differences(state, found[0][1])
    assert found[0][0].keys() >= {"eval_loss", "eval_acc_forget", "eval_acc_retain"}


@pytest.mark.parametrize(("covers", "steps"), [("both", 8), ("retain", 4)])
def test_an_epoch_covers_what_it_is_told_to_cover(tmp_path, covers, steps):
    """16 samples to forget and 8 to keep in batches of 4, with the number of epochs as said."""
    sets = {"retain_dataset": forget_set(4), "forget_dataset": retain_set(4)}
    trainer = trainer_for(peft_vit(), tmp_path, kwargs=sets, num_train_epochs=2, epoch_covers=covers)
    trainer.train()
    assert trainer.state.global_step == steps
    assert trainer.state.epoch == 2


def test_plain_lists_of_samples_work(tmp_path):
    """Any map-style data set will do, not only `datasets`."""
    retain = [{"pixel_values": torch.zeros(3, 8, 8), "label": i % 3} for i in range(6)]
    forget = [{"pixel_values": torch.ones(3, 8, 8), "label": 5} for _ in range(2)]
    trainer = trainer_for(peft_vit(), tmp_path, kwargs={"retain_dataset": retain, "forget_dataset": forget})
    assert (trainer.forget_classes, trainer.retain_classes) == ([5], [0, 1, 2])
    assert trainer.train().global_step == 6


def test_stock_lora_adapters_train_too(tmp_path):
    """The trainer asks for LoRA matrices, not for this package's configuration."""
    model = get_peft_model(knowing_vit(), LoraConfig(r=2, target_modules=["fc1", "fc2"]))
    trainer = trainer_for(model, tmp_path, sparsity_weight=0.1, num_train_epochs=1)
    assert trainer.train().global_step == 4
    assert len(trainer.groups) == 3


def test_a_validation_part_is_held_out_of_both_sets(tmp_path):
    """With `validation_fraction` nothing that is evaluated on is trained on, and nothing is lost."""
    trainer = trainer_for(peft_vit(), tmp_path, validation_fraction=0.25, eval_strategy="epoch", num_train_epochs=1)
    train = trainer.train_dataset
    assert (len(train.retain), len(train.forget), len(trainer.eval_dataset)) == (12, 4, 6)
    assert sorted(map(int, trainer.eval_dataset["label"])) == list(range(6))
    rows = [row for part in (train.retain, train.forget, trainer.eval_dataset) for row in part["pixel_values"]]
    assert len({row.numpy().tobytes() for row in rows}) == 22
    trainer.train()
    assert "eval_h_mean" in trainer.state.log_history[-2]


# Logs

LOGGED = {"retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy", "sparsity_term", "active_groups"}


def test_logs_hold_both_losses_both_accuracies_and_every_groups_norm(tmp_path):
    """What is logged is the mean since the last log, and the norms are those of the weights as they are."""
    model = peft_vit()
    trainer = trainer_for(model, tmp_path, logging_strategy="epoch", sparsity_weight=0.3, learning_rate=2e-2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    norms = {f"group_norm/{name}" for name in trainer.groups.names}
    assert len(norms) == 3
    for entry in entries:
        assert entry.keys() >= LOGGED | norms
        hinge = max(3.6 - entry["forget_loss"], 0.0)
        assert entry["loss"] == pytest.approx(entry["retain_loss"] + 0.5 * hinge, abs=1e-4)
        assert entry["active_groups"] == sum(entry[name] > 0 for name in norms)
    last = entries[-1]
    for name, norm in zip(trainer.groups.names, trainer.groups.norms().tolist(), strict=True):
        assert last[f"group_norm/{name}"] == pytest.approx(norm)
    term = sum(size**0.5 * last[f"group_norm/{name}"] for name, size in zip(*group_sizes(trainer), strict=True))
    assert last["sparsity_term"] == pytest.approx(0.3 * term, rel=1e-5)


def group_sizes(trainer):
    return trainer.groups.names, trainer.groups.sizes


def test_logs_reach_tensorboard(tmp_path):
    """`report_to` is the Trainer's own way; every value can be read back from the event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_for(
        peft_vit(),
        tmp_path / "out",
        kwargs={"eval_dataset": scoring_set(), "old_classes": [3], "retain_dataset": samples((0, 1, 2))},
        report_to="tensorboard",
        logging_strategy="epoch",
        eval_strategy="epoch",
    )
    trainer.train()
    (event_file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(event_file.parent))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {f"train/{name}" for name in LOGGED}
    assert tags >= {f"train/group_norm/{name}" for name in trainer.groups.names}
    assert tags >= {"eval/acc_forget", "eval/acc_retain", "eval/acc_old", "eval/h_mean"}
    logged = [entry["forget_loss"] for entry in trainer.state.log_history if "forget_loss" in entry]
    assert [event.value for event in events.Scalars("train/forget_loss")] == pytest.approx(logged)


# Evaluation in training


class Kept(TrainerCallback):
    """The adapter at each evaluation, with its H."""

    def __init__(self, model):
        self.model, self.states, self.scores = model, [], []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.states.append(adapter_state(self.model))
        self.scores.append(metrics)


def test_evaluation_reports_accuracy_by_role_and_h(tmp_path):
    """Drop and H are against the model before the task; rows of no role count for nothing."""
    model = peft_vit(r=8)
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"eval_dataset": scoring_set(), "old_classes": [3], "retain_dataset": samples((0, 1, 2), seed=1)},
        eval_strategy="epoch",
        num_train_epochs=12,
        learning_rate=2e-2,
        forget_weight=1.0,
    )
    trainer.train()
    before = trainer.accuracy_forget_before["eval"]
    assert before > 0.9
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(entries) == 12
    last, scores = entries[-1], trainer.score(scoring_set(), accuracy_forget_before=before)
    for name in ("acc_forget", "acc_retain", "acc_old", "h_mean"):
        assert last[f"eval_{name}"] == pytest.approx(scores[name])
    assert last["eval_n_retain"], last["eval_n_old"] == (24, 8)
    drop = before - last["eval_acc_forget"]
    assert last["eval_h_mean"] == pytest.approx(2 * last["eval_acc_retain"] * drop / (last["eval_acc_retain"] + drop))


def test_each_of_several_evaluation_sets_has_its_own_h(tmp_path):
    """A dict of sets: each is scored against its own accuracy before the task; one may choose the best model."""
    sets = {"near": scoring_set(), "far": samples(per_class=4, seed=50)}
    trainer = trainer_for(
        peft_vit(),
        tmp_path,
        kwargs={"eval_dataset": sets},
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_far_h_mean",
        ema_decay=0.5,
    )
    trainer.train()
    assert set(trainer.accuracy_forget_before) == {"eval_near", "eval_far"}
    entries = [entry for entry in trainer.state.log_history if "eval_far_h_mean" in entry]
    assert len(entries) == 3
    assert trainer.state.best_metric == max(entry["eval_far_h_mean"] for entry in entries)


def test_training_does_not_depend_on_whether_it_is_evaluated(tmp_path):
    """With dropout: evaluation neither draws from the generator that training uses nor, with an EMA, moves weights."""
    states = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = peft_vit(dropout=0.3)
        torch.manual_seed(0)
        sets = {"a": scoring_set(), "b": scoring_set()}
        trainer_for(model, tmp_path, kwargs={"eval_dataset": sets}, ema_decay=0.5, **settings).train()
        states.append(adapter_state(model))
    assert not differences(*states)


def build(kind):
    if kind == "two adapters":
        return two_adapters()
    return peft_vit(kind)


@pytest.mark.parametrize("kind", ["default", "task_002", "two adapters"])
@pytest.mark.parametrize("metric", ["h_mean", "eval_h_mean", None])
def test_the_best_model_is_loaded_at_the_end(tmp_path, kind, metric):
    """Whatever the adapters are called: the best epoch's weights, the same one trains, the same ones are active."""
    model = build(kind)
    training, active = trainable(model), list(model.base_model.active_adapters)
    kept = Kept(model)
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"eval_dataset": scoring_set(), "callbacks": [kept]},
        num_train_epochs=6,
        learning_rate=5e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    scores = [metrics["eval_h_mean"] for metrics in kept.scores]
    best = scores.index(max(scores))
    assert trainer.state.best_metric == max(scores)
    assert max(scores) > 0
    assert not differences(kept.states[best], adapter_state(model))
    assert (trainable(model), list(model.base_model.active_adapters)) == (training, active)


def test_the_best_model_may_have_groups_that_are_zero_at_the_end(tmp_path):
    """A group dropped after the best epoch is alive again in the best model, and takes part in its forward."""
    model = peft_vit()
    kept = Kept(model)
    trainer = trainer_for(
        model,
        tmp_path,
        kwargs={"eval_dataset": scoring_set(), "callbacks": [kept]},
        num_train_epochs=8,
        learning_rate=5e-2,
        sparsity_weight=0.9,
        sparsity_warmup_epochs=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_acc_retain",
        greater_is_better=True,
    )
    trainer.train()
    assert LoraGroups(model).zero_groups() == []
    scores = [metrics["eval_acc_retain"] for metrics in kept.scores]
    assert not differences(kept.states[scores.index(max(scores))], adapter_state(model))
    assert any((state[name] == 0).all() for state in kept.states for name in state if "lora_A" in name)
    assert all("default" in layer.active_adapters for layer in trainer.groups._layers.values())


def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path):
    """The Trainer's own callback reads H, and is not confused by the evaluation before training."""
    trainer = trainer_for(
        peft_vit("task_002"),
        tmp_path,
        kwargs={"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]},
        validation_fraction=0.3,
        num_train_epochs=20,
        learning_rate=1e-12,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.epoch == 3.0


# What a run leaves


def test_no_pickle_of_the_arguments_and_no_class_name_is_left(tmp_path):
    """Checkpoints may be copied about: they must not tell who was forgotten, and `training_args.bin` is a pickle."""
    model = peft_vit("task_002")
    trainer = trainer_for(model, tmp_path, save_strategy="epoch", logging_strategy="epoch", ema_decay=0.5)
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len({path.parent.parent for path in files if path.name == "adapter_model.safetensors"}) == 4
    assert not [path for path in files if path.name == "training_args.bin"]
    for path in files:
        content = path.read_bytes().lower()
        assert not [name for name in NAMES if name.encode() in content], path


def test_checkpoints_are_not_pushed(tmp_path, monkeypatch):
    """Checkpoints hold optimizer pickles; publishing has its own way, whatever `push_to_hub` says."""
    monkeypatch.setattr(GSLoraTrainer, "init_hf_repo", lambda self, *args, **kwargs: None)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda *args: pytest.fail("the Hub was called"), raising=False)
    trainer = trainer_for(peft_vit(), tmp_path, push_to_hub=True, save_strategy="epoch", num_train_epochs=1)
    trainer.train()
    assert {path.name for path in Path(tmp_path).iterdir()} == {"checkpoint-4"}


def test_the_state_file_is_small_json(tmp_path):
    """What the trainer adds to a checkpoint can be read by anybody."""
    trainer = trainer_for(
        peft_vit(), tmp_path, kwargs={"eval_dataset": scoring_set()}, save_strategy="epoch", eval_strategy="epoch"
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-4" / "forgetting_state.json").read_text())
    assert state["accuracy_forget_before"] == {"eval": 1.0}
    assert state["logs"]["epoch_has_ended"]
    assert state["logs"]["count"] == 4
    assert len(json.dumps(state)) < 1000


# What a step costs


@pytest.mark.parametrize("on_cpu", [True, False])
def test_one_host_synchronisation_a_step(tmp_path, monkeypatch, on_cpu):
    """A step may wait for the device once, for NaN and dropped groups. On CPU it looks for those after it too."""
    monkeypatch.setattr(SparsityCallback, "_synchronises_for_free", lambda self: on_cpu)
    counts = Counter()

    def counted(name):
        original = getattr(torch.Tensor, name)

        def wrapper(self, *args):
            frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
            # The sampler, the collator and the check of its labels work on the host anyway.
            if frames and not frames[-1].filename.endswith(("pairing.py", "collation.py", "rows.py")):
                counts[frames[-1].name] += 1
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, wrapper)

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        counted(name)
    per_run = []
    for steps in (2, 8):  # both within one epoch
        data = {"retain_dataset": retain_set(8)}
        settings = {"max_steps": steps, "sparsity_weight": 0.1, "learning_rate": 1e-3}
        trainer = trainer_for(peft_vit(), tmp_path, kwargs=data, **settings)
        counts.clear()
        trainer.train()
        per_run.append(Counter(counts))
    grown = per_run[1] - per_run[0]
    assert grown == Counter(on_pre_optimizer_step=6, freeze_zero_groups=6 if on_cpu else 0) - Counter()


@pytest.mark.parametrize("classes", [RETAIN, FORGET])
def test_evaluation_without_one_of_the_roles_leaves_its_scores_out(tmp_path, classes):
    """A role without rows has no accuracy; nothing is made up, and nothing fails."""
    trainer = trainer_for(
        peft_vit(), tmp_path, kwargs={"eval_dataset": samples(classes)}, eval_strategy="epoch", num_train_epochs=1
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert ("eval_acc_retain" in entry, "eval_acc_forget" in entry) == (classes == RETAIN, classes == FORGET)
    assert "eval_h_mean" not in entry
