"""Bounds of values: written at the field, as `Annotated[float, Ge(0)]`, and checked here.

The constraints are those of `annotated_types` (Ge, Gt, Le, Lt, Interval, MinLen) and `TextPattern`;
other annotations are ignored.
"""

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen, Predicate

Size = tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class TextPattern(GroupedMetadata):
    """Text that matches a pattern from its first to its last character."""

    pattern: str
    """A regular expression."""
    allowed: str
    """What it allows, as messages show it."""

    def __iter__(self) -> Iterator[object]:
        yield Predicate(self.matches)

    def matches(self, text: str) -> bool:
        """Return whether the text matches."""
        return re.fullmatch(self.pattern, text) is not None


def bound_problems(section: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what the value must be) for every value outside the bounds of its field.

    Args:
        section: An instance of a dataclass whose fields may be annotated with bounds.
        key: Dotted key of the section; "" for the whole recipe.
    """
    hints = _bounded_hints(section.__class__)
    for part in fields(section):
        path = f"{key}.{part.name}" if key else part.name
        yield from _value_problems(hints[part.name], getattr(section, part.name), path)


def _value_problems(annotation: Any, value: Any, key: str) -> Iterator[tuple[str, str]]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_dataclass(value):
        yield from bound_problems(value, key)
    elif origin is Annotated:
        if problem := _problem(arguments[1:], value):
            yield key, problem
        yield from _value_problems(arguments[0], value, key)
    elif origin in (Union, types.UnionType):
        fitting = next((member for member in arguments if _fits(member, value)), None)
        yield from _value_problems(fitting, value, key)
    elif isinstance(value, tuple):
        items = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        for number, (item, each) in enumerate(zip(items, value, strict=True)):
            yield from _value_problems(item, each, f"{key}[{number}]")
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _value_problems(arguments[1], each, f"{key}.{name}")


def unreadable_fields(section: type) -> list[str]:
    """Return the fields of a dataclass, and of those in it, whose types a recipe cannot hold."""
    hints = _bounded_hints(section)
    return [part.name for part in fields(section) if not _is_readable(hints[part.name])]


def _is_readable(annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _is_readable(arguments[0])
    if origin is Literal:
        return all(isinstance(each, str | int) for each in arguments)
    if origin in (Union, types.UnionType, tuple):
        return all(each in (Ellipsis, types.NoneType) or _is_readable(each) for each in arguments)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return not unreadable_fields(annotation)
    return annotation in (str, int, float, bool)


def _fits(annotation: Any, value: object) -> bool:
    """Return whether the value is of this member of a union."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _fits(arguments[0], value)
    if origin is Literal:
        return value in arguments
    # a float may be written as a whole number
    return isinstance(value, (float, int) if annotation is float else origin or annotation)


def _problem(constraints: Sequence[object], value: Any) -> str | None:
    """Return what the value must be and what it is, or None if it meets all constraints."""
    single: list[object] = []
    for constraint in constraints:
        single += constraint if isinstance(constraint, Interval) else [constraint]
    for constraint in single:
        if isinstance(constraint, TextPattern) and not constraint.matches(value):
            return f"must be {constraint.allowed}, got {value!r}"
        if isinstance(constraint, MinLen) and len(value) < constraint.min_length:
            least = constraint.min_length
            return f"must have at least {least} item{'s' * (least > 1)}, got {len(value)}"
    lower = next((each for each in single if isinstance(each, Ge | Gt)), None)
    upper = next((each for each in single if isinstance(each, Le | Lt)), None)
    if _is_above(value, lower) and _is_below(value, upper):
        return None
    return f"must be {_range_text(lower, upper)}, got {value}"


def _is_above(value: Any, bound: Ge | Gt | None) -> bool:
    if bound is None:
        return True
    return bool(value >= bound.ge if isinstance(bound, Ge) else value > bound.gt)


def _is_below(value: Any, bound: Le | Lt | None) -> bool:
    if bound is None:
        return True
    return bool(value <= bound.le if isinstance(bound, Le) else value < bound.lt)


def _range_text(lower: Ge | Gt | None, upper: Le | Lt | None) -> str:
    low = lower.ge if isinstance(lower, Ge) else None if lower is None else lower.gt
    high = upper.le if isinstance(upper, Le) else None if upper is None else upper.lt
    if lower is not None and upper is not None:
        opening, closing = "(["[isinstance(lower, Ge)], ")]"[isinstance(upper, Le)]
        return f"in {opening}{low}, {high}{closing}"
    if lower is not None:
        return f"at least {low}" if isinstance(lower, Ge) else f"above {low}"
    return f"at most {high}" if isinstance(upper, Le) else f"below {high}"


@cache
def _bounded_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)
