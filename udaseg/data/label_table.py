"""Label tables: which ids of a label file, or which colours, mean which class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
    return _read_table(name)[0]


def label_table(document: Mapping[str, Any], faults: Faults, label_format: str) -> LabelTable:
    """Return the table that `classes`, `table` and `ignore` of a document give.

    `classes` is a table's name or a list. With `table`, entries of the list may name classes of
    that table, several as one; every class of the table must then be in a class or in `ignore`.

    Raises:
        DataError: Everything that is wrong with them, a line each.
    """
    listed = document["classes"]
    if isinstance(listed, str):
        if "table" in document:
            faults.add("table", "is for a list of classes; here 'classes' names a table already")
        return _named_table(listed, "classes", document, faults, label_format)
    base = None
    if "table" in document:
        bare = {key: value for key, value in document.items() if key != "ignore"}
        base = _named_table(str(document["table"]), "table", bare, faults, label_format)
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_CLASSES:
        faults.add("classes", f"must be a table's name or a list of 1 to {_MAX_CLASSES} classes")
        listed = []
    found = [
        _class(entry, number, label_format, base, faults) for number, entry in enumerate(listed)
    ]
    names = tuple(name for name, _, _ in found)
    ids = tuple(own for _, _, own in found)
    ignore = _ignored(document, base, ids, faults)
    seen: dict[int, str] = {}
    for name, own in zip(names, ids, strict=True):
        for number in own:
            if number in seen or number in ignore:
                other = seen.get(number, "ignore")
                what = f"id {number}" if label_format != "rgb" else f"color {_parts(number)}"
                faults.add("classes", f"{what} belongs to both {other} and {name}")
            seen[number] = name
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.add("classes", f"the name '{name}' is given twice; one class may have several ids")
    if base is not None and not faults.found:
        _refuse_forgotten(str(document["table"]), base, {*seen, *ignore}, faults)
    faults.stop_if_any()
    return LabelTable(ClassSpace(names, tuple(color for _, color, _ in found)), ids, ignore)


def _ignored(
    document: Mapping[str, Any],
    base: LabelTable | None,
    ids: Sequence[tuple[int, ...]],
    faults: Faults,
) -> frozenset[int]:
    """Return the ids to ignore: those listed, of classes listed, and the table's own."""
    listed = document.get("ignore", [])
    if base is None:
        return frozenset(_ids(listed, "ignore", faults))
    listed = listed if isinstance(listed, list) else [listed]
    ignore = set(_ids([part for part in listed if not isinstance(part, str)], "ignore", faults))
    for name in listed:
        if isinstance(name, str):
            ignore.update(_of(base, name, "ignore", faults))
    # a class may take what the table leaves out
    return frozenset(ignore | (base.ignore - {number for own in ids for number in own}))


def _refuse_forgotten(name: str, base: LabelTable, known: set[int], faults: Faults) -> None:
    """Refuse to drop a class of the table without a word."""
    pairs = zip(base.classes.names, base.ids, strict=True)
    forgotten = [word for word, own in pairs if own and not known.intersection(own)]
    if forgotten:
        what = f"{', '.join(forgotten)} of {name} are in no class; name them there or in 'ignore'"
        faults.add("classes", what)


def _of(
    base: LabelTable, name: str, key: str, faults: Faults, entry: int | None = None
) -> tuple[int, ...]:
    """Return the ids of a class of the table."""
    names = list(base.classes.names)
    if name in names:
        return base.ids[names.index(name)]
    faults.add(key, f"the table has no class '{name}'{did_you_mean(name, names)}", entry)
    return ()


def _tables() -> list[str]:
    return sorted(path.stem for path in _TABLES.glob("*.yaml"))


def _no_table(name: str) -> str:
    known = _tables()
    return f"no table '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}"


