"""`gs-lora forget` as a user runs it: a local model, local images, settings from a file, one process and two."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from errors import refused
from local_images import CLASSES, local_model_and_images
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from gs_lora_peft import ForgettingLedger, GSLoraTrainingArguments, OtherSettingsError
from gs_lora_peft.cli import (
    SettingsParser,
    forget,
    load_data,
    load_digits,
    pretrained_digits_vit,
)
from gs_lora_peft.cli.forgetting import digits, subjects, working
from gs_lora_peft.cli.forgetting.options import missing_classes, training_options
from gs_lora_peft.cli.loading import model_source
from gs_lora_peft.cli.terminal import UsageError
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.ledger import RequestOrderError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, str]:
    return local_model_and_images(tmp_path_factory.mktemp("local"))


def run(command: list[str], cwd: Path, ok: bool = True) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode == 0) is ok, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_local_model_and_images(local, tmp_path, monkeypatch):
    """Local folders, classes by name, a YAML file that the command line overrides; a second call changes nothing."""
    settings = {
        "learning_rate": 0.002,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "r": 2,
        "use_cpu": True,
        "max_forget_accuracy": 1,  # nothing is forgotten so quickly
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    command = [
        "--model_name_or_path", local["model"], "--dataset_name", local["images"],
        "--use_cpu", "true", "--forget", "tench;school bus", "--config", "settings.yaml", "--learning_rate", "0.004",
        "--output_dir", "out",
    ]  # fmt: skip
    printed = run([sys.executable, str(EXAMPLES / "forget.py"), *command], tmp_path)
    assert "task_002" in printed
    assert "forgetting.json" in printed
    assert "Next:     gs-lora audit out --data DATA" in printed
    assert "gs-lora merge out OUT --base-model MODEL" in printed
    ledger = json.loads((tmp_path / "out/forgetting.json").read_text())
    assert [task["class_names"] for task in ledger["tasks"]] == [["tench"], ["school bus"]]
    assert [task["classes"] for task in ledger["tasks"]] == [[0], [1]]  # the model's numbering
    assert ledger["tasks"][0]["settings"]["training"]["learning_rate"] == 0.004
    assert ledger["tasks"][0]["settings"]["config"]["r"] == 2
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    monkeypatch.chdir(tmp_path)
    assert forget(command) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")} == files
    command[command.index("tench;school bus")] = "tench;church"
    with pytest.raises(RequestOrderError):
        forget(command)


@pytest.mark.slow
def test_two_processes(local, tmp_path):
    """`torchrun --nproc_per_node 2` gives the scores that `accelerate launch` with the same global batch gives."""
    alone = "accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no"
    launchers = {
        1: f"{alone} --dynamo_backend no -m gs_lora_peft",
        2: "torch.distributed.run --standalone --nproc_per_node 2 -m -- gs_lora_peft",
    }
    scores = {}
    for processes, batch in ((1, 4), (2, 2)):
        command = [
            sys.executable, "-m", *launchers[processes].split(), "forget",
            "--r", "4", "--model_name_or_path", local["model"], "--dataset_name", local["images"],
            "--forget", "tench", "--num_train_epochs", "2", "--per_device_train_batch_size", str(batch),
            "--output_dir", f"out{processes}", "--max_forget_accuracy", "1",
        ]  # fmt: skip
        run(command, tmp_path)
        task = json.loads((tmp_path / f"out{processes}/forgetting.json").read_text())["tasks"][0]
        scores[processes] = task["scores"]["after"], task["sizes"]
    assert scores[1] == scores[2]


def test_mistakes_are_named_before_any_work(local, tmp_path):
    """A class that does not exist, half a pair of options and an unknown setting end with their own message."""
    base = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    pair = ["--model_name_or_path", local["model"], "--dataset_name", local["images"]]
    with pytest.raises(UnknownClassError) as error:
        forget([*base, *pair, "--forget", "tensch"])
    assert "tensch" in error.value.value
    (tmp_path / "bad.yaml").write_text("learning_rte: 1\n")
    bad = [*pair, f"--config={tmp_path / 'bad.yaml'}"]
    for options, said in (
        (pair[:2], "--forget is missing"),
        ([*pair[:2], "--forget", "tench"], "--data is missing"),
        ([*pair[2:], "--forget", "tench"], "--model is missing"),
        (bad, "learning_rte"),
    ):
        with pytest.raises(UsageError, match=said):
            forget([*base, *options])
    assert not (tmp_path / "out").exists()


def parsed(*argv):
    """The settings of a command line."""
    return SettingsParser(output_dir="runs").parse_options(argv)


def test_settings_from_a_file(tmp_path):
    """`--config=` counts, a number is a class, and what cannot work is refused with its fix."""
    (tmp_path / "a.yaml").write_text("forget: 1\nr: 2\n")
    options = parsed(f"--config={tmp_path / 'a.yaml'}")
    assert (options.data.forget, options.adapter.r) == ("1", 2)
    assert missing_classes(parsed().data) == []
    for words, task in (([], None), (["--redo"], "last"), (["--redo", "task_002"], "task_002")):
        assert parsed(*words, "--keep").run.redo == task
    assert missing_classes(parsed("--missing", "one,two").data) == ["one", "two"]
    (tmp_path / "a.yaml").write_text("model: m\nobjects_column: boxes\n")
    options = parsed("--config", str(tmp_path / "a.yaml"), "--data=d", "--train-split", "t")
    assert (options.data.model_name_or_path, options.data.label_column) == ("m", "boxes")
    assert (options.data.dataset_name, options.data.train_split) == ("d", "t")
    (tmp_path / "a.yaml").write_text("data_config: c\noutput: o\n")  # the names of all commands, and of scripts
    for words, expected in (([], ("c", "o")), (["--output", "p", "--dataset-config-name", "d"], ("d", "p"))):
        options = parsed("--config", str(tmp_path / "a.yaml"), *words)
        assert (options.data.dataset_config_name, options.args.output_dir) == expected
    for text, expected in (
        ("forget: [tench, church]", "tench,church"),
        ("forget: [[tench, 3], [church]]", "tench,3;church"),
        ("forget: tench,3;church", "tench,3;church"),
    ):
        (tmp_path / "a.yaml").write_text(f"{text}\nmissing: [ada, bob]\n")
        data = parsed("--config", str(tmp_path / "a.yaml")).data
        assert (data.forget, missing_classes(data)) == (expected, ["ada", "bob"])
    for text, said in (
        ("forget: [tench, [church]]", "expected a list of classes, or a list of such lists"),
        ("forget: [[tench], []]", "none of them empty"),
        ("forget: []", "none of them empty"),
        ("forget: ['tench, Tinca tinca', church]", "`forget` is 'text'; expected one class"),
        ("missing: [yes]", "`missing` is True; expected names or ids"),
        ("missing: {ada: 1}", "`missing` is 'a dict of length 1'"),
        ("missing: [[ada], [bob]]", "`--missing` is 'text'; expected a list of classes without ';'"),
        ("[" * 5000, "cannot be read"),
        ("shots: 2.5", "`--shots` is 2.5"),
        ("replay_ratio: yes", "`--replay_ratio` is True"),
        ("r: [8]", "`--r` is [8]"),
        ("ema_decay: .nan", "`--ema_decay` is nan"),
        ("seed: 1.5", "`--seed` is 1.5"),
        ("- a list", "is ['a list']"),
    ):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(UsageError) as error:
            parsed("--config", str(tmp_path / "b.yaml"))
        assert said in str(error.value)
    for argv, said in (
        (["--config"], "expected one argument"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--resume_from_checkpoint", "x"], "resumes by itself"),
        (["--forget_wei", "3"], "--forget_wei"),  # no abbreviations: another version may have two such options
        (["--shots", "four"], "--shots: invalid int value: 'four'"),
        (["--forget_weight", "-1"], "`--forget_weight` is -1.0"),
        (["--missing", "one;two"], "`--missing` is 'text'; expected a list of classes without ';'"),
        (["--missing", ""], "`--missing` is ''"),
        (["--rank", "4"], "no option --rank; did you mean"),
        (["--r", "4", "tench"], "'tench' belongs to no option"),
        (["--retrain", "2"], "--audit, which is missing"),
        (["--forget_weights", "1", "x"], "--forget_weights"),
    ):
        with pytest.raises(UsageError) as error:
            parsed(*argv)
        assert said in str(error.value)


@pytest.mark.slow
def test_the_digits_end_with_an_audit(tmp_path, monkeypatch, capsys):
    """The last lines give the verdict beside retrained models; the ledger has it, and no file names a digit."""

    def tiny(seed):
        torch.manual_seed(seed)
        config = ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
        return ViTForImageClassification(config).eval()

    third = DatasetDict({name: rows.shard(3, 0, contiguous=False) for name, rows in load_digits().items()})
    names = third["train"].features["label"].names
    monkeypatch.setattr(subjects, "load_digits", lambda: third)
    left_out = []
    monkeypatch.setattr(subjects, "pretrained_digits_vit", lambda dataset, **more: tiny(0))
    monkeypatch.setattr(
        working,
        "retrained_models",
        lambda model, data, classes, count, **more: left_out.append(classes) or map(tiny, range(1, count + 1)),
    )
    command = ["--audit", "--forget", "three", "--num_train_epochs", "1", "--output_dir", str(tmp_path)]
    forget([*command, "--use_cpu", "true", "--disable_tqdm", "true"])
    audit = ForgettingLedger.load(tmp_path).audit
    assert left_out == [[3]]
    assert (audit["tasks"], audit["reference"], audit["quick"]) == (["task_001"], "retrained", True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert audit["verdict"] in lines
    assert lines[-1] == f"Report:   {tmp_path / 'audit' / 'report.html'}"
    files = [path for path in (tmp_path / "audit").rglob("*") if path.is_file() and path.suffix != ".png"]
    contents = b"".join(path.read_bytes() for path in files)
    assert not re.search(rb"\bthree\b", contents)


def test_a_stopped_request_goes_on(local, tmp_path, monkeypatch):
    """By default after its last finished epoch, to the same bits; of the checkpoints nothing stays."""
    command = ["--model_name_or_path", local["model"], "--dataset_name", local["images"], "--forget", "tench"]
    command += ["--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--use_cpu", "true"]  # 3 steps each
    command += ["--disable_tqdm", "true"]
    whole, stopped, steps, original = tmp_path / "whole", tmp_path / "stopped", [], Trainer.training_step
    command += ["--max_forget_accuracy", "1"]
    assert forget([*command, "--output_dir", str(whole), "--save_strategy", "no"]) == 0

    def training_step(self, *args, **more):
        steps.append(self.state.global_step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return original(self, *args, **more)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        forget([*command, "--output_dir", str(stopped)])
    assert [path.name for path in (stopped / "work/task_001").glob("checkpoint-*")] == ["checkpoint-6"]
    forget([*command, "--output_dir", str(stopped)])
    assert steps == [*range(8), 6, 7, 8]
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (whole, stopped)]
    assert files[0] == files[1]
    adapter = "tasks/task_001/adapter_model.safetensors"
    assert (whole / adapter).read_bytes() == (stopped / adapter).read_bytes()


def test_the_same_folder_with_other_settings(local, tmp_path, monkeypatch):
    """What is done is not passed over: it is refused, kept or redone, as the command says."""
    settings = tmp_path / "settings.yaml"
    settings.write_text("keep: true\n")
    command = ["--model_name_or_path", local["model"], "--dataset_name", local["images"], "--forget", "tench;church"]
    command += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true"]
    command += ["--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")]
    forget(command)

    def tasks():
        return [(task.name, task.status) for task in ForgettingLedger.load(tmp_path / "run").tasks]

    done = [("task_001", "done"), ("task_002", "done")]
    for options in ((), ("--logging_steps", "1"), ("--r", "4", "--keep"), ("--r", "4", "--config", str(settings))):
        forget([*command, *options])
        assert tasks() == done
    with pytest.raises(OtherSettingsError) as caught:
        forget([*command, "--r", "4"])
    assert caught.value.differences == {name: {"r": (8, 4)} for name, _ in done}
    assert tasks() == done
    redone = [("task_001", "done"), ("task_002", "revoked"), ("task_003", "done")]
    for options in (["--redo"], ["--redo", "task_002"]):
        forget([*command, "--r", "4", *options])
        assert tasks() == redone
    ledger = ForgettingLedger.load(tmp_path / "run")
    with ledger.changes():
        ledger.revoke("task_001")
    forget([*command, "--r", "4"])
    assert tasks() == [("task_001", "revoked"), *redone[1:], ("task_004", "done")]


def test_what_is_not_forgotten_ends_with_3(local, tmp_path, monkeypatch, capsys):
    """A class that the model recognises, with no training to speak of; a rerun, which only reads, says it again."""
    command = ["--model_name_or_path", local["model"], "--dataset_name", local["images"], "--max_forget_accuracy", "0"]
    command += ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--r", "2"]
    command += ["--learning_rate", "1e-9", "--save_strategy", "no", "--disable_tqdm", "true"]
    outcomes = {}
    for name in CLASSES:
        run = [*command, "--forget", name, "--output_dir", str(tmp_path / name)]
        status = forget(run)
        assert forget(run) == status
        task = json.loads((tmp_path / name / "forgetting.json").read_text())["tasks"][0]
        assert (status == 3) == (task["outcome"]["forgotten"] is False) == (task["scores"]["after"]["acc_forget"] > 0)
        assert ("is not forgotten" in capsys.readouterr().out) == (status == 3)
        outcomes[name] = status
    assert set(outcomes.values()) == {0, 3}  # an untrained model takes everything for the same


@pytest.mark.parametrize(
    ("splits", "asked", "scored"),
    [
        (["train", "test", "validation"], [], "test"),
        (["train", "valid"], [], "valid"),
        (["train", "dev", "other"], [], "dev"),
        (["train", "other"], ["--test_split", "other"], "other"),
        (["train", "test"], ["--test_split", "train"], "train"),
        (["train", "other"], [], None),
        (["train", "test"], ["--test_split", "other"], None),
        (["test"], [], None),
    ],
)
def test_the_split_that_is_scored_on(tmp_path, monkeypatch, splits, asked, scored):
    """The usual names by themselves, any other when it is asked for, and never another one than was asked for."""
    DatasetDict({name: Dataset.from_dict({"image": [name], "label": [0]}) for name in splits}).save_to_disk(tmp_path)
    paths = ["--model_name_or_path", "m", "--dataset_name", str(tmp_path), "--forget", "0"]
    script = parsed(*paths, *asked).data
    if scored is None:
        with refused(f"splits of {tmp_path}", splits) as error:
            load_data(script)
        assert "--test_split" in error.value.fix
    else:
        data = load_data(script)
        assert (data["train"]["image"][0], data["test"]["image"][0]) == ("train", scored)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [(["--hub_model_id", "./x"], "--hub_model_id"), (["--output_dir", "runs/a..b"], "--output"), ([], None)],
)
def test_where_to_publish_is_checked_before_any_work(options, wrong):
    """A name that cannot be a repository, given or of the folder, is a wrong command line with a push only."""
    parsed(*options)
    if wrong is None:
        parsed(*options, "--push_to_hub")
        return
    with pytest.raises(UsageError, match=wrong):
        parsed(*options, "--push_to_hub")


def test_no_option_is_ignored(local, tmp_path):
    """Local folders, files and the digits refuse what they have no use for, and name it; so does another kind."""
    rows = Dataset.from_dict({"pic": [1, 2], "image": [3, 4], "label": [0, 1]})
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "file.parquet")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    named = ["--model_name_or_path", local["model"], "--forget", "0", "--dataset_name"]
    saved, file, coco = ([*named, str(tmp_path / name)] for name in ("saved", "file.parquet", "coco"))
    boxes = partial(subjects.load_boxes, label2id={})
    digits_only = ["--output_dir", str(tmp_path / "out")]
    cases = [
        (model_source, parsed(*saved, "--model_revision", "v1").data, "--model_revision", "v1"),
        (load_data, parsed(*saved, "--dataset_config_name", "c").data, "--dataset_config_name", "c"),
        (load_data, parsed(*file, "--dataset_config_name", "c").data, "--dataset_config_name", "c"),
        (load_data, parsed(*saved, "--image_column", "pci").data, "--image_column", "pci"),
        (boxes, parsed(*coco, "--box_format", "xyxy"), "--box_format", "xyxy"),
        (boxes, parsed(*coco, "--test_split", "a"), "--test_split", "a"),
        (forget, [*digits_only, "--label_column", "digit"], "--label_column", "digit"),
        (forget, [*digits_only, "--threshold", "0.1"], "--threshold", 0.1),
        (forget, [*digits_only, "--no_pictures"], "--pictures", False),
        (forget, [*saved, *digits_only, "--hidden_size", "9"], "--hidden_size", 9),
    ]
    for load, given, option, value in cases:
        kind = UsageError if option == "--hidden_size" else InvalidInputError
        with pytest.raises(kind) as caught:
            load(given)
        assert option in str(caught.value)
        assert kind is UsageError or (caught.value.name, caught.value.value) == (option, value)
    assert load_data(parsed(*saved, "--image_column", "pic").data)["test"]["image"][:] == [1, 2]
    assert not (tmp_path / "out").exists()


def test_a_cut_off_model_is_not_used(tmp_path, monkeypatch):
    """What a killed run left in the cache is trained anew, and a whole model takes its name at the end."""
    monkeypatch.setattr(digits, "cached_assets_path", lambda *args, **more: tmp_path)
    trained = []

    def train(self, **options):
        trained.append(1)
        self.model.classifier.bias.data += 1

    monkeypatch.setattr("gs_lora_peft.training.ResumableTrainer.train", train)
    pretrained_digits_vit(load_digits())
    (weights,) = tmp_path.glob("*/model/model.safetensors")
    weights.unlink()
    pretrained_digits_vit(load_digits())
    pretrained_digits_vit(load_digits())
    assert len(trained) == 2


def test_the_help_knows_the_training_options():
    """What is read from the source is what the class has: names, defaults and texts."""
    fields = GSLoraTrainingArguments.__dataclass_fields__
    stock = TrainingArguments.__dataclass_fields__
    found = {name: (default, said) for name, default, said in training_options()}
    assert found == {name: (fields[name].default, fields[name].metadata["help"]) for name in found}
    assert {name for name in fields if name not in stock or fields[name].default != stock[name].default} <= set(found)
