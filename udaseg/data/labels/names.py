"""Label tables of formats whose labels are named objects."""

from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.objects.drawing import BACKGROUND
from udaseg.data.labels.tables import (
    ClassEntry,
    LabelDescription,
    LabelTable,
    default_color,
    listed,
    named_table,
    report_repeated_names,
)
from udaseg.documents import Document


def parse_name_table(
    written: LabelDescription, document: Document, label_format: str, unscored: tuple[str, ...]
) -> LabelTable | None:
    """Return the table of labels that a document describes; None after a problem.

    A class has the label of its name, or the labels in `of`. Pixels without an object have the
    label `background`; they are ignored if no class has it.

    Args:
        written: The classes and what to ignore.
        document: The dataset YAML.
        label_format: Name of the format.
        unscored: Labels of the format that are ignored unless a class has them.
    """
    before = len(document.problems.lines)
    entries = _entries(written, document)
    owners: dict[str, str] = {}
    for index, entry in enumerate(entries):
        if entry.ids is not None or entry.colors is not None:
            problem = f"label_format {label_format} has labels, not ids: write `of: [LABEL, ...]`"
            document.add(f"classes[{index}]", problem)
        for name in _labels(entry):
            if name in owners:
                problem = f"label '{name}' belongs to both {owners[name]} and {entry.name}"
                document.add(f"classes[{index}]", problem)
            owners[name] = entry.name
    ignored = listed(written.ignore)
    for label in ignored:
        if not isinstance(label, str):
            document.add("ignore", f"must have labels, which are text, got {label}; quote it")
        elif label in owners:
            document.add("ignore", f"label '{label}' belongs to {owners[label]}")
    names = [entry.name for entry in entries]
    report_repeated_names(names, "labels", document)
    if len(document.problems.lines) > before:
        return None
    colors = (entry.color or default_color(index) for index, entry in enumerate(entries))
    known = {*map(str, ignored), *unscored, BACKGROUND} - owners.keys()
    return LabelTable(
        ClassSpace(tuple(names), tuple(colors)),
        tuple(() for _ in entries),
        frozenset(),
        tuple(_labels(entry) for entry in entries),
        frozenset(known),
    )


def _entries(written: LabelDescription, document: Document) -> list[ClassEntry]:
    if isinstance(written.classes, str):
        table = named_table(written.classes, document)
        classes = (
            () if table is None else zip(table.classes.names, table.classes.colors, strict=True)
        )
        return [ClassEntry(name=name, color=color) for name, color in classes]
    assert not isinstance(written.classes, dict)  # `with_listed_classes` made a list of it
    return [
        ClassEntry(name=entry) if isinstance(entry, str) else entry for entry in written.classes
    ]


def _labels(entry: ClassEntry) -> tuple[str, ...]:
    return (entry.name,) if entry.of is None else tuple(dict.fromkeys(entry.of))
