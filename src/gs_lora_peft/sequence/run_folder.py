"""The folder of a run, in which one process works at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..storage import remove_inside
from .entry import TaskEntry
from .judging import described_anew, judged_anew
from .layout import WORK_FOLDER, task_folder
from .ledger import ForgettingLedger
from .processes import on_main
from .remarks import warn_after
from .work import WorkFolder

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

    def _work(self, name: str) -> WorkFolder:
        return WorkFolder(self.folder / WORK_FOLDER / name)
