"""From a YAML file and overrides to a frozen `Recipe`, or to every reason why not; and back."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from udaseg.errors import RecipeError
from udaseg.recipe.read import UNREAD, Reader
from udaseg.recipe.scalars import is_null, reads_as
from udaseg.recipe.schema import Recipe, problems
from udaseg.recipe.text import (
    MAX_DEPTH,
    Broken,
    Faults,
    Items,
    Node,
    Section,
    Word,
    clipped,
    parse,
    read_text,
)

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")


def load(
    path: Path | None = None, text: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a file, or of `text`, with `overrides` put on top.

    Args:
        path: The file; with `text`, only the name that messages show.
        text: YAML; None reads the file.
        overrides: `KEY=VALUE` with dots in the key and YAML in the value; `null` switches a section
            off, a key of a section that is not there begins it.

    Raises:
        RecipeError: Everything that is wrong, one `FILE:LINE:COL: KEY: what` a line.
    """
    if text is None:
        if path is None:
            raise ValueError("load needs a path or a text")
        text = read_text(path)
    name = clipped(str(path), 300) if path is not None else "recipe"
    faults = Faults()
    root = parse(text, lambda line, column: f"{name}:{line}:{column}", faults)
    if not isinstance(root, Section):
        faults.add(root.where, "", "must be `key: value` lines")
        faults.stop()
    _override(root, overrides, faults)
    return _recipe(root, faults, f"{name}:1:1")


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as dictionaries, lists and plain values, every field written out."""
    return cast("dict[str, Any]", _plain(recipe))


def from_dict(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the recipe that `to_dict` wrote, by the same rules as for a file.

    Args:
        values: What a checkpoint holds.
        origin: Where it comes from, for messages.

    Raises:
        RecipeError: Everything that is wrong, one a line.
    """
    faults = Faults()
    root = _node(values, origin, "", faults, 0)
    if not isinstance(root, Section):
        faults.add(origin, "", f"must hold a recipe, got {type(values).__name__}")
        faults.stop()
    return _recipe(root, faults, origin)


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML that loads back to an equal one, every field written out."""
    return "".join(f"{line}\n" for line in _lines(to_dict(recipe), ""))


def expand_path(text: str) -> str:
    """Return a path of a recipe with a leading `~` and every `${VAR}` replaced, nothing else.

    Raises:
        RecipeError: A variable is unset or empty, a brace is open, or the path holds NUL.
    """

    def value(match: re.Match[str]) -> str:
        name, end = match.groups()
        if not end or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise RecipeError(f"{clipped(text)}: a variable is written ${{NAME}}")
        if not os.environ.get(name):
            raise RecipeError(f"{clipped(text)}: ${{{name}}} is not set; set it or write the path")
        return os.environ[name]

    if "\0" in text:
        raise RecipeError(f"{clipped(text)}: a path cannot hold NUL")
    home = text == "~" or text.startswith("~/")
    expanded = _VARIABLE.sub(value, text[1:] if home else text)
    return f"{Path.home()}{expanded}" if home else expanded


def _recipe(root: Section, faults: Faults, where: str) -> Recipe:
    reader = Reader(faults)
    recipe = reader.read(Recipe, Section(root.entries, where))
    if recipe is not UNREAD:
        for key, must in problems(recipe):
            faults.add(reader.place(key), key, must)
    faults.stop_if_any()
    return cast("Recipe", recipe)


def _override(root: Section, overrides: Sequence[str], faults: Faults) -> None:
    """Put each `KEY=VALUE` into the tree; two that contradict each other are a fault."""
    given: dict[str, str] = {}
    for override in overrides:
        where = f"override {clipped(override, 80)}"
        key, equals, text = override.partition("=")
        if not equals or not _KEY.fullmatch(key):
            faults.add(where, "", "must be KEY=VALUE with dots in the key, as optimizer.lr=1.0e-4")
            continue
        for other, earlier in given.items():
            related = f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
            if related and override != earlier:
                faults.add(where, key, f"contradicts `{clipped(earlier, 80)}`; give one of them")
        given[key] = override
        value = _override_value(text, where, key, faults)
        _put(root, key.split("."), value, where, faults)


def _override_value(text: str, where: str, key: str, faults: Faults) -> Node:
    if not text.strip():
        faults.add(where, key, "has no value; `null` switches an optional part off")
        return Broken(where)
    inner = Faults()
    try:
        value = parse(text, lambda _line, _column: where, inner)
        inner.stop_if_any()
    except RecipeError:
        faults.lines.extend(inner.lines)
        return Broken(where)
    return value


def _put(section: Section, key: list[str], value: Node, where: str, faults: Faults) -> None:
    for depth, name in enumerate(key[:-1], 1):
        _, child = section.entries.get(name, (where, None))
        if child is None or (isinstance(child, Word) and is_null(child)):
            child = Section({}, where)
            section.entries[name] = (where, child)
        if isinstance(child, Broken):
            return
        if not isinstance(child, Section):
            faults.add(where, ".".join(key), f"{'.'.join(key[:depth])} is a value, not a section")
            return
        section = child
    section.entries[key[-1]] = (where, value)


def _node(value: object, where: str, key: str, faults: Faults, depth: int) -> Node:
    """Return plain values as nodes, so that one reader serves files and checkpoints."""
    if depth > MAX_DEPTH:
        faults.add(where, key, f"is more than {MAX_DEPTH} levels deep")
        faults.stop()
    if isinstance(value, str):
        return Word(value, quoted=True, where=where)
    if value is None or isinstance(value, (bool, int, float)):
        try:
            text = json.dumps(value)
        except ValueError:  # an int of more than 4300 digits
            text = "an endless number"
        return Word(text, quoted=False, where=where)
    if isinstance(value, (list, tuple)):
        items = [_node(v, where, f"{key}[{n}]", faults, depth + 1) for n, v in enumerate(value)]
        return Items(items, where)
    if isinstance(value, Mapping):
        entries: dict[str, tuple[str, Node]] = {}
        for name, child in value.items():
            path = f"{key}.{name}" if key else f"{name}"
            if isinstance(name, str):
                entries[name] = (where, _node(child, where, path, faults, depth + 1))
            else:
                faults.add(where, path, "a key must be text")
        return Section(entries, where)
    faults.add(where, key, f"must be a plain value, got {type(value).__name__}")
    return Broken(where)


def _plain(value: object) -> object:
    if is_dataclass(value):
        # what kind of section it is stands first, though inherited fields come before it
        names = sorted((part.name for part in fields(value)), key=lambda name: name != "kind")
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{key}:")
            for item in value:
                first, *rest = _lines(item, f"{indent}    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _flow(value: object) -> str:
    """Return a value on one line, written so that YAML 1.1 and 1.2 readers agree on it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and not reads_as(value)
        return value if plain else json.dumps(value, ensure_ascii=False)
    written = json.dumps(value)
    if isinstance(value, float) and "e" in written and "." not in written:
        return written.replace("e", ".0e")
    return written
