"""The tasks of a run in the weights of one model, whatever each of them left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn

from ..compat import local, release_gathered
from ..ledger import ForgettingLedger
from .attaching import check_adapters, merge_adapters
from .task_adapter import TaskAdapter
from .task_files import TaskChange, new_change, read_changes
from .weight_difference import tensor_of


def check_changes(model: nn.Module, changes: Sequence[TaskChange]) -> None:
    """Checks that what tasks left fits a bare model, before the model changes.

    Args:
        model (`torch.nn.Module`):
            The bare model.
        changes (`Sequence[TaskChange]`):
            What the tasks left.

    Raises:
        UnusableAdapterError: If something does not fit, see [`check_adapters`] and [`WeightDifference.check`].
    """
    check_adapters(model, [change for change in changes if isinstance(change, TaskAdapter)])
    for change in changes:
        if not isinstance(change, TaskAdapter):
            change.check(model)


def merge_changes(
    model: nn.Module, changes: Iterable[TaskChange], originals: MutableMapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """Merges what tasks left into the weights of a bare model, one task after another, in place.

    The result is bit-equal to the model that later tasks were trained on.

    Args:
        model (`torch.nn.Module`):
            The bare model. Its `requires_grad` flags stay.
        changes (`Iterable[TaskChange]`):
            What the tasks left, in order. It must fit the model, see [`check_changes`].
        originals (`MutableMapping[str, torch.Tensor]`, *optional*):
            Receives CPU copies of the tensors before their first change, by name; of shards, those of this process.

    Returns:
        `torch.nn.Module`: `model`.
    """
    release_gathered(model)
    for is_adapter, group in groupby(changes, lambda change: isinstance(change, TaskAdapter)):
        together: list[Any] = list(group)
        if originals is not None:
            for name in dict.fromkeys(name for change in together for name in change.tensors):
                if name not in originals:
                    originals[name] = local(tensor_of(model, name)).to("cpu", copy=True)
        if is_adapter:
            merge_adapters(model, together)
        else:
            for change in together:
                change.merge_into(model)
    return model


class MergedModel:
    """A bare model with the tasks of a run merged into its weights. Merging can be undone exactly.

    Subtracting an update is not exact, so the original values of changed tensors are kept on the CPU. Everything is
    checked ([`read_changes`], [`check_changes`]) before any weight changes.

    Args:
        model (`torch.nn.Module`):
            The base model, changed in place and put into eval mode.
        ledger ([`ForgettingLedger`]):
            The ledger of the run. Its tasks in effect are merged.

    Attributes:
        bare (`torch.nn.Module`):
            The model.
        ledger ([`ForgettingLedger`]):
            The ledger.
        originals (`dict[str, torch.Tensor]`):
            CPU copies of the tensors that tasks have changed, with the values of the base model, by name; of shards,
            those of this process.
    """

    def __init__(self, model: nn.Module, ledger: ForgettingLedger):
        self.bare = model.eval()
        self.ledger = ledger
        self.originals: dict[str, torch.Tensor] = {}
        self._saved: list[dict[str, torch.Tensor]] = []  # for each open block, the tensors it has changed
        self.merge([entry.name for entry in ledger.active_tasks])

    def merge(self, names: Sequence[str]) -> None:
        """Merges more tasks of the ledger.

        Args:
            names (`Sequence[str]`):
                Names of the tasks.

        Raises:
            LedgerError: If a file differs from the ledger, what a task left does not fit, or a later task needs one
                that is left out. The model is unchanged.
        """
        self._merge(read_changes(self.ledger, list(names), each=False))

    def merge_new(self, name: str) -> dict[str, str]:
        """Merges a task that is about to be added to the ledger.

        Args:
            name (`str`):
                Name of the new task.

        Returns:
            `dict[str, str]`: The SHA-256 of its files by path, computed from the bytes that were merged.

        Raises:
            LedgerError: If what it left is invalid or does not fit. The model is unchanged.
            OSError: If a file cannot be read. The model is unchanged.
        """
        change, files = new_change(self.ledger, name)
        self._merge([change])
        return files

    def rebuild(self, names: Sequence[str]) -> None:
        """Restores the original weights and merges these tasks, see [`~MergedModel.merge`]."""
        changes = read_changes(self.ledger, list(names), each=False)
        check_changes(self.bare, changes)
        self._restore(self.originals)
        self._merge(changes)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Restores the weights exactly if the block fails. Reads no files: they may be the reason."""
        with self._saving() as saved:
            try:
                yield
            except BaseException:
                self._restore(saved)
                raise

    @contextmanager
    def without_tasks(self) -> Iterator[None]:
        """Restores the base model for the time of a `with` block."""
        with self._saving() as saved:
            try:
                self._restore(self.originals)
                yield
            finally:
                self._restore(saved)

    def _merge(self, changes: Sequence[TaskChange]) -> None:
        check_changes(self.bare, changes)
        self._save(name for change in changes for name in change.tensors)
        merge_changes(self.bare, changes, self.originals)

    @contextmanager
    def _saving(self) -> Iterator[dict[str, torch.Tensor]]:
        """Collects CPU copies of the tensors that the block changes."""
        saved: dict[str, torch.Tensor] = {}
        self._saved.append(saved)
        try:
            yield saved
        finally:
            self._saved.pop()

    def _save(self, names: Iterable[str]) -> None:
        for name in names:
            for saved in self._saved:
                if name not in saved:
                    saved[name] = local(tensor_of(self.bare, name)).to("cpu", copy=True)

    @torch.no_grad()
    def _restore(self, values: Mapping[str, torch.Tensor]) -> None:
        release_gathered(self.bare)
        self._save(values)
        for name, value in values.items():
            local(tensor_of(self.bare, name)).copy_(value)
