"""Class lists of annotation tools: a mapping of ids in the dataset YAML, or a file beside it."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from udaseg.data.labels.tables import ClassEntry, Color, LabelDescription, WrittenId, listed
from udaseg.documents import Document
from udaseg.files import parse_json

Written = TypeVar("Written", bound=LabelDescription)
_SUFFIXES = (".csv", ".txt", ".json")
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_LABELMAP_LINE = re.compile(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*")
_ID_KEYS = ("pixel value", "value", "id", "index", "class id", "class_id")
_NAME_KEYS = ("class", "class_name", "class name", "title", "name", "label", "readable")
_LIST_KEYS = ("classes", "labels", "categories")
_LABELME_IGNORED = "__ignore__"


def with_listed_classes(
    written: Written, folders: Sequence[Path], document: Document, *, ids_from: str
) -> Written:
    """Return a description whose `classes` are a list, if they are a mapping or name a file.

    Classes of a mapping or a file that `ignore` names are left out, and their ids are ignored.

    Args:
        written: The description.
        folders: Folders in which the file is looked for.
        document: The dataset YAML, to which problems are added.
        ids_from: What label files have: `position` or id, `color`, or `name`.
    """
    classes = written.classes
    try:
        if isinstance(classes, dict):
            entries = list(_from_mapping(classes))
        elif isinstance(classes, str) and classes.lower().endswith(_SUFFIXES):
            entries = list(_from_file(classes, folders))
        else:
            return written
    except ValueError as error:
        document.add("classes", str(error))
        return replace(written, classes=["unknown"], ignore=[])
    if ids_from != "position":
        entries = [replace(entry, ids=None) for entry in entries]
    ignore: list[WrittenId | str] = listed(written.ignore)
    kept = [entry for entry in entries if entry.name not in ignore]
    if not 1 <= len(kept) <= 254:
        document.add("classes", f"must have 1 to 254 classes, got {len(kept)}")
    if ids_from != "name":
        left_out = {entry.name: _ids_of(entry, ids_from) for entry in entries}
        ignore = [number for each in ignore for number in left_out.get(str(each), [each])]
    return replace(written, classes=[*kept], ignore=[*ignore])


def _ids_of(entry: ClassEntry, ids_from: str) -> list[WrittenId]:
    if ids_from == "color":
        return [] if entry.color is None else [entry.color]
    return listed(entry.ids)


def _from_mapping(classes: Mapping[str, object]) -> Iterable[ClassEntry]:
    """Yield the classes of a mapping from id to name, or from name to id."""
    for key, value in classes.items():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if not re.fullmatch(r"-?\d+", str(number)):
            raise ValueError(f"must map ids to names, got {key}: {value}")
        yield ClassEntry(name=str(name), ids=[int(str(number))])


def _from_file(name: str, folders: Sequence[Path]) -> Iterable[ClassEntry]:
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"there is no file {folders[0] / name}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = {".csv": _csv_rows, ".txt": _text_rows, ".json": _json_rows}[path.suffix.lower()]
        for position, row in enumerate(rows(text)):
            yield _entry(position, row)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _entry(position: int, row: Mapping[str, Any]) -> ClassEntry:
    """Return the class of a row, whose keys are in lower case."""
    name = next((row[key] for key in _NAME_KEYS if isinstance(row.get(key), str)), None)
    if not name:
        raise ValueError(f"class {position} has no name ({', '.join(_NAME_KEYS)})")
    number = next((row[key] for key in _ID_KEYS if row.get(key) is not None), position)
    if not re.fullmatch(r"-?\d+", str(number)):
        number = position
    name = name.strip("_") if name == "_background_" else name
    return ClassEntry(name=name, ids=[int(number)], color=_color(row))


def _color(row: Mapping[str, Any]) -> Color | None:
    color = row.get("color", row.get("colour"))
    if isinstance(color, str) and (match := _HEX.fullmatch(color)):
        red, green, blue = bytes.fromhex(match[1])
        return red, green, blue
    parts: list[Any] = color if isinstance(color, list) else [row.get(key) for key in "rgb"]
    if len(parts) < 3 or any(part in (None, "") for part in parts[:3]):
        return None
    red, green, blue = (int(part) for part in parts[:3])
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise ValueError(f"{[red, green, blue]} is not a color, three numbers from 0 to 255")
    return red, green, blue


def _csv_rows(text: str) -> list[Mapping[str, Any]]:
    header, *rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    keys = [column.strip().lower() for column in header]
    if not set(keys) & set(_NAME_KEYS):
        raise ValueError(f"has no column with names ({', '.join(_NAME_KEYS)})")
    return [dict(zip(keys, map(str.strip, row), strict=False)) for row in rows if any(row)]


def _text_rows(text: str) -> list[Mapping[str, Any]]:
    """Return the labels of a `labelmap.txt` of CVAT, or of a file with one name a line."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines[:1] == [_LABELME_IGNORED]:  # labelme gives it the id -1
        lines = lines[1:]
    matches = [_LABELMAP_LINE.fullmatch(line) for line in lines]
    return [
        {"name": line}
        if match is None
        else {"name": match[1], "color": match[2].split(",") if match[2] else None}
        for line, match in zip(lines, matches, strict=True)
    ]


def _json_rows(text: str) -> list[Mapping[str, Any]]:
    value = parse_json(text)
    if isinstance(value, dict):
        listed = next((value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)), None)
        if listed is None:
            return [{"name": e.name, "id": _ids_of(e, "")[0]} for e in _from_mapping(value)]
        value = listed
    if not isinstance(value, list) or not all(isinstance(each, str | dict) for each in value):
        raise ValueError("is not a list of classes")
    return [
        {"name": each} if isinstance(each, str) else {k.lower(): v for k, v in each.items()}
        for each in value
    ]
