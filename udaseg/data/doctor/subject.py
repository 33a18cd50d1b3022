"""The images and labels to check, of a prepared dataset, a declaration or a folder."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from udaseg.data.datasets.catalog import builtin_names, read_builtin, resolve_declaration
from udaseg.data.datasets.declaration import Declaration
from udaseg.data.datasets.index import INDEX_NAME, PreparedDataset, Sample, read_index
from udaseg.data.datasets.layouts import match_layout
from udaseg.data.datasets.pairs import DatasetFiles, find_pairs
from udaseg.data.doctor.findings import Findings
from udaseg.data.files.find import find_files, static_prefix
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.open import open_dataset
from udaseg.data.prepare.locate import find_dataset_folder
from udaseg.data.prepare.manifest import read_manifest
from udaseg.data.prepare.rules import read_source
from udaseg.errors import DataError

Role = Literal["data", "source", "target"]


@dataclass(frozen=True)
class SubjectImage:
    """An image of a split, with its label.

    Attributes:
        split: The split.
        image: The image file.
        label: The label file; None if there is none.
        index_entry: The entry of both in the index; None if there is no index.
        image_sha256: Digest of the image when it was prepared; None if unknown.
        label_sha256: Digest of the prepared label; None if unknown.
    """

    split: str
    image: Path
    label: Path | None
    index_entry: Sample | None = None
    image_sha256: str | None = None
    label_sha256: str | None = None

    @property
    def is_training(self) -> bool:
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
        checked_folders: Folders in which the names of all files are checked.
        expected: Published number of images of each split, if known.
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
            return _open_prepared(read_index(folder), role)
        if not (plain and data in builtin_names()):
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


def _open_prepared(dataset: PreparedDataset, role: Role) -> Subject:
    digests = _prepared_digests(dataset)
    items = tuple(
        SubjectImage(
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
    stored = read_source(dataset.folder) or {"bad": [], "excluded": []}
    return Subject(
        role,
        dataset.name,
        "prepared",
        dataset.image_root,
        items,
        dataset.classes,
        left_out=(*stored["bad"], *stored["excluded"]),
        expected=read_builtin(dataset.name).expected_counts
        if dataset.name in builtin_names()
        else {},
    )


def _prepared_digests(dataset: PreparedDataset) -> dict[str, str]:
    """Return the SHA-256 of each prepared image and label; empty without a manifest."""
    try:
        rows = read_manifest(dataset.folder).rows
    except DataError:
        return {}
    files = [file for row in rows for file in (row.image, row.prepared) if file is not None]
    return {file.path: file.sha256 for file in files}


def _open_folder(folder: Path, role: Role) -> Subject:
    files = find_files(folder, "**/*")
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return Subject(
        role,
        folder.resolve().name or "images",
        "folder",
        folder,
        tuple(SubjectImage("train", path, None) for path in images),
        checked_folders=(folder,),
    )


def _open_declared(declaration: Declaration, folder: Path, role: Role) -> Subject:
    declaration = match_layout(declaration, folder)
    pairs = find_pairs(declaration, folder)
    items = [
        SubjectImage(split, pair.image, pair.label)
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
        checked_folders=tuple(dict.fromkeys(folder / static_prefix(glob) for glob in globs)),
        expected=declaration.expected_counts,
    )


# the lines of `find_pairs` about unpaired files
_UNPAIRED_PATTERNS = {
    code: re.compile(f"(?P<path>.*): {pattern}", re.DOTALL)
    for code, pattern in (
        ("image-without-label", r"has no label \((?P<note>.*)\)"),
        ("label-without-image", r"label without an image \((?P<note>.*)\)"),
        ("duplicate-stem", r"has (?P<note>the same name as .*)"),
        ("split-list", r"(?P<note>lists .*), which matches no image or more than one"),
    )
}


def unpaired_files(pairs: DatasetFiles) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each unpaired file, parsed from the lines of `find_pairs`."""
    for line in pairs.unpaired:
        for code, pattern in _UNPAIRED_PATTERNS.items():
            match = pattern.fullmatch(line)
            if match:
                yield code, Path(match["path"]), match["note"]
                break
        else:
            raise ValueError(f"no finding matches this line about an unpaired file: {line}")


def files_with_rules(pairs: DatasetFiles) -> Iterator[tuple[str, Path, str]]:
    """Yield code, file and note of each image that a named rule excludes or would exclude."""
    for code, lines in (("known-odd", pairs.known), ("left-out", pairs.excluded)):
        for line in lines:
            path, _, note = line.partition(": rule ")
            yield code, Path(path), f"rule {note}"


def known_paths(subject: Subject) -> set[Path]:
    """Return the files that are in a split, checked or not, or that have their own finding."""
    pairs = subject.pairs
    if pairs is None:
        return set()
    known_pairs = [pair for split_pairs in pairs.splits.values() for pair in split_pairs]
    files = {path for pair in known_pairs for path in (pair.image, pair.label) if path is not None}
    return files | {path for _, path, _ in (*unpaired_files(pairs), *files_with_rules(pairs))}


def add_pairing_findings(
    subject: Subject, folders_named_as_images: Collection[Path], findings: Findings
) -> None:
    """Add findings for the files that could not be paired.

    Args:
        subject: The data set.
        folders_named_as_images: These folders have their own finding, so files that only lack them
            are not listed again.
        findings: The findings are added here.
    """
    role, pairs, declaration = subject.role, subject.pairs, subject.declaration
    for line in subject.left_out:
        findings.add("left-out", role, None, line)
    if pairs is None or declaration is None:
        counts = Counter(item.split for item in subject.items)
        _add_count_findings(subject, counts, len(subject.left_out), findings)
        return
    strip = declaration.stem_endings
    stems = {_stem(path, strip) for path in folders_named_as_images}
    for glob in pairs.label_globs_without_match:
        findings.add("no-labels", role, None, glob)
    for code, path, note in unpaired_files(pairs):
        is_unmatched = code in ("image-without-label", "label-without-image")
        # a glob without any match is one fault, not one per image
        if is_unmatched and (
            note in pairs.label_globs_without_match or _stem(path, strip) in stems
        ):
            continue
        findings.add(code, role, path, "" if is_unmatched else note)
    for code, path, note in files_with_rules(pairs):
        findings.add(code, role, path, note)
    user_defined = declaration.root is not None
    for split in pairs.splits_without_images:
        code = "empty-split" if user_defined else "missing-split"
        findings.add(code, role, None, f"{split}: {declaration.images[split]}")
    _add_count_findings(
        subject, {name: len(split_pairs) for name, split_pairs in pairs.splits.items()}, 0, findings
    )


def _add_count_findings(
    subject: Subject, counts: Mapping[str, int], left_out: int, findings: Findings
) -> None:
    """Add findings for splits whose number of images differs from the published one.

    Args:
        subject: The data set.
        counts: Number of images of each split.
        left_out: Number of images that may be missing, because they have their own finding.
        findings: The findings are added here.
    """
    for split, published in subject.expected.items():
        count = counts.get(split, 0)
        if count and not published - left_out <= count <= published:
            note = f"{split}: {count:,} of {published:,}"
            findings.add("count-differs", subject.role, None, note)


def _stem(path: Path, strip: tuple[str, ...]) -> str:
    stem = path.stem
    for ending in strip:
        stem = stem.removesuffix(ending)
    return stem
