"""The classes of a task by role: to forget, to retain, forgotten before, and kept without data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .checking import ClassId, checked, ordered_list
from .errors import InvalidInputError

_IDS = Annotated[
    list[ClassId],
    BeforeValidator(ordered_list),
    Field(description="a list of class ids, whole numbers from 0"),
]


class SharedClassesError(InvalidInputError):
    """Two roles share classes, which are the `value`.

    Args:
        name (`str`):
            As in [`InvalidInputError`].
        value (`list[int]`):
            The shared classes, sorted.
        expected (`str`):
            As in [`InvalidInputError`].
        fix (`str`, *optional*):
            As in [`InvalidInputError`].
        roles (`tuple[str, str]`, *optional*):
            The two roles, in the order of the fields of [`ClassRoles`].
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", roles: tuple[str, str] = ("", "")):
        super().__init__(name, value, expected, fix)
        self.roles = roles

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.expected, self.fix, self.roles)


@dataclass(frozen=True, init=False)
class ClassRoles:
    """The classes of a task by role. Each field is a sorted tuple of different ids; a class has one role at most.

    Args:
        forget (`Iterable[int]`, *optional*, defaults to none):
            Classes to forget.
        retain (`Iterable[int]`, *optional*, defaults to none):
            Classes to keep that have training data.
        old (`Iterable[int]`, *optional*, defaults to none):
            Classes that earlier tasks forgot.
        missing (`Iterable[int]`, *optional*, defaults to none):
            Classes to keep without training data.

    Raises:
        InvalidInputError: If an item is not a class id. The name is that of the role: `forget_classes`.
        SharedClassesError: If a class has two roles.

    Example:
        ```py
        >>> ClassRoles(forget=[3, 1], retain=[0]).with_rest("missing", range(5))
        ClassRoles(forget=(1, 3), retain=(0,), old=(), missing=(2, 4))
        ```
    """

    forget: tuple[int, ...]
    retain: tuple[int, ...]
    old: tuple[int, ...]
    missing: tuple[int, ...]

    def __init__(
        self,
        forget: Iterable[int] = (),
        retain: Iterable[int] = (),
        old: Iterable[int] = (),
        missing: Iterable[int] = (),
    ):
        given = {"forget": forget, "retain": retain, "old": old, "missing": missing}
        for role, classes in given.items():
            object.__setattr__(self, role, tuple(class_ids(f"{role}_classes", classes)))
        for (first, ids), (second, others) in combinations(self.as_dict().items(), 2):
            if shared := sorted(set(ids) & set(others)):
                raise SharedClassesError(
                    f"{second}_classes",
                    shared,
                    f"classes with one role each, but `{first}` and `{second}` share these",
                    "Take them out of one of the two.",
                    (first, second),
                )

    @classmethod
    def of(
        cls,
        forget: Iterable[int],
        old: Iterable[int] = (),
        missing: Iterable[int] = (),
        retain: Iterable[int] | None = None,
        *,
        present: Iterable[int] = (),
    ) -> ClassRoles:
        """The roles as functions and metrics are given them. Without `retain`, every other `present` class is kept."""
        if retain is not None:
            return cls(forget, retain, old, missing)
        return cls(forget, old=old, missing=missing).with_rest("retain", present)

    def with_rest(self, role: str, classes: Iterable[int]) -> ClassRoles:
        """The same roles, and `role` for those of `classes` that have none."""
        rest = set(classes).difference(*self.as_dict().values())
        return replace(self, **{role: (*getattr(self, role), *rest)})

    def as_dict(self) -> dict[str, tuple[int, ...]]:
        """The classes by the name of their role."""
        return {"forget": self.forget, "retain": self.retain, "old": self.old, "missing": self.missing}

    def as_keywords(self) -> dict[str, list[int]]:
        """The classes as keyword arguments of the metrics, such as `forget_classes`."""
        return {f"{role}_classes": list(classes) for role, classes in self.as_dict().items()}


def class_ids(name: str, classes: Any) -> list[int]:
    """The different class ids that an argument gives, sorted.

    Args:
        name (`str`):
            The argument, for errors.
        classes (`Iterable[int]`):
            The ids, in any order. NumPy's and torch's integers become Python's.

    Raises:
        InvalidInputError: If the argument or one of its items cannot be used.
    """
    if isinstance(classes, Iterable) and not isinstance(classes, (str, bytes, Mapping)):
        classes = list(classes)  # an iterator is read once, and a set has no places to name
    fix = "Give ids, not names: a ForgettingSplit (see split_dataset) and `model.config.label2id` have them."
    return sorted(set(checked(name, classes, _IDS, fix=fix)))


NO_ROLES = ClassRoles()
