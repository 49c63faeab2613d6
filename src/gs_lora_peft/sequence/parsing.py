"""Requests as one writes them on a command line."""

from __future__ import annotations

from .request import ForgetRequest


def parse_requests(text: str) -> list[ForgetRequest]:
    """Read a sequence of requests: tasks are separated by `;`, the classes of a task by `,`.

    Names that hold a comma or a semicolon can be given by their id.

    Args:
        text (`str`): e.g. `"tench,cassette player;school bus"` or `"3;7;0,1"`.

    Returns:
        `list[ForgetRequest]`: one request per task, in order.

    Raises:
        ValueError: if the text, a task or a class is empty; the message shows which.

    Example:

        ```py
        >>> [list(request.classes) for request in parse_requests("tench,cassette player;school bus")]
        [['tench', 'cassette player'], ['school bus']]
        ```
    """
    requests = []
    for number, task in enumerate(text.split(";"), start=1):
        classes = [name.strip() for name in task.split(",")]
        if not all(classes):
            raise ValueError(
                f"task {number} of {text!r} has an empty class name. Separate tasks with ';' and classes with ',', "
                "e.g. 'tench,cassette player;school bus'."
            )
        requests.append(ForgetRequest(classes))
    return requests
