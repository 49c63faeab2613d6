"""The papers' order of classes."""

from __future__ import annotations

import pytest
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.data import class_order, continual_protocol


def test_order_of_the_papers_code():
    """Seed 1337 gives 38 classes the order of the recorded run of the papers' code."""
    assert class_order(38)[:6] == [32, 14, 31, 8, 4, 18]
    assert continual_protocol(38, [30, 22, 14, 6])[0] == [12, 19, 36, 24, 21, 10, 23, 34]


@given(st.integers(2, 60), st.integers(0, 9), st.data())
def test_every_class_has_one_place(num_classes, seed, data):
    """No class is forgotten twice, and those that stay are the first of the order."""
    numbers = st.lists(st.integers(1, num_classes - 1), min_size=1, max_size=6, unique=True)
    kept = sorted(data.draw(numbers), reverse=True)
    tasks = continual_protocol(num_classes, kept, seed)
    forgotten = [class_id for task in tasks for class_id in task]
    staying = class_order(num_classes, seed)[: kept[-1]]
    assert sorted(forgotten + staying) == list(range(num_classes))
    assert [num_classes - sum(map(len, tasks[: i + 1])) for i in range(len(tasks))] == kept


@pytest.mark.parametrize("kept", [[], [38], [20, 20], [20, 25], [0], [-1], [2.5]])
def test_numbers_that_do_not_fall(kept):
    """A protocol that would forget nothing, everything or a fraction is refused by its numbers."""
    with refused("kept", kept):
        continual_protocol(38, kept)
