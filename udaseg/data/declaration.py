"""Dataset declarations: YAML that says where images and labels are and what the labels mean."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from udaseg.data.images import LabelFormat
from udaseg.data.labels import ClassSpace
from udaseg.errors import DataError

_TABLES = Path(__file__).parent / "tables"
_KEYS = {
    *("name", "root", "images", "labels", "match", "label_format", "classes", "ignore", "splits"),
    *("title", "home", "licence", "download", "size", "folders", "archives", "expected"),
}
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_MAX_BYTES = 1_000_000
_MAX_BRACKETS = 5_000


@dataclass(frozen=True)
class LabelTable:
    """Which ids mean which class.

    Attributes:
        classes: The class space.
        ids: Raw ids of each class; colours as r << 16 | g << 8 | b.
        ignore: Ids that are known and mean no class.
    """

    classes: ClassSpace
    ids: tuple[tuple[int, ...], ...]
    ignore: frozenset[int]


@dataclass(frozen=True)
class Declaration:
    """A dataset as its YAML declares it.

    Attributes:
        name: How it is called; names its prepared folder.
        path: The YAML.
        root: What globs are relative to; None for a built-in set, whose folder is looked for.
        images: Glob of each split, or of all images under "".
        labels: Likewise; splits left out have no labels.
        strip: Endings to take off a stem before images and labels are matched.
        label_format: ids, rgb or synthia.
        table: What the labels mean; None without labels.
        splits: Of all images: a list file, a fraction, or a folder name.
        about: Title, home, licence, download, size, as the YAML has them.
        folders: Folder names that a built-in set is looked for under.
        archives: Globs of archives that it comes in.
        expected: Published number of images of each split.
    """

    name: str
    path: Path
    root: Path | None
    images: Mapping[str, str]
    labels: Mapping[str, str]
    strip: tuple[str, ...]
    label_format: LabelFormat
    table: LabelTable | None
    splits: Mapping[str, str | float]
    about: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)


def class_table(name: str) -> LabelTable:
    """Return a built-in label table, such as `cityscapes19`.

    Raises:
        DataError: There is no such table.
    """
    known = sorted(path.stem for path in _TABLES.glob("*.yaml"))
    if name not in known:
        raise DataError(f"classes: no table '{name}'{_hint(name, known)}; there are {known}")
    path = _TABLES / f"{name}.yaml"
    document, lines = _read(path)
    return _label_table(document, _Faults(path, lines), "ids")


def read_declaration(path: Path, *, builtin: bool = False) -> Declaration:
    """Return the declaration in a dataset YAML.

    Raises:
        DataError: Everything that is wrong with it, a line each.
    """
    document, lines = _read(path)
    faults = _Faults(path, lines)
    for key in document:
        if key not in _KEYS:
            faults.add(key, f"unknown key{_hint(str(key), sorted(_KEYS))}")
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
            table = _label_table(document, faults, label_format)
    root = _root(document, path, faults, builtin)
    declaration = Declaration(
        name=str(name),
        path=path,
        root=root,
        images=images,
        labels=labels,
        strip=_strip(document.get("match", "stem"), faults),
        label_format=cast(LabelFormat, label_format),
        table=table,
        splits=_splits(document.get("splits", {}), images, faults),
        about={
            key: document[key]
            for key in ("title", "home", "licence", "download", "size")
            if key in document
        },
        folders=tuple(document.get("folders", ())),
        archives=tuple(document.get("archives", ())),
        expected=dict(document.get("expected", {})),
    )
    faults.stop_if_any()
    return declaration


class _Faults:
    """Problems of one file, each with the line of its key."""

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self.path, self.lines = path, lines
        self.found: list[str] = []

    def add(self, key: object, what: str) -> None:
        line = self.lines.get(str(key), 1)
        self.found.append(f"{self.path}:{line}: {f'{key}: ' if key else ''}{what}")

    def stop_if_any(self) -> None:
        if self.found:
            raise DataError("\n".join(self.found))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the document and the line of each top-level key."""
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise DataError(f"{path}: larger than 1 MB; not a dataset YAML")
        text = data.decode("utf-8")
        if text.count("[") + text.count("{") > _MAX_BRACKETS:
            raise DataError(f"{path}: more than {_MAX_BRACKETS} brackets; not a dataset YAML")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.load(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such dataset YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise DataError(f"{path}{where}: not YAML: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError, AttributeError) as error:
        raise DataError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(node, yaml.MappingNode):
        raise DataError(f"{path}: must be `key: value` lines")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        word = str(key.value)
        if word in lines:
            raise DataError(f"{path}:{key.start_mark.line + 1}: {word}: given twice")
        lines[word] = key.start_mark.line + 1
    return document, lines


def _root(document: Mapping[str, Any], path: Path, faults: _Faults, builtin: bool) -> Path | None:
    if "root" not in document:
        return None if builtin else path.resolve().parent
    text = document["root"]
    if not isinstance(text, str) or not text:
        faults.add("root", f"must be a folder, got {text!r}")
        return None

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            faults.add(
                "root", f"the environment variable {match[1]} is not set; it names the folder"
            )
        return found or ""

    return path.resolve().parent / Path(_VARIABLE.sub(value, text)).expanduser()


def _globs(value: object, key: str, faults: _Faults) -> dict[str, str]:
    if value is None:
        return {}
    found = {"": value} if isinstance(value, str) else value
    if not isinstance(found, dict) or not all(isinstance(part, str) for part in found.values()):
        faults.add(key, f"must be a glob, or a glob for each split, got {value!r}")
        return {}
    for pattern in found.values():
        if pattern.startswith(("/", "~")) or ".." in Path(pattern).parts or not pattern:
            faults.add(key, f"must be a glob below the root, got '{pattern}'")
    return {str(split): pattern for split, pattern in found.items()}


def _strip(value: object, faults: _Faults) -> tuple[str, ...]:
    if value == "stem":
        return ()
    if isinstance(value, dict) and set(value) == {"strip"}:
        strip = value["strip"]
        strip = [strip] if isinstance(strip, str) else strip
        if isinstance(strip, list) and all(isinstance(part, str) for part in strip):
            return tuple(strip)
    faults.add("match", f"must be `stem` or `{{strip: [ENDING, ...]}}`, got {value!r}")
    return ()


def _splits(value: object, images: Mapping[str, str], faults: _Faults) -> dict[str, str | float]:
    if not isinstance(value, dict):
        faults.add("splits", f"must be `split: rule`, got {value!r}")
        return {}
    if value and "" not in images:
        faults.add("splits", "images are given for each split already; leave splits out")
    fractions = 0.0
    for split, rule in value.items():
        if isinstance(rule, bool) or not isinstance(rule, str | int | float):
            faults.add(
                "splits", f"{split}: must be a list file, a fraction or a folder, got {rule!r}"
            )
        elif not isinstance(rule, str):
            fractions += rule
            if not 0 < rule <= 1:
                faults.add("splits", f"{split}: a fraction is above 0 and at most 1, got {rule}")
    if fractions > 1 + 1e-9:
        faults.add("splits", f"the fractions add up to {fractions:g}, more than 1")
    rules = {str(split): rule for split, rule in value.items()}
    return rules or ({"train": 1.0} if "" in images else {})


def _label_table(document: Mapping[str, Any], faults: _Faults, label_format: str) -> LabelTable:
    listed = document["classes"]
    if isinstance(listed, str):
        known = class_table(listed)
        extra = frozenset(_ids(document.get("ignore", []), "ignore", faults))
        return LabelTable(known.classes, known.ids, known.ignore | extra)
    names, colors, ids = [], [], []
    if not isinstance(listed, list) or not listed:
        faults.add("classes", f"must be a table's name or a list, got {listed!r}")
        listed = []
    for number, entry in enumerate(listed):
        name, color, own = _class(entry, number, label_format, faults)
        names.append(name)
        colors.append(color)
        ids.append(own)
    seen: dict[int, str] = {}
    ignore = frozenset(_ids(document.get("ignore", []), "ignore", faults))
    for name, own in zip(names, ids, strict=True):
        for number in own:
            if number in seen or number in ignore:
                other = seen.get(number, "ignore")
                faults.add("classes", f"id {number} belongs to both {other} and {name}")
            seen[number] = name
    if len(set(names)) != len(names):
        faults.add("classes", f"a name is given twice: {names}")
    faults.stop_if_any()
    return LabelTable(ClassSpace(tuple(names), tuple(colors)), tuple(ids), ignore)


def _class(
    entry: object, number: int, label_format: str, faults: _Faults
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return name, colour and ids of one entry of `classes`."""
    fallback = (37 * number % 256, 91 * number % 256, 151 * number % 256)
    if isinstance(entry, str):
        entry = {"name": entry, "ids": [number]}
    if not isinstance(entry, dict) or "name" not in entry:
        faults.add(
            "classes", f"entry {number + 1} must be a name or {{name, ids, color}}: {entry!r}"
        )
        return f"class {number}", fallback, ()
    for key in entry:
        if key not in ("name", "ids", "color", "colors"):
            hint = _hint(str(key), ["name", "ids", "color", "colors"])
            faults.add("classes", f"{entry['name']}: unknown key '{key}'{hint}")
    color = _color(entry.get("color", list(fallback)), str(entry["name"]), faults)
    if label_format == "rgb":
        listed = [_color(part, str(entry["name"]), faults) for part in entry.get("colors", [])]
        if "color" in entry:
            listed.insert(0, color)
        elif not listed:
            faults.add("classes", f"{entry['name']}: label_format rgb needs its color")
        ids = tuple(dict.fromkeys(r << 16 | g << 8 | b for r, g, b in listed))
    else:
        ids = tuple(_ids(entry.get("ids", [number]), "classes", faults))
    return str(entry["name"]), color, ids


def _color(value: object, name: str, faults: _Faults) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == 3:
        parts = [part for part in value if type(part) is int and 0 <= part <= 255]
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
    faults.add("classes", f"{name}: a color is three numbers from 0 to 255, got {value!r}")
    return 0, 0, 0


def _ids(value: object, key: str, faults: _Faults) -> list[int]:
    """Return ids; a colour in `ignore` is written as a list of three."""
    found = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, list):
            r, g, b = _color(part, key, faults)
            found.append(r << 16 | g << 8 | b)
        elif type(part) is int and 0 <= part < 2**24:
            found.append(part)
        else:
            faults.add(key, f"an id is a whole number from 0, got {part!r}")
    return found


def _hint(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""
