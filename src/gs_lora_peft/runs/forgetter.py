"""Request after request: each trains a fresh adapter on the model that has forgotten the earlier ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, TrainerCallback
from ..checking import ClassRefs, checked
from ..data import ForgettingSplit
from ..data import default_collator
from ..data import check_sampling
from ..data import read_classes
from ..errors import InvalidInputError
from ..training import Method
from ..objectives import check_class_head
from ..io import as_path
from ..training import GSLoraTrainingArguments
from ..training import check_types
from ..tuner import GSLoraConfig
from ..compat import unwrapped
from ..adapters import check_tasks
from .settings import Differences, changed_settings, refuse_other_settings
from .settings import data_settings
from ..ledger import TaskEntry
from .task import finished_entry
from ..ledger import LOGS_FOLDER, WORK_FOLDER
from ..ledger import ForgettingLedger
from ..hub import check_bare
from ..adapters import MergedModel
from .folder import open_ledger
from ..ledger import outcome_of_task
from .validation import check_missing, find_done, resolve_request
from .folder import on_main
from .recipe import Recipe
from .revocation import RevocableRun
from ..ledger import warn_before
from ..hub import fetch_to_continue
from ..ledger import ForgetRequest
from .recipe import recorded_config
from .scores import Scores
from .recipe import warn_not_pushed
from .validation import (check_parts, checked_label_names, names_of_head, train_and_test)
from .task import plan_task, train_task
from .workspace import remove_others



class ContinualForgetter(RevocableRun):
    """
    Carries out forgetting requests one after another and keeps the ledger of them.

    Each request trains a fresh adapter `task_NNN` on the model with all earlier ones merged in, so that a step costs
    the same at the first task and at the hundredth. It leaves `tasks/task_NNN/` (plain LoRA, loadable by stock PEFT)
    and one more entry in `forgetting.json`. Opening a folder that has a ledger goes on from there; a run that was
    killed is continued by asking for the same request again, from the last checkpoint if `args` has them saved
    (`save_strategy`).

    Works in one process and under `accelerate launch`: every process makes the same calls, the main one writes. All of
    them must see the folder. One run at a time: the folder is locked while a request is carried out.

    Args:
        base_model (`transformers.PreTrainedModel`):
            Classifier or detector, without adapters. It is changed in place: `self.model` is the same object (of one
            that `torch.compile` made, the model inside) with all tasks merged, in eval mode, its `requires_grad` flags
            untouched.
        dataset (`datasets.Dataset`, or a `dict` of them as `DatasetDict`):
            Labelled samples. Of several, `train` is trained on and `test` (else `validation` or another name of
            [`evaluation_split`]) is scored on; nothing of the latter influences the training.
        folder (`str` or `os.PathLike`):
            Where the ledger and the tasks go.
        config ([`GSLoraConfig`], *optional*):
            By default `GSLoraConfig()`.
        args ([`GSLoraTrainingArguments`], *optional*):
            By default its defaults. They are not changed. `output_dir` is replaced by a working folder below `folder`,
            which is removed once the task is done (logs stay, in `logs/`), and `push_to_hub` publishes nothing, which
            a warning says: call [`push_to_hub`].
        eval_dataset (`datasets.Dataset`, *optional*):
            Scored on instead of the test split. Without either, the training data is scored on; the ledger says which,
            and a warning that such scores say little.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes, see [`prepare_boxes`].
        processing_class (*optional*):
            As in [`GSLoraTrainer`].
        data_collator (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        replay_ratio (`float`, *optional*, defaults to 1.0):
            As in [`split_dataset`], drawn by `args.data_seed`, or `args.seed` where that is `None`.
        shots (`int`, *optional*):
            See `replay_ratio`.
        missing_classes (`Sequence[str | int]`, *optional*, defaults to none):
            Classes to keep whose training data must not be used, by name or id. They need not have any; what is scored
            and has no training data is one of them without being named. How they fare is scored as `acc_missing`, and
            a classifier holds them by distillation (`distillation_weight`). To forget one of them later, take it out
            of `recipe.missing_classes` first: its data is needed for that.
        augment (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Handed to every trainer; those that keep a state, as `EarlyStoppingCallback`, start anew with each request.
        method ([`Method`] or `str`, *optional*):
            How to forget, or its name, see [`get_method`]; by default GS-LoRA. It must train the adapter, which is
            what a run keeps.

    Attributes:
        model:
            The model with every task in effect merged.
        ledger ([`ForgettingLedger`]):
            What was carried out.
        recipe:
            `config`, `args` and the rest of what tasks are trained with; may be changed between two requests.

    Raises:
        LedgerError: If the folder's ledger belongs to another base model or to other labels, was edited, or its files
            differ.
        ValueError: If the model holds adapters already, is quantised or has no class head ([`check_class_head`]), the
            data has no label column or labels outside the head, or a missing class does not exist or was forgotten.

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
        self.folder = as_path(folder, "folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidInputError("folder", str(self.folder), "a folder; it is a file", "Choose another path.")
        config = GSLoraConfig() if config is None else config
        args = GSLoraTrainingArguments(output_dir=str(self.folder / WORK_FOLDER)) if args is None else args
        check_types(
            base_model=base_model,
            config=config,
            args=args,
            label_column=label_column,
            data_collator=data_collator,
            augment=augment,
            callbacks=callbacks,
        )
        check_sampling(replay_ratio, shots, args.sampling_seed)
        missing_classes = checked("missing_classes", missing_classes, ClassRefs)
        warn_not_pushed(args, self.folder)
        base_model = unwrapped(base_model)
        check_bare(base_model)
        check_class_head(base_model, "base_model")
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
            method="gs_lora" if method is None else method,
        )
        self.label_names = checked_label_names(self.train_dataset, self.eval_dataset, label_column, base_model)
        check_parts(self.train_dataset, self.eval_dataset, label_column, self.recipe.data_collator)
        trained, scored = (read_classes(part, label_column)[0] for part in (self.train_dataset, self.eval_dataset))
        self._scored_classes = set(scored.tolist())
        self._silent_classes = self._scored_classes.difference(trained.tolist())
        self.recipe.data = data_settings(self.train_dataset, trained, self.eval_dataset, scored)
        self.ledger = open_ledger(self.folder, base_model, self.label_names)
        self.label_names = self.label_names or self.ledger.label_names or names_of_head(base_model)
        check_missing(missing_classes, self.ledger, self.label_names)
        self._live = MergedModel(base_model, self.ledger)
        self.model = base_model
        self._scores = Scores(self.eval_dataset, self.recipe)
        self._told: set[str] = set()

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
        """Go on with a run that was published; [`push_to_hub`] publishes what was added.

        Without `config`, new tasks have the adapter settings that the ledger records of the last one. Nothing else is
        taken over: give `args`, `replay_ratio`, `shots` and the like as for a new run. What the earlier tasks were
        trained with is in `ledger.tasks[-1].settings`.

        Args:
            repo_id (`str`):
                `"organisation/name"`, as given to [`push_to_hub`].
            base_model:
                As in [`ContinualForgetter`].
            dataset:
                As in [`ContinualForgetter`].
            kwargs:
                As in [`ContinualForgetter`].
            folder (`str` or `os.PathLike`, *optional*):
                Where the run goes: a new folder, or one that holds an earlier or a later state of it. By default the
                last part of `repo_id`, in the working directory.
            revision (`str`, *optional*):
                As in [`load_forgotten`].
            token (`str`, *optional*):
                As in [`load_forgotten`].

        Raises:
            LedgerError: If there is no ledger, files differ from it, it withholds the forgotten classes (the run would
                learn them again) or differs from the one in `folder`; or if its adapter settings cannot be used.
            ValueError: If the repository does not exist or may not be read, or `folder` holds something else.
            ConnectionError: If the Hub is out of reach; the call can be repeated.
        """
        place = on_main(lambda: fetch_to_continue(repo_id, folder, revision=revision, token=token))
        if kwargs.get("config") is None:
            kwargs["config"] = recorded_config(ForgettingLedger.load(place))
        return cls(base_model, dataset, place, **kwargs)

    def forget(self, request: ForgetRequest) -> TaskEntry:
        """Carry out one request.

        Args:
            request ([`ForgetRequest`]):
                The classes to forget, by name or id.

        Returns:
            [`TaskEntry`]: The new entry of the ledger.

        Raises:
            UnknownClassError, LedgerError, ValueError: Before any training and without touching a file, if a class
                does not exist, was forgotten already, is one of the missing classes, has no samples or fewer than
                `shots`, or nothing would be left to keep; if an unfinished other request lies in the folder; or if
                another process works there or has changed the ledger.
            NonFiniteLossError: If training broke down.
            OSError: If a file could not be written.

        Whether the classes are forgotten afterwards (`args.max_forget_accuracy`) is in the entry's `outcome`; a
        warning says so if they are not, or if classes of an earlier request are recognised again.

        After an error, also one from within training, the ledger and `self.model` are what they were before, and the
        same or another request can be carried out.
        """
        return self._forget(request)

    def _forget(self, request: ForgetRequest, keep: bool = False) -> TaskEntry:
        classes = resolve_request(request, self.ledger, self.label_names)
        split = self._split(classes, self.ledger.forgotten_classes)
        with self._exclusively():
            return self._carry_out(request, split, keep=keep)

    def run(
        self,
        requests: Sequence[ForgetRequest],
        *,
        keep: bool = False,
        args: Sequence[GSLoraTrainingArguments] | None = None,
    ) -> list[TaskEntry]:
        """Carry out a sequence of requests, leaving out those that the ledger already has.

        A run that was killed is thus continued by giving the same sequence again. All requests are checked before the
        first one trains. Requests of revoked tasks do not count as done: they are carried out again, after all others,
        wherever they stand in the sequence.

        Requests that are done are refused if the settings that the ledger records (adapter, training, data) were
        others than now. What cannot change the result does not count: folders, logging, and how a batch is spread
        over processes. By another `max_forget_accuracy` they are judged anew, which the ledger records.

        Args:
            requests (`Sequence[ForgetRequest]`):
                The requests, in the order in which they are carried out.
            keep (`bool`, *optional*, defaults to `False`):
                Accept tasks that were carried out with other settings as they are, and go on with the present ones. A
                request that was killed on its way and begun with other settings is begun anew.
            args (`Sequence[GSLoraTrainingArguments]`, *optional*):
                One for each request, instead of `recipe.args`.

        Returns:
            `list[TaskEntry]`: One entry per request, those done before included.

        Raises:
            OtherSettingsError: If requests were carried out with other settings. [`~ContinualForgetter.redo`] carries
                the last one out again.
            LedgerError: If the ledger has tasks that do not begin this sequence.
            UnknownClassError, ValueError, NonFiniteLossError, OSError: As [`~ContinualForgetter.forget`].
        """
        found, rest, gone = find_done(requests, self.ledger, self.label_names, self._split)
        recipes = self.recipe.of_each(len(requests), args)
        done = [(entry, recipe) for entry, recipe in zip(found, recipes, strict=True) if entry is not None]
        if not keep:
            refuse_other_settings({e.name: self._changed(e, recipe, gone) for e, recipe in done}, self.ledger)
        with self._exclusively():
            self._judge_anew({entry.name: recipe.args.max_forget_accuracy for entry, recipe in done})
            self._tell([entry.name for entry, _ in done])
            on_main(lambda: remove_others(self._work(self.ledger.next_task_name()).path))
            for place in rest:
                with self.recipe.trained_by(recipes[place].args):
                    found[place] = self._forget(requests[place], keep)
        return [self.ledger.select([entry.name])[0] for entry in found if entry is not None]  # as judged now

    def check(self, requests: Sequence[ForgetRequest]) -> list[TaskEntry]:
        """Check a sequence of requests as [`~ContinualForgetter.run`] does before the first one trains; only reads.

        Settings are not compared.

        Returns:
            `list[TaskEntry]`: Entries of the requests that the ledger already has.

        Raises:
            LedgerError, UnknownClassError, ValueError: As [`~ContinualForgetter.run`].
        """
        found, _, _ = find_done(requests, self.ledger, self.label_names, self._split)
        return [entry for entry in found if entry is not None]

    def _changed(self, entry: TaskEntry, recipe: Recipe, gone: Sequence[int] = ()) -> Differences:
        """The settings of a task that are others in a recipe; `gone` are classes to be forgotten after it."""
        named = check_missing(recipe.missing_classes, self.ledger, self.label_names)
        missing = {*named, *self._silent_classes}
        return changed_settings(entry, recipe.settings(), missing, {*gone, *self.ledger.forgotten_classes})

    # Parts of `forget`

    def _split(self, classes: Sequence[int], old: Sequence[int]) -> ForgettingSplit:
        return self.recipe.split(self.train_dataset, classes, old, self._scored_classes)

    def _carry_out(
        self, request: ForgetRequest, split: ForgettingSplit, *, keep: bool = False, redoes: str | None = None
    ) -> TaskEntry:
        on_main(lambda: check_tasks(self.ledger, [entry.name for entry in self.ledger.active_tasks]))
        work = self._work(self.ledger.next_task_name())
        task = plan_task(request, split, work, self.ledger, self.recipe, keep=keep, redoes=redoes)
        self._measure_base()
        before = self._scores.of_task(self.model, split)
        allowed, names = self.recipe.args.max_forget_accuracy, self.label_names
        classes = [names[c] if names else f"class {c}" for c in split.forget_classes]
        on_main(lambda: warn_before(self.ledger, classes, before, allowed))
        training = train_task(task, self.model, self.recipe, self.ledger)
        with self._live.restored_on_error():
            files = self._live.merge_new(task.name)
            earlier = {entry.name: entry.classes or () for entry in self.ledger.active_tasks}
            after, of_earlier = self._scores.after_task(self.model, split, before, earlier)
            base = self._scores.of_base(split)
            scores = {"base": base, "before": before, "after": after, "data": self.scored_on}
            outcome = outcome_of_task(allowed, before, after, of_earlier, self.ledger)
            self._record(lambda: self.ledger.append(finished_entry(task, training, scores, outcome, files, names)))
        on_main(lambda: task.work.finish(self.folder / LOGS_FOLDER / task.name))
        self._tell([task.name])
        return self.ledger.tasks[-1]

    def _measure_base(self) -> None:
        """Scores the model without any task, once; it is put back afterwards."""
        if self._scores.knows_base:
            return
        with self._live.without_tasks():
            self._scores.measure_base(self.model)
