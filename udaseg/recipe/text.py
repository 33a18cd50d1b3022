"""From YAML text to nodes that know where they stand, within limits. Decides no types.

PyYAML's composer and constructor are recursive, follow aliases and turn words into other things, so
only its event stream is used: every word stays as it was written, with its file, line and column.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

from udaseg.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 5_000
_MAX_LISTED = 100

# Direction marks and invisible characters make a line read unlike what it says.
_HIDDEN = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
_UNSAFE = re.compile(f"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[{_HIDDEN}]")
_UNSAFE_IN_VALUE = re.compile(f"{_UNSAFE.pattern}|[\t\n\r]")


@dataclass(frozen=True)
class Word:
    """A scalar as written.

    Attributes:
        text: The characters, without quotes.
        quoted: It stood in quotes or in a block scalar, so it is text whatever it looks like.
        where: Its position.
    """

    text: str
    quoted: bool
    where: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: list["Node"]
    where: str


@dataclass(frozen=True)
class Section:
    """A mapping: each key with its own position and its value."""

    entries: dict[str, tuple[str, "Node"]]
    where: str


@dataclass(frozen=True)
class Broken:
    """A node whose fault is already listed; readers pass over it."""

    where: str


Node = Word | Items | Section | Broken


def printable(text: str) -> str:
    """Return `text` with control, direction and invisible characters written as escapes.

    Line ends and tabs stay; what is left can be shown on a terminal as it is.
    """
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def clipped(text: str, longest: int = 60) -> str:
    """Return `text` on one line, printable and not longer than about `longest` characters."""
    short = text if len(text) <= longest else f"{text[:longest]}…"
    return _UNSAFE_IN_VALUE.sub(lambda m: m.group().encode("unicode_escape").decode(), short)


class Faults:
    """Everything that is wrong with a recipe, to be told at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, key: str, what: str) -> None:
        """List one fault: where it is, the dotted key ("" for the whole file), what is wrong."""
        place = f"{where}: {clipped(key, 80)}" if key else where
        self.lines.append(f"{place}: {what}")

    def stop(self) -> NoReturn:
        """Raise RecipeError with all faults, one a line."""
        listed = self.lines[:_MAX_LISTED]
        if len(self.lines) > _MAX_LISTED:
            listed.append(f"… and {len(self.lines) - _MAX_LISTED} more")
        raise RecipeError("\n".join(listed))

    def stop_if_any(self) -> None:
        """Raise RecipeError if a fault was listed."""
        if self.lines:
            self.stop()


def read_text(path: Path) -> str:
    """Return the text of a recipe file, without a leading byte order mark.

    Raises:
        RecipeError: Not a readable UTF-8 file of at most `MAX_BYTES`.
    """
    name = clipped(str(path), 300)
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


def parse(text: str, where: Callable[[int, int], str], faults: Faults) -> Node:
    """Return the one document in `text`.

    Args:
        text: YAML without anchors, aliases, tags, merge keys; at most one document.
        where: The position to show for a line and a column, both from 1.
        faults: Takes what is wrong but leaves the rest readable.

    Raises:
        RecipeError: The rest cannot be read; the message has all faults so far.
    """
    if len(text) > MAX_BYTES:
        faults.add(where(1, 1), "", f"longer than {MAX_BYTES} characters")
        faults.stop()
    for number, line in enumerate(text.split("\n"), 1):
        if found := _UNSAFE.search(line):
            what = (
                f"holds the character U+{ord(found.group()):04X}, which cannot be seen; remove it"
            )
            faults.add(where(number, found.start() + 1), "", what)
            faults.stop()
    builder = _Builder(where, faults)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = where(mark.line + 1, mark.column + 1) if mark else where(1, 1)
        faults.add(place, "", _syntax(error))
        faults.stop()
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # chr() and int() in the scanner
        faults.add(where(1, 1), "", f"not YAML: {clipped(str(error))}")
        faults.stop()
    return builder.document()


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return "a tab; YAML indents with spaces"
    if "mapping values are not allowed" in problem:
        return "not YAML: a second `:` on the line, or wrong indentation; quote text that has `: `"
    context = f" ({error.context})" if error.context and error.problem else ""
    return clipped(f"not YAML: {problem}{context}", 200)


