"""Rows with arrays are those of `datasets`, cell by cell, whatever the format and the selection."""

import numpy as np
import pytest
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, Value

from gs_lora_peft.compat import has_fixed_arrays, read_rows
from gs_lora_peft.data import NamedRows

FEATURES = Features(
    {"pixels": Array3D((1, 2, 3), "float32"), "label": ClassLabel(names=["a", "b"]), "id": Value("int8")}
)


def rows(**given):
    pixels = np.random.default_rng(0).normal(size=(9, 1, 2, 3)).astype(np.float32)
    columns = {"pixels": pixels, "label": [0, 1] * 4 + [0], "id": list(range(9))}
    return Dataset.from_dict(columns, features=FEATURES).with_format(**given)


def halved(batch):
    return {"pixels": [np.asarray(image) / 2 for image in batch["pixels"]], "label": batch["label"]}


def same(first, second):
    if isinstance(first, (np.ndarray, torch.Tensor)):
        return type(first) is type(second) and first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("selected", [None, [7, 2, 2, 5, 0], range(3, 8)])
@pytest.mark.parametrize(
    "given",
    [{"type": "torch"}, {"type": "numpy"}, {"type": None}, {"type": "torch", "columns": ["pixels"]}],
    ids=["torch", "numpy", "python", "columns"],
)
def test_rows_are_those_of_datasets(given, selected):
    data = rows(**given) if selected is None else rows(**given).select(selected)
    indices = [3, 0, 3, 1]
    for own, theirs in zip(read_rows(data, indices), data.__getitems__(indices), strict=True):
        assert list(own) == list(theirs)
        assert all(same(own[name], theirs[name]) for name in own)


def test_a_transform_is_applied():
    data = rows(type="torch").with_transform(halved)
    for own, theirs in zip(NamedRows(data).__getitems__([4, 1]), data.__getitems__([4, 1]), strict=True):
        assert np.array_equal(own["pixels"], theirs["pixels"])


def test_only_arrays_of_a_fixed_shape_are_read_this_way():
    assert has_fixed_arrays(rows(type="torch"))
    ragged = Features({"pixels": Array2D((None, 3), "float32")})
    assert not has_fixed_arrays(Dataset.from_dict({"pixels": [[[1, 2, 3]]]}, features=ragged))
    assert not has_fixed_arrays(Dataset.from_dict({"id": [1]}))
    assert not has_fixed_arrays([{"id": 1}])
