"""Checks values by their types: pydantic checks, and the errors are those of this package."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import MISSING
from functools import cache
from numbers import Real
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from .errors import InvalidInputError


def plain_number(value: Any) -> Any:
    """Returns a number or boolean of NumPy or torch as Python's own, and anything else as it is."""
    if type(value) in (bool, int, float, str, NoneType):
        return value
    if "bool" in str(getattr(value, "dtype", "")) and not getattr(value, "shape", ()):
        return bool(value)
    try:
        return operator.index(value)
    except TypeError:
        return float(value) if isinstance(value, Real) else value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("It is blank: name it.")
    return value


def ordered_list(value: Any) -> Any:
    """Returns the items of an ordered collection as a list. Sets are refused: processes see other orders."""
    if isinstance(value, (str, bytes)) or (not isinstance(value, Iterable) and plain_number(value) is not None):
        written = "it in a list" if isinstance(value, str) else f"[{value!r}]"  # text may be the name of a class
        raise ValueError(f"Write {written}.")
    if isinstance(value, (Mapping, Set)) or not isinstance(value, Iterable):
        raise ValueError("Pass a list, which has an order.")
    return list(value)


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [index for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"Item {twice[0]} repeats an earlier one: remove it.")
    return values


def _writable(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which no file can hold
        raise ValueError("text that UTF-8 can encode") from None
    return str.__str__(value)


# Numbers. Those of NumPy and torch are accepted, numbers in text are not.
Whole = Annotated[int, Strict(), BeforeValidator(plain_number)]

AnyNumber = Annotated[float, Strict(), BeforeValidator(plain_number)]
Number = Annotated[AnyNumber, AllowInfNan(False)]
Flag = Annotated[bool, Strict(), BeforeValidator(plain_number)]
Count = Annotated[Whole, Field(ge=1, description="a whole number from 1 up")]
NotNegative = Annotated[Number, Field(ge=0, description="a finite number of at least 0")]
NotNegativeWhole = Annotated[Whole, Field(ge=0, description="a whole number from 0 up")]
Share = Annotated[Number, Field(gt=0, le=1, description="a number in (0, 1]")]
BelowOne = Annotated[Number, Field(ge=0, lt=1, description="a number in [0, 1)")]

# Text that a file can hold.
Text = Annotated[str, Strict(), AfterValidator(_writable)]

OptionalText = Annotated[Text | None, Field(description="text that UTF-8 can encode, or None")]

# Classes, by name or by id.
ClassName = Annotated[Text, AfterValidator(_not_blank)]

ClassId = Annotated[Whole, Field(ge=0)]

ClassRef = Annotated[
    ClassName | ClassId, Field(description="a class name (text) or a class id (a whole number from 0 up)")
]

ClassRefs = Annotated[
    list[ClassRef],
    AfterValidator(_distinct),
    BeforeValidator(ordered_list),
    Field(description="a list of different class names or ids"),
]

SomeClassRefs = Annotated[ClassRefs, Field(min_length=1, description="a list of at least one class name or id")]

ClassIds = Annotated[
    list[ClassId],
    AfterValidator(_distinct),
    Field(min_length=1, description="a list of different class ids from 0"),
]


def auto_or(kind: Any) -> PlainValidator:
    """Returns a validator for a field that is a number or "auto". It reads numbers in text, for command lines.

    Args:
        kind (a type):
            Type of the number.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def read(value: Any) -> Any:
        if isinstance(value, str) and value != "auto":
            value = float(value)
        return value if isinstance(value, str) else adapter.validate_python(value)

    return PlainValidator(read)


def checked(
    name: str, value: Any, kind: Any, *, fix: str = "", error: Callable[..., Exception] = InvalidInputError
) -> Any:
    """Returns a value if it fits a type, as pydantic reads it.

    Args:
        name (`str`):
            Name of what holds the value, for the error.
        value (`Any`):
            The value.
        kind (a type):
            A type that pydantic knows. `Field(description=...)` in it says what is expected.
        fix (`str`, *optional*, defaults to `""`):
            What to do, for the error.
        error (`Callable`, *optional*, defaults to [`InvalidInputError`]):
            Creates the error from the same arguments as [`InvalidInputError`].

    Raises:
        InvalidInputError: If the value does not fit the type.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as problem:
        raise _refused(name, value, kind, problem, fix, error) from None
    except RecursionError:
        raise error(name, value, "a value that is not nested endlessly", fix) from None


def check_fields(
    instance: Any,
    *,
    only: Callable[[str], bool] | None = None,
    kinds: Mapping[str, Any] = MappingProxyType({}),
    prefix: str = "",
    fix: str = "",
) -> None:
    """Checks the fields of a dataclass by their annotations. Fields annotated with plain `str` are not checked.

    Numbers of NumPy or torch are replaced by Python's own. So are numbers in text, if the field is a number or "auto".

    Args:
        instance (a dataclass):
            The dataclass.
        only (`Callable[[str], bool]`, *optional*):
            Whether the field with this name is checked. By default all fields are.
        kinds (`Mapping[str, Any]`, *optional*):
            Types by name, for fields whose annotations say too little.
        prefix (`str`, *optional*, defaults to `""`):
            Prefix of the names in errors, such as `--`.
        fix (`str`, *optional*, defaults to `""`):
            What to do, for errors.

    Raises:
        InvalidInputError: If a field holds a value that does not fit.
    """
    for name, kind in {**_kinds(type(instance)), **kinds}.items():  # type: ignore[arg-type]
        if only is None or only(name):
            value = getattr(instance, name)
            try:
                result = checked(f"{prefix}{name}", value, kind, fix=fix)
            except InvalidInputError as error:
                raise error if error.fix else _with_default(error, type(instance), name) from None
            # An integer stays one, so that files hold 1 and not 1.0.
            if type(result) in (bool, int, float) and (type(value) not in (bool, int, float) or _is_text(kind)):
                setattr(instance, name, result)


# pydantic's words for what it expects, in words that say what to write.
_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "True or False",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid dictionary": "a dictionary",
}

