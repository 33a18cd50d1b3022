"""The manifest of a prepared dataset: size, time and SHA-256 of every file read and written.

It has lines of JSON: a head, one line per pair, and the digest of all lines before. The content
does not depend on when the dataset was prepared or in how many runs.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.datasets.index import Sample
from udaseg.data.files.images import read_bytes
from udaseg.data.labels.formats import LabelPackage
from udaseg.errors import DataError
from udaseg.files import sha256, write_atomic

MANIFEST_NAME = "manifest.jsonl"
MANIFEST_FORMAT = 1

_MAX_FILE_BYTES = 2**30
"""Bytes; an uncompressed 16-bit image of 100 million pixels is smaller."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Size, time and digest of a file when it was read or written.

    Attributes:
        path: Relative to its folder, POSIX style.
        size: Bytes.
        mtime_ns: Modification time.
        sha256: Digest of the content.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def matches(self, path: Path) -> bool:
        """Return whether the file at `path` has this size and time, without reading it."""
        try:
            status = path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Row:
    """A pair that was read.

    Attributes:
        split: The split of the pair.
        key: The name by which image and label were matched.
        image: The image file, relative to the image root.
        label: The label file, relative to the image root; None without labels.
        prepared: The label as train ids, relative to the prepared folder.
        sample: The entry in the index; None if the pair is excluded.
        excluded: The reason, if the pair is excluded.
        blank: Whether the image has a single colour.
    """

    split: str
    key: str
    image: Fingerprint
    label: Fingerprint | None
    prepared: Fingerprint | None
    sample: Sample | None
    excluded: str | None = None
    blank: bool = False

    def describes(self, folder: Path, image: Path, label: Path | None) -> bool:
        """Return whether the row is of these files below `folder` and they are unchanged."""
        if (label is None) != (self.label is None):
            return False
        if folder / self.image.path != image or not self.image.matches(image):
            return False
        if label is None or self.label is None:
            return True
        return folder / self.label.path == label and self.label.matches(label)


@dataclass(frozen=True)
class Manifest:
    """The files that a prepared folder was made from and contains.

    Attributes:
        image_root: The folder of images and labels.
        conversion_digest: Digest of all that affects a prepared label besides the pair itself.
        files: SHA-256 of the prepared folder's files that are neither labels nor the manifest.
        rows: The pairs, in the order of the index.
        label_reader: Label format, package that read it, and its fingerprint; None if
            no package was needed.
    """

    image_root: Path
    conversion_digest: str
    files: Mapping[str, str]
    rows: tuple[Row, ...]
    label_reader: tuple[str, str, str] | None = None


def read_with_fingerprint(path: Path, folder: Path) -> tuple[bytes, Fingerprint]:
    """Read a file below `folder` once, and return its bytes and fingerprint.

    Raises:
        DataError: The file cannot be read, is empty, or is too large for an image.
    """
    try:
        # before reading, so that a file that changes meanwhile counts as changed later
        status = path.stat()
    except OSError:
        status = None
    if status is not None and status.st_size > _MAX_FILE_BYTES:
        raise DataError(f"{path}: {status.st_size / 1e9:.1f} GB; too large for an image")
    data = read_bytes(path)
    if status is None:
        raise DataError(f"{path}: changed while it was read")
    name = path.relative_to(folder).as_posix()
    return data, Fingerprint(name, status.st_size, status.st_mtime_ns, sha256(data))


def format_row(row: Row) -> str:
    """Return a row as a line of JSON, without a newline."""
    document: dict[str, Any] = {
        "split": row.split,
        "key": row.key,
        "image": _fingerprint_to_list(row.image),
    }
    if row.label is not None:
        document["label"] = _fingerprint_to_list(row.label)
    if row.prepared is not None:
        document["prepared"] = _fingerprint_to_list(row.prepared)
    if row.sample is not None:
        document["size"] = [row.sample.height, row.sample.width]
        document["pixels"] = list(row.sample.class_pixels)
    if row.excluded is not None:
        document["excluded"] = row.excluded
    if row.blank:
        document["blank"] = True
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def parse_row(line: str) -> Row:
    """Parse a row from a line of JSON.

    Raises:
        ValueError, KeyError, TypeError: The line is not a row.
    """
    document = json.loads(line)
    image, label, prepared = (
        Fingerprint(*document[key]) if key in document else None
        for key in ("image", "label", "prepared")
    )
    if image is None:
        raise KeyError("image")
    sample = None
    if "size" in document:
        height, width = document["size"]
        name = None if prepared is None else prepared.path
        sample = Sample(image.path, name, height, width, tuple(document["pixels"]))
    return Row(
        document["split"],
        document["key"],
        image,
        label,
        prepared,
        sample,
        document.get("excluded"),
        document.get("blank", False),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the prepared dataset in `folder`."""
    head: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "image_root": str(manifest.image_root),
        "meaning": manifest.conversion_digest,
        "files": dict(manifest.files),
        "pairs": len(manifest.rows),
    }
    if manifest.label_reader is not None:
        head["label_reader"] = list(manifest.label_reader)
    body = "".join(f"{line}\n" for line in (json.dumps(head), *map(format_row, manifest.rows)))
    end = json.dumps({"sha256": sha256(body.encode())})
    write_atomic(folder / MANIFEST_NAME, f"{body}{end}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the prepared dataset in `folder`.

    Raises:
        DataError: The manifest is missing or damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
        body, _, end = text.rstrip("\n").rpartition("\n")
        if json.loads(end)["sha256"] != sha256(f"{body}\n".encode()):
            raise DataError(f"{path}: damaged: its digest does not match")
        first, *lines = body.split("\n")
        head = json.loads(first)
        if head["format"] != MANIFEST_FORMAT:
            raise DataError(f"{path}: written by another version")
        rows = tuple(map(parse_row, lines))
        label_reader = head.get("label_reader")
        label_reader = None if label_reader is None else _three_texts(*label_reader)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    return Manifest(Path(head["image_root"]), head["meaning"], head["files"], rows, label_reader)


def _three_texts(label_format: str, package: str, fingerprint: str) -> tuple[str, str, str]:
    return label_format, package, fingerprint


def recorded_package(folder: Path, label_format: str) -> LabelPackage | None:
    """Return the package that read the labels of the prepared dataset in `folder`.

    None if it is not prepared, with another label format, or without a package.
    """
    try:
        recorded = read_manifest(folder).label_reader
    except DataError:
        return None
    if recorded is None or recorded[0] != label_format:
        return None
    return LabelPackage(*recorded[1:])


def _fingerprint_to_list(file: Fingerprint) -> list[str | int]:
    return [file.path, file.size, file.mtime_ns, file.sha256]


def rows_by_key(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return rows by split and key."""
    return {(row.split, row.key): row for row in rows}
