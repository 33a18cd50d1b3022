"""Label tables: the class of each id or colour in a label file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from udaseg.data.labels.classes import ClassSpace, lookup_table
from udaseg.documents import Problems, did_you_mean, read_yaml_document
from udaseg.errors import DataError, UsageError

_TABLES_FOLDER = Path(__file__).parent / "tables"
_MAX_CLASSES = 254


@dataclass(frozen=True)
class LabelTable:
    """The ids of each class.

    Attributes:
        classes: The class space.
        ids: Raw ids of each class; colours as r << 16 | g << 8 | b.
        ignore: Known ids that belong to no class.
    """

    classes: ClassSpace
    ids: tuple[tuple[int, ...], ...]
    ignore: frozenset[int]


def builtin_label_table(name: str) -> LabelTable:
    """Return a built-in label table, such as `cityscapes19`.

    Raises:
        DataError: No table has this name.
    """
    if name not in _table_names():
        raise DataError(_unknown_table_message(name))
    return _read_table(name)[0]


def parse_label_table(
    document: Mapping[str, Any], problems: Problems, label_format: str
) -> LabelTable:
    """Return the table described by `classes`, `table` and `ignore` of a document.

    `classes` is a table's name or a list. With `table`, entries of the list may name classes of
    that table and merge several into one; each class of the table must then be in a class or in
    `ignore`.

    Raises:
        DataError: The description is wrong; the message has one line per fault.
    """
    classes = document["classes"]
    if isinstance(classes, str):
        if "table" in document:
            problems.add(
                "table", "only applies to a list of classes; here 'classes' already names a table"
            )
        return _named_table(classes, "classes", document, problems, label_format)
    base = None
    if "table" in document:
        bare = {key: value for key, value in document.items() if key != "ignore"}
        base = _named_table(str(document["table"]), "table", bare, problems, label_format)
    if not isinstance(classes, list) or not 1 <= len(classes) <= _MAX_CLASSES:
        problems.add("classes", f"must be a table's name or a list of 1 to {_MAX_CLASSES} classes")
        classes = []
    parsed = [
        _parse_class(entry, number, label_format, base, problems)
        for number, entry in enumerate(classes)
    ]
    names = tuple(name for name, _, _ in parsed)
    ids = tuple(class_ids for _, _, class_ids in parsed)
    ignore = _parse_ignored_ids(document, base, ids, problems)
    owners: dict[int, str] = {}
    for name, class_ids in zip(names, ids, strict=True):
        for number in class_ids:
            if number in owners or number in ignore:
                owner = owners.get(number, "ignore")
                id_text = (
                    f"id {number}" if label_format != "rgb" else f"color {_unpack_rgb(number)}"
                )
                problems.add("classes", f"{id_text} belongs to both {owner} and {name}")
            owners[number] = name
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.add("classes", f"the name '{name}' is given twice; one class may have several ids")
    if base is not None and not problems.messages:
        _check_unused_classes(str(document["table"]), base, {*owners, *ignore}, problems)
    problems.raise_if_any()
    return LabelTable(ClassSpace(names, tuple(color for _, color, _ in parsed)), ids, ignore)


def _parse_ignored_ids(
    document: Mapping[str, Any],
    base: LabelTable | None,
    ids: Sequence[tuple[int, ...]],
    problems: Problems,
) -> frozenset[int]:
    """Return the ids to ignore: listed ids, ids of listed classes, and those the table ignores."""
    entries = document.get("ignore", [])
    if base is None:
        return frozenset(_parse_ids(entries, "ignore", problems))
    entries = entries if isinstance(entries, list) else [entries]
    ignore = set(
        _parse_ids([entry for entry in entries if not isinstance(entry, str)], "ignore", problems)
    )
    for name in entries:
        if isinstance(name, str):
            ignore.update(_ids_of_class(base, name, "ignore", problems))
    # a class may use ids that the table ignores
    return frozenset(ignore | (base.ignore - {number for class_ids in ids for number in class_ids}))


def _check_unused_classes(
    table_name: str, base: LabelTable, known: set[int], problems: Problems
) -> None:
    """Add a fault if classes of the table are in no class and not ignored."""
    pairs = zip(base.classes.names, base.ids, strict=True)
    missing = [name for name, class_ids in pairs if class_ids and not known.intersection(class_ids)]
    if missing:
        names = f"{', '.join(missing)} of {table_name}"
        problems.add("classes", f"{names} are in no class; add them to a class or to 'ignore'")


def _ids_of_class(
    base: LabelTable, name: str, key: str, problems: Problems, entry: int | None = None
) -> tuple[int, ...]:
    """Return the ids of a class of the table; add a fault if the table lacks the class."""
    names = list(base.classes.names)
    if name in names:
        return base.ids[names.index(name)]
    problems.add(key, f"the table has no class '{name}'{did_you_mean(name, names)}", entry)
    return ()


def _table_names() -> list[str]:
    return sorted(path.stem for path in _TABLES_FOLDER.glob("*.yaml"))


def _unknown_table_message(name: str) -> str:
    known = _table_names()
    return f"no table '{name}'{did_you_mean(name, known)}; known tables: {', '.join(known)}"


@cache
def _read_table(name: str) -> tuple[LabelTable, str]:
    """Return a built-in table and the label format of its ids."""
    path = _TABLES_FOLDER / f"{name}.yaml"
    document, lines = read_yaml_document(path)
    label_format = str(document.get("label_format", "ids"))
    return parse_label_table(document, Problems(path, lines), label_format), label_format


def _named_table(
    name: str, key: str, document: Mapping[str, Any], problems: Problems, label_format: str
) -> LabelTable:
    if name not in _table_names():
        problems.add(key, _unknown_table_message(name))
        problems.raise_if_any()
    known, table_format = _read_table(name)
    ids, ignore = known.ids, known.ignore
    if table_format == "rgb" and label_format != "rgb":
        problems.add(key, f"{name} is a table of colours; it needs label_format rgb")
    elif table_format != "rgb" and label_format == "rgb":  # use the table's colours as ids
        ids = tuple((r << 16 | g << 8 | b,) for r, g, b in known.classes.colors)
        ignore = frozenset()
    ignore |= frozenset(_parse_ids(document.get("ignore", []), "ignore", problems))
    for class_ids, class_name in zip(ids, known.classes.names, strict=True):
        for number in ignore & set(class_ids):
            problems.add("ignore", f"id {number} is the class {class_name} of {name}")
    problems.raise_if_any()
    return LabelTable(known.classes, ids, ignore)


def _parse_class(
    entry: object, index: int, label_format: str, base: LabelTable | None, problems: Problems
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return the name, colour and ids of one entry of `classes`."""
    fallback = (37 * index % 256, 91 * index % 256, 151 * index % 256)
    known_keys = ["name", "ids", "color", "colors", *(["of"] if base is not None else [])]
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        message = f"must be a name or {{name, ids, color}}, got {entry!r}"
        problems.add("classes", f"entry {index + 1}: {message}", index)
        return f"class {index}", fallback, ()
    name = entry["name"]
    for key in entry:
        if key == "of" and base is None:
            message = f"{name}: 'of' refers to classes of a 'table', but no table is given"
            problems.add("classes", message, index)
        elif key not in known_keys:
            problems.add(
                "classes", f"{name}: unknown key '{key}'{did_you_mean(str(key), known_keys)}", index
            )
    if base is not None:
        return _parse_merged_class(entry, index, label_format, base, problems)
    color = _parse_color(entry.get("color", list(fallback)), name, problems, index)
    if label_format != "rgb":
        return name, color, tuple(_parse_ids(entry.get("ids", [index]), "classes", problems, index))
    colors = _parse_colors(entry, name, problems, index)
    if "color" in entry:
        colors.insert(0, color)
    elif not colors:
        problems.add("classes", f"{name}: label_format rgb needs a color", index)
    return name, color, tuple(dict.fromkeys(r << 16 | g << 8 | b for r, g, b in colors))