@dataclass
class _Open:
    """A list or a mapping whose end has not been read."""

    where: str
    path: str
    items: list[Node] | None = None
    entries: dict[str, tuple[str, Node]] = field(default_factory=dict)
    key: Word | Broken | None = None


class _Builder:
    """Takes events, keeps an explicit stack, so depth is a number and not a crash."""

    def __init__(self, where: Callable[[int, int], str], faults: Faults) -> None:
        self._where = where
        self._faults = faults
        self._stack: list[_Open] = []
        self._documents = 0
        self._nodes = 0
        self._root: Node | None = None

    def document(self) -> Node:
        """Return what was read; an empty document is a fault."""
        if self._root is None:
            self._faults.add(self._where(1, 1), "", "is empty")
            self._faults.stop()
        return self._root

    def take(self, event: yaml.Event) -> None:
        """Take the next event of the stream."""
        mark = event.start_mark
        where = self._where(mark.line + 1, mark.column + 1) if mark else self._where(1, 1)
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._faults.add(where, "", "a second document starts; one file is one recipe")
                self._faults.stop()
        elif isinstance(event, yaml.AliasEvent):
            self._faults.add(where, self._path(), f"the alias *{event.anchor}; write the value out")
            self._put(Broken(where))
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, where)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            done = self._stack.pop()
            closed: Node = Section(done.entries, done.where)
            if done.items is not None:
                closed = Items(done.items, done.where)
            self._put(closed)

    def _node(self, event: yaml.NodeEvent, where: str) -> None:
        self._nodes += 1
        refused = False
        tag = getattr(event, "tag", None)
        if event.anchor is not None:
            what = f"the anchor &{event.anchor}; one file is one whole run, write values out"
            self._faults.add(where, self._path(), what)
        if tag is not None:
            self._faults.add(where, self._path(), f"the tag {clipped(tag)}; tags are not allowed")
            refused = True
        if self._nodes > MAX_NODES or len(self._stack) >= MAX_DEPTH:
            limit = f"{MAX_NODES} values" if self._nodes > MAX_NODES else f"{MAX_DEPTH} levels deep"
            self._faults.add(where, "", f"more than {limit}")
            self._faults.stop()
        if isinstance(event, yaml.ScalarEvent):
            if found := _UNSAFE_IN_VALUE.search(event.value):
                what = f"holds U+{ord(found.group()):04X}; values are one line of visible text"
                self._faults.add(where, self._path(), what)
                refused = True
            quoted = event.style is not None
            self._put(Broken(where) if refused else Word(event.value, quoted, where))
        else:
            is_list = isinstance(event, yaml.SequenceStartEvent)
            self._stack.append(_Open(where, self._path(), [] if is_list else None))

    def _path(self) -> str:
        if not self._stack:
            return ""
        top = self._stack[-1]
        if top.items is not None:
            return f"{top.path}[{len(top.items)}]"
        if isinstance(top.key, Word):
            return f"{top.path}.{top.key.text}" if top.path else top.key.text
        return top.path

    def _put(self, node: Node) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._stack[-1]
        if top.items is not None:
            top.items.append(node)
        elif top.key is None:
            top.key = self._as_key(node, top)
        else:
            if isinstance(top.key, Word):
                top.entries[top.key.text] = (top.key.where, node)
            top.key = None

    def _as_key(self, node: Node, top: _Open) -> Word | Broken:
        if isinstance(node, Broken):
            return node
        if not isinstance(node, Word):
            self._faults.add(node.where, top.path, "a key must be a word, got a list or a section")
        elif node.text == "<<" and not node.quoted:
            self._faults.add(node.where, top.path, "the merge key <<; write the values out")
        elif node.text in top.entries:
            first = top.entries[node.text][0].removesuffix(":")
            path = f"{top.path}.{node.text}" if top.path else node.text
            self._faults.add(node.where, path, f"is written twice, first at {first}; keep one")
        else:
            return node
        return Broken(node.where)
