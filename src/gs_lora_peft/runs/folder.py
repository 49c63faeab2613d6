"""The folder of a run: its ledger, its lock, and writing from the main process alone."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..adapters import check_tasks, model_identity
from ..io import remove_inside
from ..ledger import (
    LEDGER_NAME,
    WORK_FOLDER,
    ForgettingLedger,
    PrivateLedgerError,
    TaskEntry,
    describe_new_targets,
    method_folder,
    task_folder,
    updated_outcomes,
    warn_after,
)
from .workspace import Workspace

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def run_on_main(action: Callable[[], Result]) -> Result:
    """Runs an action in the main process. Every process returns its result or raises its error.

    All processes must call this function, and all wait for the main process. Every write to the folder uses it, so
    that a full disk or a held lock ends all processes with the same error, and none is left waiting.

    Args:
        action (`Callable`):
            A function without arguments. Its result must be picklable.
    """
    state = PartialState()
    if state.num_processes == 1:
        return action()
    message: list[Any] = [None, None]  # the result and the error
    failure: Exception | None = None
    if state.is_main_process:
        try:
            message = [action(), None]
        except Exception as error:
            failure = error
            message = [None, _picklable(error)]
    broadcast_object_list(message)
    result, received = message
    if failure is not None:
        raise failure
    if received is not None:
        raise received
    return result


def _picklable(error: Exception) -> Exception:
    """Returns the error, or a RuntimeError with its message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"the main process failed with {type(error).__name__}: {error}")
    return error


def load_or_create_ledger(
    folder: Path, base_model: PreTrainedModel, label_names: Sequence[str] | None
) -> ForgettingLedger:
    """Loads and checks the ledger of a folder, or makes a new one in memory. Writes nothing.

    Args:
        folder (`Path`):
            The run folder.
        base_model (`transformers.PreTrainedModel`):
            The bare base model.
        label_names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.

    Raises:
        LedgerError: If the ledger belongs to another base model or to other labels, was edited, or its files differ.
    """
    identity = model_identity(base_model)
    if not (folder / LEDGER_NAME).exists():
        return ForgettingLedger.create(folder, base_model=identity, label_names=label_names)
    ledger = ForgettingLedger.load(folder)
    ledger.check_base(identity)
    if label_names is not None and ledger.label_names not in (None, label_names):
        expected = f"the names in the ledger in '{folder}', in their order: an id would mean another class"
        fix = "Give the data that the run was begun with, or choose another folder."
        raise PrivateLedgerError("label_names", label_names, expected, fix)
    check_tasks(ledger, [entry.name for entry in ledger.active_tasks])
    return ledger


class RunFolder:
    """The part of [`ContinualForgetter`] that locks its folder and changes its ledger."""

    folder: Path
    ledger: ForgettingLedger
    _warned: set[str]

    def discard_unfinished(self) -> None:
        """Discards an unfinished request, so that another one can be carried out."""

        def remove() -> None:
            # A run that was killed before it saved the ledger has left the folder of the task behind.
            name = self.ledger.next_task_name()
            left = (task_folder(self.folder, name), method_folder(self.folder, name))
            for path in (self.folder / WORK_FOLDER, *left):
                remove_inside(self.folder, path)

        with self._locked():
            run_on_main(remove)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder, and checks that none has changed the ledger."""
        with ExitStack() as held:

            def enter() -> None:
                held.enter_context(self.ledger.lock())
                self.ledger.check_there()
                self.ledger.check_unchanged()

            run_on_main(enter)
            yield

    def _record(self, change: Callable[[], object]) -> None:
        """Changes the ledger, in the file and in every process."""

        def save() -> tuple[TaskEntry, ...]:
            with self.ledger.changes():
                change()
            return self.ledger.tasks

        self.ledger.tasks = run_on_main(save)

    def _apply_targets(self, allowed: Mapping[str, float | str]) -> None:
        """Records and logs the outcomes that change with new targets, see [`updated_outcomes`]."""
        outcomes = updated_outcomes(self.ledger, allowed)
        if not outcomes:
            return
        before = {entry.name: entry.target for entry in self.ledger.active_tasks if entry.name in allowed}
        self._record(lambda: self.ledger.record_outcomes(outcomes))
        run_on_main(lambda: logger.warning("%s", describe_new_targets(before, self.ledger)))

    def _warn_once(self, tasks: Sequence[str]) -> None:
        """Warns of tasks that are not forgotten, once for each."""
        new = [name for name in tasks if name not in self._warned]
        self._warned.update(new)
        run_on_main(lambda: warn_after(self.ledger, new))

    def _workspace(self, name: str) -> Workspace:
        return Workspace(self.folder / WORK_FOLDER / name)
