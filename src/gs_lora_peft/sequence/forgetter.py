"""Request after request: each trains a fresh adapter on the model that has forgotten the earlier ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, TrainerCallback

from ..checking import ClassRefs, checked
from ..data import ForgettingSplit
from ..data.pairing import default_collator
from ..data.splits import check_sampling
from ..data.splitting import read_classes
from ..storage import as_path
from ..training import GSLoraTrainingArguments
from ..training.checks import check_types
from ..tuner import GSLoraConfig
from .adapters import check_tasks
from .entry import TaskEntry
from .fingerprint import model_identity
from .finishing import finished_entry
from .layout import task_folder
from .ledger import ForgettingLedger
from .loading import refuse_adapters
from .merging import MergedModel
from .plain import LedgerError
from .planning import check_missing, check_sequence, match_requests, resolve_request
from .processes import on_main
from .recipe import Recipe
from .remote import fetch_to_continue
from .request import ForgetRequest
from .restoring import recorded_config
from .scoring import Scores
from .sources import checked_label_names, train_and_test
from .task import plan_task, train_task
from .work import WORK_FOLDER, WorkFolder, remove_others

LOGS_FOLDER = "logs"


class ContinualForgetter:
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
        base_model (`transformers.PreTrainedModel`): classifier or detector, without adapters. It is changed in place:
            `self.model` is the same object with all tasks merged, in eval mode, its `requires_grad` flags untouched.
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): labelled samples. Of a `DatasetDict`, `train` is
            trained on and `test` (else `validation`) is scored on; nothing of the latter influences the training.
        folder (`str` or `os.PathLike`): where the ledger and the tasks go.
        config ([`GSLoraConfig`], *optional*): by default `GSLoraConfig()`.
        args ([`GSLoraTrainingArguments`], *optional*): by default its defaults. They are not changed. `output_dir` is
            replaced by a working folder below `folder`, which is removed once the task is done (logs stay, in
            `logs/`), and `push_to_hub` is not acted upon: checkpoints of a request are nobody's business.
        eval_dataset (`datasets.Dataset`, *optional*): scored on instead of the test split. Without either, the
            training data is scored on; the ledger says which.
        label_column (`str`, *optional*, defaults to `"label"`): column of the labels, or of annotated boxes, see
            [`prepare_boxes`].
        processing_class (*optional*), data_collator (`Callable`, *optional*): as in [`GSLoraTrainer`].
        replay_ratio (`float`, *optional*, defaults to 1.0), shots (`int`, *optional*): as in [`split_dataset`], drawn
            by `args.data_seed`, or `args.seed` where that is `None`.
        missing_classes (`Sequence[str | int]`, *optional*, defaults to none): classes to keep whose training data must
            not be used, by name or id. They need not have any; what is scored and has no training data is one of them
            without being named. How they fare is scored as `acc_missing`, and a classifier holds them by distillation
            (`distillation_weight`). To forget one of them later, take it out of
            `recipe.missing_classes` first: its data is needed for that.
        augment (`Callable`, *optional*): as in [`GSLoraTrainer`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): handed to every trainer; those that keep a state, as
            `EarlyStoppingCallback`, start anew with each request.

    Attributes:
        model: the model with every task in effect merged.
        ledger ([`ForgettingLedger`]): what was carried out.
        recipe: `config`, `args` and the rest of what tasks are trained with; may be changed between two requests.

    Raises:
        LedgerError: if the folder's ledger belongs to another base model or to other labels, was edited, or its files
            differ.
        ValueError: if the model holds adapters already, the data has no label column or labels outside the head, or a
            missing class does not exist or was forgotten.

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
        dataset: Dataset | DatasetDict,
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
    ):
        self.folder = as_path(folder, "folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder is '{self.folder}', which is a file; expected a folder. Choose another path.")
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
        check_sampling(replay_ratio, shots, args.drawing_seed)
        missing_classes = checked("missing_classes", missing_classes, ClassRefs)
        refuse_adapters(base_model)
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
        )
        self.label_names = checked_label_names(self.train_dataset, self.eval_dataset, label_column, base_model)
        self._scored_classes = set(read_classes(self.eval_dataset, label_column)[0].tolist())
        self.ledger = self._open_ledger(base_model)
        self.label_names = self.label_names or self.ledger.label_names
        check_missing(missing_classes, self.ledger, self.label_names)
        self._live = MergedModel(base_model, self.folder, [entry.name for entry in self.ledger.active_tasks])
        self.model = base_model
        self._scores = Scores(self.eval_dataset, self.recipe)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        base_model: PreTrainedModel,
        dataset: Dataset | DatasetDict,
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
            repo_id (`str`): `"organisation/name"`, as given to [`push_to_hub`].
            base_model, dataset, kwargs: as in [`ContinualForgetter`].
            folder (`str` or `os.PathLike`, *optional*): where the run goes: a new folder, or one that holds an earlier
                or a later state of it. By default the last part of `repo_id`, in the working directory.
            revision (`str`, *optional*), token (`str`, *optional*): as in [`load_forgotten`].

        Raises:
            LedgerError: if there is no ledger, files differ from it, it withholds the classes that were forgotten (so
                that they would be learned again) or is another one than that in `folder`; or if its adapter settings
                cannot be taken over.
            ValueError: if the repository does not exist or may not be read, or `folder` holds something else.
            ConnectionError: if the Hub is out of reach; the call can be repeated.
        """
        place = on_main(lambda: fetch_to_continue(repo_id, folder, revision=revision, token=token))
        if kwargs.get("config") is None:
            kwargs["config"] = recorded_config(ForgettingLedger.load(place))
        return cls(base_model, dataset, place, **kwargs)

    def _open_ledger(self, base_model: PreTrainedModel) -> ForgettingLedger:
        identity = model_identity(base_model)
        if not (self.folder / "forgetting.json").exists():
            return ForgettingLedger.create(self.folder, base_model=identity, label_names=self.label_names)
        ledger = ForgettingLedger.load(self.folder)
        ledger.check_base(identity)
        if self.label_names is not None and ledger.label_names not in (None, self.label_names):
            raise LedgerError(
                f"the labels of the data and of the ledger in '{self.folder}' have other names or another order, so "
                "that the same id would mean another class. Give the data the run was begun with, or choose another "
                "folder."
            )
        check_tasks(ledger, [entry.name for entry in ledger.active_tasks])
        return ledger

    def forget(self, request: ForgetRequest) -> TaskEntry:
        """Carry out one request.

        Args:
            request ([`ForgetRequest`]): the classes to forget, by name or id.

        Returns:
            [`TaskEntry`]: the new entry of the ledger.

        Raises:
            UnknownClassError, LedgerError, ValueError: before any training and without touching a file, if a class
                does not exist, was forgotten already, is one of the missing classes, has no samples or fewer than
                `shots`, or nothing would be left to keep; if an unfinished other request lies in the folder; or if
                another process works there or has changed the ledger.
            NonFiniteLossError: if training broke down.
            OSError: if a file could not be written.

        After an error, also one from within training, the ledger and `self.model` are what they were before, and the
        same or another request can be carried out.
        """
        classes = resolve_request(request, self.ledger, self.label_names)
        split = self._split(classes, self.ledger.forgotten_classes)
        with self._exclusively():
            return self._carry_out(request, split)

    def run(self, requests: Sequence[ForgetRequest]) -> list[TaskEntry]:
        """Carry out a sequence of requests, leaving out those at its start that the ledger already has.

        A run that was killed is thus continued by giving the same sequence again. All requests are checked before the
        first one trains. Revoked tasks do not count as done: giving the same sequence again after one of its tasks was
        revoked carries that request out again (if it was the last one; otherwise the order no longer fits and a
        `LedgerError` says so).

        Returns:
            `list[TaskEntry]`: one entry per request, those done before included.

        Raises:
            LedgerError: if the ledger has tasks that do not begin this sequence.
            UnknownClassError, ValueError, NonFiniteLossError, OSError: as [`~ContinualForgetter.forget`].
        """
        done = self.check(requests)
        rest = requests[len(done) :]
        with self._exclusively():
            on_main(lambda: remove_others(self._work(self.ledger.next_task_name()).path))
            return [*done, *(self.forget(request) for request in rest)]

    def check(self, requests: Sequence[ForgetRequest]) -> list[TaskEntry]:
        """Check a sequence of requests as [`~ContinualForgetter.run`] does before the first one trains; only reads.

        Returns:
            `list[TaskEntry]`: entries of the requests at its start that the ledger already has.

        Raises:
            LedgerError, UnknownClassError, ValueError: as [`~ContinualForgetter.run`].
        """
        done = match_requests(requests, self.ledger, self.label_names)
        check_sequence(requests[len(done) :], self.ledger, self.label_names, self._split)
        return done

    def revoke(self, task: str, reason: str | None = None) -> TaskEntry:
        """Take one request back: its adapter is no longer merged, and what that does is measured and recorded.

        Later tasks were trained on a model that had forgotten this one; without it they act on slightly other weights.
        Scores on the revoked, the still forgotten and the kept classes (`acc_revoked`, `acc_still_forgotten`,
        `acc_retain`) are taken before and after, on the evaluation data. The files of the task are left alone.

        Args:
            task (`str`): the task, e.g. `"task_002"`.
            reason (`str`, *optional*): recorded in the ledger.

        Returns:
            [`TaskEntry`]: the entry with its `revocation`.

        Raises:
            LedgerError: if there is no such task in effect, or another process works in the folder. Like after any
                other error, ledger and model are what they were.
        """
        (entry,) = self.ledger.select([task])
        kept = [other.name for other in self.ledger.active_tasks if other.name != task]
        others = [class_id for class_id in self.ledger.forgotten_classes if class_id not in (entry.classes or [])]
        with self._exclusively(), self._rebuilt_on_error():
            before = self._scores.of_revocation(self.model, entry.classes or [], others)
            self._live.rebuild(kept)
            after = self._scores.of_revocation(self.model, entry.classes or [], others)
            self._record(lambda: self.ledger.revoke(task, reason=reason, scores_before=before, scores_after=after))
        return next(revoked for revoked in self.ledger.tasks if revoked.name == task)

    def discard_unfinished(self) -> None:
        """Give up a request that was not finished, so that another one can be carried out."""

        def remove() -> None:
            # A run killed before it could save the ledger left the task itself behind.
            for path in (self.folder / WORK_FOLDER, task_folder(self.folder, self.ledger.next_task_name())):
                shutil.rmtree(path, ignore_errors=True)

        with self._exclusively():
            on_main(remove)

    # The folder, and the model that stands for it

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keeps other runs out of the folder for the time of the block, and checks that none has been there."""
        with ExitStack() as held:

            def enter() -> None:
                held.enter_context(self.ledger.lock())
                self.ledger.check_unchanged()

            on_main(enter)
            yield

    def _record(self, change: Callable[[], Any]) -> None:
        """Makes a change to the ledger, in the file and in every process."""

        def save() -> tuple[TaskEntry, ...]:
            with self.ledger.changes():
                change()
            return self.ledger.tasks

        self.ledger.tasks = on_main(save)

    @contextmanager
    def _rebuilt_on_error(self) -> Iterator[None]:
        """Makes the model what the ledger says, if the block that changes both fails."""
        try:
            yield
        except BaseException:
            self._live.rebuild([entry.name for entry in self.ledger.active_tasks])
            raise

    # Parts of `forget`

    def _split(self, classes: Sequence[int], old: Sequence[int]) -> ForgettingSplit:
        return self.recipe.split(self.train_dataset, classes, old, self._scored_classes)

    def _work(self, name: str) -> WorkFolder:
        return WorkFolder(self.folder / WORK_FOLDER / name)

    def _carry_out(self, request: ForgetRequest, split: ForgettingSplit) -> TaskEntry:
        task = plan_task(request, split, self._work(self.ledger.next_task_name()), self.ledger, self.recipe)
        self._measure_base()
        before = self._scores.of_task(self.model, split)
        training = train_task(task, self.model, self.recipe, self.ledger)
        with self._rebuilt_on_error():
            self._live.merge([task.name])
            after = self._scores.of_task(self.model, split, before)
            base = self._scores.of_base(split)
            scores = {"base": base, "before": before, "after": after, "data": self.scored_on}
            self._record(
                lambda: self.ledger.append(finished_entry(self.folder, task, training, scores, self.label_names))
            )
        on_main(lambda: task.work.finish(self.folder / LOGS_FOLDER / task.name))
        return self.ledger.tasks[-1]

    def _measure_base(self) -> None:
        """Scores the model without any task, once; it is put back afterwards."""
        if self._scores.knows_base:
            return
        merged = [entry.name for entry in self.ledger.active_tasks]
        with self._rebuilt_on_error():
            if merged:
                self._live.rebuild([])
            self._scores.measure_base(self.model)
            if merged:
                self._live.rebuild(merged)
