"""Converts nodes to the dataclasses of the schema, and lists every error with its position.

It follows the annotations, so a new dataclass or field in the schema needs no change here.
Annotations can be str, int, float, bool, Literal, tuple, a dataclass, `X | None`, and a union of
dataclasses that differ in a Literal `kind`.
"""

import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union

from udaseg.recipe import scalars
from udaseg.recipe.hints import close, key_hint
from udaseg.recipe.scalars import WordError
from udaseg.recipe.text import Broken, Faults, Items, Node, Section, Word

_SCALARS: dict[object, Callable[[Word], object]] = {
    str: scalars.plain_text,
    int: scalars.whole_number,
    float: scalars.number,
    bool: scalars.truth,
}
_WORDS = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
}
_MAX_HINTS = 40

# Stands for a value that could not be read; its error is already listed.
UNREAD: Any = object()


class Reader:
    """Reads values by annotation; adds errors to `faults`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._hints = 0
        self._places: dict[str, str] = {}

    def place(self, key: str) -> str:
        """Return the position of a dotted key, or of the nearest enclosing section."""
        while key and key not in self._places:
            key = re.sub(r"(^|\.)[^.\[]*$|\[[0-9]+\]$", "", key)
        return self._places[key]

    def read(self, annotation: Any, node: Node, key: str = "") -> Any:
        """Return the value of `node`, or `UNREAD` after listing an error."""
        self._places.setdefault(key, node.where)
        if isinstance(node, Broken):
            return UNREAD
        origin = typing.get_origin(annotation)
        if origin in (Union, types.UnionType):
            return self._union(annotation, node, key)
        if isinstance(node, Word) and scalars.is_null(node) and annotation is not str:
            return self._fault(node, key, f"must be {described(annotation)}, got null")
        if is_dataclass(annotation):
            return self._section(annotation, node, key)
        if origin is tuple:
            return self._items(annotation, node, key)
        if not isinstance(node, Word):
            return self._fault(node, key, f"must be {described(annotation)}, got {_shape(node)}")
        try:
            if origin is Literal:
                return _choice(typing.get_args(annotation), node)
            return _SCALARS[annotation](node)
        except WordError as refused:
            return self._fault(node, key, str(refused))

    def _fault(self, node: Node, key: str, problem: str) -> Any:
        self._faults.add(node.where, key, problem)
        return UNREAD

    def _union(self, annotation: Any, node: Node, key: str) -> Any:
        members = typing.get_args(annotation)
        if isinstance(node, Word) and scalars.is_null(node) and types.NoneType in members:
            return None
        members = tuple(member for member in members if member is not types.NoneType)
        if len(members) == 1:
            return self.read(members[0], node, key)
        if all(is_dataclass(member) for member in members) and isinstance(node, Section):
            return self._kind(members, node, key)
        for member in members:
            trial = Reader(Faults())
            if (value := trial.read(member, node, key)) is not UNREAD:
                return value
        written = scalars.got(node) if isinstance(node, Word) else _shape(node)
        return self._fault(node, key, f"must be {described(annotation)}, got {written}")

    def _kind(self, members: Sequence[Any], node: Section, key: str) -> Any:
        kinds = {
            kind: member
            for member in members
            for kind in typing.get_args(type_hints(member)["kind"])
        }
        if "kind" not in node.entries:
            problem = f"is missing: one of {', '.join(kinds)}"
            self._faults.add(self._places[key], _join(key, "kind"), problem)
            return UNREAD
        position, word = node.entries["kind"]
        self._places[_join(key, "kind")] = position
        kind = self.read(Literal[tuple(kinds)], word, _join(key, "kind"))
        return UNREAD if kind is UNREAD else self._section(kinds[kind], node, key, f" of {kind}")

    def _section(self, cls: Any, node: Node, key: str, suffix: str = "") -> Any:
        if not isinstance(node, Section):
            names = ", ".join(part.name for part in fields(cls))
            problem = f"must be a section with {names}, got {_shape(node)}"
            return self._fault(node, key, problem)
        hints = type_hints(cls)
        values: dict[str, Any] = {}
        suggested: set[str] = set()
        for name, (position, child) in node.entries.items():
            if name in hints:
                self._places[_join(key, name)] = position
                values[name] = self.read(hints[name], child, _join(key, name))
            else:
                suggested.add(self._unknown(cls, node, key, name, suffix))
        for part in fields(cls):
            required = part.default is MISSING and part.default_factory is MISSING
            if required and part.name not in values:
                values[part.name] = UNREAD
                if part.name not in suggested:
                    problem = f"is missing: {described(hints[part.name])}"
                    self._faults.add(self._places[key], _join(key, part.name), problem)
        return UNREAD if any(value is UNREAD for value in values.values()) else cls(**values)

    def _unknown(self, cls: Any, node: Section, key: str, name: str, suffix: str) -> str:
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

    def _items(self, annotation: Any, node: Node, key: str) -> Any:
        item_types = typing.get_args(annotation)
        expected = described(annotation)
        if not isinstance(node, Items):
            written = scalars.got(node) if isinstance(node, Word) else _shape(node)
            example = ""
            if isinstance(node, Word) and (numbers := re.findall("[0-9]+", node.text)):
                length = len(numbers) if Ellipsis in item_types else len(item_types)
                example = f"; write [{', '.join((numbers * length)[:length])}]"
            return self._fault(node, key, f"must be {expected}, got {written}{example}")
        annotations = (
            [item_types[0]] * len(node.items) if Ellipsis in item_types else list(item_types)
        )
        if len(annotations) != len(node.items):
            return self._fault(node, key, f"must be {expected}, got {len(node.items)}")
        values = [
            self.read(part, item, f"{key}[{number}]")
            for number, (part, item) in enumerate(zip(annotations, node.items, strict=True))
        ]
        return UNREAD if any(value is UNREAD for value in values) else tuple(values)


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass."""
    return typing.get_type_hints(cls)


def described(annotation: Any) -> str:
    """Return a description of the values that an annotation allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][0]
    if origin is Literal:
        return (
            f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
        )
    if origin in (Union, types.UnionType):
        members = [described(member) for member in arguments if member is not types.NoneType]
        return " or ".join(dict.fromkeys(members)) + " or null" * (types.NoneType in arguments)
    if origin is tuple:
        plural = _WORDS[arguments[0]][1] if arguments[0] in _WORDS else "sections"
        return (
            f"a list of {plural}"
            if Ellipsis in arguments
            else f"a list of {len(arguments)} {plural}"
        )
    if is_dataclass(annotation):
        return "a section"
    return "null"


def _choice(options: Sequence[object], word: Word) -> object:
    numeric = all(isinstance(option, int) for option in options)
    value: object = word.text
    if numeric:
        value = scalars.whole_number(word)
    elif not word.quoted and word.text not in options:
        value = scalars.plain_text(word)
    if value in options:
        return value
    hint = close(word.text, [str(option) for option in options]) if not numeric else None
    suggestion = f"; did you mean '{hint}'?" if hint else ""
    listed = ", ".join(map(str, options))
    raise WordError(f"must be one of {listed}, got {scalars.got(word)}{suggestion}")


def _shape(node: Node) -> str:
    if isinstance(node, Word):
        return scalars.got(node)
    return "a list" if isinstance(node, Items) else "a section"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
