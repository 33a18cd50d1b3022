"""Reads a frozen `Recipe` from YAML and overrides, reporting all errors at once; writes it back."""

import json
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from udaseg import documents
from udaseg.documents import Document, MappingNode, Problems
from udaseg.errors import RecipeError
from udaseg.recipe.extensions import (
    plugin_settings,
    report_missing_packages,
    unknown_backbone,
    with_packages,
)
from udaseg.recipe.hints import key_hint
from udaseg.recipe.library import RECIPE
from udaseg.recipe.methods import SelfTraining
from udaseg.recipe.network import read_network
from udaseg.recipe.retired import drop_retired
from udaseg.recipe.rules import recipe_problems
from udaseg.recipe.schema import Recipe
from udaseg.text import shortened, suggestion
from udaseg.validation import sections, validate

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_MOST_MISSING = 3
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")


def load(
    path: Path | None = None,
    text: str | None = None,
    overrides: Sequence[str] = (),
    *,
    stored: bool = False,
    network: Path | None = None,
) -> Recipe:
    """Return the recipe of a file, or of `text`, with `overrides` applied.

    Args:
        path: The file; with `text`, only the name shown in messages.
        text: YAML; None reads the file.
        overrides: `KEY=VALUE` with dots in the key and YAML in the value. `null` removes a section;
            a key of a missing section creates it. A stage is named by its `name`, and a new `kind`
            drops the keys that only the old one has.
        stored: The recipe is that of a run, in which settings that are gone are dropped.
        network: A network file, put over the recipe before `overrides`.

    Raises:
        RecipeError: The recipe is wrong; the message lists all errors, one per line, as
            `FILE:LINE:COL: KEY: what`.
    """
    if text is None:
        if path is None:
            raise ValueError("load needs a path or a text")
        text = documents.read_text(path, RECIPE)
    path = Path("recipe") if path is None else path
    document = documents.parse_document(path, text, RECIPE)
    if "images" in document.root.entries:
        name = shortened(str(path), 300)
        raise RecipeError(
            f"{name}: describes data, not a recipe; use --source {name} or --target {name}"
        )
    if stored:
        drop_retired(document, stored=True)
    other = None if network is None else read_network(network)
    if other is not None:
        other.put_over(document.root)
    _override(document.root, overrides, document.problems)
    recipe = _recipe(document, f"{shortened(str(path), 300)}:1:1")
    if other is None or sets_key(overrides, "optimizer", "warmup"):
        return recipe
    return other.limit_warmup(recipe)


def sets_key(overrides: Sequence[str], section: str, key: str) -> bool:
    """Return whether one of the `KEY=VALUE` sets the key of the section, or the whole section."""
    return any(word.startswith((f"{section}=", f"{section}.{key}=")) for word in overrides)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as dictionaries, lists and plain values.

    It has every field, but `packages` and `method.regularizers` only if they are not empty.
    """
    return cast("dict[str, Any]", _plain(recipe))


def from_dict(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the recipe of a dictionary from `to_dict`, checked like a file.

    Args:
        values: The dictionary, for example from a checkpoint.
        origin: Name of the origin, for messages.

    Raises:
        RecipeError: The recipe is wrong; the message lists all errors, one per line.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{origin}: must hold a recipe, got {type(values).__name__}")
    try:
        text = json.dumps(values, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{origin}: must hold plain values: {error}") from error
    problems = Problems(RecipeError)
    root = documents.parse(text, lambda _line, _column: origin, RECIPE, problems)
    assert isinstance(root, MappingNode)
    document = Document(root, problems)
    drop_retired(document, stored=True)
    return _recipe(document, origin)


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with the fields of `to_dict`; loading it gives an equal recipe."""
    return "".join(f"{line}\n" for line in _lines(to_dict(recipe), ""))


