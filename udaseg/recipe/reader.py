"""Converts nodes to the dataclasses of the schema, and lists every error with its position.

It follows the annotations, so a new dataclass or field in the schema needs no change here.
Annotations can be str, int, float, bool, Literal, tuple, a dataclass, `X | None`, and a union of
dataclasses that differ in a Literal `kind`. A mapping has the sections of plug-ins by their names.
Bounds in `Annotated` are checked later, by `bounds.py`.
"""

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union

from udaseg.recipe import scalars
from udaseg.recipe.extensions import regularizer_section, unknown_regularizer
from udaseg.recipe.hints import key_hint
from udaseg.recipe.nodes import ErrorList, InvalidNode, ListNode, MappingNode, Node, ScalarNode
from udaseg.recipe.scalars import ScalarError
from udaseg.text import did_you_mean

_SCALARS: dict[object, Callable[[ScalarNode], object]] = {
    str: scalars.plain_text,
    int: scalars.whole_number,
    float: scalars.number,
    bool: scalars.boolean,
}
_TYPE_NAMES = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
}
_MAX_HINTS = 40

# Stands for a value that could not be read; its error is already listed.
INVALID: Any = object()


class Reader:
    """Reads values by annotation; adds errors to `faults`.

    Args:
        faults: Collects the errors.
        packages_missing: Packages are missing, so an unknown plug-in is no error of its own.
    """

    def __init__(self, faults: ErrorList, *, packages_missing: bool = False) -> None:
        self._faults = faults
        self._packages_missing = packages_missing
        self._hints = 0
        self._positions: dict[str, str] = {}

    def position_of(self, key: str) -> str:
        """Return the position of a dotted key, or of the nearest enclosing section."""
        while key and key not in self._positions:
            key = re.sub(r"(^|\.)[^.\[]*$|\[[0-9]+\]$", "", key)
        return self._positions[key]

    def read(self, annotation: Any, node: Node, key: str = "") -> Any:
        """Return the value of `node`, or `INVALID` after listing an error."""
        self._positions.setdefault(key, node.position)
        if isinstance(node, InvalidNode):
            return INVALID
        origin = typing.get_origin(annotation)
        if origin in (Union, types.UnionType):
            return self._read_union(annotation, node, key)
        if isinstance(node, ScalarNode) and scalars.is_null(node) and annotation is not str:
            return self._add_error(node, key, f"must be {describe_type(annotation)}, got null")
        if is_dataclass(annotation):
            return self._read_section(annotation, node, key)
        if origin is tuple:
            return self._read_list(annotation, node, key)
        if origin is Mapping:
            return self._read_plugins(node, key)
        if not isinstance(node, ScalarNode):
            return self._add_error(
                node, key, f"must be {describe_type(annotation)}, got {_describe_node(node)}"
            )
        try:
            if origin is Literal:
                return _read_choice(typing.get_args(annotation), node)
            return _SCALARS[annotation](node)
        except ScalarError as refused:
            return self._add_error(node, key, str(refused))

    def _add_error(self, node: Node, key: str, problem: str) -> Any:
        self._faults.add(node.position, key, problem)
        return INVALID

    def _read_union(self, annotation: Any, node: Node, key: str) -> Any:
        members = typing.get_args(annotation)
        if isinstance(node, ScalarNode) and scalars.is_null(node) and types.NoneType in members:
            return None
        members = tuple(member for member in members if member is not types.NoneType)
        if len(members) == 1:
            return self.read(members[0], node, key)
        if all(is_dataclass(member) for member in members) and isinstance(node, MappingNode):
            return self._read_by_kind(members, node, key)
        for member in members:
            trial = Reader(ErrorList())
            if (value := trial.read(member, node, key)) is not INVALID:
                return value
        written = (
            scalars.describe_scalar(node) if isinstance(node, ScalarNode) else _describe_node(node)
        )
        return self._add_error(node, key, f"must be {describe_type(annotation)}, got {written}")

    def _read_by_kind(self, members: Sequence[Any], node: MappingNode, key: str) -> Any:
        kinds = {
            kind: member
            for member in members
            for kind in typing.get_args(type_hints(member)["kind"])
        }
        if "kind" not in node.entries:
            problem = f"is missing: one of {', '.join(kinds)}"
            self._faults.add(self._positions[key], _join(key, "kind"), problem)
            return INVALID
        position, word = node.entries["kind"]
        self._positions[_join(key, "kind")] = position
        kind = self.read(Literal[tuple(kinds)], word, _join(key, "kind"))
        return (
            INVALID
            if kind is INVALID
            else self._read_section(kinds[kind], node, key, f" of {kind}")
        )

    def _read_section(self, cls: Any, node: Node, key: str, suffix: str = "") -> Any:
        if not isinstance(node, MappingNode):
            names = ", ".join(part.name for part in fields(cls))
            problem = f"must be a section with {names}, got {_describe_node(node)}"
            return self._add_error(node, key, problem)
        hints = type_hints(cls)
        values: dict[str, Any] = {}
        suggested: set[str] = set()
        for name, (position, child) in node.entries.items():
            if name in hints:
                self._positions[_join(key, name)] = position
                values[name] = self.read(hints[name], child, _join(key, name))
            else:
                suggested.add(self._add_unknown_key(cls, node, key, name, suffix))
        for part in fields(cls):
            required = part.default is MISSING and part.default_factory is MISSING
            if required and part.name not in values:
                values[part.name] = INVALID
                if part.name not in suggested:
                    problem = f"is missing: {describe_type(hints[part.name])}"
                    self._faults.add(self._positions[key], _join(key, part.name), problem)
        return INVALID if any(value is INVALID for value in values.values()) else cls(**values)

    def _read_plugins(self, node: Node, key: str) -> Any:
        """Return the settings of the regularizers of other packages, by their names."""
        if not isinstance(node, MappingNode):
            return self._add_error(node, key, f"must be a section, got {_describe_node(node)}")
        values: dict[str, Any] = {}
        for name, (position, child) in node.entries.items():
            path = _join(key, name)
            self._positions[path] = position
            if isinstance(child, ScalarNode) and scalars.is_null(child):
                continue
            section = regularizer_section(name)
            if section is not None:
                values[name] = self.read(section, child, path)
                continue
            values[name] = INVALID
            if not self._packages_missing:
                self._faults.add(position, path, unknown_regularizer(name))
        return INVALID if any(value is INVALID for value in values.values()) else values

    def _add_unknown_key(
        self, cls: Any, node: MappingNode, key: str, name: str, suffix: str
    ) -> str:
        """List an unknown key, and return the key that was probably meant."""
        self._hints += 1
        options = [part.name for part in fields(cls)]
        hint = None
        if self._hints <= _MAX_HINTS:
            hint = key_hint(name, key, options, tuple(node.entries))
        suggestion = f"; did you mean '{hint}'?" if hint else f"; known keys: {', '.join(options)}"
        problem = f"unknown key{suffix}{suggestion}"
        self._faults.add(node.entries[name][0], _join(key, name), problem)
        return hint or ""

    def _read_list(self, annotation: Any, node: Node, key: str) -> Any:
        item_types = typing.get_args(annotation)
        expected = describe_type(annotation)
        if not isinstance(node, ListNode):
            written = (
                scalars.describe_scalar(node)
                if isinstance(node, ScalarNode)
                else _describe_node(node)
            )
            example = ""
            if isinstance(node, ScalarNode) and (numbers := re.findall("[0-9]+", node.text)):
                length = len(numbers) if Ellipsis in item_types else len(item_types)
                example = f"; write [{', '.join((numbers * length)[:length])}]"
            return self._add_error(node, key, f"must be {expected}, got {written}{example}")
        annotations = (
            [item_types[0]] * len(node.items) if Ellipsis in item_types else list(item_types)
        )
        if len(annotations) != len(node.items):
            return self._add_error(node, key, f"must be {expected}, got {len(node.items)}")
        values = [
            self.read(part, item, f"{key}[{number}]")
            for number, (part, item) in enumerate(zip(annotations, node.items, strict=True))
        ]
        return INVALID if any(value is INVALID for value in values) else tuple(values)


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass, without `Annotated`."""
    return typing.get_type_hints(cls)


def describe_type(annotation: Any) -> str:
    """Return a description of the values that an annotation allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation][0]
    if origin is Literal:
        return (
            f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
        )
    if origin in (Union, types.UnionType):
        members = [describe_type(member) for member in arguments if member is not types.NoneType]
        return " or ".join(dict.fromkeys(members)) + " or null" * (types.NoneType in arguments)
    if origin is tuple:
        plural = _TYPE_NAMES[arguments[0]][1] if arguments[0] in _TYPE_NAMES else "sections"
        return (
            f"a list of {plural}"
            if Ellipsis in arguments
            else f"a list of {len(arguments)} {plural}"
        )
    if is_dataclass(annotation) or origin is Mapping:
        return "a section"
    return "null"


def _read_choice(options: Sequence[object], word: ScalarNode) -> object:
    numeric = all(isinstance(option, int) for option in options)
    value: object = word.text
    if numeric:
        value = scalars.whole_number(word)
    elif not word.quoted and word.text not in options:
        value = scalars.plain_text(word)
    if value in options:
        return value
    hint = did_you_mean(word.text, [str(option) for option in options]) if not numeric else None
    suggestion = f"; did you mean '{hint}'?" if hint else ""
    listed = ", ".join(map(str, options))
    raise ScalarError(f"must be one of {listed}, got {scalars.describe_scalar(word)}{suggestion}")


def _describe_node(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return scalars.describe_scalar(node)
    return "a list" if isinstance(node, ListNode) else "a section"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
