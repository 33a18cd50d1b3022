"""Read dataset declarations: YAML with the paths of images and labels and the label meanings."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udaseg.data.labels.formats import (
    BUILT_IN,
    LabelPackage,
    format_package,
    unknown_format_message,
)
from udaseg.data.labels.tables import LabelTable, parse_label_table
from udaseg.documents import Problems, did_you_mean, read_yaml_document

_KEYS = {
    *("name", "root", "images", "labels", "match", "label_format", "classes", "ignore", "splits"),
    *("title", "home", "licence", "download", "size", "folders", "archives", "expected"),
    *("base", "table", "rules", "exclude", "layouts"),
}
_ABOUT_KEYS = ("title", "home", "licence", "download", "size")
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
        label_format: How labels store ids: ids, rgb, synthia, or a format of another package.
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
        label_package: The package that reads `label_format`; None for a built-in format.
    """

    name: str
    path: Path
    root: Path | None
    images: Mapping[str, str]
    labels: Mapping[str, str]
    stem_endings: tuple[str, ...]
    label_format: str
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
    label_package: LabelPackage | None = None

    @property
    def argument(self) -> str:
        """Argument for `udaseg prepare`: the name of a built-in dataset, else the YAML's path."""
        return self.name if self.root is None and self.base is None else str(self.path)


RecordedPackage = Callable[[str, str], LabelPackage | None]
"""Returns the package that read a label format when a dataset was prepared, given both names."""


def read_declaration(
    path: Path, *, builtin: bool = False, recorded_package: RecordedPackage | None = None
) -> Declaration:
    """Return the declaration in a dataset YAML.

    Args:
        path: The YAML.
        builtin: Whether it is in the catalog.
        recorded_package: A label format that it knows is accepted without its package, because
            the labels that it was prepared to need none.

    Raises:
        DataError: The YAML is invalid; the message lists all problems, one per line.
        EnvironmentFault: Several installed packages read the label format.
    """
    document, lines = read_yaml_document(path)
    problems = Problems(path, lines)
    _check_keys_known(document, problems)
    if "base" in document:
        document = _with_base(document, problems)
    _check_keys_present(document, problems)
    name = _name(document, problems)
    label_format, label_package = _label_format(document, problems, recorded_package)
    images, labels = (_globs(document.get(key), key, problems) for key in ("images", "labels"))
    table = _table(document, problems, label_format) if labels else None
    root = _root(document, path, problems, builtin or "base" in document)
    rules = parse_file_rules(document.get("rules", {}), problems)
    layouts = _layouts(document, problems)
    declaration = Declaration(
        name=name,
        path=path,
        root=root,
        images=images,
        labels=labels,
        stem_endings=_stem_endings(document.get("match", "stem"), problems),
        label_format=label_format,
        table=table,
        splits=_splits(document.get("splits", {}), images, problems),
        about={key: document[key] for key in _ABOUT_KEYS if key in document},
        folders=_string_list(document.get("folders", []), "folders", problems),
        archives=_string_list(document.get("archives", []), "archives", problems),
        expected_counts=_expected_counts(document.get("expected", {}), problems),
        base=document.get("base"),
        rules=rules,
        exclude=parse_excluded_rules(document.get("exclude", []), rules, problems),
        layouts=layouts,
        label_package=label_package,
    )
    problems.raise_if_any()
    return declaration


def _check_keys_known(document: Mapping[str, Any], problems: Problems) -> None:
    for key in document:
        if key not in _KEYS:
            problems.add(key, f"unknown key{did_you_mean(str(key), sorted(_KEYS))}")


def _check_keys_present(document: Mapping[str, Any], problems: Problems) -> None:
    for key in ("name", "images"):
        if key not in document:
            problems.add("", f"'{key}' is missing")


def _name(document: Mapping[str, Any], problems: Problems) -> str:
    name = document.get("name", "")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        problems.add("name", f"must be letters, digits, '.', '_' and '-', got {name!r}")
    return str(name)


def _label_format(
    document: Mapping[str, Any], problems: Problems, recorded_package: RecordedPackage | None
) -> tuple[str, LabelPackage | None]:
    """Return the label format and, unless it is built in, the package that reads it."""
    label_format = document.get("label_format", "ids")
    if isinstance(label_format, str):
        if label_format in BUILT_IN:
            return label_format, None
        package = format_package(label_format)
        if package is None and recorded_package is not None:
            package = recorded_package(str(document.get("name")), label_format)
        if package is not None:
            return label_format, package
    problems.add("label_format", unknown_format_message(label_format))
    return "ids", None


def _table(document: Mapping[str, Any], problems: Problems, label_format: str) -> LabelTable | None:
    if "classes" not in document:
        problems.add("labels", "labels need 'classes': a table's name or a list")
        return None
    return parse_label_table(document, problems, label_format)


