r"""Make an image classifier forget classes, one request after another.

Without arguments: a small ViT forgets the handwritten digits three, then seven, then zero and one.

    accelerate launch examples/forget.py

Any model and data set of the Hub, or local folders (parquet, an image folder, or `save_to_disk`):

    accelerate launch examples/forget.py \
        --model_name_or_path google/vit-base-patch16-224 --dataset_name frgfm/imagenette --dataset_config_name 160px \
        --forget "tench,cassette player;church" --output_dir runs/imagenette

Settings may come from a YAML file; the command line takes precedence: `--config settings.yaml --learning_rate 5e-3`.
In the file, `forget: [tench, church]` is one request, `forget: [[tench], [church]]` are two.

Repeat the command to continue a stopped run: finished requests are skipped, and the unfinished one continues after its
last finished epoch. (`--save_strategy no` writes no checkpoints; the request then starts again.) With other settings
the command is refused, unless you choose `--keep` or `--redo`. With another `--max_forget_accuracy`, finished requests
are judged again, without training.

Exit status: 0 if all went well, 1 if something was refused or failed, 2 if the command line is wrong, 3 if a request
is not forgotten (`--max_forget_accuracy`). `accelerate launch` and `torchrun` end with 1 if a script ends with another
status than 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gs_lora_peft.cli import AdapterArguments, RunArguments, help_if_asked, run_script

DIGITS = "three;seven;zero,one"
OF_OTHER_DATA = ("model_revision", "dataset_config_name", "train_split", "test_split", "image_column", "label_column")


@dataclass
class ScriptArguments(RunArguments):
    """What to forget, and where model and data come from."""

    forget: str | None = field(
        default=None,
        metadata={
            "help": "Classes by name or id; tasks split by ';', classes by ','. E.g. 'tench,cassette player;church'. "
            f"Default for the digits: '{DIGITS}'."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Image classifier: a Hub id or a local folder. Default: a small ViT on digits."},
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set: a Hub id, or a local folder (parquet, images, save_to_disk)."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of the labels."})
    audit: bool = field(
        default=False,
        metadata={
            "help": "End with a quick audit beside two retrained models. Only for the digits: see gs-lora audit."
        },
    )


if __name__ == "__main__":
    help_if_asked(__doc__, ScriptArguments)  # before slow imports

import sys

from accelerate import PartialState
from datasets import DatasetDict
from digits import RECIPE, load_digits, pretrained_vit
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from gs_lora_peft import ContinualForgetter, GSLoraTrainingArguments, parse_requests
from gs_lora_peft.audit import audit_run, format_audit, retrained_models
from gs_lora_peft.cli import (
    SettingsParser,
    carry_out,
    load_data,
    make_forgetter,
    model_source,
    publish_if_asked,
    refuse_ignored,
)
from gs_lora_peft.data import align_known_labels
from gs_lora_peft.ledger import exit_status, format_table


def parse_arguments(argv: list[str]) -> tuple[ScriptArguments, AdapterArguments, GSLoraTrainingArguments]:
    """Defaults, then the YAML file, then the command line."""
    parser = SettingsParser("forget.py", __doc__, ScriptArguments, output_dir="runs/digits")
    script, adapter, args = parser.parse_args_and_config(argv)
    if (script.model_name_or_path is None) != (script.dataset_name is None):
        parser.error("--model_name_or_path and --dataset_name belong together; give both, or neither for the digits")
    if script.audit and script.model_name_or_path is not None:
        parser.error("--audit retrains the model of the digits; audit other runs with `gs-lora audit`")
    if script.forget is None:
        if script.dataset_name is not None:
            parser.error("--forget is missing: name the classes to forget, e.g. --forget 'tench,cassette player'")
        script.forget = DIGITS
    return script, adapter, args


def load_model_and_data(
    script: ScriptArguments,
) -> tuple[PreTrainedModel, DatasetDict, BaseImageProcessor | None]:
    """Loads model, data and image processor; without arguments, the digits."""
    if script.model_name_or_path is None:
        refuse_ignored(script, OF_OTHER_DATA, "the digits come with their own model")
        dataset = load_digits()
        return pretrained_vit(dataset), dataset, None
    source = model_source(script)
    dataset = load_data(script)
    model = AutoModelForImageClassification.from_pretrained(**source)
    processor = AutoImageProcessor.from_pretrained(**source)
    dataset = align_known_labels(dataset, script.label_column, model.config.label2id)
    return model, dataset, processor


def audit_digits(forgetter: ContinualForgetter, dataset: DatasetDict, disable_tqdm: bool) -> None:
    """Attacks the run beside two models that never saw the forgotten digits, prints the verdict and records it."""
    base, forgotten = pretrained_vit(dataset), forgetter.ledger.forgotten_classes
    # Trained by all processes together; other seeds than that of the base model.
    options = {"recipe": RECIPE, "seed": 1, "disable_tqdm": disable_tqdm}
    references = list(retrained_models(base, dataset["train"], forgotten, 2, **options))
    if PartialState().is_main_process:
        folder = forgetter.folder / "audit"
        options = {"quick": True, "folder": folder, "disable_tqdm": disable_tqdm}
        report = audit_run(base, forgetter.folder, dataset, reference=references, **options)
        report.record(forgetter.folder)
        print(f"\n{format_audit(report)}\n\nReport:   {folder / 'report.html'}")


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    script, adapter, args = parse_arguments(sys.argv[1:] if argv is None else argv)
    requests = parse_requests(script.forget)
    model, dataset, processor = load_model_and_data(script)
    forgetter = make_forgetter(script, adapter, args, model, dataset, script.label_column, processor)
    carry_out(forgetter, requests, script)
    is_main = PartialState().is_main_process
    if is_main:
        print(format_table(forgetter.ledger))
        print(f"\nLedger:   {Path(args.output_dir, 'forgetting.json')}\nAdapters: {Path(args.output_dir, 'tasks')}")
    if script.audit:
        audit_digits(forgetter, dataset, bool(args.disable_tqdm))
    if not is_main:
        return 0  # with another status a launcher would stop the main process
    publish_if_asked(args)
    return exit_status(forgetter.ledger)


if __name__ == "__main__":
    run_script(main)
