"""By what the ledger tells whether data are those of an earlier task: cheap, and the same wherever they lie."""

from __future__ import annotations

import hashlib

import numpy as np
from datasets import Dataset


def data_settings(train: Dataset, trained: np.ndarray, test: Dataset, scored: np.ndarray) -> dict[str, str]:
    """What the ledger records of the data; each data set is given with its labels, see [`data_identity`]."""
    return {
        "train_data": data_identity(len(train), trained),
        "evaluation_data": data_identity(len(test), scored, ordered=False),
    }


def data_identity(rows: int, labels: np.ndarray, *, ordered: bool = True) -> str:
    """The number of rows of a data set, and a digest of its labels.

    Other images under the same labels are not noticed: reading them all would take minutes. The fingerprint that
    `datasets` keeps is not used, because the same data have another one on another machine.

    Args:
        rows (`int`): How many rows there are.
        labels (`numpy.ndarray`): The class of every row, or of every annotated box.
        ordered (`bool`, *optional*, defaults to `True`): Whether the order of the labels matters, as it does where
            samples are drawn from them.
    """
    content = (labels if ordered else np.sort(labels)).astype("<i8").tobytes()
    return f"{rows} rows, labels sha256:{hashlib.sha256(content).hexdigest()[:16]}"