def expand_path(text: str) -> str:
    """Return a path of a recipe with a leading `~` and every `${VAR}` replaced.

    Raises:
        RecipeError: A variable is unset or empty, a brace is not closed, or the path contains NUL.
    """

    def value(match: re.Match[str]) -> str:
        name, closing_brace = match.groups()
        if not closing_brace or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise RecipeError(f"{shortened(text)}: write a variable as ${{NAME}}")
        if not os.environ.get(name):
            raise RecipeError(
                f"{shortened(text)}: ${{{name}}} is not set; set it or write the path"
            )
        return os.environ[name]

    if "\0" in text:
        raise RecipeError(f"{shortened(text)}: a path cannot contain NUL")
    home = text == "~" or text.startswith("~/")
    expanded = _VARIABLE.sub(value, text[1:] if home else text)
    return f"{Path.home()}{expanded}" if home else expanded


def _recipe(document: Document, position: str) -> Recipe:
    document = Document(MappingNode(document.root.entries, position), document.problems)
    drop_retired(document, stored=False)
    packages_missing = report_missing_packages(document)
    settings = plugin_settings(document, packages_missing=packages_missing)
    recipe = validate(Recipe, document, key_hint=key_hint, yaml_1_1=True)
    _shorten_missing(document)
    if recipe is None or None in settings.values():
        raise document.problems.failure()
    if isinstance(recipe.method, SelfTraining):
        recipe = replace(recipe, method=replace(recipe.method, regularizers=settings))
    unknown = None if packages_missing else unknown_backbone(recipe.model.backbone)
    if unknown is not None:
        document.add("model.backbone", unknown)
    for key, problem in recipe_problems(recipe):
        document.add(key, problem)
    document.problems.raise_if_any()
    return with_packages(recipe)


def _shorten_missing(document: Document) -> None:
    """Say in one line, with what to do, that a document has only some sections of a recipe."""
    lines, start = document.problems.lines, f"{document.root.position}: "
    missing = [
        part.name
        for part in fields(Recipe)
        if any(line.startswith(f"{start}{part.name}: is missing") for line in lines)
    ]
    if len(missing) <= _MOST_MISSING:
        return
    lines[:] = [
        f"{start}has no {', '.join(missing)}; a recipe says everything: `udaseg recipes cp NAME` "
        "copies a shipped one to change, or give the changes alone, as KEY=VALUE",
        *(
            line
            for line in lines
            if not line.startswith(tuple(f"{start}{m}: is missing" for m in missing))
        ),
    ]


def _override(root: MappingNode, overrides: Sequence[str], problems: Problems) -> None:
    """Set each `KEY=VALUE` in the tree; overrides that contradict each other are errors."""
    earlier_overrides: dict[str, str] = {}
    # a new kind first, so that it drops no key that another override sets
    for override in sorted(overrides, key=lambda word: ".kind=" not in word):
        position = f"override {shortened(override, 80)}"
        key, equals, text = override.partition("=")
        if not equals or not _KEY.fullmatch(key):
            problems.add(
                position, "", "must be KEY=VALUE with dots in the key, such as optimizer.lr=1.0e-4"
            )
            continue
        for earlier_key, earlier_override in earlier_overrides.items():
            related = f"{key}.".startswith(f"{earlier_key}.") or f"{earlier_key}.".startswith(
                f"{key}."
            )
            if related and override != earlier_override:
                problems.add(
                    position,
                    key,
                    f"contradicts `{shortened(earlier_override, 80)}`; give only one of them",
                )
        earlier_overrides[key] = override
        value = _override_value(text, position, key, problems)
        _put(root, key.split("."), value, position, problems)


def _override_value(text: str, position: str, key: str, problems: Problems) -> documents.Node:
    if not text.strip():
        problems.add(position, key, "has no value; `null` disables an optional section")
        return documents.InvalidNode(position)
    inner = Problems(RecipeError)
    try:
        value = documents.parse(text, lambda _line, _column: position, RECIPE, inner)
        inner.raise_if_any()
    except RecipeError:
        problems.lines.extend(inner.lines)
        return documents.InvalidNode(position)
    return value


