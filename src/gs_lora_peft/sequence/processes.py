"""One process acts, all of them know what came of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

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
