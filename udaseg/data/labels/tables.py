"""Label tables: the class of each id or colour in a label file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from annotated_types import Interval, Len

from udaseg.data.labels.classes import ClassSpace, lookup_table
from udaseg.documents import Document, DocumentKind, Must, read_document
from udaseg.errors import DataError, UsageError
from udaseg.text import suggestion
from udaseg.validation import validate

T = TypeVar("T")
DATASET_YAML = DocumentKind("dataset YAML", DataError, 200_000, 50_000, plain_lines=False)
_TABLES_FOLDER = Path(__file__).parent / "tables"

Color = tuple[int, int, int]
_Byte = Annotated[int, Interval(ge=0, le=255)]
_WrittenColor = Annotated[tuple[_Byte, _Byte, _Byte], Must("a color, three numbers from 0 to 255")]
WrittenId = int | Color
LabelId = int | str
"""An id in a label file, or the label of a named object."""
_Id = Annotated[int | _WrittenColor, Must("an id, a whole number")]
_IdOrName = Annotated[_Id | str, Must("an id, a whole number")]
_Ids = Annotated[list[_Id] | int, Must("a list of ids")]
_Class = tuple[str, Color, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ClassEntry:
    """One entry of `classes`."""

    name: str
    """Name of the class."""
    ids: _Ids | None = None
    """Its ids; the position in the list if there are none. A colour is [R, G, B]."""
    color: _WrittenColor | None = None
    """Its colour in pictures; with `label_format: rgb` also in label files."""
    colors: Annotated[list[_WrittenColor], Must("a list of colors")] | None = None
    """More colours in label files."""
    of: Annotated[list[str], Must("a list of class names of the table")] | None = None
    """Classes of `table` that this class consists of, or labels of named objects; the one with its
    name by default."""


_Entry = Annotated[str | ClassEntry, Must("a name or {name, ids, color}")]
Classes = Annotated[
    str | Annotated[list[_Entry], Len(1, 254)] | Annotated[dict[str, str | int], Len(1, 254)],
    Must("a table's name, a file, a list of 1 to 254 classes, or a mapping from id to name"),
]


@dataclass(frozen=True, kw_only=True)
class LabelDescription:
    """What label files mean: a table's name, or a list of classes."""

    classes: Classes
    """A table's name, a list of classes, a mapping from id to name, or a file of an annotation
    tool."""
    table: Annotated[str, Must("the name of a table")] | None = None
    """The table whose classes the entries of `classes` merge."""
    ignore: Annotated[list[_IdOrName] | int | str, Must("a list of ids")] = field(
        default_factory=list
    )
    """Ids that belong to no class; with `table` also names of its classes."""


@dataclass(frozen=True, kw_only=True)
class _TableDocument(LabelDescription):
    label_format: str = "ids"


@dataclass(frozen=True)
class LabelTable:
    """The ids of each class.

    Attributes:
        classes: The class space.
        ids: Raw ids of each class; colours as r << 16 | g << 8 | b.
        ignore: Known ids that belong to no class.
        labels: Labels of each class; empty if label files have ids.
        ignored_labels: Known labels that belong to no class.
    """

    classes: ClassSpace
    ids: tuple[tuple[int, ...], ...]
    ignore: frozenset[int]
    labels: tuple[tuple[str, ...], ...] = ()
    ignored_labels: frozenset[str] = frozenset()


def builtin_label_table(name: str) -> LabelTable:
    """Return a built-in label table, such as `cityscapes19`.

    Raises:
        DataError: No table has this name.
    """
    if name not in _table_names():
        raise DataError(_unknown_table_message(name))
    return _read_table(name)[0]


def named_table(name: str, document: Document, key: str = "classes") -> LabelTable | None:
    """Return the built-in table that a key of a document names; None after a problem."""
    if name in _table_names():
        return _read_table(name)[0]
    document.add(key, _unknown_table_message(name))
    return None


def default_color(index: int) -> Color:
    """Return the colour of the class at a position if its declaration gives none."""
    return 37 * index % 256, 91 * index % 256, 151 * index % 256


def parse_label_table(
    written: LabelDescription, document: Document, label_format: str
) -> LabelTable | None:
    """Return the table that a document describes; None after a problem.

    With `table`, entries of `classes` may name classes of that table and merge several into one;
    each class of the table must then be in a class or in `ignore`.
    """
    if isinstance(written.classes, str):
        if written.table is not None:
            problem = "only applies to a list of classes; here 'classes' already names a table"
            document.add("table", problem)
        return _named_table(written.classes, "classes", written.ignore, document, label_format)
    assert not isinstance(written.classes, dict)  # `with_listed_classes` made a list of it
    before = len(document.problems.lines)
    base = None
    if written.table is not None:
        base = _named_table(written.table, "table", [], document, label_format)
        if base is None:
            return None
    classes = [
        _parse_class(entry, f"classes[{index}]", index, label_format, base, document)
        for index, entry in enumerate(written.classes)
    ]
    ignore = _ignored_ids(written.ignore, base, classes, document)
    owners: dict[int, str] = {}
    for index, (name, _, ids) in enumerate(classes):
        for number in ids:
            if number in owners or number in ignore:
                of = _id_text(number, label_format)
                problem = f"{of} belongs to both {owners.get(number, 'ignore')} and {name}"
                document.add(f"classes[{index}]", problem)
            owners[number] = name
    names = [name for name, _, _ in classes]
    report_repeated_names(names, "ids", document)
    if base is not None and len(document.problems.lines) == before:
        _check_unused_classes(str(written.table), base, {*owners, *ignore}, document)
    if len(document.problems.lines) > before:
        return None
    colors = tuple(color for _, color, _ in classes)
    return LabelTable(ClassSpace(tuple(names), colors), tuple(ids for _, _, ids in classes), ignore)


