"""What a prepared dataset was made from, and by which rules: to know whether it still holds."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.convert import Mismatch
from udaseg.data.declaration import Declaration
from udaseg.data.index import INDEX_FORMAT, INDEX_NAME
from udaseg.data.pairs import Pairs

SOURCE_NAME = "source.json"
REPORTED = ("bad", "excluded", "known", "blank", "missing")
"""The lists of a report that are kept, so that a second look tells the same."""


@dataclass(frozen=True)
class Rules:
    """What may be left out, and how.

    Attributes:
        max_bad: Files that may be damaged or unpaired.
        on_mismatch: What to do when a label has another size than its image.
        exclude: Named rules of the dataset whose files were left out.
    """

    max_bad: int = 0
    on_mismatch: Mismatch = "exclude"
    exclude: tuple[str, ...] = ()


def meaning_of(declaration: Declaration, folder: Path, rules: Rules) -> str:
    """Return a digest of what decides over a prepared label besides the image and label files."""
    table = declaration.table
    meaning = None if table is None else (table.classes, table.ids, sorted(table.ignore))
    facts = (INDEX_FORMAT, folder.resolve(), rules.on_mismatch, meaning, declaration.label_format)
    return _digest(repr(facts))


def stamp_of(meaning: str, pairs: Pairs) -> str:
    """Return a digest that changes when any file, the declaration or a rule changes.

    Args:
        meaning: From `meaning_of`.
        pairs: The files.
    """
    lines = [repr((meaning, pairs.unpaired, pairs.excluded, pairs.known))]
    for split, found in pairs.splits.items():
        for pair in found:
            for path in (pair.image, pair.label):
                lines.append("" if path is None else f"{split} {path} {_state(path)}")
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "unreadable"
    return f"{found.st_size} {found.st_mtime_ns}"


def stored_source(final: Path) -> dict[str, Any] | None:
    """Return what was noted about the sources last time; None where nothing usable was."""
    try:
        document = json.loads((final / SOURCE_NAME).read_text(encoding="utf-8"))
        Rules(**document["rules"])
        complete = {"stamp", *REPORTED} <= set(document) and (final / INDEX_NAME).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(document) if complete else None
