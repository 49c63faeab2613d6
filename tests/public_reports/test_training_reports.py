"""Walks through public bug reports about training: gradients, scores, checkpoints. Each docstring names the
reports; a repository without an owner is one of huggingface's."""

import json

import pytest
import report_cases as cases
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import TrainerCallback

from gs_lora_peft import ForgetRequest, NonFiniteLossError
from gs_lora_peft.data.pairing import PairedSampler


class StopAfter(TrainerCallback):
    """A stop before the end."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def alike(rows=16) -> Dataset:
    """Every row to keep is one picture, and every row to forget another one, so that all batches are the same."""
    dataset = cases.pictures(1)
    return dataset.select([0] * rows + [1] * rows)


# Gradients


@pytest.mark.parametrize("reentrant", [True, False, None])
@pytest.mark.parametrize("switched_on", ["by the arguments", "before the adapter", "after the adapter"])
def test_checkpointed_activations_give_gradients(base, tmp_path, plain, reentrant, switched_on):
    """peft#1142, peft#137, transformers#42489, transformers#28335, transformers#26334,
    locuslab/open-unlearning#178, microsoft/LoRA#120, cloneofsimo/lora#26: with activation checkpoints every lora_B
    stayed 0."""
    kwargs = {} if reentrant is None else {"use_reentrant": reentrant}
    by_arguments = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs or None}
    if switched_on == "before the adapter":
        model = cases.adapted(base, prepare=lambda model: model.activation_checkpointing_enable(kwargs or None))
    else:
        model = cases.adapted(base)
    if switched_on == "after the adapter":
        model.base_model.model.activation_checkpointing_enable(kwargs or None)
    trainer = cases.trainer_for(model, tmp_path, **(by_arguments if switched_on == "by the arguments" else {}))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    norms = [tensor.norm().item() for name, tensor in saved.items() if "lora_B" in name]
    assert len(norms) == 4
    assert min(norms) > 1e-6
    assert cases.same(cases.weights(model, "lora_"), plain)


def logs_of(base, folder, steps, rows=16, batch=8, **changes):
    """Logged steps of a training whose batches are all the same and whose weights hardly move."""
    trainer = cases.trainer_for(
        cases.adapted(base, init_lora_weights=False),
        folder,
        alike(rows),
        logging_strategy="steps",
        logging_steps=1,
        learning_rate=1e-9,
        gradient_accumulation_steps=steps,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        **changes,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_does_not_grow_with_accumulation(base, tmp_path):
    """transformers#37766, trl#3716, karpathy/nanoGPT#206: losses were summed over the micro-batches and not
    averaged."""
    logs = {steps: logs_of(base, tmp_path / str(steps), steps)[0] for steps in (1, 2)}
    assert logs[2]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-4)
    assert logs[2]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=1e-4)


def test_the_last_window_of_an_epoch_is_not_scaled_down(base, tmp_path):
    """transformers#38837, transformers#38872: five micro-batches in windows of two gave a last loss of one half."""
    logs = logs_of(base, tmp_path, steps=2, rows=20, batch=4)
    assert len(logs) == 3
    for value in ("loss", "grad_norm"):
        assert [entry[value] for entry in logs] == pytest.approx([logs[0][value]] * 3, rel=1e-4)


def test_max_steps_wins_over_epochs(base, tmp_path):
    """transformers#12499: with a number of steps, the number of epochs was obeyed all the same."""
    trainer = cases.trainer_for(cases.adapted(base), tmp_path, max_steps=2, num_train_epochs=50)
    assert trainer.train().global_step == 2


def test_processes_keep_different_samples():
    """locuslab/open-unlearning#139: every process drew the same samples to keep."""
    processes, batch, kept, gone = 2, 4, 24, 6
    sampler = PairedSampler(kept, gone, global_batch_size=processes * batch, seed=3)
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        shards = [
            list(BatchSamplerShard(BatchSampler(sampler, batch, drop_last=False), processes, number))
            for number in range(processes)
        ]
        for parts in zip(*shards, strict=True):
            rows = [row for part in parts for row, _ in part]
            assert len(set(rows)) == processes * batch
        seen.append([row for parts in zip(*shards, strict=True) for part in parts for row, _ in part])
        assert sorted(seen[-1]) == list(range(kept))
    assert seen[0] != seen[1]


def test_nan_reaches_neither_weights_nor_ledger(base, tmp_path):
    """getainode/ainode#186, kohya-ss/sd-scripts#201: an adapter of nothing but NaN, and the job was recorded as a
    success."""

    def transform(rows):
        pixels = cases.pixels(rows["image"])
        pixels[0, 0, 0, 0] = float("nan")
        return {"pixel_values": list(pixels), "label": rows["label"]}

    data = cases.data()
    data["train"] = data["train"].with_transform(transform)
    forgetter = cases.forgetter_for(base, tmp_path / "run", data)
    before = cases.weights(forgetter.model)
    with pytest.raises(NonFiniteLossError):
        forgetter.forget(ForgetRequest(["bee"]))
    assert not forgetter.ledger.tasks
    assert cases.same(cases.weights(forgetter.model), before)


# Scores


def test_scores_of_an_adapted_model_are_there(base, tmp_path):
    """peft#1881, transformers#33420, transformers#38130: with a PeftModel there was no `eval_loss`."""
    trainer = cases.trainer_for(
        cases.adapted(base),
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        num_train_epochs=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        kwargs={"eval_dataset": cases.data()["test"]},
    )
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {"eval_acc_forget", "eval_acc_retain", "eval_h_mean"} <= entry.keys()
    assert trainer.state.best_metric == entry["eval_loss"]


