"""The folder of a run: opened, locked, written by one process."""

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
    InvalidLedgerError,
    TaskEntry,
    class_list,
    target_score,
    task_folder,
    task_states,
    verdict,
    warn_after,
)
from ..reports import short_percent
from .workspace import Workspace

Result = TypeVar("Result")


def on_main(action: Callable[[], Result]) -> Result:
    """Runs `action` in the main process alone; every process gets its result, or raises its error.

    All processes must call this, and none goes on before the main process is done. Whatever is written to a folder
    goes through here, so that a full disk or a lock that another process holds ends every process with the same
    message instead of leaving some of them waiting.
    """
    state = PartialState()
    if state.num_processes == 1:
        return action()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if state.is_main_process:
        try:
            outcome = [action(), None]
        except Exception as error:
            failure = error
            outcome = [None, _portable(error)]
    broadcast_object_list(outcome)
    result, told = outcome
    if failure is not None:
        raise failure
    if told is not None:
        raise told
    return result


def _portable(error: Exception) -> Exception:
    """The error itself if it survives the way to another process, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"the main process failed with {type(error).__name__}: {error}")
    return error


def open_ledger(folder: Path, base_model: PreTrainedModel, label_names: Sequence[str] | None) -> ForgettingLedger:
    """The ledger of a folder, or a new one; only reads.

    Raises:
        LedgerError: It belongs to another base model or to other labels, was edited, or its files differ.
    """
    identity = model_identity(base_model)
    if not (folder / LEDGER_NAME).exists():
        return ForgettingLedger.create(folder, base_model=identity, label_names=label_names)
    ledger = ForgettingLedger.load(folder)
    ledger.check_base(identity)
    if label_names is not None and ledger.label_names not in (None, label_names):
        expected = f"the names in the ledger in '{folder}', in their order: an id would mean another class"
        fix = "Give the data that the run was begun with, or choose another folder."
        raise InvalidLedgerError("label_names", label_names, expected, fix)
    check_tasks(ledger, [entry.name for entry in ledger.active_tasks])
    return ledger


def judged_anew(ledger: ForgettingLedger, allowed: Mapping[str, float | str]) -> dict[str, dict[str, Any]]:
    """The outcomes that change if tasks in effect are judged by other targets.

    Later tasks measured the classes of earlier ones again, so that their outcomes may change as well. Tasks of a
    ledger that was made before outcomes were recorded stay as they are.

    Args:
        ledger ([`ForgettingLedger`]):
            The tasks; it is not changed.
        allowed (`Mapping[str, float | "auto"]`):
            `max_forget_accuracy` by the name of a task, as in [`target_score`].

    Returns:
        `dict[str, dict]`: The new outcome by the name of the task, of those alone that differ.
    """
    judged = [entry for entry in ledger.active_tasks if entry.outcome is not None]
    targets: dict[str, float | None] = {}
    for entry in judged:
        if entry.name in allowed:
            before, num_labels = entry.scores.get("before", {}), ledger.base_model.get("num_labels")
            target = target_score(allowed[entry.name], before, num_labels)
            targets |= {entry.name: target} if target != entry.target else {}
    outcomes = {}
    for entry in judged:
        outcome = dict(entry.outcome or {})
        if entry.name in targets:
            before, after = (entry.scores.get(when, {}) for when in ("before", "after"))
            outcome |= verdict(before, after, targets[entry.name])
        if "earlier" in outcome:
            outcome["earlier"] = {
                name: {**found, **_judged(found, targets[name])} if name in targets else found
                for name, found in outcome["earlier"].items()
            }
        if outcome != entry.outcome:
            outcomes[entry.name] = outcome
    return outcomes


def described_anew(earlier: Mapping[str, float | None], ledger: ForgettingLedger) -> str:
    """One sentence on tasks whose target changed.

    Args:
        earlier (`Mapping[str, float | None]`):
            Their targets before, by name.
        ledger ([`ForgettingLedger`]):
            With the new outcomes.
    """
    alike: dict[str, list[str]] = {}
    for state in task_states(ledger.tasks):
        name, now = state.entry.name, state.entry.target
        if name in earlier and earlier[name] != now:
            how = f"{state.verdict} (target: at most {short_percent(now)} %, before {short_percent(earlier[name])} %)"
            alike.setdefault(how, []).append(name)
    parts = [f"{class_list(names)}: {how}" for how, names in alike.items()]
    shown = "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")
    return f"Judged anew by max_forget_accuracy, from the scores in the ledger, and recorded there: {shown}."


def _judged(found: Mapping[str, Any], target: float | None) -> dict[str, bool | None]:
    score = found.get("score")
    return {"forgotten": None if score is None or target is None else score <= target}


logger = logging.getLogger(__name__)


class RunFolder:
    """The half of [`ContinualForgetter`] that holds its folder and changes its ledger."""

    folder: Path
    ledger: ForgettingLedger
    _told: set[str]

    def discard_unfinished(self) -> None:
        """Give up a request that was not finished, so that another one can be carried out."""

        def remove() -> None:
            # A run killed before it could save the ledger left the task itself behind.
            for path in (self.folder / WORK_FOLDER, task_folder(self.folder, self.ledger.next_task_name())):
                remove_inside(self.folder, path)

        with self._exclusively():
            on_main(remove)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keeps other runs out of the folder for the time of the block, and checks that none has been there."""
        with ExitStack() as held:

            def enter() -> None:
                held.enter_context(self.ledger.lock())
                self.ledger.check_there()
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

    def _judge_anew(self, allowed: Mapping[str, float | str]) -> None:
        """Judges tasks by the targets given, and records and tells it where that is another one than before."""
        outcomes = judged_anew(self.ledger, allowed)
        if not outcomes:
            return
        targets = {entry.name: entry.target for entry in self.ledger.active_tasks if entry.name in allowed}
        self._record(lambda: self.ledger.record_outcomes(outcomes))
        on_main(lambda: logger.warning("%s", described_anew(targets, self.ledger)))

    def _tell(self, tasks: Sequence[str]) -> None:
        """Warns, once, of tasks that did not forget."""
        new = [name for name in tasks if name not in self._told]
        self._told.update(new)
        on_main(lambda: warn_after(self.ledger, new))

    def _work(self, name: str) -> Workspace:
        return Workspace(self.folder / WORK_FOLDER / name)
