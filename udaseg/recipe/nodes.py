"""Parses YAML text to nodes with positions, within limits; does not convert scalars to types.

PyYAML's composer and constructor are recursive, follow aliases and convert scalars, so this module
uses only its event stream. Every scalar stays as written, with its file, line and column.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from udaseg.errors import RecipeError
from udaseg.text import UNSAFE, UNSAFE_IN_VALUE, shortened

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 5_000
_MAX_LISTED = 100


@dataclass(frozen=True)
class ScalarNode:
    """A scalar as written.

    Attributes:
        text: The characters, without quotes.
        quoted: It was quoted or a block scalar, so it is always text.
        position: Its position, as `FILE:LINE:COL`.
    """

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
    """A node whose error is already listed; readers skip it."""

    position: str


Node = ScalarNode | ListNode | MappingNode | InvalidNode


class ErrorList:
    """Collects all errors of a recipe, to report them at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, position: str, key: str, problem: str) -> None:
        """Add an error with its position and dotted key ("" for the whole file)."""
        place = f"{position}: {shortened(key, 80)}" if key else position
        self.lines.append(f"{place}: {problem}")

    def raise_all(self) -> NoReturn:
        """Raise RecipeError with all errors, one per line."""
        listed = self.lines[:_MAX_LISTED]
        if len(self.lines) > _MAX_LISTED:
            listed.append(f"… and {len(self.lines) - _MAX_LISTED} more")
        raise RecipeError("\n".join(listed))

    def raise_if_any(self) -> None:
        """Raise RecipeError if an error was added."""
        if self.lines:
            self.raise_all()


def read_text(path: Path) -> str:
    """Return the text of a recipe file, without a leading byte order mark.

    Raises:
        RecipeError: The file is not a readable UTF-8 file of at most `MAX_BYTES`.
    """
    name = shortened(str(path), 300)
    try:
        if not path.exists():
            raise RecipeError(
                f"{name}: no such file; `udaseg recipes ls` lists the shipped recipes"
            )
        if not path.is_file():
            raise RecipeError(f"{name}: not a file; a recipe is a YAML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise RecipeError(f"{name}: cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{name}:1:1: larger than {MAX_BYTES} bytes; a recipe has a few thousand")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        raise RecipeError(
            f"{name}:{line}:{column}: not UTF-8 text, got byte 0x{data[error.start]:02x}; "
            "save the file as UTF-8"
        ) from error


