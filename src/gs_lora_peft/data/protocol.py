"""The order in which the papers' runs forget classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from numbers import Integral

from ..errors import InvalidInputError


def class_order(num_classes: int, seed: int = 1337) -> list[int]:
    """
    The classes in the order of the GS-LoRA papers' code: shuffled by Python's `random` with a seed.

    The first classes of the order stay to the end, the last ones are forgotten first.

    Args:
        num_classes (`int`): C.
        seed (`int`, *optional*, defaults to 1337): theirs.

    Returns:
        `list[int]`: every id from 0 to C − 1, once.
    """
    order = list(range(num_classes))
    random.Random(seed).shuffle(order)
    return order


def continual_protocol(num_classes: int, kept: Sequence[int], seed: int = 1337) -> list[list[int]]:
    """
    The classes that each task forgets, where so many are to be left after each (GS-LoRA, arXiv 2403.11530, §4).

    Args:
        num_classes (`int`): C, the classes that are known before the first task.
        kept (`Sequence[int]`): numbers of classes left after each task, falling. 100-20, 80-20, 60-20 and 40-20 of the
            papers' tables are `[80, 60, 40, 20]`; their single step 100-5 is `[95]`.
        seed (`int`, *optional*, defaults to 1337): as in [`class_order`].

    Returns:
        `list[list[int]]`: the ids to forget, one list for each task.

    Raises:
        InvalidInputError: if the numbers do not fall from below C to at least 1.

    Example:

        ```py
        >>> continual_protocol(6, kept=[4, 2])
        [[5, 4], [3, 2]]
        ```
    """
    bounds = [num_classes, *kept]
    whole = all(isinstance(number, Integral) for number in bounds)
    if len(bounds) < 2 or not whole or any(later >= earlier for earlier, later in zip(bounds, kept, strict=False)):
        expected = f"numbers of classes that fall from below the {num_classes} that are known"
        raise InvalidInputError("kept", list(kept), expected, "Take for instance [80, 60, 40, 20] of 100.")
    if bounds[-1] < 1:
        raise InvalidInputError("kept", list(kept), "one class at least to be left", "Raise the last number.")
    order = class_order(num_classes, seed)
    return [order[left:known] for known, left in zip(bounds, kept, strict=False)]