def _parse_merged_class(
    entry: Mapping[str, Any], index: int, label_format: str, base: LabelTable, problems: Problems
) -> tuple[str, tuple[int, int, int], tuple[int, ...]]:
    """Return the name, colour and ids of an entry that uses classes of a table.

    These are the classes in `of`, or the class with the entry's name.
    """
    name = entry["name"]
    class_names = entry.get("of", [] if {"ids", "colors"} & set(entry) else [name])
    if not isinstance(class_names, list) or not all(
        isinstance(class_name, str) for class_name in class_names
    ):
        problems.add("classes", f"{name}: 'of' must be a list of class names of the table", index)
        class_names = []
    table_ids = [
        part
        for class_name in class_names
        for part in _ids_of_class(base, class_name, "classes", problems, index)
    ]
    if label_format == "rgb":
        more_ids = [r << 16 | g << 8 | b for r, g, b in _parse_colors(entry, name, problems, index)]
    else:
        more_ids = _parse_ids(entry.get("ids", []), "classes", problems, index)
    table_colors = dict(zip(base.classes.names, base.classes.colors, strict=True))
    default_color = next(
        (table_colors[class_name] for class_name in class_names if class_name in table_colors),
        (0, 0, 0),
    )
    color = _parse_color(entry.get("color", list(default_color)), name, problems, index)
    return name, color, tuple(dict.fromkeys([*table_ids, *more_ids]))


