"""The manifest of a prepared set: every file that was read and written, by size, time and SHA-256.

Lines of JSON: what the set is; one line a pair; the digest of all lines before it. Nothing in it
depends on when or in how many runs it was made.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udaseg.data.images import read_bytes, write_atomic
from udaseg.data.index import Sample
from udaseg.errors import DataError

MANIFEST_NAME = "manifest.jsonl"
MANIFEST_FORMAT = 1

_LARGEST = 2**30
"""Bytes; an image of 100 million pixels of 16 bits without compression is smaller."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file as it was.

    Attributes:
        path: Below its folder, POSIX style.
        size: In bytes.
        mtime_ns: Time of change.
        sha256: Of its content.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def holds(self, path: Path) -> bool:
        """Return whether the file at `path` has this size and time; its content is not read."""
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Row:
    """A pair that was read.

    Attributes:
        split: Its split.
        key: What image and label were matched by.
        image: The image file, below the image root.
        label: The label file, likewise; None without labels.
        prepared: The label as train ids, below the prepared folder.
        sample: What is in the index; None when a rule left the pair out.
        excluded: Why, then.
        blank: The image has one colour only.
    """

    split: str
    key: str
    image: Fingerprint
    label: Fingerprint | None
    prepared: Fingerprint | None
    sample: Sample | None
    excluded: str | None = None
    blank: bool = False

    def of(self, folder: Path, image: Path, label: Path | None) -> bool:
        """Return whether these are its files below `folder`, as they were."""
        if (label is None) != (self.label is None):
            return False
        if folder / self.image.path != image or not self.image.holds(image):
            return False
        if label is None or self.label is None:
            return True
        return folder / self.label.path == label and self.label.holds(label)


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder was made from.

    Attributes:
        image_root: Where images and labels lie.
        meaning: Digest of what decides over a prepared label besides the pair itself.
        files: Of the prepared folder that are neither label nor manifest, with their SHA-256.
        rows: The pairs, in the order of the index.
    """

    image_root: Path
    meaning: str
    files: Mapping[str, str]
    rows: tuple[Row, ...]


def content(path: Path, folder: Path) -> tuple[bytes, Fingerprint]:
    """Return the bytes of a file below `folder`, and its fingerprint; it is read once.

    Raises:
        DataError: It cannot be read, is empty, or is too large for an image.
    """
    try:
        # taken first: a file that changes while it is read is found to have changed
        seen = path.stat()
    except OSError:
        seen = None
    if seen is not None and seen.st_size > _LARGEST:
        raise DataError(f"{path}: {seen.st_size / 1e9:.1f} GB; too large for an image")
    data = read_bytes(path)
    if seen is None:
        raise DataError(f"{path}: changed while it was read")
    name = path.relative_to(folder).as_posix()
    return data, Fingerprint(name, seen.st_size, seen.st_mtime_ns, sha256(data))


def sha256(data: bytes) -> str:
    """Return the digest of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the digest of a file of any size.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_line(row: Row) -> str:
    """Return a row as a line of JSON, without its line break."""
    document: dict[str, Any] = {"split": row.split, "key": row.key, "image": _listed(row.image)}
    if row.label is not None:
        document["label"] = _listed(row.label)
    if row.prepared is not None:
        document["prepared"] = _listed(row.prepared)
    if row.sample is not None:
        document["size"] = [row.sample.height, row.sample.width]
        document["pixels"] = list(row.sample.pixels)
    if row.excluded is not None:
        document["excluded"] = row.excluded
    if row.blank:
        document["blank"] = True
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def row_of(line: str) -> Row:
    """Return the row of a line of JSON.

    Raises:
        ValueError, KeyError, TypeError: It is none.
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
        *(image, label, prepared, sample, document.get("excluded"), document.get("blank", False)),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the prepared set in `folder`."""
    head = {
        "format": MANIFEST_FORMAT,
        "image_root": str(manifest.image_root),
        "meaning": manifest.meaning,
        "files": dict(manifest.files),
        "pairs": len(manifest.rows),
    }
    body = "".join(f"{line}\n" for line in (json.dumps(head), *map(row_line, manifest.rows)))
    end = json.dumps({"sha256": sha256(body.encode())})
    write_atomic(folder / MANIFEST_NAME, f"{body}{end}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the prepared set in `folder`.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
        body, _, end = text.rstrip("\n").rpartition("\n")
        if json.loads(end)["sha256"] != sha256(f"{body}\n".encode()):
            raise DataError(f"{path}: damaged: its digest is another")
        first, *lines = body.split("\n")
        head = json.loads(first)
        if head["format"] != MANIFEST_FORMAT:
            raise DataError(f"{path}: of another version")
        rows = tuple(map(row_of, lines))
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    return Manifest(Path(head["image_root"]), head["meaning"], head["files"], rows)


def _listed(file: Fingerprint) -> list[str | int]:
    return [file.path, file.size, file.mtime_ns, file.sha256]


def keyed(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return rows by split and key."""
    return {(row.split, row.key): row for row in rows}
