"""Checks a YAML document with pydantic, and says where each error is and what to write.

pydantic decides what is wrong. The paths of its errors contain tags of unions, and its messages
contain neither the file nor the text of the value. This module therefore builds each message from
the annotation and the node at the path.
"""

import functools
import itertools
import json
import operator
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen
from pydantic import Field, TypeAdapter, ValidationError

from udaseg import documents
from udaseg.documents import Document, MappingNode, Node, ScalarNode
from udaseg.sizes import ShortSide, size_advice
from udaseg.text import did_you_mean, shortened

T = TypeVar("T")
FileName = Annotated[
    str,
    Field(pattern="^[A-Za-z0-9_][A-Za-z0-9._-]*$"),
    documents.Must("letters, digits, '.', '_' and '-'"),
]
"""A name that is also the name of a folder."""

_TYPE_NAMES = {
    str: ("text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
}
_BOUND_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_MAX_HINTS = 40
_MAX_LISTED = 20
# stands for a value that no field accepts: JSON cannot hold it, or YAML readers disagree about it
_UNREADABLE = {"?": None}


KeyHint = Callable[[str, str, Sequence[str], Sequence[str]], str | None]
"""Returns the key that was probably meant, given the unknown key, the dotted key of its section,
the keys that the section can have, and those that it has.
"""


def _similar_key(
    word: str, _section: str, options: Sequence[str], _written: Sequence[str]
) -> str | None:
    """Return the most similar key that a section can have."""
    return did_you_mean(word, options)


class FieldType(NamedTuple):
    """An annotation in parts: the type itself, its constraints, and whether it can be null."""

    type: Any
    constraints: Sequence[Any]
    optional: bool


@dataclass
class _Place:
    """What a path of pydantic leads to: a key, its value, and the annotation of the value."""

    key: str
    position: str
    node: Node
    annotation: Any
    is_missing: bool = False
    is_unknown: bool = False


def validate(
    cls: type[T],
    document: Document,
    key: str = "",
    *,
    key_hint: KeyHint = _similar_key,
    yaml_1_1: bool = False,
) -> T | None:
    """Return the instance of a dataclass that a document describes.

    After a problem it is None, unless unknown keys are the only problems.

    Args:
        cls: The dataclass. Its annotations are those that pydantic knows, `Must` and `IfMissing`.
        document: The document; every error becomes a problem of it.
        key: Dotted key of `document.root`; "" for the whole file.
        key_hint: Returns the key that was probably meant.
        yaml_1_1: Refuse text that other YAML readers read as another type.
    """
    leaf_value = _unambiguous_value if yaml_1_1 else documents.scalar_value
    text = json.dumps(documents.plain_value(document.root, leaf_value))
    adapter = _adapter(cast("Hashable", cls))
    try:
        value = cast("T", adapter.validate_json(text, strict=True, extra="forbid"))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        _Explanation(cls, document, key, key_hint).add_all(errors)
        if any(each["type"] != "unexpected_keyword_argument" for each in errors):
            return None
        value = cast("T", adapter.validate_json(text, strict=True, extra="ignore"))
    return value if _literals_are_exact(value, document.root, document, key) else None


def _literals_are_exact(value: Any, node: MappingNode, document: Document, key: str) -> bool:
    """Return whether no choice of whole numbers was written as 8.0 or true, which equal some."""
    before = len(document.problems.lines)
    for name, (_, child) in node.entries.items():
        path, part = documents.join_key(key, name), getattr(value, name, None)
        annotation = _entry_type(type(value), name)
        items = [(path, part, child)]
        if isinstance(part, tuple) and isinstance(child, documents.ListNode):
            keys = [f"{path}[{index}]" for index in range(len(part))]
            items = list(zip(keys, part, child.items, strict=True))
        for item_key, item, item_node in items:
            if is_dataclass(item) and isinstance(item_node, MappingNode):
                _literals_are_exact(item, item_node, document, item_key)
            elif (
                isinstance(item_node, ScalarNode)
                and typing.get_origin(field_type(annotation).type) is Literal
                and type(documents.scalar_value(item_node)) is not type(item)
            ):
                problem = _type_problem(annotation, item_node)
                document.problems.add(item_node.position, item_key, problem)
    return len(document.problems.lines) == before


@cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", cls))


def _unambiguous_value(node: ScalarNode | documents.InvalidNode) -> object:
    if isinstance(node, documents.InvalidNode):
        return _UNREADABLE
    value = documents.scalar_value(node)
    is_empty = not node.text.strip()
    is_ambiguous = isinstance(value, str) and not node.quoted and documents.yaml_type(node.text)
    return _UNREADABLE if is_empty or is_ambiguous else value


class _Explanation:
    """Turns the errors of pydantic into problems."""

    def __init__(self, cls: type, document: Document, key: str, key_hint: KeyHint) -> None:
        self._root = _Place(key, document.root.position, document.root, cls)
        self._problems, self._key_hint = document.problems, key_hint
        self._suggested: set[str] = set()
        self._listed: set[str] = set()
        self._hints = 0

    def add_all(self, errors: Sequence[Any]) -> None:
        """Add the problems; a key that a misspelt one stands for is not reported as missing."""
        places = [(error, self._place(error["loc"], error["type"])) for error in errors]
        placed = [(error, place) for error, place in places if place is not None]
        # a union reports every member; the one that went deepest is the one that was meant
        keys = {place.key for _, place in placed}
        enclosing = {key[: end.start()] for key in keys for end in re.finditer(r"[.\[]", key)}
        reported: set[str] = set()
        for error, place in sorted(placed, key=lambda pair: pair[1].is_missing):
            known = place.key in enclosing or place.key in reported
            is_invalid = isinstance(place.node, documents.InvalidNode)
            if known or is_invalid or (place.is_missing and place.key in self._suggested):
                continue
            reported.add(place.key)
            is_value = not place.is_missing and not place.is_unknown
            position = place.node.position if is_value else place.position
            self._problems.add(position, place.key, self._problem(error, place))

    def _place(self, path: Sequence[str | int], error: str) -> _Place | None:
        """Return the place of a path; None if it is about a member of a union of another kind."""
        place = self._root
        for part in path:
            kinds = _kinds(place.annotation)
            members = {member.__name__: member for member in kinds.values()}
            if part in members:
                kind = documents.text_at(place.node, "kind")
                if kinds.get(kind, members[part]) is not members[part]:
                    return None
                place = replace(place, annotation=members[part])
            elif part in kinds:
                place = replace(place, annotation=kinds[part])
            else:
                place = self._below(place, part, error)
        kinds = _kinds(place.annotation)
        if kinds and isinstance(place.node, MappingNode) and not place.is_missing:
            at, node = place.node.entries.get("kind", (place.position, place.node))
            key = documents.join_key(place.key, "kind")
            is_missing = "kind" not in place.node.entries
            return _Place(key, at, node, Literal[tuple(kinds)], is_missing=is_missing)
        return place

    def _below(self, place: _Place, part: str | int, error: str) -> _Place:
        """Return the place of an item or entry; the same one if `part` is no key."""
        node = place.node
        if (
            isinstance(node, documents.ListNode)
            and isinstance(part, int)
            and part < len(node.items)
        ):
            key, item = f"{place.key}[{part}]", node.items[part]
            return _Place(key, item.position, item, _item_type(place.annotation, part))
        if not isinstance(node, MappingNode) or not isinstance(part, str):
            return place
        annotation = _entry_type(place.annotation, part)
        if part in node.entries:
            position, child = node.entries[part]
            if annotation is None:  # an unknown key is explained from its section
                key = documents.join_key(place.key, part)
                return _Place(key, position, node, place.annotation, is_unknown=True)
            return _Place(documents.join_key(place.key, part), position, child, annotation)
        if error == "missing" and annotation is not None:
            key = documents.join_key(place.key, part)
            return _Place(key, place.position, node, annotation, is_missing=True)
        return place

    def _problem(self, error: Any, place: _Place) -> str:
        kind, node = error["type"], place.node
        if place.is_missing:
            noted = field_type(place.annotation).constraints
            advice = [each.advice for each in noted if isinstance(each, documents.IfMissing)]
            needed = _must(noted) or _annotation_text(place.annotation)
            return "; ".join([f"is missing: {needed}", *advice])
        if "error" in error.get("ctx", {}) and not field_type(place.annotation).constraints:
            return str(error["ctx"]["error"])
        if place.is_unknown and isinstance(node, MappingNode):
            return self._unknown_key(place, node, error["loc"])
        expected, constraints, _ = field_type(place.annotation)
        if must := _must(constraints):
            is_text = expected is str and isinstance(node, ScalarNode)
            why = documents.why_not(str, cast("ScalarNode", node)) if is_text else ""
            value = documents.plain_value(node)
            is_typed = isinstance(node, ScalarNode) and not isinstance(value, str)
            written = _describe_node(node) if is_typed else shortened(repr(value), 100)
            if isinstance(value, list) and len(value) > _MAX_LISTED:
                written = f"a list of {len(value)}"
            return f"must be {must}, got {written}{why}"
        if kind in _BOUND_ERRORS:
            return f"must be {_range_text(constraints)}, got {_describe_node(node)}"
        if isinstance(node, documents.ListNode) and kind in ("too_short", "too_long", "missing"):
            return f"must {_length_text(place.annotation)}, got {len(node.items)}"
        return _type_problem(place.annotation, node)

    def _unknown_key(self, place: _Place, node: MappingNode, path: Sequence[str | int]) -> str:
        name = str(path[-1])
        section = place.key.removesuffix(name).removesuffix(".")
        cls = _section(place.annotation)
        options = [part.name for part in fields(cls)]
        self._hints += 1
        hint = None
        if self._hints <= _MAX_HINTS:
            hint = self._key_hint(name, section, options, tuple(node.entries))
        if hint is not None:
            self._suggested.add(documents.join_key(section, hint))
        of_kind = f" of {path[-2]}" if len(path) > 1 and path[-2] in _own_kinds(cls) else ""
        is_first = section not in self._listed
        self._listed.add(section)
        known = f"; known keys: {', '.join(options)}" if is_first else ""
        known = f"; did you mean '{hint}'?" if hint else known
        return f"unknown key{of_kind}{known}"


def _type_problem(annotation: Any, node: Node) -> str:
    """Return what a value of the wrong type must be, what it is, and what to write instead."""
    expected = field_type(annotation).type
    if is_dataclass(expected) and not documents.is_null(node):
        listed = f"a section with {', '.join(part.name for part in fields(expected))}"
        return f"must be {listed}, got {_describe_node(node)}"
    problem = f"must be {_annotation_text(annotation)}, got {_describe_node(node)}"
    if not isinstance(node, ScalarNode) or documents.is_null(node):
        return problem
    members = list(_members(annotation))
    is_size = any(typing.get_origin(each) is tuple for each in members)
    if is_size and (advice := size_advice(node.text, can_be_short=ShortSide in members)):
        return f"{problem}; write {advice}"
    if typing.get_origin(expected) is tuple and (numbers := re.findall("[0-9]+", node.text)):
        of = typing.get_args(expected)
        length = len(numbers) if Ellipsis in of else len(of)
        return f"{problem}; write [{', '.join((numbers * length)[:length])}]"
    if typing.get_origin(expected) is not Literal:
        simple = next((each for each in _members(annotation) if each in _TYPE_NAMES), None)
        return f"{problem}{documents.why_not(simple, node)}" if simple else problem
    options = typing.get_args(expected)
    if all(isinstance(option, int) for option in options):
        return f"{problem}{documents.why_not(int, node)}"
    if hint := did_you_mean(node.text, list(map(str, options))):
        return f"{problem}; did you mean '{hint}'?"
    kind = "" if node.quoted or not node.text else documents.yaml_type(node.text)
    return f"{problem}, which YAML reads as {kind}" if kind else problem


def _length_text(annotation: Any) -> str:
    parts = _single(field_type(annotation).constraints)
    least = next((part.min_length for part in parts if isinstance(part, MinLen)), None)
    most = next((part.max_length for part in parts if isinstance(part, MaxLen)), None)
    if least is not None and most is not None:
        return f"have {least} to {most} items"
    if least is not None or most is not None:
        limit, count = ("at least", least) if least is not None else ("at most", most)
        return f"have {limit} {count} item{'s' * (count != 1)}"
    return f"be {_annotation_text(annotation)}"


def field_type(annotation: Any) -> FieldType:
    """Return the parts of an annotation."""
    constraints: list[Any] = []
    optional = False
    while True:
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) is Annotated:
            annotation, *more = arguments
            constraints += more
        elif _is_union(annotation) and types.NoneType in arguments:
            optional = True
            members = [each for each in arguments if each is not types.NoneType]
            annotation = functools.reduce(operator.or_, members)
        else:
            return FieldType(annotation, constraints, optional)


