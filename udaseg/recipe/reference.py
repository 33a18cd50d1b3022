"""The JSON schema of a recipe, and the page that describes every key."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from udaseg.documents import join_key
from udaseg.recipe.schema import Recipe
from udaseg.validation import sections

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "section",
}
_INTRODUCTION = """\
# Every key of a recipe

`udaseg recipes schema --markdown` writes this page from the schema that checks recipes.
`udaseg recipes schema` prints the schema as JSON, for editors: with a YAML language server (in VS
Code the YAML extension), save it as `recipe.schema.json` and begin a recipe with

    # yaml-language-server: $schema=recipe.schema.json

A key without a default must be written. Any key can be set on the command line:
`udaseg adapt optimizer.lr=1e-4`. A stage is addressed by its name,
`method.stages.warm_up.share=0.3`, and left out with `method.stages.self_distillation=null`; then
another stage takes over its share, as with `method.stages.contrast.share=0.6`. A new `kind` drops
the keys that only the old kind has: `method.stages.warm_up.objective.kind=source_only`.
"""


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, with the description of every key.

    Rules over several keys are not in it.

    Example:
        schema = udaseg.recipe_schema()
        print(schema["properties"]["steps"]["description"])
    """
    schema = TypeAdapter(Recipe).json_schema()
    for cls in sections(Recipe):
        section = schema if cls is Recipe else schema["$defs"][cls.__name__]
        section["additionalProperties"] = False
        for name, text in _field_texts(cls).items():
            section["properties"][name]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _field_texts(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, inherited ones too."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for part, below in itertools.pairwise(body):
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        texts[part.target.id] = " ".join(text.split())
    return texts


def recipe_reference() -> str:
    """Return a Markdown page with every key: type, default, range, meaning and source."""
    schema = recipe_schema()
    places: dict[str, list[str]] = {}
    for path, name in _section_places(schema, schema, ""):
        places.setdefault(name, []).append(path)
    parts = [_INTRODUCTION, _table("The recipe", schema["description"], schema)]
    for name, paths in places.items():
        title = ", ".join(f"`{path}`" for path in dict.fromkeys(paths))
        section = schema["$defs"][name]
        kind = section["properties"].get("kind", {}).get("const")
        title += f" with `kind: {kind}`" if kind else ""
        parts.append(_table(title, section["description"], section))
    return "\n".join(parts)


def _section_places(
    schema: Mapping[str, Any], value: Mapping[str, Any], path: str
) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, name of its section) for every section below a value."""
    for name, part in value.get("properties", {}).items():
        yield from _section_places(schema, part, join_key(path, name))
    for members in ("oneOf", "anyOf"):
        for member in value.get(members, ()):
            yield from _section_places(schema, member, path)
    if isinstance(value.get("items"), Mapping):
        yield from _section_places(schema, value["items"], f"{path}[]")
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        yield path, name
        yield from _section_places(schema, schema["$defs"][name], path)


def _table(title: str, description: str, section: Mapping[str, Any]) -> str:
    rows = [f"## {title}", "", description, ""]
    rows += ["| key | type | default | range | meaning and source |", "|---|---|---|---|---|"]
    for name, part in section["properties"].items():
        required = name in section.get("required", ())
        default = "" if required or "default" not in part else f"`{_yaml(part['default'])}`"
        cells = [f"`{name}`", _type_text(part), default, _range_text(part)]
        rows.append(f"| {' | '.join([*cells, part.get('description', '')])} |")
    return "\n".join([*rows, ""])


def _type_text(value: Mapping[str, Any]) -> str:
    for members in ("oneOf", "anyOf"):
        if members in value:
            return " or ".join(dict.fromkeys(map(_type_text, value[members])))
    if "const" in value or "enum" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    if value.get("type") != "array":
        return _TYPES[value.get("type", "object")]
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: {_type_text(value['prefixItems'][0])}"
    return f"list: {_type_text(value['items'])}"


def _range_text(value: Mapping[str, Any]) -> str:
    low, above = value.get("minimum"), value.get("exclusiveMinimum")
    high, below = value.get("maximum"), value.get("exclusiveMaximum")
    if (low, above) != (None, None) and (high, below) != (None, None):
        begin = f"[{low}" if above is None else f"({above}"
        return f"{begin}, {high}]" if below is None else f"{begin}, {below})"
    limits = {"at least": low, "above": above, "at most": high, "below": below}
    texts = [f"{word} {limit}" for word, limit in limits.items() if limit is not None]
    inner = [*value.get("anyOf", ()), *value.get("prefixItems", ())[:1]]
    inner += [value["items"]] if isinstance(value.get("items"), Mapping) else []
    texts += map(_range_text, inner)
    texts += ["one or more"] * (value.get("type") == "array" and value.get("minItems") == 1)
    texts += [f"`{value['pattern']}`"] if "pattern" in value else []
    return ", ".join(text for text in texts if text)


def _yaml(value: object) -> str:
    words: dict[object, str] = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
