"""What every script that forgets does between its settings and its output."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from datasets import DatasetDict

from ..hub import push_to_hub
from ..sequence import ContinualForgetter, ForgetRequest
from ..training import GSLoraTrainingArguments
from ..training.publishing import repo_to_publish_in
from ..tuner import GSLoraConfig
from .settings import AdapterArguments, RepeatArguments, missing_classes


def make_forgetter(
    script: Any,
    adapter: AdapterArguments,
    args: GSLoraTrainingArguments,
    model: Any,
    dataset: DatasetDict,
    label_column: str,
    processor: Any,
) -> ContinualForgetter:
    """A forgetter with the settings of a script.

    Args:
        script (a dataclass):
            The options of the script; `replay_ratio`, `shots` and `missing` are read.
        adapter ([`AdapterArguments`]):
            The adapter of each task.
        args ([`GSLoraTrainingArguments`]):
            The training; its `output_dir` is the folder of the run. Publishing is left to [`publish_if_asked`].
        model (`transformers.PreTrainedModel`):
            The base model.
        dataset (`datasets.DatasetDict`):
            A train and a test split.
        label_column (`str`):
            The column of the labels, or of the annotated boxes.
        processor (*optional*):
            The image processor of the model.
    """
    args = copy.copy(args)
    args.push_to_hub = False
    return ContinualForgetter(
        model,
        dataset,
        str(args.output_dir),
        config=GSLoraConfig(**vars(adapter)),
        args=args,
        label_column=label_column,
        processing_class=processor,
        replay_ratio=script.replay_ratio,
        shots=script.shots,
        missing_classes=missing_classes(script),
    )


def task_to_redo(script: RepeatArguments) -> str | None:
    """The task that `--redo` names; `None` for the last one."""
    return None if script.redo == "last" else script.redo


def carry_out(
    forgetter: ContinualForgetter,
    requests: Sequence[ForgetRequest],
    script: RepeatArguments,
    args: Sequence[GSLoraTrainingArguments] | None = None,
) -> None:
    """Carries out `--redo`, then the requests, with `--keep`; `args` are the training arguments of each request."""
    if script.redo is not None:
        forgetter.redo(task_to_redo(script))
    forgetter.run(requests, keep=script.keep or script.redo is not None, args=args)


def publish_if_asked(args: GSLoraTrainingArguments) -> None:
    """`--push_to_hub`: publishes the whole run, private unless asked otherwise, and prints the address."""
    if args.push_to_hub:
        repo_id = repo_to_publish_in(args)
        private = args.hub_private_repo is not False
        options: dict[str, Any] = {"private": private, "revision": args.hub_revision, "token": args.hub_token}
        print(f"Hub:      {push_to_hub(str(args.output_dir), repo_id, **options)}")
