"""Who is here: one visit for each browser tab, and errors that are told to the visitor alone."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from sources import Source
from visits import Visit, VisitEnded

from gs_lora_peft.errors import InvalidInputError

logger = logging.getLogger(__name__)

IDLE_SECONDS = 3600  # a visit that nobody uses for so long is over
SERVED = "served"  # where Gradio keeps uploads and downloads


class Visits:
    """All visitors, by the session of their browser tab.

    Args:
        root (`Path`):
            Where their folders are made.
        source ([`Source`]):
            What a new visitor finds.
    """

    def __init__(self, root: Path, source: Source):
        self.root, self.source = root, source
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}

    def of(self, request: gr.Request) -> Visit:
        """Returns the visit of a browser tab, a new one if there is none; ends those that nobody used for long."""
        key, now = str(request.session_hash), time.monotonic()
        with self._lock:
            old = [other for other, visit in self._visits.items() if now - visit.used > IDLE_SECONDS and other != key]
            over = [self._visits.pop(other) for other in old]
            if key not in self._visits:
                self._visits[key] = Visit(self.root, self.source)
            visit = self._visits[key]
            visit.used = now
        for ended in over:
            self._end(ended)
        return visit

    def leave(self, request: gr.Request) -> None:
        """Ends the visit of a browser tab that was closed or loaded anew."""
        with self._lock:
            visit = self._visits.pop(str(request.session_hash), None)
        if visit is not None:
            self._end(visit)

    def _end(self, visit: Visit) -> None:
        visit.close()
        for served in (self.root / SERVED).glob(f"*/*{visit.token}*"):
            served.unlink(missing_ok=True)


def told(function: Callable) -> Callable:
    """Tells the visitor what was wrong. The log of the server gets the type of an error and its place, never its text.

    The text of an error may name a class.

    Args:
        function (`Callable`):
            Handles an event: returns or yields values for the page.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _told():
                yield from function(*args, **kwargs)

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with _told():
                return function(*args, **kwargs)

    return wrapped


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except InvalidInputError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except VisitEnded:
        raise gr.Error("The visit is over.", print_exception=False) from None
    except Exception as error:
        places = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s\n%s", type(error).__name__, places)
        raise gr.Error("Something went wrong here. Please try again.", print_exception=False) from None
