"""The images and labels to check, of a prepared dataset, a declaration or a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from udaseg.data.catalog_list import builtin, builtin_names
from udaseg.data.declaration import Declaration
from udaseg.data.find import find, static_prefix
from udaseg.data.images import IMAGE_SUFFIXES
from udaseg.data.index import INDEX_NAME, PreparedDataset, Sample, read_index
from udaseg.data.labels import ClassSpace
from udaseg.data.layouts import laid_out
from udaseg.data.locate import located
from udaseg.data.manifest import read_manifest
from udaseg.data.open import open_dataset
from udaseg.data.pairs import Pairs, pairs_of
from udaseg.data.prepare import declared
from udaseg.data.source import stored_source
from udaseg.errors import DataError

Role = Literal["data", "source", "target"]


@dataclass(frozen=True)
class Item:
    """An image of a split, with its label.

    Attributes:
        split: The split.
        image: The image file.
        label: The label file; None if there is none.
        recorded: The entry of both in the index; None if there is no index.
        image_sha256: Digest of the image when it was prepared; None if unknown.
        label_sha256: Digest of the prepared label; None if unknown.
    """

    split: str
    image: Path
    label: Path | None
    recorded: Sample | None = None
    image_sha256: str | None = None
    label_sha256: str | None = None

    @property
    def trained(self) -> bool:
        """Whether training uses the image; all other splits are held out."""
        return self.split.startswith("train")


@dataclass(frozen=True)
class Subject:
    """A data set to check.

    Attributes:
        role: `data`, or `source` and `target` if there are two.
        name: Name of the data set.
        kind: prepared, declared, or a folder of images.
        folder: Folder of the images.
        items: The images, in the order of the splits.
        classes: The class space of the labels; None without labels.
        declaration: The declaration of its files; None for prepared datasets and folders.
        pairs: The files that the declaration matches, and those that could not be paired.
        left_out: Files that were left out when it was prepared.
        walked: Folders in which the names of all files are checked.
        expected: Published number of images of each split, if known.
    """

    role: Role
    name: str
    kind: Literal["prepared", "declared", "folder"]
    folder: Path
    items: tuple[Item, ...]
    classes: ClassSpace | None = None
    declaration: Declaration | None = None
    pairs: Pairs | None = None
    left_out: tuple[str, ...] = ()
    walked: tuple[Path, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images, in their order."""
        return tuple(dict.fromkeys(item.split for item in self.items))


def open_subject(data: str, role: Role, root: Path) -> Subject:
    """Return the data set that `data` names, without writing anything.

    Raises:
        DataError: There is no data set of that name, it has no image, or its declaration is wrong.
    """
    if not data.endswith((".yaml", ".yml")):
        plain = "/" not in data and data not in (".", "..")
        folder = root / "prepared" / data
        if plain and (folder / INDEX_NAME).is_file():
            return _prepared(read_index(folder), role)
        if not (plain and data in builtin_names()):
            if Path(data).is_dir():
                return _folder(Path(data), role)
            # nothing has that name: `open_dataset` raises the fitting error
            return _prepared(open_dataset(data, root=root), role)
    declaration = declared(data)
    place = located(declaration, root)
    if place is None:
        raise DataError(f"{data}: found only archives; run `udaseg prepare {data}` first")
    return _declared(declaration, place, role)


def only_splits(subject: Subject, splits: Sequence[str]) -> Subject:
    """Return the subject with only these splits; a plain folder is returned unchanged.

    Raises:
        DataError: The subject has none of these splits.
    """
    if not splits or subject.kind == "folder":
        return subject
    items = tuple(item for item in subject.items if item.split in splits)
    if not items:
        known = ", ".join(subject.splits) or "none"
        raise DataError(f"{subject.name}: no split '{', '.join(splits)}'; it has {known}")
    return replace(subject, items=items)


def _prepared(dataset: PreparedDataset, role: Role) -> Subject:
    digests = _digests(dataset)
    items = tuple(
        Item(
            split,
            dataset.image_path(sample),
            None if sample.label is None else dataset.label_path(sample),
            sample,
            digests.get(sample.image),
            None if sample.label is None else digests.get(sample.label),
        )
        for split, samples in dataset.splits.items()
        for sample in samples
    )
    if not items:
        raise DataError(f"{dataset.name}: its index has no image; run `udaseg prepare` again")
    stored = stored_source(dataset.folder) or {"bad": [], "excluded": []}
    return Subject(
        role,
        dataset.name,
        "prepared",
        dataset.image_root,
        items,
        dataset.classes,
        left_out=(*stored["bad"], *stored["excluded"]),
        expected=builtin(dataset.name).expected if dataset.name in builtin_names() else {},
    )


def _digests(dataset: PreparedDataset) -> dict[str, str]:
    """Return the SHA-256 of each prepared image and label; empty without a manifest."""
    try:
        rows = read_manifest(dataset.folder).rows
    except DataError:
        return {}
    files = [file for row in rows for file in (row.image, row.prepared) if file is not None]
    return {file.path: file.sha256 for file in files}


def _folder(folder: Path, role: Role) -> Subject:
    files = find(folder, "**/*")
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return Subject(
        role,
        folder.resolve().name or "images",
        "folder",
        folder,
        tuple(Item("train", path, None) for path in images),
        walked=(folder,),
    )


def _declared(declaration: Declaration, folder: Path, role: Role) -> Subject:
    declaration = laid_out(declaration, folder)
    pairs = pairs_of(declaration, folder)
    items = [
        Item(split, pair.image, pair.label)
        for split, split_pairs in pairs.splits.items()
        for pair in split_pairs
    ]
    globs = (*declaration.images.values(), *declaration.labels.values())
    return Subject(
        role,
        declaration.name,
        "declared",
        folder,
        tuple(items),
        None if declaration.table is None else declaration.table.classes,
        declaration,
        pairs,
        walked=tuple(dict.fromkeys(folder / static_prefix(glob) for glob in globs)),
        expected=declaration.expected,
    )
