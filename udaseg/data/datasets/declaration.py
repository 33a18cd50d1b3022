"""Read dataset declarations: YAML with the paths of images and labels and the label meanings."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from udaseg.data.labels.read import LabelFormat
from udaseg.data.labels.tables import LabelTable, parse_label_table
from udaseg.documents import Problems, did_you_mean, read_yaml_document

_KEYS = {
    *("name", "root", "images", "labels", "match", "label_format", "classes", "ignore", "splits"),
    *("title", "home", "licence", "download", "size", "folders", "archives", "expected"),
    *("base", "table", "rules", "exclude", "layouts"),
}
_LAYOUT_KEYS = ("images", "labels", "match")
_CATALOG = Path(__file__).parent / "catalog"
SplitRule = str | float | tuple[str, ...]
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Layout:
    """An alternative file layout: another release, or folders rearranged by well-known code.

    Attributes:
        images: Glob per split, or one for all images under "".
        labels: Glob per split likewise; splits without one have no labels.
        stem_endings: Endings to remove from file stems before matching images and labels.
    """

    images: Mapping[str, str]
    labels: Mapping[str, str]
    stem_endings: tuple[str, ...]


@dataclass(frozen=True)
class FileRule:
    """Files that can be excluded together.

    Attributes:
        reason: The problem with these files, and its source.
        stems: File names without suffix and without the endings that matching strips.
    """

    reason: str
    stems: frozenset[str]


@dataclass(frozen=True)
class Declaration:
    """A dataset as declared in its YAML.

    Attributes:
        name: Name of the dataset and of its prepared folder.
        path: Path of the YAML.
        root: Folder that globs are relative to; None for a built-in dataset, which is searched for.
        images: Glob per split, or one for all images under "".
        labels: Glob per split likewise; splits without one have no labels.
        stem_endings: Endings to remove from file stems before matching images and labels.
        label_format: ids, rgb or synthia.
        table: Meaning of the labels; None without labels.
        splits: Rule per split: a list file, a fraction, a folder name, or name patterns.
        about: Title, home, licence, download and size, as given in the YAML.
        folders: Folder names to search for a built-in dataset.
        archives: Globs of the archives that the dataset is published in.
        expected_counts: Published number of images per split.
        base: Built-in dataset that this one modifies, or None.
        rules: Named lists of files with known problems.
        exclude: Rules whose files are excluded.
        layouts: Alternative layouts to try if `images` matches no files.
    """

    name: str
    path: Path
    root: Path | None
    images: Mapping[str, str]
    labels: Mapping[str, str]
    stem_endings: tuple[str, ...]
    label_format: LabelFormat
    table: LabelTable | None
    splits: Mapping[str, SplitRule]
    about: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    expected_counts: Mapping[str, int] = field(default_factory=dict)
    base: str | None = None
    rules: Mapping[str, FileRule] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()

    @property
    def argument(self) -> str:
        """Argument for `udaseg prepare`: the name of a built-in dataset, else the YAML's path."""
        return self.name if self.root is None and self.base is None else str(self.path)


