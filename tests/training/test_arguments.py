"""The arguments: what they refuse, how the command line reads them, and what they change in the Trainer's."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from errors import refused
from hypothesis import given, settings, strategies as st
from transformers import HfArgumentParser, IntervalStrategy, TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import OptimizerNames

from gs_lora_peft import GSLoraTrainingArguments, checking
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.training.option_types import KINDS

HINTS = get_type_hints(GSLoraTrainingArguments, include_extras=True)


def parse(*words: str) -> GSLoraTrainingArguments:
    (args,) = HfArgumentParser(GSLoraTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "out", "--use_cpu", "true", *words]
    )
    return args


def test_no_without_quotes():
    """YAML reads `no` as False: it is "no" for every option that takes "no", and for no other."""
    strategies = [name for name in GSLoraTrainingArguments.__dataclass_fields__ if name.endswith("_strategy")]
    accepted = {False: {}, "no": {}}
    for value, found in accepted.items():
        for name in strategies:
            try:
                found[name] = getattr(GSLoraTrainingArguments("out", use_cpu=True, **{name: value}), name)
            except ValueError:
                continue
    assert accepted[False] == accepted["no"]
    assert {"save_strategy", "eval_strategy", "logging_strategy"} <= set(accepted[False])


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--forget_bound", "auto"], "forget_bound", "auto"),
        (["--forget_bound", "7.5"], "forget_bound", 7.5),
        (["--sparsity_until_epoch", "5"], "sparsity_until_epoch", 5.0),
        (["--sparsity", "penalty"], "sparsity", "penalty"),
        (["--forget_weight", "0.25"], "forget_weight", 0.25),
        (["--ema_decay", "0.9", "--ema_start_epoch", "3"], "ema_decay", 0.9),
        (["--validation_fraction", "0.2"], "validation_fraction", 0.2),
        (["--report_to", "tensorboard"], "report_to", ["tensorboard"]),
        (["--learning_rate", "5e-3"], "learning_rate", 5e-3),
        (["--lr_scheduler_type", "linear"], "lr_scheduler_type", "linear"),
        (["--logging_nan_inf_filter", "false"], "logging_nan_inf_filter", False),
    ],
)
def test_command_line_reads_every_kind_of_field(words, name, value):
    """`--forget_bound auto|7.5` and optional numbers go through HfArgumentParser as written."""
    assert getattr(parse(*words), name) == value


def test_command_line_defaults_are_the_classs_defaults():
    """A script without options runs with the documented defaults."""
    own, parsed = GSLoraTrainingArguments("out", use_cpu=True), parse()
    for name in GSLoraTrainingArguments.__dataclass_fields__:
        if name not in ("logging_dir", "run_name"):
            assert getattr(own, name) == getattr(parsed, name), name


def test_help_of_every_added_field_is_one_readable_line():
    """`--help` names what each option does."""
    text = HfArgumentParser(GSLoraTrainingArguments).format_help()
    own = set(GSLoraTrainingArguments.__dataclass_fields__) - set(TrainingArguments.__dataclass_fields__)
    assert {"forget_weight", "epoch_covers", "max_forget_accuracy"} <= own
    for name in own:
        assert f"--{name}" in text
        assert GSLoraTrainingArguments.__dataclass_fields__[name].metadata["help"]


def test_docstring_lists_the_defaults_that_differ_from_the_trainers():
    """A user who knows TrainingArguments must find every surprise in one place."""
    own, stock = GSLoraTrainingArguments.__dataclass_fields__, TrainingArguments.__dataclass_fields__
    changed = {name for name in stock if own[name].default != stock[name].default}
    assert changed
    for name in changed:
        assert f"`{name}=" in GSLoraTrainingArguments.__doc__, name


def test_arguments_survive_json_and_a_round_trip():
    """The Trainer, trackers and the ledger write them down."""
    args = GSLoraTrainingArguments("out", use_cpu=True, forget_bound=7, sparsity_until_epoch=2)
    assert '"forget_bound": 7.0' in args.to_json_string()
    again = GSLoraTrainingArguments("out", use_cpu=True, forget_bound=args.to_dict()["forget_bound"])
    assert again.forget_bound == 7.0
    assert args.to_sanitized_dict()["sparsity"] == "proximal"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ema_start_epoch", {"ema_start_epoch": 3}),
        ("ema_start_epoch", {"ema_decay": 0.9, "ema_start_epoch": 16}),
        ("ema_start_epoch", {"ema_decay": 0.9, "ema_start_epoch": 15}),
        ("sparsity_warmup_epochs", {"sparsity_warmup_epochs": 30, "sparsity_until_epoch": None}),
        (
            "sparsity_until_epoch",
            {"sparsity": "penalty", "sparsity_warmup_epochs": 2, "num_train_epochs": 2, "sparsity_until_epoch": 1},
        ),
        ("sparsity_warmup_epochs", {"sparsity": "penalty", "sparsity_warmup_epochs": 2, "num_train_epochs": 2}),
        ("sparsity_until_epoch", {"sparsity_until_epoch": 0}),
        ("sparsity_until_epoch", {"sparsity_until_epoch": 3, "sparsity_warmup_epochs": 3}),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(name, settings):
    """Each error has the bad value and what was expected, before anything has been built."""
    with refused(name, settings[name]):
        GSLoraTrainingArguments("out", use_cpu=True, **settings)


NOT_NEGATIVE = (
    "forget_weight", "sparsity_weight", "sparsity_warmup_epochs", "sparsity_ramp_epochs", "prototype_forget_weight",
    "prototype_retain_weight", "ema_start_epoch", "distillation_weight", "depth_weight",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, bad) for name in NOT_NEGATIVE for bad in (-0.1, math.nan, math.inf, True, [1])),
        *((name, None) for name in NOT_NEGATIVE if name != "depth_weight"),  # there it is what the recipe says
        *((name, "0.5") for name in NOT_NEGATIVE if name != "distillation_weight"),
        *((name, bad) for name in ("forget_bound", "prototype_bound") for bad in (0, -1, "auto ", "inf", None)),
        *((name, bad) for name in ("ema_decay", "validation_fraction") for bad in (1.0, -0.1, math.nan, "0.5", False)),
        *((name, bad) for name in ("forget_loss", "sparsity", "ema_update") for bad in ("lasso", 1)),
        *((name, None) for name in ("forget_loss", "ema_update")),
        *(("depth_target", bad) for bad in ("median", None, 1)),
        *(("prototype_augmentations", bad) for bad in (-1, 1.0, "2", True)),
        *((name, bad) for name in ("learning_rate", "num_train_epochs") for bad in ("1", True, math.nan)),
        *((name, bad) for name in ("per_device_train_batch_size", "seed", "max_steps") for bad in ("4", 4.0, True)),
        *(("gradient_checkpointing", bad) for bad in ("no", 3)),
        *(("output_dir", bad) for bad in ("", 5, True, b"out", "a\0b")),
    ],
)  # fmt: skip
def test_values_of_another_type_or_out_of_range(name, bad):
    """Text is no number, and True is none: the error has the argument and the value, before anything was built."""
    with pytest.raises(InvalidInputError) as caught:
        GSLoraTrainingArguments(**{"output_dir": "out", "use_cpu": True, "ema_decay": 0.5, name: bad})
    assert caught.value.name == name
    assert caught.value.value is bad


INHERITED = [field.name for field in dataclasses.fields(TrainingArguments)]


def test_every_inherited_option_has_a_type():
    """What a new version of transformers adds must not go unchecked. Some types are of options of other versions."""
    annotated = {name for name in INHERITED if checking._kind(HINTS[name]) is not None}
    assert set(INHERITED) == annotated | (KINDS.keys() & set(INHERITED)) | {"output_dir"}


@pytest.mark.parametrize(
    "bad", [object(), b"x", math.nan, [[]], {1: object()}], ids=["object", "bytes", "nan", "list", "dict"]
)
def test_no_inherited_option_takes_anything_at_all(bad):
    """Walks over all: one clear error at construction, and neither a raw one nor one during the training."""
    for name in INHERITED:
        with pytest.raises(InvalidInputError) as caught:
            GSLoraTrainingArguments(**{"output_dir": "out", "use_cpu": True, name: bad})
        assert caught.value.name.startswith(name)
        assert caught.value.fix, name


@given(
    name=st.sampled_from([name for name in INHERITED if name not in ("tf32", "ddp_backend")]),  # of the hardware
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.floats(),
        st.text(max_size=4),
        st.lists(st.integers() | st.text(max_size=2), max_size=2),
        st.dictionaries(st.text(max_size=2), st.none()),
    ),
)
@settings(max_examples=400, deadline=None)
def test_an_option_is_refused_by_name_or_stays_valid(name, value):
    """Whatever is given, there is no other error; what is accepted is accepted again once transformers has read it."""
    if name == "output_dir" and isinstance(value, str):
        return  # a path: see below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # old names of options
        error = None
        try:
            args = GSLoraTrainingArguments(**{"output_dir": "out", "use_cpu": True, name: value})
        except InvalidInputError as caught:
            error = caught
        if error is None:
            args.check()
        else:
            assert error.name.split("[")[0] == name


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(
            (name, -1e-3)
            for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps")
        ),
        *((name, -3) for name in ("logging_steps", "save_steps", "eval_steps", "save_total_limit", "max_steps")),
        *(
            (name, -3)
            for name in ("dataloader_num_workers", "neftune_noise_alpha", "seed", "data_seed", "ddp_timeout")
        ),
        *((name, value) for name in ("adam_beta1", "adam_beta2") for value in (1.0, 2, -0.1)),
        *((name, "junk") for name in ("log_level", "optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs")),
        *(
            (name, "junk")
            for name in ("report_to", "debug", "save_strategy", "accelerator_config", "fsdp", "deepspeed")
        ),
        *(("accelerator_config", value) for value in ({"a": 1}, True, {"split_batches": "no"}, "{", "[1]")),
        ("report_to", ["none", "wandb"]),
        ("metric_for_best_model", 4),
        ("label_names", 3),
        ("fsdp", [1]),
        ("run_name", [1]),
    ],
)
def test_inherited_values_that_would_fail_late_or_do_nothing(name, bad):
    """Errors at construction, by name and value."""
    with pytest.raises(InvalidInputError) as caught:
        GSLoraTrainingArguments(**{"output_dir": "out", "use_cpu": True, name: bad})
    assert (caught.value.name, caught.value.value) == (name, bad)
    assert caught.value.fix


@pytest.mark.parametrize(
    "values",
    [
        {"lr_scheduler_kwargs": '{"num_cycles": 0.5}'},
        {"lr_scheduler_kwargs": {"num_cycles": 0.5}, "optim_args": "a=1, b=2", "optim": OptimizerNames.SGD},
        {"accelerator_config": '{"even_batches": false}'},
        {"accelerator_config": AcceleratorConfig(even_batches=False)},
        {"accelerator_config": {"dispatch_batches": None, "gradient_accumulation_kwargs": {"num_steps": 1}}},
        {"logging_strategy": IntervalStrategy.STEPS, "logging_steps": 0.1, "save_strategy": "best"},
        {"save_steps": 0, "logging_steps": 0, "save_total_limit": 0},
        {"report_to": "all"},
        {"report_to": ["tensorboard"], "debug": [DebugOption.UNDERFLOW_OVERFLOW]},
        {"debug": "underflow_overflow", "include_num_input_tokens_seen": True, "include_for_metrics": ("loss",)},
        {"warmup_steps": 0.1, "max_grad_norm": 0, "adam_beta1": 0, "learning_rate": 0, "optim_target_modules": ["a"]},
        {"trackio_static_space_id": False, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
        {
            "label_names": ["labels"],
            "resume_from_checkpoint": True,
            "log_level": "detail",
            "fsdp": "",
            "deepspeed": None,
        },
    ],
    ids=str,
)
def test_what_transformers_takes_is_taken(values):
    """Dictionaries, JSON text, enums and None; also a second time, in a copy."""
    args = GSLoraTrainingArguments("out", use_cpu=True, **values)
    dataclasses.replace(args).check()


def test_options_in_a_json_file(tmp_path):
    """As transformers reads them."""
    file = tmp_path / "accelerator.json"
    file.write_text('{"even_batches": false}')
    args = GSLoraTrainingArguments("out", use_cpu=True, accelerator_config=str(file))
    assert args.accelerator_config.even_batches is False


def test_paths_and_numbers_of_other_libraries(tmp_path, monkeypatch):
    """`~`, os.PathLike and NumPy's numbers are accepted, and kept as the Trainer and JSON know them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {"learning_rate": np.float32(0.5), "seed": np.int64(3), "forget_bound": np.float64(7)}
    args = GSLoraTrainingArguments(Path("~/runs"), use_cpu=True, **settings)
    assert args.output_dir == str(tmp_path / "runs")
    assert [type(getattr(args, name)) for name in settings] == [float, int, float]
    assert '"seed": 3' in args.to_json_string()


