"""What a task leaves: the adapter that trained, or the weights of the model that changed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn

from ..adapters import changed_values, difference_groups, fresh_adapter, own_weights, write_difference
from ..compat import preparation_undone
from ..io import staged_folder, write_json_atomic
from ..ledger import TRAINING_CONFIG, ForgettingLedger, task_folder
from ..training import ForgettingTrainer, TrainedAdapter
from ..tuner import export_lora
from .recipe import Recipe, adapter_settings


class Leaving(ABC):
    """One kind of result of a task.

    Args:
        name (`str`):
            Name of the task.
        recipe ([`Recipe`]):
            The settings of the training.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
    """

    def __init__(self, name: str, recipe: Recipe, ledger: ForgettingLedger):
        self.name, self.recipe, self.ledger = name, recipe, ledger

    @staticmethod
    def of(name: str, recipe: Recipe, ledger: ForgettingLedger) -> Leaving:
        """Returns the kind that the method of a recipe leaves."""
        return (LeavesWeights if recipe.trains_weights else LeavesAdapter)(name, recipe, ledger)

    @abstractmethod
    def prepared(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Returns a context with the model to train, after which the given model is bare and as it was before."""

    @abstractmethod
    def groups(self, trainer: ForgettingTrainer) -> dict[str, Any]:
        """Returns what changed, as [`TaskEntry`] records it. Called in every process, in the context."""

    @abstractmethod
    def export(self, trainer: ForgettingTrainer) -> None:
        """Writes the folder of the task. Called in the main process, after [`~Leaving.groups`]."""


class LeavesAdapter(Leaving):
    """A new LoRA adapter on the model, as plain LoRA files."""

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[nn.Module]:
        config = copy.deepcopy(self.recipe.config)
        config.revision = self.ledger.base_model.get("revision")
        with fresh_adapter(model, config, self.name) as peft_model:
            yield peft_model

    def groups(self, trainer: ForgettingTrainer) -> dict[str, Any]:
        groups = cast(TrainedAdapter, trainer.trained).groups
        # A group that changes nothing has the norm 0, whatever its lora_A.
        norms = dict(zip(groups.names, (groups.norms() * groups.changed()).tolist(), strict=True))
        return {**groups.state(), "norms": norms}

    def export(self, trainer: ForgettingTrainer) -> None:
        names = cast(TrainedAdapter, trainer.trained).groups.names
        # Training it further needs more than plain LoRA files: placement, grouping and the full list of groups.
        training_config = {"adapter": self.name, **adapter_settings(self.recipe.config), "groups": names}
        with staged_folder(task_folder(self.ledger.folder, self.name)) as staged:
            public_name = self.ledger.base_model.get("name_or_path")
            model = cast(PeftModel, trainer.model)
            export_lora(model, staged, adapter_name=self.name, base_model_name_or_path=public_name)
            write_json_atomic(staged / TRAINING_CONFIG, training_config)


class LeavesWeights(Leaving):
    """New values of the model's own weights, see [`WeightDifference`]."""

    _before: dict[str, Tensor]
    _values: dict[str, Tensor]

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[nn.Module]:
        with preparation_undone(model), own_weights(model) as self._before:
            self._model = model
            yield model

    def groups(self, trainer: ForgettingTrainer) -> dict[str, Any]:
        self._values = changed_values(self._model, self._before)
        return difference_groups(self._values, self._before, trainer.trained.names)

    def export(self, trainer: ForgettingTrainer) -> None:
        with staged_folder(task_folder(self.ledger.folder, self.name)) as staged:
            write_difference(self._values, staged)