def _parse_colors(
    entry: Mapping[str, Any], name: str, problems: Problems, index: int
) -> list[tuple[int, int, int]]:
    value = entry.get("colors", [])
    colors = value if isinstance(value, list) else [value]
    return [_parse_color(part, name, problems, index) for part in colors]


def _unpack_rgb(packed: int) -> list[int]:
    return [packed >> 16, packed >> 8 & 255, packed & 255]


def _parse_color(
    value: object, name: str, problems: Problems, entry: int | None = None
) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == 3:
        parts = [part for part in value if type(part) is int and 0 <= part <= 255]
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
    key = name if entry is None else "classes"
    message = f"a color must be three numbers from 0 to 255, got {value!r}"
    problems.add(key, message if entry is None else f"{name}: {message}", entry)
    return 0, 0, 0


def _parse_ids(value: object, key: str, problems: Problems, entry: int | None = None) -> list[int]:
    """Return a list of ids; a colour is written as a list of three numbers."""
    ids = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            r, g, b = _parse_color(item, key, problems)
            ids.append(r << 16 | g << 8 | b)
        elif type(item) is int and 0 <= item < 2**24:
            ids.append(item)
        else:
            problems.add(key, f"an id must be a whole number >= 0, got {item!r}", entry)
    return ids


Ids = Literal["train", "label"]


def check_ids(ids: str) -> None:
    """Refuse a kind of ids that does not exist.

    Raises:
        UsageError: It does not.
    """
    if ids not in get_args(Ids):
        raise UsageError(f"ids must be one of {', '.join(get_args(Ids))}, got {ids!r}")


def label_ids(classes: ClassSpace) -> tuple[int, ...]:
    """Return the Cityscapes label id of each class.

    Raises:
        UsageError: A class is not one of the 19 of Cityscapes.
    """
    table = builtin_label_table("cityscapes19")
    id_by_name = {
        name: ids_of_class[0]
        for name, ids_of_class in zip(table.classes.names, table.ids, strict=True)
    }
    unknown = [name for name in classes.names if name not in id_by_name]
    if unknown:
        raise UsageError(
            f"label ids exist only for Cityscapes, which has no class {', '.join(unknown)}"
        )
    return tuple(id_by_name[name] for name in classes.names)


def stored_id_table(classes: ClassSpace, ids: Ids) -> bytes:
    """Return 256 entries: the id that is written for each train id of `classes`.

    A pixel without a class is 255 among train ids, and 0 (unlabeled) among label ids.

    Raises:
        UsageError: Label ids are requested for classes that Cityscapes lacks.
    """
    if ids == "train":
        return lookup_table(range(len(classes)))
    return bytes(label_ids(classes)).ljust(256, b"\0")


def server_ids(classes: ClassSpace, ids: Ids) -> tuple[int, ...]:
    """Return each class's Cityscapes label id or train id, independent of the class order.

    Raises:
        UsageError: A class is not one of the 19 of Cityscapes.
    """
    labels = label_ids(classes)
    return (
        labels
        if ids == "label"
        else classes.train_ids_in(builtin_label_table("cityscapes19").classes)
    )