@cache
def _read_table(name: str) -> tuple[LabelTable, str]:
    """Return a built-in table and the label format that its ids are of."""
    path = _TABLES / f"{name}.yaml"
    document, lines = read_document(path)
    label_format = str(document.get("label_format", "ids"))
    return label_table(document, Faults(path, lines), label_format), label_format


def _named_table(
    name: str, key: str, document: Mapping[str, Any], faults: Faults, label_format: str
) -> LabelTable:
    if name not in _tables():
        faults.add(key, _no_table(name))
        faults.stop_if_any()
    known, own_format = _read_table(name)
    ids, ignore = known.ids, known.ignore
    if own_format == "rgb" and label_format != "rgb":
        faults.add(key, f"{name} is a table of colours; it needs label_format rgb")
    elif own_format != "rgb" and label_format == "rgb":  # the table's own colours are its ids
        ids = tuple((r << 16 | g << 8 | b,) for r, g, b in known.classes.colors)
        ignore = frozenset()
    ignore |= frozenset(_ids(document.get("ignore", []), "ignore", faults))
    for own, class_name in zip(ids, known.classes.names, strict=True):
        for number in ignore & set(own):
            faults.add("ignore", f"id {number} is the class {class_name} of {name}")
    faults.stop_if_any()
    return LabelTable(known.classes, ids, ignore)


def _class(
    entry: object, number: int, label_format: str, base: LabelTable | None, faults: Faults
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return name, colour and ids of one entry of `classes`."""
    fallback = (37 * number % 256, 91 * number % 256, 151 * number % 256)
    known = ["name", "ids", "color", "colors", *(["of"] if base is not None else [])]
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        what = f"must be a name or {{name, ids, color}}, got {entry!r}"
        faults.add("classes", f"entry {number + 1}: {what}", number)
        return f"class {number}", fallback, ()
    name = entry["name"]
    for key in entry:
        if key == "of" and base is None:
            what = f"{name}: 'of' names classes of a 'table', which is not given"
            faults.add("classes", what, number)
        elif key not in known:
            faults.add(
                "classes", f"{name}: unknown key '{key}'{did_you_mean(str(key), known)}", number
            )
    if base is not None:
        return _class_of(entry, number, label_format, base, faults)
    color = _color(entry.get("color", list(fallback)), name, faults, number)
    if label_format != "rgb":
        return name, color, tuple(_ids(entry.get("ids", [number]), "classes", faults, number))
    listed = _colors(entry, name, faults, number)
    if "color" in entry:
        listed.insert(0, color)
    elif not listed:
        faults.add("classes", f"{name}: label_format rgb needs its color", number)
    return name, color, tuple(dict.fromkeys(r << 16 | g << 8 | b for r, g, b in listed))


def _class_of(
    entry: Mapping[str, Any], number: int, label_format: str, base: LabelTable, faults: Faults
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return an entry that takes classes of a table: those in `of`, or the one of its own name."""
    name = entry["name"]
    words = entry.get("of", [] if {"ids", "colors"} & set(entry) else [name])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        faults.add("classes", f"{name}: 'of' is a list of the table's classes", number)
        words = []
    taken = [part for word in words for part in _of(base, word, "classes", faults, number)]
    if label_format == "rgb":
        own = [r << 16 | g << 8 | b for r, g, b in _colors(entry, name, faults, number)]
    else:
        own = _ids(entry.get("ids", []), "classes", faults, number)
    colors = dict(zip(base.classes.names, base.classes.colors, strict=True))
    first = next((colors[word] for word in words if word in colors), (0, 0, 0))
    color = _color(entry.get("color", list(first)), name, faults, number)
    return name, color, tuple(dict.fromkeys([*taken, *own]))


def _colors(
    entry: Mapping[str, Any], name: str, faults: Faults, number: int
) -> list[tuple[int, int, int]]:
    more = entry.get("colors", [])
    listed = more if isinstance(more, list) else [more]
    return [_color(part, name, faults, number) for part in listed]


def _parts(number: int) -> list[int]:
    return [number >> 16, number >> 8 & 255, number & 255]


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