def read_declaration(path: Path, *, builtin: bool = False) -> Declaration:
    """Return the declaration in a dataset YAML.

    Raises:
        DataError: The YAML is invalid; the message lists all problems, one per line.
    """
    document, lines = read_yaml_document(path)
    faults = Problems(path, lines)
    for key in document:
        if key not in _KEYS:
            faults.add(key, f"unknown key{did_you_mean(str(key), sorted(_KEYS))}")
    if "base" in document:
        document = _with_base(document, faults)
    for key in ("name", "images"):
        if key not in document:
            faults.add("", f"'{key}' is missing")
    name = document.get("name", "")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        faults.add("name", f"must be letters, digits, '.', '_' and '-', got {name!r}")
    label_format = document.get("label_format", "ids")
    if label_format not in ("ids", "rgb", "synthia"):
        faults.add("label_format", f"must be ids, rgb or synthia, got {label_format!r}")
        label_format = "ids"
    images, labels = (_globs(document.get(key), key, faults) for key in ("images", "labels"))
    table = None
    if labels:
        if "classes" not in document:
            faults.add("labels", "labels need 'classes': a table's name or a list")
        else:
            table = parse_label_table(document, faults, label_format)
    root = _root(document, path, faults, builtin or "base" in document)
    rules = parse_file_rules(document.get("rules", {}), faults)
    layouts = _layouts(document, faults)
    declaration = Declaration(
        name=str(name),
        path=path,
        root=root,
        images=images,
        labels=labels,
        stem_endings=_stem_endings(document.get("match", "stem"), faults),
        label_format=cast(LabelFormat, label_format),
        table=table,
        splits=_splits(document.get("splits", {}), images, faults),
        about={
            key: document[key]
            for key in ("title", "home", "licence", "download", "size")
            if key in document
        },
        folders=_string_list(document.get("folders", []), "folders", faults),
        archives=_string_list(document.get("archives", []), "archives", faults),
        expected_counts=_expected_counts(document.get("expected", {}), faults),
        base=document.get("base"),
        rules=rules,
        exclude=parse_excluded_rules(document.get("exclude", []), rules, faults),
        layouts=layouts,
    )
    faults.raise_if_any()
    return declaration


def _with_base(document: Mapping[str, Any], faults: Problems) -> dict[str, Any]:
    """Return the document, with missing keys taken from a built-in dataset."""
    name = document["base"]
    known = sorted(path.stem for path in _CATALOG.glob("*.yaml"))
    if name not in known:
        hint = did_you_mean(str(name), known)
        faults.add("base", f"no built-in dataset '{name}'{hint}; available: {', '.join(known)}")
        faults.raise_if_any()
    base, _ = read_yaml_document(_CATALOG / f"{name}.yaml")
    del base["name"]
    if isinstance(document.get("classes"), list) and "table" not in document:
        base["table"] = base["classes"]
    if {"images", "splits", "exclude"} & set(document):  # published counts include all files
        base.pop("expected", None)
    if "images" in document:
        base.pop("splits", None)
    if set(_LAYOUT_KEYS) & set(document):  # the document gives its own layout
        base.pop("layouts", None)
    return {**base, **document}


def _string_list(value: object, key: str, faults: Problems) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    faults.add(key, f"must be a list of strings, got {value!r}")
    return ()


def _expected_counts(value: object, faults: Problems) -> dict[str, int]:
    if isinstance(value, dict) and all(type(part) is int for part in value.values()):
        return {str(split): count for split, count in value.items()}
    faults.add("expected", f"must be a mapping of splits to image counts, got {value!r}")
    return {}


def _root(document: Mapping[str, Any], path: Path, faults: Problems, builtin: bool) -> Path | None:
    if "root" not in document:
        return None if builtin else path.resolve().parent
    text = document["root"]
    if not isinstance(text, str) or not text:
        faults.add("root", f"must be a folder, got {text!r}")
        return None

    def value(match: re.Match[str]) -> str:
        folder = os.environ.get(match[1])
        if not folder:
            faults.add(
                "root", f"the environment variable {match[1]} is not set; set it to the folder"
            )
        return folder or ""

    return path.resolve().parent / Path(_VARIABLE.sub(value, text)).expanduser()


def _globs(value: object, key: str, faults: Problems) -> dict[str, str]:
    if value is None:
        return {}
    globs = {"": value} if isinstance(value, str) else value
    if not isinstance(globs, dict) or not all(isinstance(part, str) for part in globs.values()):
        faults.add(key, f"must be a glob, or one glob per split, got {value!r}")
        return {}
    for pattern in globs.values():
        if pattern.startswith(("/", "~")) or ".." in Path(pattern).parts or not Path(pattern).parts:
            faults.add(key, f"must be a glob below the root, got '{pattern}'")
    return {str(split): pattern for split, pattern in globs.items()}


