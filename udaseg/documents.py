"""Reads YAML to nodes that know their position, and collects all problems of a file.

PyYAML's composer and constructor follow aliases and tags and convert scalars by the rules of YAML
1.1, so this module uses only its event stream. It is the one module that reads YAML.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml  # noqa: TID251
from yaml.resolver import Resolver  # noqa: TID251

from udaseg.errors import UdasegError
from udaseg.text import UNSAFE, UNSAFE_IN_VALUE, shortened

MAX_DEPTH = 32
_MAX_LISTED = 100
_MAX_DIGITS = 18
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)
_OTHER_BASE = re.compile(r"[-+]?0[xXbBoO][0-9a-fA-F_]+")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*")
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_TAGS = {"bool": "a truth value", "null": "null", "int": "a number", "float": "a number"}
_TAGS |= {"timestamp": "a date", "merge": "a merge key", "value": "a default value"}


@dataclass(frozen=True)
class DocumentKind:
    """A kind of YAML file.

    Attributes:
        title: What messages call such a file.
        error: The error for a wrong one.
        max_bytes: The largest size that is read.
        max_nodes: The largest number of values that is read.
        listing: The command that lists the ones that exist, as messages end; may be empty.
        plain_lines: Refuse invisible characters and text of several lines.
    """

    title: str
    error: type[UdasegError]
    max_bytes: int
    max_nodes: int
    listing: str = ""
    plain_lines: bool = True


@dataclass(frozen=True)
class Must:
    """Says at a field, in its `Annotated`, what its value must be, as messages show it."""

    be: str


@dataclass(frozen=True)
class IfMissing:
    """Says at a field, in its `Annotated`, how to give its value when it is missing."""

    advice: str


@dataclass(frozen=True)
class ScalarNode:
    """A scalar as written, without quotes; a quoted or block scalar is always text."""

    text: str
    quoted: bool
    position: str


@dataclass(frozen=True)
class ListNode:
    """A list."""

    items: list["Node"]
    position: str


@dataclass(frozen=True)
class MappingNode:
    """A mapping: each key with its own position and its value."""

    entries: dict[str, tuple[str, "Node"]]
    position: str


@dataclass(frozen=True)
class InvalidNode:
    """A node whose problem is already listed."""

    position: str


Node = ScalarNode | ListNode | MappingNode | InvalidNode
PositionOf = Callable[[int, int], str]
"""Returns the position to show for a line and a column, both from 1."""


class Problems:
    """Collects all problems of a file, to report them at once."""

    def __init__(self, error: type[UdasegError]) -> None:
        self.lines: list[str] = []
        self._error = error

    def add(self, position: str, key: str, problem: str) -> None:
        """Add a problem with its position and dotted key ("" for the whole file)."""
        place = f"{position}: {shortened(key, 80)}" if key else position
        self.lines.append(f"{place}: {problem}")

    def failure(self) -> UdasegError:
        """Return the error with all problems, one per line."""
        listed = self.lines[:_MAX_LISTED]
        if len(self.lines) > _MAX_LISTED:
            listed.append(f"… and {len(self.lines) - _MAX_LISTED} more")
        return self._error("\n".join(listed))

    def raise_if_any(self) -> None:
        """Raise the error if a problem was added."""
        if self.lines:
            raise self.failure()


def read_text(path: Path, kind: DocumentKind) -> str:
    """Return the text of a YAML file, without a leading byte order mark."""
    name = shortened(str(path), 300)
    try:
        if not path.exists():
            raise kind.error(f"{name}: no such file{kind.listing}")
        if not path.is_file():
            raise kind.error(f"{name}: not a file; a {kind.title} is a YAML file")
        with path.open("rb") as file:
            data = file.read(kind.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise kind.error(f"{name}: cannot be read: {error}") from error
    if len(data) > kind.max_bytes:
        raise kind.error(f"{name}:1:1: larger than {kind.max_bytes} bytes; not a {kind.title}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        raise kind.error(
            f"{name}:{line}:{column}: not UTF-8 text, got byte 0x{data[error.start]:02x}; "
            "save the file as UTF-8"
        ) from error


@dataclass(frozen=True)
class Document:
    """A YAML file whose root is a mapping, and its problems."""

    root: MappingNode
    problems: Problems

    def add(self, key: str, problem: str) -> None:
        """Add a problem at a dotted key."""
        self.problems.add(position_of(self.root, key), key, problem)


def read_document(path: Path, kind: DocumentKind) -> Document:
    """Return the document of a file; what is wrong with its syntax is raised."""
    document = parse_document(path, read_text(path, kind), kind)
    document.problems.raise_if_any()
    return document


def parse_document(path: Path, text: str, kind: DocumentKind) -> Document:
    """Return the document in the text of a file, with positions as `FILE:LINE:COL`."""
    name, problems = shortened(str(path), 300), Problems(kind.error)
    root = parse(text, lambda line, column: f"{name}:{line}:{column}", kind, problems)
    if isinstance(root, MappingNode):
        return Document(root, problems)
    problems.add(root.position, "", "must be a YAML mapping")
    raise problems.failure()


def parse(text: str, position_of: PositionOf, kind: DocumentKind, problems: Problems) -> Node:
    """Return the root node of the YAML document in `text`.

    Anchors, aliases, tags, merge keys, keys given twice and invisible characters are problems. If
    the text cannot be read further, all problems so far are raised.
    """
    if len(text) > kind.max_bytes:
        problems.add(position_of(1, 1), "", f"longer than {kind.max_bytes} characters")
        raise problems.failure()
    for number, line in enumerate(text.split("\n") if kind.plain_lines else (), 1):
        if invisible := UNSAFE.search(line):
            problem = f"contains the invisible character U+{ord(invisible.group()):04X}; remove it"
            problems.add(position_of(number, invisible.start() + 1), "", problem)
            raise problems.failure()
    try:
        return _Parser(text, position_of, kind, problems).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = position_of(mark.line + 1, mark.column + 1) if mark else position_of(1, 1)
        problems.add(place, "", _syntax_problem(error))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # chr() and int() in the scanner
        problems.add(position_of(1, 1), "", f"not YAML: {shortened(str(error))}")
    raise problems.failure()


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return "not YAML: indented with a tab; use spaces"
    if "mapping values are not allowed" in problem:
        return "not YAML: a second `:` on the line, or wrong indentation; quote text that has `: `"
    context = f" ({error.context})" if error.context and error.problem else ""
    return shortened(f"not YAML: {problem}{context}", 200)


class _Parser:
    """Builds nodes from events; the limit of the depth also limits the recursion."""

    def __init__(
        self, text: str, position_of: PositionOf, kind: DocumentKind, problems: Problems
    ) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._position_of, self._kind, self._problems = position_of, kind, problems
        self._nodes = 0

    def document(self) -> Node:
        """Return the root node of the only document."""
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                problem = f"contains a second document; a file holds one {self._kind.title}"
                self._refuse(self._position(event), problem)
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, "", 0)
        if root is None:
            self._refuse(self._position_of(1, 1), "is empty")
        return root

    def _position(self, event: Any) -> str:
        return self._position_of(event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, position: str, problem: str) -> NoReturn:
        self._problems.add(position, "", problem)
        raise self._problems.failure()

    def _node(self, event: Any, path: str, depth: int) -> Node:
        position = self._position(event)
        self._nodes += 1
        if self._nodes > self._kind.max_nodes or depth >= MAX_DEPTH:
            too_many = self._nodes > self._kind.max_nodes
            limit = f"{self._kind.max_nodes} values" if too_many else f"{MAX_DEPTH} levels deep"
            self._refuse(position, f"more than {limit}")
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor} is not allowed; write the value out"
            self._problems.add(position, path, problem)
            return InvalidNode(position)
        if event.anchor is not None:
            problem = f"the anchor &{event.anchor} is not allowed; write the values out"
            self._problems.add(position, path, problem)
        if event.tag is not None:
            problem = f"the tag {shortened(event.tag)}; tags are not allowed"
            self._problems.add(position, path, problem)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = ScalarNode(event.value, event.style is not None, position)
            invisible = self._kind.plain_lines and UNSAFE_IN_VALUE.search(event.value)
            if invisible:
                problem = f"contains U+{ord(invisible.group()):04X}; write one line of visible text"
                self._problems.add(position, path, problem)
                return InvalidNode(position)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = ListNode([], position)
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                node.items.append(self._node(item, f"{path}[{len(node.items)}]", depth + 1))
        else:
            node = self._mapping(position, path, depth + 1)
        return node if event.tag is None else InvalidNode(position)

    def _mapping(self, position: str, path: str, depth: int) -> MappingNode:
        entries: dict[str, tuple[str, Node]] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, path, depth)
            name = key.text if isinstance(key, ScalarNode) else ""
            below = join_key(path, name) if name else path
            value = self._node(next(self._events), below, depth)
            if problem := _key_problem(key, entries):
                self._problems.add(key.position, below if name in entries else path, problem)
            elif isinstance(key, ScalarNode):
                entries[name] = (key.position, value)
        return MappingNode(entries, position)


def _key_problem(key: Node, entries: dict[str, tuple[str, Node]]) -> str | None:
    if isinstance(key, ListNode | MappingNode):
        return "a key must be a word, got a list or a section"
    if isinstance(key, ScalarNode) and key.text == "<<" and not key.quoted:
        return "the merge key << is not allowed; write the values out"
    if isinstance(key, ScalarNode) and key.text in entries:
        return f"is written twice, first at {entries[key.text][0]}; keep one"
    return None


def is_null(node: Node) -> bool:
    """Return whether a node is an unquoted `null` or `~`."""
    return isinstance(node, ScalarNode) and not node.quoted and node.text in ("null", "~")


def node_at(node: Node | None, *names: str) -> Node | None:
    """Return what a section has at a key, or sections at a path of keys; None if there is none."""
    for name in names:
        node = node.entries.get(name, ("", None))[1] if isinstance(node, MappingNode) else None
    return node


def text_at(node: Node, name: str) -> str | None:
    """Return the scalar at a key of a section, as written; None if there is none."""
    child = node_at(node, name)
    return child.text if isinstance(child, ScalarNode) else None


def scalar_value(node: ScalarNode | InvalidNode) -> object:
    """Return the value of a scalar: null, true or false, a number, or else its text.

    A number that Python cannot hold stays text, and so does what only YAML 1.1 reads as a number
    (`0512`, `12:30`), a truth value (`no`) or a date.
    """
    if isinstance(node, InvalidNode) or is_null(node) or (not node.text and not node.quoted):
        return None
    text = node.text
    if node.quoted:
        return text
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text) or _LEADING_ZERO.fullmatch(text):
        return text
    value = float(text)  # a whole number with too many digits, too
    is_lost = value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])
    return text if math.isinf(value) or is_lost else value


def plain_value(
    node: Node, leaf_value: Callable[[ScalarNode | InvalidNode], object] = scalar_value
) -> Any:
    """Return dictionaries, lists and the values of the leaves."""
    if isinstance(node, MappingNode):
        return {name: plain_value(item, leaf_value) for name, (_, item) in node.entries.items()}
    if isinstance(node, ListNode):
        return [plain_value(item, leaf_value) for item in node.items]
    return leaf_value(node)


def join_key(key: str, name: str) -> str:
    """Return the dotted key of an entry of a section, whose own key may be empty."""
    return f"{key}.{name}" if key else name


def position_of(node: Node, key: str) -> str:
    """Return the position of a dotted key such as `a.b[0]`, or of the nearest enclosing value."""
    return _position_below(node, key) or node.position


def _position_below(node: Node, key: str) -> str | None:
    """Return the position of a key below a node; None if there is no part of it."""
    if isinstance(node, ListNode) and (index := re.match(r"\[([0-9]+)\]\.?", key)):
        item = node.items[int(index[1])]
        return _position_below(item, key[index.end() :]) or item.position
    for name, (position, child) in node.entries.items() if isinstance(node, MappingNode) else ():
        if key == name:
            return position
        if key.startswith((f"{name}.", f"{name}[")):
            below = key[len(name) :].removeprefix(".")
            return _position_below(child, below) or position
    return None


def yaml_type(text: str) -> str:
    """Return the type that some YAML reader assigns to the unquoted text; "" if all read text."""
    if _LEADING_ZERO.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        return "a number in another base"
    if _BASE_60.fullmatch(text):
        return "a base-60 number"
    if _NOT_FINITE.fullmatch(text) or _NUMBER.fullmatch(text):
        return "a number"
    if _DATE.fullmatch(text):
        return "a date"
    tag: str = Resolver().resolve(  # type: ignore[no-untyped-call]  # PyYAML has no types here
        yaml.ScalarNode, text, (True, False)
    )
    return _TAGS.get(tag.rpartition(":")[2], "")


def why_not(expected: type, node: ScalarNode) -> str:
    """Return why a scalar is not read as str, int, float or bool, as the end of a sentence."""
    text = node.text
    if expected is str:
        kind = "" if node.quoted or not text else yaml_type(text)
        return f", which YAML reads as {kind}; quote it: '{shortened(text)}'" if kind else ""
    if node.quoted:
        fits = text in ("true", "false") if expected is bool else _NUMBER.fullmatch(text)
        return "; remove the quotes" if fits else ""
    lower = text.lower()
    if expected is bool:
        if lower in _YAML_1_1_BOOLEANS:
            meaning = _YAML_1_1_BOOLEANS[lower]
            return f"; only YAML 1.1 reads it as {meaning}: write {meaning}"
        return f"; write {lower} in lower case" if lower in ("true", "false") else ""
    if _NUMBER.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        return _why_not_this_number(expected, text)
    if _LEADING_ZERO.fullmatch(text):
        octal = text.replace("_", "").lstrip("+-")
        short = len(octal) <= _MAX_DIGITS and not set(octal) & set("89")
        as_read = f"; YAML 1.1 reads it as {int(octal, 8)} (octal)" if short else ""
        return f"{as_read}; write it without the leading zero"
    if _BASE_60.fullmatch(text):
        return "; YAML 1.1 reads it as a base-60 number; write it in decimal"
    if _NOT_FINITE.fullmatch(text):
        return "; the number must be finite"
    if _OTHER_BASE.fullmatch(text) or _NUMBER.fullmatch(text.replace("_", "")):
        return "; write it in plain decimal digits"
    if _DATE.fullmatch(text):
        return ", which YAML reads as a date"
    if lower in (*_YAML_1_1_BOOLEANS, "true", "false"):
        return ", which YAML reads as a truth value"
    return "" if text else "; write a value after the key"


def _why_not_this_number(expected: type, text: str) -> str:
    value = float(text)
    if expected is float:
        return f"; a float cannot hold it: {'too large' if value else 'it becomes 0'}"
    if text.lstrip("+-").isdecimal():
        too_long = len(text.lstrip("+-")) > _MAX_DIGITS
        return f"; write at most {_MAX_DIGITS} digits" if too_long else ""
    return f"; write {value:.0f}" if value.is_integer() and abs(value) < 1e15 else ""