def _put(
    root: MappingNode, key: list[str], value: documents.Node, position: str, problems: Problems
) -> None:
    """Set a key; a name below a list of sections is that of an item, such as a stage.

    A list of values, such as a size, is replaced by a section.
    """
    section: MappingNode | documents.ListNode = root
    for depth, name in enumerate(key[:-1], 1):
        if isinstance(section, documents.ListNode):
            index = _index_of(section, name, key[: depth - 1], position, problems)
            child = None if index is None else section.items[index]
        else:
            child = section.entries.get(name, (position, None))[1]
            if child is None or documents.is_null(child) or _is_plain_list(child):
                child = MappingNode({}, position)
                section.entries[name] = (position, child)
        if child is None or isinstance(child, documents.InvalidNode):
            return
        if isinstance(child, documents.ScalarNode):
            problem = f"{'.'.join(key[:depth])} is a value, not a section"
            problems.add(position, ".".join(key), problem)
            return
        section = child
    if isinstance(section, MappingNode):
        section.entries[key[-1]] = (position, value)
        if key[-1] == "kind":
            _drop_keys_of_other_kinds(section, value)
        return
    index = _index_of(section, key[-1], key[:-1], position, problems)
    if index is not None:
        section.items[index : index + 1] = [] if documents.is_null(value) else [value]


def _is_plain_list(node: documents.Node) -> bool:
    return isinstance(node, documents.ListNode) and not any(
        isinstance(item, MappingNode) for item in node.items
    )


def _index_of(
    items: documents.ListNode, name: str, key: list[str], position: str, problems: Problems
) -> int | None:
    """Return the index of the section of this `name` in the list at a key; None adds a problem."""
    names = [documents.text_at(item, "name") for item in items.items]
    if name in names:
        return names.index(name)
    known = [each for each in names if each is not None]
    if known:
        problem = f"has no '{shortened(name)}', only {', '.join(known)}{suggestion(name, known)}"
    else:
        problem = "is a list without names; set it as a whole, as KEY=[VALUE, VALUE]"
    problems.add(position, ".".join(key), problem)
    return None


def _drop_keys_of_other_kinds(section: MappingNode, kind: documents.Node) -> None:
    """Remove what a section of this kind cannot have, such as the settings of its old kind."""
    keys = _keys_of_kind(kind.text) if isinstance(kind, documents.ScalarNode) else frozenset()
    for name in list(section.entries):
        if keys and name not in keys:
            del section.entries[name]


@cache
def _keys_of_kind(kind: str) -> frozenset[str]:
    """Return the keys of sections that this `kind` chooses; empty if it chooses none."""
    chosen = [
        cls
        for cls in sections(Recipe)
        if typing.get_args(typing.get_type_hints(cls).get("kind")) == (kind,)
    ]
    return frozenset(part.name for cls in chosen for part in fields(cls))


def _plain(value: object) -> object:
    if is_dataclass(value):
        # `kind` comes first, although inherited fields precede it
        names = sorted((part.name for part in fields(value)), key=lambda name: name != "kind")
        empty = {part.name for part in fields(value) if _is_left_out(part, value)}
        return {name: _plain(getattr(value, name)) for name in names if name not in empty}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _is_left_out(part: Field[Any], section: object) -> bool:
    """Return whether the field is an empty collection, and empty by default."""
    empty_by_default = part.default == () or part.default_factory is dict
    return empty_by_default and not getattr(section, part.name)


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, value in values.items():
        key = _flow(name)  # the name of a plug-in can be any text
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{key}:")
            for item in value:
                first, *following = _lines(item, f"{indent}    ")
                lines += [f"{indent}  - {first.lstrip()}", *following]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _flow(value: object) -> str:
    """Return a value on one line, in a form that YAML 1.1 and 1.2 read alike."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and not documents.yaml_type(value)
        return value if plain else json.dumps(value, ensure_ascii=False)
    written = json.dumps(value)
    if isinstance(value, float) and "e" in written and "." not in written:
        return written.replace("e", ".0e")
    return written