# What to do, by pydantic's type of error, if nothing else says it.
_ADVICE = {
    "int_type": "Give a whole number, such as 1, without quotation marks.",
    "float_type": "Give a number, such as 0.5, without quotation marks.",
    "finite_number": "Give a finite number.",
    "bool_type": "Give True or False, without quotation marks.",
    "string_type": "Give text, in quotation marks.",
    "list_type": "Give a list.",
    "dict_type": "Give a dictionary.",
}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _kinds(cls: type) -> dict[str, Any]:
    """Returns the types to check, by field: those of numbers, choices and annotated fields."""
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    hints = get_type_hints(cls, include_extras=True)
    kinds = {name: _kind(hints[name]) for name, field in fields.items() if field.init}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _with_default(error: InvalidInputError, cls: type, name: str) -> InvalidInputError:
    """Returns the same error with the advice to use the default."""
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING:
        return error
    fix = f"Leave it out to have {getattr(default, 'value', default)!r}."
    return type(error)(error.name, error.value, error.expected, fix)


def _is_text(kind: Any) -> bool:
    return get_origin(kind) is Annotated and get_args(kind)[0] is str


def _kind(hint: Any) -> Any:
    """Returns the type to check for an annotation, or `None` if there is nothing to check."""
    if hint in (int, float, bool, NoneType):
        return {int: Whole, float: AnyNumber, bool: Flag}.get(hint, NoneType)
    if get_origin(hint) in (Annotated, Literal):
        return hint
    if get_origin(hint) in (Union, UnionType):
        kinds = [_kind(part) for part in get_args(hint)]
        return None if None in kinds else Union[tuple(kinds)]  # noqa: UP007 - the parts are known at run time only
    return None


def _refused(
    name: str, value: Any, kind: Any, problem: ValidationError, fix: str, error: Callable[..., Exception]
) -> Exception:
    """Returns the error of this package for what pydantic found."""
    found = problem.errors(include_url=False)
    first = found[0]["loc"][:1]
    if first and isinstance(first[0], int):  # an item of a list: only the first bad one is named
        found = [entry for entry in found if entry["loc"][:1] == first]
    places = list(zip(*(entry["loc"] for entry in found), strict=False))
    place = [keys[0] for keys in itertools.takewhile(lambda keys: len(set(keys)) == 1, places)]
    if place[-1:] == ["[key]"]:  # a key of a dictionary: the error names the dictionary
        place = place[:-2]
    inner = kind
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else value[key]  # a required key may be missing
        inner = _inside(inner)
    said = _description(inner) or " or ".join(dict.fromkeys(_expected(entry["msg"]) for entry in found))
    reasons = [str(entry["ctx"]["error"]) for entry in found if entry["type"] == "value_error"]
    advice = " ".join(dict.fromkeys(reason for reason in reasons if reason.endswith("."))) or fix
    advice = advice or next((_ADVICE[entry["type"]] for entry in found if entry["type"] in _ADVICE), "")
    return error(name + "".join(f"[{key!r}]" for key in place), value, said, advice)


def _description(kind: Any) -> str | None:
    parts = get_args(kind) if get_origin(kind) is Annotated else ()
    said = [part.description for part in parts if isinstance(part, FieldInfo) and part.description]
    if not said and get_origin(kind) in (Union, UnionType):  # an optional value
        described = [_description(part) or ("None" if part is NoneType else "") for part in get_args(kind)]
        return " or ".join(described) if all(described) else None
    return said[-1] if said else None


def _inside(kind: Any) -> Any:
    """Returns the type of the items of a list or the values of a dictionary."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    options = [part for part in get_args(kind) if get_origin(part) in (list, dict, tuple)]
    kind = options[0] if get_origin(kind) in (Union, UnionType) and options else kind
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) is dict else arguments[0] if arguments else Any


def _expected(message: str) -> str:
    said = message.removeprefix("Input should be ").removeprefix("Value error, ").partition(" or instance of ")[0]
    return _PLAIN.get(said, said)