def parse(text: str, position_of: Callable[[int, int], str], faults: ErrorList) -> Node:
    """Return the root node of the YAML document in `text`.

    Args:
        text: YAML without anchors, aliases, tags and merge keys; at most one document.
        position_of: Returns the position to show for a line and a column, both from 1.
        faults: Collects errors after which the text can still be read.

    Raises:
        RecipeError: The text cannot be read further; the message has all errors so far.
    """
    if len(text) > MAX_BYTES:
        faults.add(position_of(1, 1), "", f"longer than {MAX_BYTES} characters")
        faults.raise_all()
    for number, line in enumerate(text.split("\n"), 1):
        if invisible := UNSAFE.search(line):
            problem = f"contains the invisible character U+{ord(invisible.group()):04X}; remove it"
            faults.add(position_of(number, invisible.start() + 1), "", problem)
            faults.raise_all()
    builder = _Builder(position_of, faults)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.process(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = position_of(mark.line + 1, mark.column + 1) if mark else position_of(1, 1)
        faults.add(place, "", _syntax_problem(error))
        faults.raise_all()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # chr() and int() in the scanner
        faults.add(position_of(1, 1), "", f"not YAML: {shortened(str(error))}")
        faults.raise_all()
    return builder.document()


def _syntax_problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return "not YAML: indented with a tab; use spaces"
    if "mapping values are not allowed" in problem:
        return "not YAML: a second `:` on the line, or wrong indentation; quote text that has `: `"
    context = f" ({error.context})" if error.context and error.problem else ""
    return shortened(f"not YAML: {problem}{context}", 200)


@dataclass
class _OpenNode:
    """A list or mapping whose end has not been read yet."""

    position: str
    path: str
    items: list[Node] | None = None
    entries: dict[str, tuple[str, Node]] = field(default_factory=dict)
    key: ScalarNode | InvalidNode | None = None


class _Builder:
    """Builds nodes from events, with an explicit stack that limits the depth without recursion."""

    def __init__(self, position_of: Callable[[int, int], str], faults: ErrorList) -> None:
        self._position_of = position_of
        self._faults = faults
        self._stack: list[_OpenNode] = []
        self._documents = 0
        self._nodes = 0
        self._root: Node | None = None

    def document(self) -> Node:
        """Return the root node; an empty document is an error."""
        if self._root is None:
            self._faults.add(self._position_of(1, 1), "", "is empty")
            self._faults.raise_all()
        return self._root

    def process(self, event: yaml.Event) -> None:
        """Process the next event of the stream."""
        mark = event.start_mark
        position = (
            self._position_of(mark.line + 1, mark.column + 1) if mark else self._position_of(1, 1)
        )
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._faults.add(
                    position, "", "contains a second document; a file holds one recipe"
                )
                self._faults.raise_all()
        elif isinstance(event, yaml.AliasEvent):
            self._faults.add(
                position,
                self._path(),
                f"the alias *{event.anchor} is not allowed; write the value out",
            )
            self._attach(InvalidNode(position))
        elif isinstance(event, yaml.NodeEvent):
            self._start_node(event, position)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = self._stack.pop()
            closed: Node = MappingNode(done.entries, done.position)
            if done.items is not None:
                closed = ListNode(done.items, done.position)
            self._attach(closed)

    def _start_node(self, event: yaml.NodeEvent, position: str) -> None:
        self._nodes += 1
        rejected = False
        tag = getattr(event, "tag", None)
        if event.anchor is not None:
            problem = f"the anchor &{event.anchor} is not allowed; write the values out"
            self._faults.add(position, self._path(), problem)
        if tag is not None:
            self._faults.add(
                position, self._path(), f"the tag {shortened(tag)}; tags are not allowed"
            )
            rejected = True
        if self._nodes > MAX_NODES or len(self._stack) >= MAX_DEPTH:
            limit = f"{MAX_NODES} values" if self._nodes > MAX_NODES else f"{MAX_DEPTH} levels deep"
            self._faults.add(position, "", f"more than {limit}")
            self._faults.raise_all()
        if isinstance(event, yaml.ScalarEvent):
            if invisible := UNSAFE_IN_VALUE.search(event.value):
                problem = f"contains U+{ord(invisible.group()):04X}; write one line of visible text"
                self._faults.add(position, self._path(), problem)
                rejected = True
            quoted = event.style is not None
            self._attach(
                InvalidNode(position) if rejected else ScalarNode(event.value, quoted, position)
            )
        else:
            is_list = isinstance(event, yaml.SequenceStartEvent)
            self._stack.append(_OpenNode(position, self._path(), [] if is_list else None))

    def _path(self) -> str:
        if not self._stack:
            return ""
        top = self._stack[-1]
        if top.items is not None:
            return f"{top.path}[{len(top.items)}]"
        if isinstance(top.key, ScalarNode):
            return f"{top.path}.{top.key.text}" if top.path else top.key.text
        return top.path

    def _attach(self, node: Node) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        if top.items is not None:
            top.items.append(node)
        elif top.key is None:
            top.key = self._as_key(node, top)
        else:
            if isinstance(top.key, ScalarNode):
                top.entries[top.key.text] = (top.key.position, node)
            top.key = None

    def _as_key(self, node: Node, top: _OpenNode) -> ScalarNode | InvalidNode:
        if isinstance(node, InvalidNode):
            return node
        if not isinstance(node, ScalarNode):
            self._faults.add(
                node.position, top.path, "a key must be a word, got a list or a section"
            )
        elif node.text == "<<" and not node.quoted:
            self._faults.add(
                node.position, top.path, "the merge key << is not allowed; write the values out"
            )
        elif node.text in top.entries:
            first = top.entries[node.text][0].removesuffix(":")
            path = f"{top.path}.{node.text}" if top.path else node.text
            self._faults.add(node.position, path, f"is written twice, first at {first}; keep one")
        else:
            return node
        return InvalidNode(node.position)
