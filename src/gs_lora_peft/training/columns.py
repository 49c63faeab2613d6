"""`remove_unused_columns`: rows without the columns that neither the model nor the collator reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import InvalidInputError


class ColumnFilter:
    """
    A collator that sees of each row only some columns.

    The Trainer drops columns from a data set by what the model's forward takes, which an image column is not, and does
    not look into pairs. Rows are filtered here instead, after whatever transform the data set has, and in the same way
    for pairs, evaluation and prototypes.

    Args:
        collate (`Callable`): the collator; its attributes can be read through this one.
        columns (`Collection[str]`): the columns to leave in, besides those that the collator says it reads (its
            attributes `image_column`, `label_column`, …).
    """

    def __init__(self, collate: Callable[[list[Any]], Any], columns: Collection[str]):
        self.collate = collate
        own = {value for name, value in _attributes(collate).items() if name.endswith("_column")}
        self.columns = frozenset(columns) | {value for value in own if isinstance(value, str)}

    def __call__(self, rows: Sequence[Any]) -> Any:
        kept = [self._of(row) for row in rows]
        try:
            return self.collate(kept)
        except KeyError as error:
            column = error.args[0] if error.args else None
            if isinstance(rows[0], Mapping) and column in rows[0] and column not in kept[0]:
                raise InvalidInputError(
                    "remove_unused_columns",
                    True,
                    f"False, because the collator reads the column {column!r}, which the model's forward does not "
                    "take",
                    "Leave it out of the arguments.",
                ) from error
            raise

    def __getattr__(self, name: str) -> Any:
        if name == "collate":  # not there yet, while a worker process unpickles this
            raise AttributeError(name)
        return getattr(self.collate, name)

    def _of(self, row: Any) -> Any:
        return {key: value for key, value in row.items() if key in self.columns} if isinstance(row, Mapping) else row


def _attributes(collate: Any) -> dict[str, Any]:
    return dict(vars(collate)) if hasattr(collate, "__dict__") else {}