def _range_text(constraints: Sequence[Any]) -> str:
    """Return the range of values that constraints allow; "" if they allow all."""
    single = _single(constraints)
    lower = next((each for each in single if isinstance(each, Ge | Gt)), None)
    upper = next((each for each in single if isinstance(each, Le | Lt)), None)
    low = None if lower is None else lower.ge if isinstance(lower, Ge) else lower.gt
    high = None if upper is None else upper.le if isinstance(upper, Le) else upper.lt
    if lower is not None and upper is not None:
        opening, closing = "(["[isinstance(lower, Ge)], ")]"[isinstance(upper, Le)]
        return f"in {opening}{low}, {high}{closing}"
    if lower is not None:
        return f"at least {low}" if isinstance(lower, Ge) else f"above {low}"
    if upper is not None:
        return f"at most {high}" if isinstance(upper, Le) else f"below {high}"
    return ""


def _single(constraints: Sequence[Any]) -> list[Any]:
    """Return constraints with those that stand for several replaced by them."""
    parts = [list(each) if isinstance(each, Interval | Len) else [each] for each in constraints]
    return list(itertools.chain.from_iterable(parts))


def _must(constraints: Sequence[Any]) -> str | None:
    return next((each.be for each in constraints if isinstance(each, documents.Must)), None)


