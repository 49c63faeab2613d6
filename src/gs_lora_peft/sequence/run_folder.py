"""The folder of a run, in which one process works at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..storage import remove_inside
from .entry import TaskEntry
from .layout import WORK_FOLDER, task_folder
from .ledger import ForgettingLedger
from .processes import on_main
from .work import WorkFolder


class RunFolder:
    """The half of [`ContinualForgetter`] that holds its folder and changes its ledger."""

    folder: Path
    ledger: ForgettingLedger

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

    def _work(self, name: str) -> WorkFolder:
        return WorkFolder(self.folder / WORK_FOLDER / name)
