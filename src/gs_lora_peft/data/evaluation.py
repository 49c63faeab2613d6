"""Which split of a data set is scored on."""

from __future__ import annotations

from collections.abc import Iterable

# In this order: what is called a test is rather kept for the end than what is called a validation.
EVALUATION_SPLITS = ("test", "validation", "valid", "val", "evaluation", "eval", "dev")


def evaluation_split(splits: Iterable[str]) -> str | None:
    """
    The split to score on: the first there is of `test`, `validation`, `valid`, `val`, `evaluation`, `eval` and `dev`.

    Args:
        splits (`Iterable[str]`): names of the splits, in upper or lower case.

    Returns:
        `str` or `None`: its name as it was given; `None` where there is none of these.
    """
    by_name = {name.lower(): name for name in splits}
    return next((by_name[name] for name in EVALUATION_SPLITS if name in by_name), None)