def _annotation_text(annotation: Any) -> str:
    """Return a description of the values that an annotation allows."""
    expected, _, optional = field_type(annotation)
    return f"{_describe_type(expected)}{' or null' * optional}"


def _describe_type(expected: Any) -> str:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected in _TYPE_NAMES:
        return _TYPE_NAMES[expected][0]
    if origin is Literal:
        several = len(arguments) > 1
        return f"one of {', '.join(map(str, arguments))}" if several else str(arguments[0])
    if _is_union(expected):
        return " or ".join(dict.fromkeys(map(_annotation_text, arguments)))
    if origin in (tuple, list):
        of = field_type(arguments[0]).type
        plural = _TYPE_NAMES[of][1] if of in _TYPE_NAMES else "sections"
        has_length = origin is tuple and Ellipsis not in arguments
        return f"a list of {len(arguments)} {plural}" if has_length else f"a list of {plural}"
    keys = [part.name for part in fields(expected)] if is_dataclass(expected) else []
    return f"a section with {keys[0]}" if len(keys) == 1 else "a section"


def _describe_node(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "a list" if isinstance(node, documents.ListNode) else "a section"
    written = "null" if documents.is_null(node) else shortened(node.text)
    return f"the text '{written}'" if node.quoted else written or "nothing"


def _kinds(annotation: Any) -> dict[Any, type]:
    """Return the members of a union of dataclasses by their `kind`; empty for other annotations."""
    expected = field_type(annotation).type
    members = typing.get_args(expected) if _is_union(expected) else ()
    if not members or not all(is_dataclass(member) for member in members):
        return {}
    return {kind: member for member in members for kind in _own_kinds(member)}


def _own_kinds(cls: Any) -> tuple[Any, ...]:
    return typing.get_args(_hints(cls).get("kind"))


def _item_type(annotation: Any, index: int) -> Any:
    """Return the annotation of an item of a list or tuple, which may be a member of a union."""
    for member in _members(annotation):
        arguments = typing.get_args(member)
        if typing.get_origin(member) in (list, tuple):
            return arguments[0 if Ellipsis in arguments else min(index, len(arguments) - 1)]
    return None


def _entry_type(annotation: Any, name: str) -> Any:
    """Return the annotation of an entry of a section or mapping; None if there is none."""
    for member in _members(annotation):
        if typing.get_origin(member) is dict:
            return typing.get_args(member)[1]
    return _hints(_section(annotation)).get(name)


def _section(annotation: Any) -> Any:
    """Return the dataclass that an annotation allows, if any."""
    return next((member for member in _members(annotation) if is_dataclass(member)), None)


def _members(annotation: Any) -> list[Any]:
    expected = field_type(annotation).type
    members = typing.get_args(expected) if _is_union(expected) else (expected,)
    return [field_type(member).type for member in members]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(cls, include_extras=True) if is_dataclass(cls) else {}


def sections(cls: type) -> list[type]:
    """Return a dataclass and every dataclass in its fields, each once."""
    found: dict[type, None] = {}
    waiting: list[Any] = [cls]
    while waiting:
        annotation = waiting.pop(0)
        if not isinstance(annotation, type) or not is_dataclass(annotation):
            waiting += typing.get_args(annotation)
        elif annotation not in found:
            found[annotation] = None
            waiting += _hints(annotation).values()
    return list(found)