def test_metrics_of_ones_own_see_predictions_and_labels(base, tmp_path):
    """peft#1120, transformers#29186: with a PeftModel `compute_metrics` was never called."""
    told = []

    def own(prediction):
        told.append((prediction.predictions.argmax(-1).tolist(), prediction.label_ids.tolist()))
        return {"mine": 0.25}

    test = cases.data()["test"]
    trainer = cases.trainer_for(cases.adapted(base), tmp_path, kwargs={"eval_dataset": test, "compute_metrics": own})
    assert trainer.evaluate()["eval_mine"] == 0.25
    assert told == [(list(test["label"]), list(test["label"]))]


def test_the_best_checkpoint_is_kept_and_loaded(base, tmp_path):
    """transformers#24096, transformers#24103, transformers#24614, peft#394, sentence-transformers#3056: the best
    adapter was not loaded at the end, or deleted before."""
    trainer = cases.trainer_for(
        cases.adapted(base),
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="acc_forget",
        greater_is_better=True,  # the worst one: that of the first epoch
        forget_weight=0.05,
        learning_rate=0.01,
        kwargs={"eval_dataset": cases.data()["test"]},
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {best.rsplit("/", 1)[1]}
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2
    saved = PeftModel.from_pretrained(cases.load(base), best)
    assert cases.same(cases.weights(trainer.model, "lora_"), cases.weights(saved, "lora_"))
    assert trainer.evaluate()["eval_acc_forget"] == trainer.state.best_metric > 0


# Checkpoints


@pytest.mark.parametrize("adapter", ["default", "task_001"])
def test_a_new_process_resumes_with_the_saved_adapter(base, tmp_path, plain, adapter):
    """transformers#24252, transformers#24354, transformers#29607, transformers#34660, transformers#35850,
    peft#574: the adapter was not found in the checkpoint, or training began anew."""
    settings = {"save_strategy": "steps", "save_steps": 3}
    cases.trainer_for(cases.adapted(base, adapter), tmp_path, **settings, kwargs={"callbacks": [StopAfter(7)]}).train()
    model = cases.adapted(base, adapter, init_lora_weights=False)  # its weights are those of no run
    trainer = cases.trainer_for(model, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=True)
    found = {
        name.replace(f".{adapter}.", ".default."): tensor for name, tensor in cases.weights(model, "lora_").items()
    }
    assert cases.same(found, plain)


def test_accumulated_gradients_across_a_stop(base, tmp_path):
    """transformers#38939, transformers#22143, transformers#8624: resumed within or after an epoch that
    accumulation does not divide, the last checkpoint was missing, or other batches were trained on."""
    settings = {
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 5,
        "num_train_epochs": 4,
    }
    whole = cases.trainer_for(cases.adapted(base), tmp_path / "whole", **settings)
    whole.train()
    cases.trainer_for(cases.adapted(base), tmp_path / "cut", **settings, kwargs={"callbacks": [StopAfter(5)]}).train()
    rest = cases.trainer_for(cases.adapted(base), tmp_path / "cut", **settings)
    rest.train(resume_from_checkpoint=True)
    assert whole.state.global_step == 12
    assert cases.same(cases.weights(rest.model, "lora_"), cases.weights(whole.model, "lora_"))
    assert (tmp_path / "cut" / "checkpoint-12" / "adapter_model.safetensors").is_file()


def test_a_truncated_checkpoint_is_named_and_an_earlier_one_works(base, tmp_path, plain):
    """bghira/SimpleTuner#2613, vllm-project/speculators#739: a checkpoint cut off by a crash was loaded in part,
    or blocked the run."""
    settings = {"save_strategy": "steps", "save_steps": 3}
    cases.trainer_for(cases.adapted(base), tmp_path, **settings, kwargs={"callbacks": [StopAfter(7)]}).train()
    file = tmp_path / "checkpoint-7" / "adapter_model.safetensors"
    if not file.is_file():
        file = tmp_path / "checkpoint-6" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    model = cases.adapted(base)
    before = cases.weights(model, "lora_")
    with pytest.raises(ValueError) as error:
        cases.trainer_for(model, tmp_path, **settings).train(resume_from_checkpoint=True)
    assert file.parent.name in str(error.value)
    assert cases.same(cases.weights(model, "lora_"), before)
    cases.trainer_for(model, tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert cases.same(cases.weights(model, "lora_"), plain)


TOKEN = "hf_" + "secretsecretsecret"


def test_no_file_holds_the_token_or_a_pickle_of_the_arguments(base, tmp_path):
    """diffusers#6916, transformers#34612, kohya-ss/sd-scripts#1123: a token in logs or arguments, which are a
    pickle."""
    run, out = tmp_path / "run", tmp_path / "out"
    secret = {"hub_token": TOKEN, "logging_strategy": "epoch", "report_to": "tensorboard", "save_strategy": "epoch"}
    trainer = cases.trainer_for(cases.adapted(base), out, **secret, num_train_epochs=1)
    trainer.train()
    trainer.save_model(out / "model")
    args = cases.arguments("not-used", **secret, num_train_epochs=1)
    cases.forgetter_for(base, run, args=args).forget(ForgetRequest(["bee"]))
    files = [path for folder in (run, out) for path in folder.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "forgetting.json"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert not [path for path in files if path.name == "training_args.bin"]
    assert TOKEN not in json.dumps(trainer.state.log_history)
