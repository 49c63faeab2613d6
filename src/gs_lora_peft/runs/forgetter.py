"""Carrying out forgetting requests one after another, each with a new adapter or new values of weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, TrainerCallback

from ..adapters import with_tasks
from ..checking import ClassRefs, checked
from ..compat import refuse_quantised
from ..data import check_given_labels, check_pictures, check_sampling, default_collator, read_classes
from ..errors import PrivateInputError
from ..hub import fetch_to_continue
from ..ledger import WORK_FOLDER, ForgetRequest, ForgettingLedger, TaskEntry
from ..methods import GSLora, get_method
from ..training import GSLoraTrainingArguments, Method, check_types, shard_if_asked
from ..tuner import GSLoraConfig
from .folder import load_or_create_ledger, run_on_main
from .recipe import Recipe, config_for, recorded_config, warn_not_pushed
from .revocation import RevocableRun
from .scores import Scores
from .settings import data_settings, refuse_other_settings
from .validation import (
    check_missing,
    checked_folder,
    checked_label_names,
    find_done,
    names_of_head,
    prepared_base_model,
    resolve_request,
    train_and_test,
)
from .workspace import remove_other_workspaces


class ContinualForgetter(RevocableRun):
    """Carries out forgetting requests one after another and records them in a ledger.

    Each request trains a new adapter `task_NNN` on the model with all earlier ones merged, so a training step costs
    the same at the first task and at the hundredth. The result is `tasks/task_NNN/` (plain LoRA, which stock PEFT
    loads) and an entry in `forgetting.json`. A method that trains weights of the model leaves their new values instead
    of an adapter. In a folder with a ledger, the run continues. To continue a run that was killed, make the same
    request again: it resumes from the last checkpoint, if `args.save_strategy` saves any.

    Works in one process and under `accelerate launch`: every process makes the same calls, and the main process
    writes. All of them need access to the folder. The folder is locked while a request is carried out.

    Args:
        base_model (`transformers.PreTrainedModel`):
            Classifier or detector without adapters. It is changed in place: `self.model` is the same object (for a
            `torch.compile`d model, the one inside) with all tasks merged, in eval mode. Its `requires_grad` flags
            stay.
        dataset (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            Labelled samples. Of several splits, `train` is trained on, and `test` (or `validation` or another name of
            [`evaluation_split`]) is only scored on.
        folder (`str` or `os.PathLike`):
            Run folder for the ledger and the tasks.
        config ([`GSLoraConfig`], *optional*, defaults to that of `args.recipe`):
            Configuration of the adapters.
        args ([`GSLoraTrainingArguments`], *optional*, defaults to its defaults):
            Training arguments. They are not changed. `output_dir` is replaced by a workspace below `folder`, which is
            removed after the task (logs go to `logs/`). `push_to_hub` has no effect but a warning: call
            [`push_to_hub`].
        eval_dataset (`datasets.Dataset`, *optional*):
            Evaluation data instead of a split. Without either, the training data is scored on, with a warning; the
            ledger records which data was used.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes, see [`prepare_boxes`].
        processing_class (*optional*):
            As in [`GSLoraTrainer`].
        data_collator (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        replay_ratio (`float`, *optional*, defaults to 1.0):
            As in [`split_dataset`]. The seed is `args.data_seed`, or `args.seed` if that is `None`.
        shots (`int`, *optional*):
            As in [`split_dataset`].
        missing_classes (`Sequence[str | int]`, *optional*, defaults to none):
            Classes to keep whose training data must not be used, by name or id. Classes with evaluation data only
            count as missing, too. They are scored as `acc_missing`, and a classifier keeps them by distillation
            (`distillation_weight`). To forget one later, remove it from `recipe.missing_classes` first.
        augment (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks of every trainer. Those with a state, such as `EarlyStoppingCallback`, start fresh for each task.
        method ([`Method`] or `str`, *optional*):
            The method, or its name, see [`get_method`]; by default GS-LoRA. One that trains weights of the model
            itself leaves their new values instead of an adapter ([`WeightDifference`]), and takes no `config`.

    Attributes:
        model (`transformers.PreTrainedModel`):
            The model with all tasks in effect merged.
        ledger ([`ForgettingLedger`]):
            The record of the requests.
        recipe ([`Recipe`]):
            The settings of the training. They may be changed between two requests.

    Raises:
        LedgerError: If the ledger of the folder belongs to another base model or to other labels, was edited, or its
            files differ.
        ValueError: If the model has adapters, is quantised (unless by torchao in 8 bits, with a method that trains
            an adapter, see docs/scale.md) or has no class head ([`check_class_head`]); if the data
            has no label column or labels outside the head; or if a missing class does not exist or was forgotten.

    Example:
        ```py
        >>> forgetter = ContinualForgetter(model, dataset, "runs/clinic", args=GSLoraTrainingArguments("runs/clinic"))
        >>> entry = forgetter.forget(ForgetRequest(["person_07"]))
        >>> entry.scores["after"]["acc_forget"]
        0.0
        ```
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        dataset: Dataset | DatasetDict | dict[str, Dataset],
        folder: str | os.PathLike,
        *,
        config: GSLoraConfig | None = None,
        args: GSLoraTrainingArguments | None = None,
        eval_dataset: Dataset | None = None,
        label_column: str = "label",
        processing_class: Any = None,
        data_collator: Callable | None = None,
        replay_ratio: float = 1.0,
        shots: int | None = None,
        missing_classes: Sequence[str | int] = (),
        augment: Callable[[Any], Any] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        method: Method | str | None = None,
    ):
        self.folder = checked_folder(folder)
        args = GSLoraTrainingArguments(output_dir=str(self.folder / WORK_FOLDER)) if args is None else args
        check_types(args=args)
        method = get_method(GSLora.name if method is None else method)
        config = config_for(method, args, config)
        check_types(
            base_model=base_model,
            config=config,
            label_column=label_column,
            data_collator=data_collator,
            augment=augment,
            callbacks=callbacks,
        )
        check_sampling(replay_ratio, shots, args.sampling_seed)
        missing_classes = checked("missing_classes", missing_classes, ClassRefs, error=PrivateInputError)
        warn_not_pushed(args, self.folder)
        base_model = prepared_base_model(base_model)
        self.train_dataset, self.eval_dataset, self.scored_on = train_and_test(dataset, eval_dataset)
        self.recipe = Recipe(
            config=config,
            args=args,
            label_column=label_column,
            processing_class=processing_class,
            data_collator=data_collator or default_collator(processing_class, label_column, self.train_dataset),
            replay_ratio=replay_ratio,
            shots=shots,
            missing_classes=missing_classes,
            augment=augment,
            callbacks=callbacks,
            method=method,
        )
        if self.recipe.trains_weights:
            refuse_quantised(base_model)
        self.label_names = checked_label_names(self.train_dataset, self.eval_dataset, label_column, base_model)
        parts = {"the training data": self.train_dataset, "the evaluation data": self.eval_dataset}
        check_given_labels(parts, label_column, self.recipe.data_collator)
        for name, part in parts.items():
            check_pictures(part, name)
        trained, scored = (read_classes(part, label_column)[0] for part in (self.train_dataset, self.eval_dataset))
        self._scored_classes = set(scored.tolist())
        self._untrained_classes = self._scored_classes.difference(trained.tolist())
        self.recipe.data = data_settings(self.train_dataset, trained, self.eval_dataset, scored)
        self.ledger = load_or_create_ledger(self.folder, base_model, self.label_names)
        self.label_names = self.label_names or self.ledger.label_names or names_of_head(base_model)
        check_missing(missing_classes, self.ledger, self.label_names)
        # Before earlier tasks are merged: the values that are kept to undo a merge are then shards, too.
        shard_if_asked(base_model, args, trains_weights=self.recipe.trains_weights)
        self._merged = with_tasks(base_model, self.ledger)
        self.model = base_model
        self._scores = Scores(self.eval_dataset, self.recipe)
        self._warned: set[str] = set()

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        base_model: PreTrainedModel,
        dataset: Dataset | DatasetDict | dict[str, Dataset],
        folder: str | os.PathLike | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> ContinualForgetter:
        """Continues a published run. [`push_to_hub`] publishes the new tasks.

        Without `config`, new tasks use the adapter settings of the last task in the ledger. All other settings must be
        given, such as `args`, `replay_ratio` and `shots`; `ledger.tasks[-1].settings` records those of the last task.

        Args:
            repo_id (`str`):
                `"organisation/name"`, as given to [`push_to_hub`].
            base_model (`transformers.PreTrainedModel`):
                As in [`ContinualForgetter`].
            dataset (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
                As in [`ContinualForgetter`].
            folder (`str` or `os.PathLike`, *optional*, defaults to the last part of `repo_id`):
                Run folder: a new one, or one with an earlier or later state of the run.
            revision (`str`, *optional*):
                As in [`load_forgotten`].
            token (`str`, *optional*):
                As in [`load_forgotten`].
            kwargs (*optional*):
                Further arguments of [`ContinualForgetter`].

        Raises:
            LedgerError: If the ledger is missing, or differs from the files or from the one in `folder`; if it
                withholds the forgotten classes, which the run would learn again; or if its adapter settings are
                invalid.
            ValueError: If the repository does not exist or is not accessible, or `folder` contains other files.
            ConnectionError: If the Hub is out of reach. The call can be repeated.
        """
        run_folder = run_on_main(lambda: fetch_to_continue(repo_id, folder, revision=revision, token=token))
        if kwargs.get("config") is None and get_method(kwargs.get("method") or GSLora.name).trains != "weights":
            kwargs["config"] = recorded_config(ForgettingLedger.load(run_folder))
        return cls(base_model, dataset, run_folder, **kwargs)

    def forget(self, request: ForgetRequest) -> TaskEntry:
        """Carries out one request.

        The entry's `outcome` tells whether the classes are forgotten (`args.max_forget_accuracy`). If they are not, or
        if classes of an earlier request came back, a warning is logged.

        The request is checked before any file changes. After an error, also during training, the ledger and
        `self.model` are unchanged, and the same or another request can be carried out.

        Args:
            request ([`ForgetRequest`]):
                The classes to forget, by name or id.

        Returns:
            [`TaskEntry`]: The new entry of the ledger.

        Raises:
            UnknownClassError: If a class does not exist.
            LedgerError: If a class was already forgotten, the folder has another unfinished request, or another
                process uses the folder or has changed the ledger.
            ValueError: If a class is one of the missing classes, has no samples or fewer than `shots`, or no class
                would remain.
            NonFiniteLossError: If training diverged.
            OSError: If a file cannot be written.
        """
        return self._forget(request)

    def _forget(self, request: ForgetRequest, keep: bool = False) -> TaskEntry:
        classes = resolve_request(request, self.ledger, self.label_names)
        split = self._split(classes, self.ledger.forgotten_classes)
        with self._locked():
            return self._carry_out(request, split, keep=keep)

    def run(
        self,
        requests: Sequence[ForgetRequest],
        *,
        keep: bool = False,
        args: Sequence[GSLoraTrainingArguments] | None = None,
    ) -> list[TaskEntry]:
        """Carries out a sequence of requests, except those that the ledger already has.

        To continue a run that was killed, give the same sequence again. All requests are checked before the first one
        trains. Requests of revoked tasks are carried out again, after all others.

        Completed requests must have the same recorded settings (adapter, training, data) as now, except for settings
        that cannot change the result: folders, logging, and how a batch is spread over processes. If only
        `max_forget_accuracy` differs, their outcomes are updated in the ledger.

        Args:
            requests (`Sequence[ForgetRequest]`):
                The requests, in order.
            keep (`bool`, *optional*, defaults to `False`):
                Whether to keep tasks with other settings and use the present settings for the next ones. An unfinished
                request with other settings starts again.
            args (`Sequence[GSLoraTrainingArguments]`, *optional*):
                Training arguments of each request, instead of `recipe.args`.

        Returns:
            `list[TaskEntry]`: One entry per request, including those that the ledger already had.

        Raises:
            OtherSettingsError: If requests were carried out with other settings. [`~ContinualForgetter.redo`] carries
                out the last one again.
            LedgerError: If the tasks of the ledger are not the beginning of this sequence.
            UnknownClassError: As in [`~ContinualForgetter.forget`].
            ValueError: As in [`~ContinualForgetter.forget`].
            NonFiniteLossError: As in [`~ContinualForgetter.forget`].
            OSError: As in [`~ContinualForgetter.forget`].
        """
        found, rest, gone = find_done(requests, self.ledger, self.label_names, self._split)
        recipes = self.recipe.for_requests(len(requests), args)
        done = [(entry, recipe) for entry, recipe in zip(found, recipes, strict=True) if entry is not None]
        if not keep:
            refuse_other_settings({e.name: self._changed(e, recipe, gone) for e, recipe in done}, self.ledger)
        with self._locked():
            self._apply_targets({entry.name: recipe.args.max_forget_accuracy for entry, recipe in done})
            self._warn_once([entry.name for entry, _ in done])
            run_on_main(lambda: remove_other_workspaces(self._workspace(self.ledger.next_task_name()).path))
            for index in rest:
                with self.recipe.with_args(recipes[index].args):
                    found[index] = self._forget(requests[index], keep)
        return [self.ledger.select([entry.name])[0] for entry in found if entry is not None]  # with new outcomes

    def check(self, requests: Sequence[ForgetRequest]) -> list[TaskEntry]:
        """Checks a sequence of requests as [`~ContinualForgetter.run`] does, without settings. Writes nothing.

        Args:
            requests (`Sequence[ForgetRequest]`):
                The requests, in order.

        Returns:
            `list[TaskEntry]`: Entries of the requests that the ledger already has.

        Raises:
            LedgerError: As in [`~ContinualForgetter.run`].
            UnknownClassError: As in [`~ContinualForgetter.run`].
            ValueError: As in [`~ContinualForgetter.run`].
        """
        found, _, _ = find_done(requests, self.ledger, self.label_names, self._split)
        return [entry for entry in found if entry is not None]