def report_repeated_names(names: Sequence[str], several: str, document: Document) -> None:
    """Add a problem for each class that is listed twice; `several` is what one class may have."""
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problem = f"the name '{name}' is given twice; one class may have several {several}"
        document.add("classes", problem)


def _ignored_ids(
    ignore: list[WrittenId | str] | int | str,
    base: LabelTable | None,
    classes: Sequence[_Class],
    document: Document,
) -> frozenset[int]:
    """Return the ids to ignore: listed ids, ids of listed classes, and those the table ignores."""
    entries: list[WrittenId | str] = listed(ignore)
    names = [entry for entry in entries if isinstance(entry, str)]
    ids = set(_packed(entry for entry in entries if not isinstance(entry, str)))
    if base is None:
        for name in names:
            document.add("ignore", f"must be an id, a whole number, got '{name}'")
        return frozenset(ids)
    for name in names:
        ids.update(_ids_of_class(base, name, "ignore", document))
    # a class may use ids that the table ignores
    return frozenset(ids | (base.ignore - {number for _, _, used in classes for number in used}))


def _check_unused_classes(
    table_name: str, base: LabelTable, known: set[int], document: Document
) -> None:
    pairs = zip(base.classes.names, base.ids, strict=True)
    missing = [name for name, ids in pairs if ids and not known.intersection(ids)]
    if missing:
        names = f"{', '.join(missing)} of {table_name}"
        document.add("classes", f"{names} are in no class; add them to a class or to 'ignore'")


def _ids_of_class(base: LabelTable, name: str, key: str, document: Document) -> tuple[int, ...]:
    names = list(base.classes.names)
    if name in names:
        return base.ids[names.index(name)]
    document.add(key, f"the table has no class '{name}'{suggestion(name, names)}")
    return ()


def _table_names() -> list[str]:
    return sorted(path.stem for path in _TABLES_FOLDER.glob("*.yaml"))


def _unknown_table_message(name: str) -> str:
    known = _table_names()
    return f"no table '{name}'{suggestion(name, known)}; known tables: {', '.join(known)}"


@cache
def _read_table(name: str) -> tuple[LabelTable, str]:
    """Return a built-in table and the label format of its ids."""
    document = read_document(_TABLES_FOLDER / f"{name}.yaml", DATASET_YAML)
    written = validate(_TableDocument, document)
    assert written is not None
    table = parse_label_table(written, document, written.label_format)
    assert table is not None
    return table, written.label_format


def _named_table(
    name: str,
    key: str,
    ignored: list[WrittenId | str] | int | str,
    document: Document,
    label_format: str,
) -> LabelTable | None:
    known = named_table(name, document, key)
    if known is None:
        return None
    table_format = _read_table(name)[1]
    ids, ignore = known.ids, known.ignore
    if table_format == "rgb" and label_format != "rgb":
        document.add(key, f"{name} is a table of colours; it needs label_format rgb")
    elif table_format != "rgb" and label_format == "rgb":  # use the table's colours as ids
        ids, ignore = tuple((_pack(color),) for color in known.classes.colors), frozenset()
    ignore |= _ignored_ids(ignored, None, [], document)
    for class_ids, class_name in zip(ids, known.classes.names, strict=True):
        for number in ignore & set(class_ids):
            document.add("ignore", f"id {number} is the class {class_name} of {name}")
    return LabelTable(known.classes, ids, ignore)


def _parse_class(
    entry: str | ClassEntry,
    key: str,
    index: int,
    label_format: str,
    base: LabelTable | None,
    document: Document,
) -> _Class:
    """Return the name, colour and ids of one entry of `classes`."""
    entry = ClassEntry(name=entry) if isinstance(entry, str) else entry
    if base is not None:
        return _merged_class(entry, key, label_format, base, document)
    if entry.of is not None:
        problem = "refers to classes of a 'table', but no table is given"
        document.add(f"{key}.of", problem)
    color = entry.color or default_color(index)
    if label_format != "rgb":
        ids = index if entry.ids is None else entry.ids
        return entry.name, color, tuple(_packed(listed(ids)))
    colors = [*([] if entry.color is None else [entry.color]), *(entry.colors or [])]
    if not colors:
        document.add(key, f"{entry.name}: label_format rgb needs a color")
    return entry.name, color, tuple(dict.fromkeys(map(_pack, colors)))


def _merged_class(
    entry: ClassEntry, key: str, label_format: str, base: LabelTable, document: Document
) -> _Class:
    """Return an entry that uses classes of a table: those in `of`, or the one with its name."""
    own = entry.ids is not None or entry.colors is not None
    names = entry.of if entry.of is not None else [] if own else [entry.name]
    table_ids = [number for name in names for number in _ids_of_class(base, name, key, document)]
    more: Sequence[WrittenId] = entry.colors or [] if label_format == "rgb" else listed(entry.ids)
    table_colors = dict(zip(base.classes.names, base.classes.colors, strict=True))
    fallback = next((table_colors[name] for name in names if name in table_colors), (0, 0, 0))
    ids = dict.fromkeys([*table_ids, *_packed(more)])
    return entry.name, entry.color or fallback, tuple(ids)


def listed(value: list[T] | T | None) -> list[T]:
    """Return a value that may be written without a list as a list; an empty one for None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _packed(ids: Iterable[WrittenId]) -> list[int]:
    return [each if isinstance(each, int) else _pack(each) for each in ids]


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _id_text(number: int, label_format: str) -> str:
    if label_format != "rgb":
        return f"id {number}"
    return f"color {color_text(number)}"


def color_text(number: int) -> str:
    """Return the colour r << 16 | g << 8 | b as a declaration writes it."""
    return str([number >> 16, number >> 8 & 255, number & 255])


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