def _layouts(document: Mapping[str, Any], faults: Problems) -> tuple[Layout, ...]:
    """Return the listed layouts, with missing keys taken from the document."""
    listed = document.get("layouts", [])
    layouts = []
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict) or not entry or set(entry) - set(_LAYOUT_KEYS):
            problem = f"must be a list of {{{', '.join(_LAYOUT_KEYS)}}}, got {entry!r}"
            faults.add("layouts", problem)
            continue
        images, labels, match = ({**document, **entry}.get(key) for key in _LAYOUT_KEYS)
        globs = (_globs(images, "layouts", faults), _globs(labels, "layouts", faults))
        layouts.append(Layout(*globs, _stem_endings("stem" if match is None else match, faults)))
    return tuple(layouts)


def _stem_endings(value: object, faults: Problems) -> tuple[str, ...]:
    if value == "stem":
        return ()
    if isinstance(value, dict) and set(value) == {"strip"}:
        strip = value["strip"]
        strip = [strip] if isinstance(strip, str) else strip
        if isinstance(strip, list) and all(isinstance(part, str) for part in strip):
            return tuple(strip)
    faults.add("match", f"must be `stem` or `{{strip: [ENDING, ...]}}`, got {value!r}")
    return ()


def _splits(value: object, images: Mapping[str, str], faults: Problems) -> dict[str, SplitRule]:
    if not isinstance(value, dict):
        faults.add("splits", f"must be a mapping of splits to rules, got {value!r}")
        return {}
    if value and "" not in images:
        faults.add("splits", "images are already given per split; remove splits")
    fractions = 0.0
    rules: dict[str, SplitRule] = {}
    for split, rule in value.items():
        if isinstance(rule, list) and rule and all(isinstance(part, str) for part in rule):
            rules[str(split)] = tuple(rule)
        elif isinstance(rule, bool) or not isinstance(rule, str | int | float):
            faults.add(
                "splits", f"{split}: must be a list file, a fraction or a folder, got {rule!r}"
            )
        else:
            rules[str(split)] = rule
            if not isinstance(rule, str):
                fractions += rule
                if not 0 < rule <= 1:
                    problem = f"{split}: a fraction must be above 0 and at most 1, got {rule}"
                    faults.add("splits", problem)
    if fractions > 1 + 1e-9:
        faults.add("splits", f"the fractions add up to {fractions:g}, more than 1")
    return rules or ({"train": 1.0} if "" in images else {})


def parse_file_rules(value: object, faults: Problems) -> dict[str, FileRule]:
    """Return the rules declared by `rules: {NAME: {why, images}}`."""
    rules: dict[str, FileRule] = {}
    if not isinstance(value, dict):
        faults.add("rules", f"must be `name: {{why: ..., images: [...]}}`, got {value!r}")
        return rules
    for name, rule in value.items():
        stems = rule.get("images") if isinstance(rule, dict) else None
        why = rule.get("why") if isinstance(rule, dict) else None
        if (
            not isinstance(stems, list)
            or not all(type(stem) in (str, int) for stem in stems)
            or not isinstance(why, str)
            or set(rule) != {"why", "images"}
        ):
            faults.add("rules", f"{name}: must be {{why: ..., images: [NAME, ...]}}, got {rule!r}")
            continue
        rules[str(name)] = FileRule(why, frozenset(str(stem) for stem in stems))
    return rules


def unknown_rule_message(name: str, rules: Iterable[str]) -> str:
    """Return the message for a rule that does not exist."""
    known = sorted(rules)
    available = f"known rules: {', '.join(known)}" if known else "this dataset has no rules"
    return f"no rule '{name}'{did_you_mean(name, known)}; {available}"


def parse_excluded_rules(
    value: object, rules: Mapping[str, FileRule], faults: Problems
) -> tuple[str, ...]:
    """Return the rule names in `exclude: [NAME, ...]`."""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        faults.add("exclude", f"must be a list of rule names, got {value!r}")
        return ()
    for name in value:
        if name not in rules:
            faults.add("exclude", unknown_rule_message(name, rules))
    return tuple(name for name in value if name in rules)
