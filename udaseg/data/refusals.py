"""What `prepare` says when files cannot be used: how many, the first of them, and what helps."""

from collections.abc import Mapping
from pathlib import Path

from udaseg.data.declaration import Declaration
from udaseg.data.index import Sample
from udaseg.errors import DataError

_SHOWN = 10


def unknown_ids(
    declaration: Declaration, unknown: Mapping[int, int], first: Mapping[int, Path]
) -> str:
    """Return what to say about ids that the table does not know.

    Args:
        declaration: Of the dataset.
        unknown: Pixels of each such id.
        first: A label that holds it.
    """

    def shown(number: int) -> str:
        if declaration.label_format != "rgb":
            return str(number)
        return str([number >> 16, number >> 8 & 255, number & 255])

    lines = [f"{declaration.name}: labels hold ids that are in no class and not in 'ignore':"]
    for number, count in sorted(unknown.items(), key=lambda item: -item[1])[:_SHOWN]:
        lines.append(f"  {shown(number)}: {count} pixels, first in {first[number]}")
    if len(unknown) > _SHOWN:
        lines.append(f"  and {len(unknown) - _SHOWN} more")
    if declaration.word == declaration.name:
        lines += [
            "  these are not the labels of that set; is it another version of it?",
            f"  a YAML of your own with `base: {declaration.name}` may list them in 'ignore'",
        ]
    else:
        lines.append("  name them in a class, or list them in 'ignore' of the dataset YAML")
    return "\n".join(lines)


def refuse_too_many(name: str, bad: list[str], max_bad: int) -> None:
    """Refuse more files that cannot be used than may be left out.

    Raises:
        DataError: There are more; lists the first.
    """
    if len(bad) > max_bad:
        them = "it" if len(bad) == 1 else "them"
        advice = f"mend or remove {them}, or leave {them} out with --max-bad {len(bad)}"
        files = "1 file" if len(bad) == 1 else f"{len(bad)} files"
        raise DataError(f"{name}: {files} cannot be used:\n{_first(bad)}\n  {advice}")


def refuse_nothing_left(
    name: str, samples: Mapping[str, list[Sample]], bad: list[str], excluded: list[str]
) -> None:
    """Refuse a split of which nothing is left.

    Raises:
        DataError: There is one; lists what was left out.
    """
    for split, found in samples.items():
        if not found:
            hint = "\n  --on-mismatch resize gives labels the size of their image"
            mismatch = any(", image " in line for line in excluded)
            raise DataError(
                f"{name}: nothing is left of split '{split}':\n{_first([*excluded, *bad])}"
                + (hint if mismatch else "")
            )


def _first(lines: list[str]) -> str:
    # a name may hold a line end, and its second line would look like one of ours
    shown = ["  " + line.replace("\n", "\\n") for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"  and {len(lines) - _SHOWN} more")
    return "\n".join(shown)
