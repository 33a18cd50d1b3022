"""Label tables: which ids of a label file, or which colours, mean which class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.document import Faults, did_you_mean, read_document
from udaseg.data.labels import ClassSpace
from udaseg.errors import DataError

_TABLES = Path(__file__).parent / "tables"
_MAX_CLASSES = 254


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


def class_table(name: str) -> LabelTable:
    """Return a built-in label table, such as `cityscapes19`.

    Raises:
        DataError: There is no such table.
    """
    if name not in _tables():
        raise DataError(_no_table(name))
    path = _TABLES / f"{name}.yaml"
    document, lines = read_document(path)
    return label_table(document, Faults(path, lines), "ids")


def label_table(document: Mapping[str, Any], faults: Faults, label_format: str) -> LabelTable:
    """Return the table that `classes` and `ignore` of a document give.

    Raises:
        DataError: Everything that is wrong with them, a line each.
    """
    listed = document["classes"]
    if isinstance(listed, str):
        return _named_table(listed, document, faults, label_format)
    names, colors, ids = [], [], []
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_CLASSES:
        faults.add("classes", f"must be a table's name or a list of 1 to {_MAX_CLASSES} classes")
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
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.add("classes", f"the name '{name}' is given twice; one class may have several ids")
    faults.stop_if_any()
    return LabelTable(ClassSpace(tuple(names), tuple(colors)), tuple(ids), ignore)


def _tables() -> list[str]:
    return sorted(path.stem for path in _TABLES.glob("*.yaml"))


def _no_table(name: str) -> str:
    known = _tables()
    return f"no table '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}"


def _named_table(
    name: str, document: Mapping[str, Any], faults: Faults, label_format: str
) -> LabelTable:
    if name not in _tables():
        faults.add("classes", _no_table(name))
        faults.stop_if_any()
    known = class_table(name)
    ids, ignore = known.ids, known.ignore
    if label_format == "rgb":  # the table's own colours are its ids
        ids = tuple((r << 16 | g << 8 | b,) for r, g, b in known.classes.colors)
        ignore = frozenset()
    ignore |= frozenset(_ids(document.get("ignore", []), "ignore", faults))
    for own, class_name in zip(ids, known.classes.names, strict=True):
        for number in ignore & set(own):
            faults.add("ignore", f"id {number} is the class {class_name} of {name}")
    faults.stop_if_any()
    return LabelTable(known.classes, ids, ignore)


def _class(
    entry: object, number: int, label_format: str, faults: Faults
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return name, colour and ids of one entry of `classes`."""
    fallback = (37 * number % 256, 91 * number % 256, 151 * number % 256)
    known = ["name", "ids", "color", "colors"]
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        what = f"must be a name or {{name, ids, color}}, got {entry!r}"
        faults.add("classes", f"entry {number + 1}: {what}", number)
        return f"class {number}", fallback, ()
    name = entry["name"]
    for key in entry:
        if key not in known:
            faults.add(
                "classes", f"{name}: unknown key '{key}'{did_you_mean(str(key), known)}", number
            )
    color = _color(entry.get("color", list(fallback)), name, faults, number)
    if label_format != "rgb":
        return name, color, tuple(_ids(entry.get("ids", [number]), "classes", faults, number))
    more = entry.get("colors", [])
    listed = [
        _color(part, name, faults, number) for part in (more if isinstance(more, list) else [more])
    ]
    if "color" in entry:
        listed.insert(0, color)
    elif not listed:
        faults.add("classes", f"{name}: label_format rgb needs its color", number)
    return name, color, tuple(dict.fromkeys(r << 16 | g << 8 | b for r, g, b in listed))


def _color(
    value: object, name: str, faults: Faults, entry: int | None = None
) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == 3:
        parts = [part for part in value if type(part) is int and 0 <= part <= 255]
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
    key = name if entry is None else "classes"
    what = f"a color is three numbers from 0 to 255, got {value!r}"
    faults.add(key, what if entry is None else f"{name}: {what}", entry)
    return 0, 0, 0


def _ids(value: object, key: str, faults: Faults, entry: int | None = None) -> list[int]:
    """Return ids; a colour in `ignore` is written as a list of three."""
    found = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, list):
            r, g, b = _color(part, key, faults)
            found.append(r << 16 | g << 8 | b)
        elif type(part) is int and 0 <= part < 2**24:
            found.append(part)
        else:
            faults.add(key, f"an id is a whole number from 0, got {part!r}", entry)
    return found
