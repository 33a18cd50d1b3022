"""Reads a frozen `Recipe` from YAML and overrides, reporting all errors at once; writes it back."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from udaseg import documents
from udaseg.documents import Document, MappingNode, Problems
from udaseg.errors import RecipeError
from udaseg.recipe.extensions import plugin_settings, report_missing_packages, with_packages
from udaseg.recipe.hints import key_hint
from udaseg.recipe.library import RECIPE
from udaseg.recipe.methods import SelfTraining
from udaseg.recipe.retired import drop_retired
from udaseg.recipe.rules import recipe_problems
from udaseg.recipe.schema import Recipe
from udaseg.text import shortened
from udaseg.validation import validate

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")


def load(
    path: Path | None = None,
    text: str | None = None,
    overrides: Sequence[str] = (),
    *,
    stored: bool = False,
) -> Recipe:
    """Return the recipe of a file, or of `text`, with `overrides` applied.

    Args:
        path: The file; with `text`, only the name shown in messages.
        text: YAML; None reads the file.
        overrides: `KEY=VALUE` with dots in the key and YAML in the value. `null` removes a section;
            a key of a missing section creates it.
        stored: The recipe is that of a run, in which settings that are gone are dropped.

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
    if stored:
        drop_retired(document, stored=True)
    _override(document.root, overrides, document.problems)
    return _recipe(document, f"{shortened(str(path), 300)}:1:1")


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
    if recipe is None or None in settings.values():
        raise document.problems.failure()
    if isinstance(recipe.method, SelfTraining):
        recipe = replace(recipe, method=replace(recipe.method, regularizers=settings))
    for key, problem in recipe_problems(recipe):
        document.add(key, problem)
    document.problems.raise_if_any()
    return with_packages(recipe)


def _override(root: MappingNode, overrides: Sequence[str], problems: Problems) -> None:
    """Set each `KEY=VALUE` in the tree; overrides that contradict each other are errors."""
    earlier_overrides: dict[str, str] = {}
    for override in overrides:
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
    section: MappingNode, key: list[str], value: documents.Node, position: str, problems: Problems
) -> None:
    for depth, name in enumerate(key[:-1], 1):
        _, child = section.entries.get(name, (position, None))
        if child is None or (documents.is_null(child)):
            child = MappingNode({}, position)
            section.entries[name] = (position, child)
        if isinstance(child, documents.InvalidNode):
            return
        if not isinstance(child, MappingNode):
            problems.add(
                position, ".".join(key), f"{'.'.join(key[:depth])} is a value, not a section"
            )
            return
        section = child
    section.entries[key[-1]] = (position, value)


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
