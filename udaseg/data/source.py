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
REPORTED = ("bad", "excluded", "blank", "missing")
"""The lists of a report that are kept, so that a second look tells the same."""


@dataclass(frozen=True)
class Rules:
    """What may be left out, and how.

    Attributes:
        max_bad: Files that may be damaged or unpaired.
        on_mismatch: What to do when a label has another size than its image.
    """

    max_bad: int = 0
    on_mismatch: Mismatch = "exclude"


def stamp_of(declaration: Declaration, pairs: Pairs, folder: Path, rules: Rules) -> str:
    """Return a digest that changes when any file, the declaration or a rule changes."""
    table = declaration.table
    meaning = None if table is None else (table.classes, table.ids, sorted(table.ignore))
    digest = hashlib.sha256()
    facts = (INDEX_FORMAT, folder.resolve(), rules.on_mismatch, meaning, declaration.label_format)
    digest.update(repr((facts, pairs.unpaired)).encode(errors="surrogateescape"))
    for split, found in pairs.splits.items():
        for pair in found:
            for path in (pair.image, pair.label):
                line = f"{split} {path} {_state(path)}\n" if path is not None else "\n"
                digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


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
