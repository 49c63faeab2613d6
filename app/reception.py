"""Errors that are told to the visitor alone."""

from __future__ import annotations

import functools
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from progress import VisitEnded

from gs_lora_peft.errors import InvalidInputError

logger = logging.getLogger(__name__)

OVER = "This visit is over. Load the page again to begin a new one."


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
        raise gr.Error(OVER, print_exception=False) from None
    except Exception as error:
        places = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s\n%s", type(error).__name__, places)
        raise gr.Error("Something went wrong here. Please try again.", print_exception=False) from None
