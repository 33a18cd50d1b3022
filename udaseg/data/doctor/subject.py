"""The images and labels to check, of a prepared dataset, a declaration or a folder."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from udaseg.data.datasets.catalog import builtin_names, read_builtin, resolve_declaration
from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import PreparedDataset, Sample, read_index
from udaseg.data.datasets.layouts import match_layout
from udaseg.data.datasets.pairs import DatasetFiles, find_pairs
from udaseg.data.doctor.findings import Findings
from udaseg.data.files.bands import Bands
from udaseg.data.files.find import static_prefix
from udaseg.data.files.folders import find_images
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.tables import LabelId
from udaseg.data.open import open_dataset
from udaseg.data.prepare.locate import find_dataset_folder, prepared_folder
from udaseg.data.prepare.manifest import find_manifest
from udaseg.data.prepare.report import format_id
from udaseg.data.prepare.rules import read_source
from udaseg.errors import DataError

Role = Literal["data", "source", "target"]


@dataclass(frozen=True)
class SubjectImage:
    """An image of a split, with its label.

    Attributes:
        index_entry: The entry of both in the index; None if there is no index.
        image_sha256: Digest of the image when it was prepared; None if unknown.
        label_sha256: Digest of the prepared label; None if unknown.
        entry: See `Pair`.
    """

    split: str
    image: Path
    label: Path | None
    index_entry: Sample | None = None
    image_sha256: str | None = None
    label_sha256: str | None = None
    entry: int | None = None

    @property
    def is_training(self) -> bool:
        """Whether training uses the image; all other splits are held out."""
        return self.split.startswith("train")


@dataclass(frozen=True)
class Subject:
    """A data set to check.

    Attributes:
        folder: Folder of the images.
        items: The images, in the order of the splits.
        classes: The class space of the labels; None without labels.
        declaration: The declaration of its files; None for prepared datasets and folders.
        pairs: The files that the declaration matches, and those that could not be paired.
        left_out: Files that were left out when it was prepared.
        checked_folders: Folders in which the names of all files are checked.
        expected: Published number of images of each split, if known.
        bits: Bits that 16-bit images are read by; None if `prepare` or a run decides.
        bands: The bands of TIFFs that are read; None for gray, RGB or RGBA.
    """

    role: Role
    name: str
    kind: Literal["prepared", "declared", "folder"]
    folder: Path
    items: tuple[SubjectImage, ...]
    classes: ClassSpace | None = None
    declaration: Declaration | None = None
    pairs: DatasetFiles | None = None
    left_out: tuple[str, ...] = ()
    checked_folders: tuple[Path, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    bits: int | None = None
    bands: Bands | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images, in their order."""
        return tuple(dict.fromkeys(item.split for item in self.items))

    def id_name(self, number: LabelId) -> str:
        """Return an id as the declaration writes it: a number, a colour or a label."""
        return format_id(number, self.declaration.label_format if self.declaration else None)


def open_subject(data: str, role: Role, root: Path) -> Subject:
    """Return the data set that `data` names, without writing anything."""
    if not data.endswith((".yaml", ".yml")):
        folder = prepared_folder(data, root)
        if folder is not None:
            return _open_prepared(read_index(folder), role)
        if data not in builtin_names():
            if Path(data).is_dir():
                return _open_folder(Path(data), role)
            # nothing has that name: `open_dataset` raises the fitting error
            return _open_prepared(open_dataset(data, root=root), role)
    declaration = resolve_declaration(data)
    place = find_dataset_folder(declaration, root)
    if place is None:
        raise DataError(f"{data}: found only archives; run `udaseg prepare {data}` first")
    return _open_declared(declaration, place, role)


def select_splits(subject: Subject, splits: Sequence[str]) -> Subject:
    """Return the subject with only these splits; a plain folder is returned unchanged."""
    if not splits or subject.kind == "folder":
        return subject
    items = tuple(item for item in subject.items if item.split in splits)
    if not items:
        known = ", ".join(subject.splits) or "none"
        raise DataError(f"{subject.name}: no split '{', '.join(splits)}'; it has {known}")
    return replace(subject, items=items)


