"""Which data sets there are: built-in ones, and those that are prepared."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from udaseg.data.datasets.catalog import builtin_names, read_builtin
from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import INDEX_NAME, read_index
from udaseg.data.prepare.locate import find_dataset_folder, prepared_folder
from udaseg.data.prepare.rules import TOYLAND
from udaseg.errors import DataError

State = Literal["prepared", "found", "generated", "missing", "damaged"]


@dataclass(frozen=True)
class DatasetEntry:
    """A data set by name.

    Attributes:
        name: What `prepare`, `--source`, `--target` and `--data` take.
        title: What it is.
        state: `prepared`; `found`, so that `udaseg prepare NAME` can prepare it; `generated` when
            it is needed; `missing`; or `damaged`, if its index cannot be read.
        images: Number of images of each split; of a data set that is not prepared, as published.
        page: Where to get it; "" for one of the user.
        licence: Licence of a built-in data set.
        folder: Folder of a prepared one.
    """

    name: str
    title: str
    state: State
    images: Mapping[str, int] = field(default_factory=dict)
    page: str = ""
    licence: str = ""
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        folder = None if self.folder is None else str(self.folder)
        return {**vars(self), "images": dict(self.images), "folder": folder}


def list_datasets(root: str | os.PathLike[str] = "data") -> list[DatasetEntry]:
    """Return the built-in data sets, then the prepared ones of the user, sorted by name.

    Args:
        root: Folder of the data and of the prepared data sets.

    Example:
        [entry.name for entry in udaseg.list_datasets() if entry.state == "prepared"]
    """
    folder, names = Path(root), builtin_names()
    prepared = (path.parent.name for path in folder.glob(f"prepared/[!.]*/{INDEX_NAME}"))
    own = sorted(set(prepared) - set(names))
    return [*(_builtin(name, folder) for name in names), *(_own(name, folder) for name in own)]


def _builtin(name: str, root: Path) -> DatasetEntry:
    declaration = read_builtin(name)
    about = {key: str(text) for key, text in declaration.about.items()}
    title, page, licence = about.get("title", name), about.get("home", ""), about.get("licence", "")
    if (folder := prepared_folder(name, root)) is not None:
        return DatasetEntry(name, title, *_prepared(folder), page, licence, folder)
    state: State = "found" if _is_found(declaration, root) else "missing"
    if name in TOYLAND:
        state = "generated"
    return DatasetEntry(name, title, state, declaration.expected_counts, page, licence)


def _is_found(declaration: Declaration, root: Path) -> bool:
    try:
        find_dataset_folder(declaration, root)
    except DataError:
        return False
    return True


def _own(name: str, root: Path) -> DatasetEntry:
    folder = root / "prepared" / name
    return DatasetEntry(name, "prepared from a YAML", *_prepared(folder), folder=folder)


def _prepared(folder: Path) -> tuple[State, dict[str, int]]:
    try:
        splits = read_index(folder).splits
    except DataError:
        return "damaged", {}
    return "prepared", {split: len(samples) for split, samples in splits.items()}