def _with_base(document: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """Return the document, with missing keys taken from a built-in dataset."""
    name = document["base"]
    known = sorted(path.stem for path in _CATALOG.glob("*.yaml"))
    if name not in known:
        hint = did_you_mean(str(name), known)
        problems.add("base", f"no built-in dataset '{name}'{hint}; available: {', '.join(known)}")
        problems.raise_if_any()
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


def _string_list(value: object, key: str, problems: Problems) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    problems.add(key, f"must be a list of strings, got {value!r}")
    return ()


def _expected_counts(value: object, problems: Problems) -> dict[str, int]:
    if isinstance(value, dict) and all(type(part) is int for part in value.values()):
        return {str(split): count for split, count in value.items()}
    problems.add("expected", f"must be a mapping of splits to image counts, got {value!r}")
    return {}


def _root(
    document: Mapping[str, Any], path: Path, problems: Problems, builtin: bool
) -> Path | None:
    if "root" not in document:
        return None if builtin else path.resolve().parent
    text = document["root"]
    if not isinstance(text, str) or not text:
        problems.add("root", f"must be a folder, got {text!r}")
        return None

    def value(match: re.Match[str]) -> str:
        folder = os.environ.get(match[1])
        if not folder:
            problems.add(
                "root", f"the environment variable {match[1]} is not set; set it to the folder"
            )
        return folder or ""

    return path.resolve().parent / Path(_VARIABLE.sub(value, text)).expanduser()


def _globs(value: object, key: str, problems: Problems) -> dict[str, str]:
    if value is None:
        return {}
    globs = {"": value} if isinstance(value, str) else value
    if not isinstance(globs, dict) or not all(isinstance(part, str) for part in globs.values()):
        problems.add(key, f"must be a glob, or one glob per split, got {value!r}")
        return {}
    for pattern in globs.values():
        if pattern.startswith(("/", "~")) or ".." in Path(pattern).parts or not Path(pattern).parts:
            problems.add(key, f"must be a glob below the root, got '{pattern}'")
    return {str(split): pattern for split, pattern in globs.items()}


def _layouts(document: Mapping[str, Any], problems: Problems) -> tuple[Layout, ...]:
    """Return the listed layouts, with missing keys taken from the document."""
    listed = document.get("layouts", [])
    layouts = []
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict) or not entry or set(entry) - set(_LAYOUT_KEYS):
            problem = f"must be a list of {{{', '.join(_LAYOUT_KEYS)}}}, got {entry!r}"
            problems.add("layouts", problem)
            continue
        images, labels, match = ({**document, **entry}.get(key) for key in _LAYOUT_KEYS)
        globs = (_globs(images, "layouts", problems), _globs(labels, "layouts", problems))
        layouts.append(Layout(*globs, _stem_endings("stem" if match is None else match, problems)))
    return tuple(layouts)


def _stem_endings(value: object, problems: Problems) -> tuple[str, ...]:
    if value == "stem":
        return ()
    if isinstance(value, dict) and set(value) == {"strip"}:
        strip = value["strip"]
        strip = [strip] if isinstance(strip, str) else strip
        if isinstance(strip, list) and all(isinstance(part, str) for part in strip):
            return tuple(strip)
    problems.add("match", f"must be `stem` or `{{strip: [ENDING, ...]}}`, got {value!r}")
    return ()


def _splits(value: object, images: Mapping[str, str], problems: Problems) -> dict[str, SplitRule]:
    if not isinstance(value, dict):
        problems.add("splits", f"must be a mapping of splits to rules, got {value!r}")
        return {}
    if value and "" not in images:
        problems.add("splits", "images are already given per split; remove splits")
    fractions = 0.0
    rules: dict[str, SplitRule] = {}
    for split, rule in value.items():
        if isinstance(rule, list) and rule and all(isinstance(part, str) for part in rule):
            rules[str(split)] = tuple(rule)
        elif isinstance(rule, bool) or not isinstance(rule, str | int | float):
            problems.add(
                "splits", f"{split}: must be a list file, a fraction or a folder, got {rule!r}"
            )
        else:
            rules[str(split)] = rule
            if not isinstance(rule, str):
                fractions += rule
                if not 0 < rule <= 1:
                    problem = f"{split}: a fraction must be above 0 and at most 1, got {rule}"
                    problems.add("splits", problem)
    if fractions > 1 + 1e-9:
        problems.add("splits", f"the fractions add up to {fractions:g}, more than 1")
    return rules or ({"train": 1.0} if "" in images else {})


def parse_file_rules(value: object, problems: Problems) -> dict[str, FileRule]:
    """Return the rules declared by `rules: {NAME: {why, images}}`."""
    rules: dict[str, FileRule] = {}
    if not isinstance(value, dict):
        problems.add("rules", f"must be `name: {{why: ..., images: [...]}}`, got {value!r}")
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
            problems.add(
                "rules", f"{name}: must be {{why: ..., images: [NAME, ...]}}, got {rule!r}"
            )
            continue
        rules[str(name)] = FileRule(why, frozenset(str(stem) for stem in stems))
    return rules


def unknown_rule_message(name: str, rules: Iterable[str]) -> str:
    """Return the message for a rule that does not exist."""
    known = sorted(rules)
    available = f"known rules: {', '.join(known)}" if known else "this dataset has no rules"
    return f"no rule '{name}'{did_you_mean(name, known)}; {available}"


def parse_excluded_rules(
    value: object, rules: Mapping[str, FileRule], problems: Problems
) -> tuple[str, ...]:
    """Return the rule names in `exclude: [NAME, ...]`."""
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        problems.add("exclude", f"must be a list of rule names, got {value!r}")
        return ()
    for name in value:
        if name not in rules:
            problems.add("exclude", unknown_rule_message(name, rules))
    return tuple(name for name in value if name in rules)