def _open_prepared(dataset: PreparedDataset, role: Role) -> Subject:
    manifest = find_manifest(dataset.folder)
    rows = () if manifest is None else manifest.rows
    digests = {file.path: file.sha256 for row in rows for file in (row.image, row.prepared) if file}
    items = tuple(
        SubjectImage(
            split,
            dataset.image_path(sample),
            None if sample.label is None else dataset.label_path(sample),
            sample,
            digests.get(sample.image),
            digests.get(sample.label or ""),
        )
        for split, samples in dataset.splits.items()
        for sample in samples
    )
    stored = read_source(dataset.folder) or {"bad": [], "excluded": []}
    is_builtin = dataset.name in builtin_names()
    return Subject(
        role,
        dataset.name,
        "prepared",
        dataset.image_root,
        items,
        dataset.classes,
        left_out=(*stored["bad"], *stored["excluded"]),
        expected=read_builtin(dataset.name).expected_counts if is_builtin else {},
        bits=dataset.bits or None,
        bands=dataset.bands,
    )


def _open_folder(folder: Path, role: Role) -> Subject:
    items = tuple(SubjectImage("train", path, None) for path in find_images(folder))
    name = folder.resolve().name or "images"
    return Subject(role, name, "folder", folder, items, checked_folders=(folder,))


def _open_declared(declaration: Declaration, folder: Path, role: Role) -> Subject:
    declaration = match_layout(declaration, folder)
    pairs = find_pairs(declaration, folder)
    items = tuple(
        SubjectImage(split, pair.image, pair.label, entry=pair.entry)
        for split, split_pairs in pairs.splits.items()
        for pair in split_pairs
    )
    globs = (*declaration.images.values(), *declaration.labels.values())
    return Subject(
        role,
        declaration.name,
        "declared",
        folder,
        items,
        None if declaration.table is None else declaration.table.classes,
        declaration,
        pairs,
        checked_folders=tuple(dict.fromkeys(folder / static_prefix(glob) for glob in globs)),
        expected=declaration.expected_counts,
        bits=declaration.bits,
        bands=declaration.bands,
    )


def known_paths(subject: Subject) -> set[Path]:
    """Return the files that are in a split, checked or not, or that have their own finding."""
    pairs = subject.pairs
    if pairs is None:
        return set()
    known_pairs = [pair for split_pairs in pairs.splits.values() for pair in split_pairs]
    files = {path for pair in known_pairs for path in (pair.image, pair.label) if path is not None}
    return files | {found.path for found in (*pairs.unpaired, *pairs.known, *pairs.excluded)}


def add_pairing_findings(
    subject: Subject, folders_named_as_images: Collection[Path], findings: Findings
) -> None:
    """Add findings for files that could not be paired, and for splits of an unexpected size.

    Files that only lack one of `folders_named_as_images` are not listed: these have a finding.
    """
    role, pairs, declaration = subject.role, subject.pairs, subject.declaration
    for line in subject.left_out:
        findings.add("left-out", role, None, line)
    if pairs is None or declaration is None:
        counts: Mapping[str, int] = Counter(item.split for item in subject.items)
    else:
        counts = {split: len(split_pairs) for split, split_pairs in pairs.splits.items()}
        covered = {declaration.without_endings(path.stem) for path in folders_named_as_images}
        for glob in pairs.label_globs_without_match:
            findings.add("no-labels", role, None, glob)
        for code, path, note in pairs.unpaired:
            is_unmatched = code in ("image-without-label", "label-without-image")
            # a glob without any match is one fault, not one per image
            if is_unmatched and (
                note in pairs.label_globs_without_match
                or declaration.without_endings(path.stem) in covered
            ):
                continue
            # of an unmatched file, the glob is clear; why its partner is not read may follow it
            findings.add(code, role, path, note.partition("; ")[2] if is_unmatched else note)
        for code, path, note in (*pairs.known, *pairs.excluded):
            findings.add(code, role, path, note)
        code = "missing-split" if declaration.root is None else "empty-split"
        for split in pairs.splits_without_images:
            findings.add(code, role, None, f"{split}: {declaration.images[split]}")
    for split, published in subject.expected.items():
        count = counts.get(split, 0)
        if count and not published - len(subject.left_out) <= count <= published:
            findings.add("count-differs", role, None, f"{split}: {count:,} of {published:,}")