@pytest.mark.parametrize(
    "settings",
    [
        {"ema_decay": 0.9, "ema_start_epoch": 14.5},
        {"ema_decay": 0.9, "ema_start_epoch": 30, "max_steps": 4},  # how many epochs that is, the data decides
        {"sparsity_warmup_epochs": 30, "sparsity_until_epoch": None, "max_steps": 4},
        {"sparsity": "none", "sparsity_warmup_epochs": 30},
        {"ema_decay": 0.9, "num_train_epochs": 0, "max_steps": 4},
    ],
)
def test_a_schedule_that_may_fit_is_not_refused(settings):
    """Nothing is said about runs whose epochs are not known yet, or about what is switched off; values stay."""
    args = GSLoraTrainingArguments("out", use_cpu=True, **settings)
    assert {name: getattr(args, name) for name in settings} == settings


def test_the_best_checkpoint_is_that_of_the_highest_h_mean():
    """The Trainer's own default, the lowest loss over all classes, would keep the model that has forgotten least."""
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    args = GSLoraTrainingArguments("out", use_cpu=True, **best)
    assert (args.metric_for_best_model, args.greater_is_better) == ("h_mean", True)
    args = GSLoraTrainingArguments("out", use_cpu=True, eval_strategy="epoch", save_strategy="best")
    assert args.metric_for_best_model == "h_mean"
    args = GSLoraTrainingArguments("out", use_cpu=True, metric_for_best_model="eval_acc_retain", **best)
    assert args.metric_for_best_model == "eval_acc_retain"
    assert GSLoraTrainingArguments("out", use_cpu=True).metric_for_best_model is None
