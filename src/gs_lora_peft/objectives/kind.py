"""What a kind of model has to say of itself, to be trained by an objective of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .base import Objective
from .heads import check_class_head


@dataclass(frozen=True)
class Task:
    """What an objective is told of the task besides the arguments.

    Args:
        forget_classes (`tuple[int, ...]`, *optional*): Classes to forget.
        missing_classes (`tuple[int, ...]`, *optional*): Classes to keep that have no training data.
        adapter (`str`, *optional*): The adapter that trains; `None` where the model's own weights do.
    """

    forget_classes: tuple[int, ...] = ()
    missing_classes: tuple[int, ...] = ()
    adapter: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        fits (`Callable`): From a model, a `PeftModel` or a bare one, to whether it is of this kind.
        make (`Callable`): From the model, the [`GSLoraTrainingArguments`] and the [`Task`] to the [`Objective`].
        check (`Callable`, *optional*, defaults to [`check_class_head`]): Refuses a model of this kind that cannot be
            trained, before any data is read.
    """

    fits: Callable[[nn.Module], bool]
    make: Callable[[nn.Module, Any, Task], Objective]
    check: Callable[[nn.Module], None] = check_class_head
