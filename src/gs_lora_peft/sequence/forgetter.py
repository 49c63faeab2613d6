"""Request after request: each trains a fresh adapter on the model that has forgotten the earlier ones."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from transformers import PreTrainedModel, TrainerCallback, set_seed

from ..data import ForgettingSplit, split_dataset
from ..data.classes import label_names, resolve_classes
from ..training import GSLoraTrainer, GSLoraTrainingArguments
from ..tuner import GSLoraConfig, LoraGroups, export_lora
from .fingerprint import model_identity
from .ledger import ForgettingLedger, library_versions
from .loading import TASKS_FOLDER, merge_tasks, task_folder
from .request import ForgetRequest, LedgerError, TaskEntry, utc_now
from .scoring import score_classes
from .storage import sha256_of, staged_folder, write_json_atomic

WORK_FOLDER = "work"
REQUEST_FILE = "request.json"
TRAINING_CONFIG = "gs_lora_config.json"
_RECORDED_ARGS = (
    "forget_weight", "forget_bound", "sparsity", "sparsity_weight", "sparsity_warmup_epochs", "sparsity_until_epoch",
    "ema_decay", "ema_start_epoch", "validation_fraction", "learning_rate", "weight_decay", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip


class ContinualForgetter:
    """
    Carries out forgetting requests one after another and keeps the ledger of them.

    Each request trains a fresh adapter `task_NNN` on the model with all earlier ones merged in, so that a step costs the
    same at the first task and at the hundredth. It leaves `tasks/task_NNN/` (plain LoRA, loadable by stock PEFT) and one
    more entry in `forgetting.json`. Opening a folder that has a ledger goes on from there; a run that was killed is
    continued by asking for the same request again.

    Args:
        base_model (`transformers.PreTrainedModel`): the classifier, without adapters. It is changed in place: `self.model`
            is the same object with all tasks merged.
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): labelled samples. Of a `DatasetDict`, `train` is trained on
            and `test` (else `validation`) is scored on; nothing of the latter influences the training.
        folder (`str` or `os.PathLike`): where the ledger and the tasks go.
        config ([`GSLoraConfig`], *optional*): by default `GSLoraConfig()`.
        args ([`GSLoraTrainingArguments`], *optional*): by default its defaults. `output_dir` is replaced by a working folder
            below `folder`, which is removed once the task is done.
        eval_dataset (`datasets.Dataset`, *optional*): scored on instead of the test split.
        label_column (`str`, *optional*, defaults to `"label"`): column of the labels.
        processing_class (*optional*), data_collator (`Callable`, *optional*): as in [`GSLoraTrainer`].
        replay_ratio (`float`, *optional*, defaults to 1.0), shots (`int`, *optional*): as in [`split_dataset`].
        callbacks (`Sequence[TrainerCallback]`, *optional*): handed to every trainer.

    Attributes:
        model: the model with every task in effect merged.
        ledger ([`ForgettingLedger`]): what was carried out.

    Raises:
        LedgerError: if the folder's ledger belongs to another base model, was edited, or its files differ.
        ValueError: if the model holds adapters already, or the data has no label column.

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
        callbacks: Sequence[TrainerCallback] = (),
    ):
        if hasattr(base_model, "peft_config"):
            raise ValueError(
                "`base_model` holds adapters already, but each request adds its own. Give the bare model: "
                "model.unload() takes adapters off, model.merge_and_unload() keeps what they do."
            )
        self.folder = Path(folder)
        self.train_dataset, test = _train_and_test(dataset)
        self.eval_dataset = eval_dataset if eval_dataset is not None else test
        self.config = config or GSLoraConfig()
        self.args = args or GSLoraTrainingArguments(output_dir=str(self.folder / WORK_FOLDER))
        self.label_column = label_column
        self._split_options = {"label_column": label_column, "replay_ratio": replay_ratio, "shots": shots}
        self._trainer_options: dict[str, Any] = {
            "label_column": label_column,
            "processing_class": processing_class,
            "data_collator": data_collator,
            "callbacks": list(callbacks),
        }
        self.label_names = label_names(self.train_dataset, label_column)
        self.ledger = self._open_ledger(base_model)
        # Weights of the layers that tasks change, so that a revocation can rebuild the model from them exactly.
        self._original: dict[str, torch.Tensor] = {}
        self._keep_originals(base_model)
        self.model = merge_tasks(base_model, self.folder, self.ledger.active_tasks)

    def _open_ledger(self, base_model: PreTrainedModel) -> ForgettingLedger:
        identity = model_identity(base_model)
        if (self.folder / "forgetting.json").exists():
            ledger = ForgettingLedger.load(self.folder)
            ledger.check_base(identity)
            ledger.check_files()
            return ledger
        return ForgettingLedger.create(self.folder, base_model=identity, label_names=self.label_names)

    def _keep_originals(self, model: PreTrainedModel) -> None:
        probe = get_peft_model(model, copy.deepcopy(self.config), adapter_name="probe", low_cpu_mem_usage=True)
        targets = list(probe.base_model.targeted_module_names)
        probe.unload()
        for path in targets:
            self._original[path] = model.get_submodule(path).weight.detach().to("cpu", copy=True)

    def forget(self, request: ForgetRequest) -> TaskEntry:
        """Carry out one request.

        Args:
            request ([`ForgetRequest`]): the classes to forget, by name or id.

        Returns:
            [`TaskEntry`]: the new entry of the ledger.

        Raises:
            UnknownClassError, LedgerError, ValueError: before any training and without touching a file, if a class does not
                exist, was forgotten already, has no samples, or nothing would be left to keep; if an unfinished other
                request lies in the folder; or if another process holds the ledger.
            NonFiniteLossError: if training broke down. The ledger is unchanged and the request can be repeated.
        """
        classes = self._resolve(request)
        split = split_dataset(
            self.train_dataset, forget=classes, old=self.ledger.forgotten_classes, **self._split_options
        )
        name = self.ledger.next_task_name()
        work = self.folder / WORK_FOLDER / name
        self._check_pending(work, request, classes)
        main = PartialState().is_main_process
        if main:
            work.mkdir(parents=True, exist_ok=True)
            write_json_atomic(work / REQUEST_FILE, {"request": request.to_dict(), "classes": classes})
        PartialState().wait_for_everyone()

        started = utc_now()
        trainer = self._trainer(split, name, work)
        before = self._score(trainer, split)
        trainer.train(resume_from_checkpoint=_last_complete_checkpoint(work))
        after = self._score(trainer, split, before.get("acc_forget"))
        groups = trainer.groups.state()
        target = task_folder(self.folder, name)
        if main:
            with staged_folder(target) as staged:
                export_lora(trainer.model, staged, adapter_name=name)
                write_json_atomic(staged / TRAINING_CONFIG, self._training_config(name, trainer.groups))
        PartialState().wait_for_everyone()
        bare = trainer.model.unload()
        entry = TaskEntry(
            name=name,
            request=request.to_dict(),
            classes=classes,
            class_names=[self.label_names[c] for c in classes] if self.label_names else None,
            started_at=started,
            finished_at=utc_now(),
            sizes={"forget": len(split.forget), "retain": len(split.retain), "steps": trainer.state.global_step},
            settings=self._settings(),
            versions=library_versions(),
            files={f"{TASKS_FOLDER}/{name}/{path.name}": sha256_of(path) for path in sorted(target.iterdir())},
            groups=groups,
            scores={"before": before, "after": after},
        )
        self.ledger.append(entry)
        if main:
            with self.ledger.lock():
                self.ledger.save()
            shutil.rmtree(work, ignore_errors=True)
        PartialState().wait_for_everyone()
        self.model = merge_tasks(bare, self.folder, [entry])
        return entry

    def run(self, requests: Sequence[ForgetRequest]) -> list[TaskEntry]:
        """Carry out a sequence of requests, leaving out those at its start that the ledger already has.

        A run that was killed is thus continued by giving the same sequence again.

        Returns:
            `list[TaskEntry]`: one entry per request, those done before included.

        Raises:
            LedgerError: if the ledger has tasks that do not begin this sequence.
        """
        done = self.ledger.active_tasks
        entries: list[TaskEntry] = []
        for index, request in enumerate(requests):
            if index < len(done):
                if sorted(done[index].classes or []) != sorted(self._resolve(request, again=True)):
                    raise LedgerError(
                        f"request {index + 1} asks for {list(request.classes)!r}, but {done[index].name} in '{self.folder}' forgot "
                        f"{done[index].class_names or done[index].classes!r}. Give the requests in the order they were "
                        "carried out, or choose another folder."
                    )
                entries.append(done[index])
            else:
                entries.append(self.forget(request))
        return entries

    def revoke(self, task: str, reason: str | None = None) -> TaskEntry:
        """Take one request back: its adapter is no longer merged, and what that does is measured and recorded.

        Later tasks were trained on a model that had forgotten this one; without it they act on slightly other weights.
        Scores on the revoked, the still forgotten and the kept classes are taken before and after, on the evaluation data.

        Args:
            task (`str`): the task, e.g. `"task_002"`.
            reason (`str`, *optional*): recorded in the ledger.

        Returns:
            [`TaskEntry`]: the entry with its `revocation`.

        Raises:
            LedgerError: if there is no such task in effect.
        """
        (entry,) = self.ledger.select([task])
        before = self._score_revocation(entry)
        kept = [other for other in self.ledger.active_tasks if other.name != task]
        for path, weight in self._original.items():
            parameter = self.model.get_submodule(path).weight
            parameter.data = weight.to(parameter.device, copy=True)
        self.model = merge_tasks(self.model, self.folder, kept)
        after = self._score_revocation(entry)
        revoked = self.ledger.revoke(task, reason=reason, scores_before=before, scores_after=after)
        if PartialState().is_main_process:
            with self.ledger.lock():
                self.ledger.save()
        PartialState().wait_for_everyone()
        return revoked

    def discard_unfinished(self) -> None:
        """Remove the working folder of a request that was not finished, so that another one can be carried out."""
        shutil.rmtree(self.folder / WORK_FOLDER, ignore_errors=True)

    # Parts of `forget`

    def _resolve(self, request: ForgetRequest, again: bool = False) -> list[int]:
        count = self.ledger.base_model.get("num_labels")
        classes = resolve_classes(request.classes, names=self.label_names, num_classes=count)
        for class_id in [] if again else classes:
            if earlier := self.ledger.task_of_class(class_id):
                shown = self.label_names[class_id] if self.label_names else class_id
                raise LedgerError(
                    f"class {shown!r} was forgotten already, by {earlier.name} at {earlier.finished_at}. Leave it out of the "
                    "request."
                )
        return classes

    def _check_pending(self, work: Path, request: ForgetRequest, classes: list[int]) -> None:
        if not (work / REQUEST_FILE).is_file():
            return
        pending = json.loads((work / REQUEST_FILE).read_text())
        if sorted(pending["classes"]) != sorted(classes):
            raise LedgerError(
                f"an unfinished request for {pending['request']['classes']!r} lies in '{work}', but {list(request.classes)!r} "
                "was asked for. Ask for the unfinished one first, or call discard_unfinished()."
            )

    def _trainer(self, split: ForgettingSplit, name: str, work: Path) -> GSLoraTrainer:
        args = copy.copy(self.args)
        args.output_dir = str(work)
        # The adapter's random start depends on the seed alone, not on what ran before in this process.
        set_seed(args.seed)
        peft_model = get_peft_model(self.model, copy.deepcopy(self.config), adapter_name=name)
        return GSLoraTrainer(
            peft_model,
            args,
            forget_dataset=split.forget,
            retain_dataset=split.retain,
            old_classes=split.old_classes,
            **self._trainer_options,
        )

    def _score(
        self, trainer: GSLoraTrainer, split: ForgettingSplit, accuracy_forget_before: float | None = None
    ) -> dict[str, Any]:
        if self.eval_dataset is None:
            return {}
        return trainer.score(self.eval_dataset, accuracy_forget_before=accuracy_forget_before)

    def _score_revocation(self, entry: TaskEntry) -> dict[str, Any]:
        if self.eval_dataset is None:
            return {}
        others = [c for c in self.ledger.forgotten_classes if c not in set(entry.classes or ())]
        return score_classes(
            self.model,
            self.eval_dataset,
            {"acc_revoked": entry.classes or [], "acc_still_forgotten": others},
            rest="acc_retain",
            args=self.args,
            **self._trainer_options,
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "config": _own_settings(self.config),
            "training": {name: getattr(self.args, name) for name in _RECORDED_ARGS},
            "data": {key: value for key, value in self._split_options.items() if key != "label_column"},
        }

    def _training_config(self, name: str, groups: LoraGroups) -> dict[str, Any]:
        """What training on needs beyond the plain form: placement, grouping and the full list of groups."""
        return {"adapter": name, **_own_settings(self.config), "groups": groups.names}


def _own_settings(config: GSLoraConfig) -> dict[str, Any]:
    """The settings of a configuration that decide the adapter, as plain JSON."""
    names = (
        "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "block_pattern",
        "exclude_blocks", "group_by", "rank_pattern", "alpha_pattern",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in names}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _train_and_test(dataset: Dataset | DatasetDict) -> tuple[Dataset, Dataset | None]:
    if not isinstance(dataset, DatasetDict):
        return dataset, None
    if "train" not in dataset:
        raise ValueError(f"the data set has no split 'train', it has {list(dataset)}. Rename one, or give a Dataset.")
    return dataset["train"], dataset.get("test", dataset.get("validation"))


def _last_complete_checkpoint(work: Path) -> str | None:
    """The newest checkpoint whose last file (the trainer's state) was written whole."""
    folders = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for folder in folders:
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return str(folder)
    return None
