"""Messages of `prepare` for unusable files: how many, the first of them, and what to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from udaseg.data.datasets.declaration import Declaration
from udaseg.errors import DataError

_MAX_LISTED = 10


def unknown_ids_message(
    declaration: Declaration, unknown: Mapping[int, int], first: Mapping[int, Path]
) -> str:
    """Return the message about ids that the table does not define.

    Args:
        declaration: The declaration of the dataset.
        unknown: Number of pixels of each such id.
        first: The first label that has the id.
    """
    lines = []
    for number, count in sorted(unknown.items(), key=lambda item: -item[1]):
        shown = format_id(number, declaration.label_format)
        lines.append(f"{shown}: {count} pixels, first in {first[number]}")
    if declaration.argument == declaration.name:
        advice = (
            "these are not the labels of this dataset; is it another version?\n"
            f"  a dataset YAML with `base: {declaration.name}` can list them in 'ignore'"
        )
    else:
        advice = "add them to a class, or list them in 'ignore' of the dataset YAML"
    return (
        f"{declaration.name}: labels contain ids that are in no class and not in 'ignore':\n"
        f"{format_first(lines)}\n  {advice}"
    )


def format_id(number: int, label_format: str | None) -> str:
    """Return an id as a declaration writes it: a number or, in the format `rgb`, a colour."""
    if label_format != "rgb":
        return str(number)
    return str([number >> 16, number >> 8 & 255, number & 255])


def check_bad_files(name: str, bad: Sequence[str], max_bad: int) -> None:
    """Raise an error if more files are unusable than may be left out."""
    if len(bad) > max_bad:
        files, pronoun = ("1 file", "it") if len(bad) == 1 else (f"{len(bad)} files", "them")
        raise DataError(
            f"{name}: {files} cannot be used:\n{format_first(bad)}\n"
            f"  fix or remove {pronoun}, or leave {pronoun} out with --max-bad {len(bad)}"
        )


def format_first(lines: Sequence[str]) -> str:
    """Return the first of many lines, indented, and how many more there are."""
    # a file name may contain a newline, and would look like another line of the list
    shown = ["  " + line.replace("\n", "\\n") for line in lines[:_MAX_LISTED]]
    if len(lines) > _MAX_LISTED:
        shown.append(f"  and {len(lines) - _MAX_LISTED} more")
    return "\n".join(shown)
