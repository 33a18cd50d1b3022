"""The manifest of a prepared dataset: size, time and SHA-256 of every file read and written.

It has lines of JSON: a head, one line per pair, and the digest of all lines before. The content
does not depend on when the dataset was prepared or in how many runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from udaseg.data.datasets.index import Sample
from udaseg.data.files.forms import parse_form
from udaseg.data.files.images import image_orientation, read_bytes
from udaseg.data.labels.formats import LabelPackage
from udaseg.errors import DataError
from udaseg.files import file_stamp, sha256, write_atomic

MANIFEST_NAME = "manifest.jsonl"
MANIFEST_FORMAT = 2
"""Format 1 has no orientations; see the format of the index."""


_MAX_FILE_BYTES = 2**30
"""Bytes; an uncompressed 16-bit image of 100 million pixels is smaller."""


class Fingerprint(NamedTuple):
    """Size, time and digest of a file when it was read or written.

    Attributes:
        path: Relative to its folder, POSIX style.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @property
    def stamp(self) -> str:
        """Size and time, as `file_stamp` gives them."""
        return f"{self.size} {self.mtime_ns}"

    def matches(self, path: Path) -> bool:
        """Return whether the file at `path` has this size and time, without reading it."""
        return file_stamp(path) == self.stamp


@dataclass(frozen=True, slots=True)
class Row:
    """A pair that was read.

    Attributes:
        key: The name by which image and label were matched.
        image: The image file, relative to the image root.
        label: The label file, relative to the image root; None without labels.
        prepared: The label as train ids, relative to the prepared folder.
        sample: The entry in the index; None if the pair is excluded.
        excluded: The reason, if the pair is excluded.
        blank: Whether the image has a single colour.
        peak: The largest value of a 16-bit image; None for images of 8 bits.
        loss: What is not read of the image, if anything; see `Header`.
    """

    split: str
    key: str
    image: Fingerprint
    label: Fingerprint | None = None
    prepared: Fingerprint | None = None
    sample: Sample | None = None
    excluded: str | None = None
    blank: bool = False
    peak: int | None = None
    loss: str | None = None

    def describes(self, folder: Path, image: Path, label: Path | None) -> bool:
        """Return whether the row is of these files below `folder` and they are unchanged."""
        if folder / self.image.path != image or not self.image.matches(image):
            return False
        if label is None or self.label is None:
            return label is None and self.label is None
        return folder / self.label.path == label and self.label.matches(label)


class LabelReader(NamedTuple):
    """A label format that is not built in, and the package that read it."""

    label_format: str
    package: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """The files that a prepared folder was made from and contains.

    Attributes:
        image_root: The folder of images and labels.
        conversion_digest: Digest of all that affects a prepared label besides the pair itself.
        files: SHA-256 of the prepared folder's files that are neither labels nor the manifest.
        rows: The pairs, in the order of the index.
        label_reader: What read the labels; None if no package was needed.
        format: The format in which it is written.
    """

    image_root: Path
    conversion_digest: str
    files: Mapping[str, str]
    rows: tuple[Row, ...]
    label_reader: LabelReader | None = None
    format: int = MANIFEST_FORMAT

    def is_outdated(self, row: Row) -> bool:
        """Return whether an earlier version wrote `row` and did not turn image and label."""
        try:
            return self.format == 1 and image_orientation(self.image_root / row.image.path) != 1
        except DataError:  # the image is gone
            return True


def read_with_fingerprint(path: Path, folder: Path) -> tuple[bytes, Fingerprint]:
    """Read a file below `folder` once, and return its bytes and fingerprint."""
    try:
        # before reading, so that a file that changes meanwhile counts as changed later
        status = path.stat()
    except OSError:
        read_bytes(path)  # its error says more
        raise DataError(f"{path}: changed while it was read") from None
    if status.st_size > _MAX_FILE_BYTES:
        raise DataError(f"{path}: {status.st_size / 1e9:.1f} GB; too large for an image")
    data = read_bytes(path)
    name = path.relative_to(folder).as_posix()
    return data, Fingerprint(name, status.st_size, status.st_mtime_ns, sha256(data))


def format_row(row: Row) -> str:
    """Return a row as a line of JSON, without a newline."""
    sample = row.sample
    document = {
        "split": row.split,
        "key": row.key,
        "image": row.image,
        "label": row.label,
        "prepared": row.prepared,
        "size": None if sample is None else (sample.height, sample.width),
        "pixels": None if sample is None else sample.class_pixels,
        "orientation": None if sample is None or sample.orientation == 1 else sample.orientation,
        "excluded": row.excluded,
        "blank": row.blank or None,
        "peak": row.peak,
        "loss": row.loss,
    }
    present = {key: value for key, value in document.items() if value is not None}
    return json.dumps(present, allow_nan=False, separators=(",", ":"))


_File = tuple[str, int, int, str]
"""The form of a `Fingerprint`."""


class _Row(TypedDict):
    split: str
    key: str
    image: _File
    label: NotRequired[_File]
    prepared: NotRequired[_File]
    size: NotRequired[tuple[int, int]]
    pixels: NotRequired[list[int]]
    orientation: NotRequired[int]
    excluded: NotRequired[str]
    blank: NotRequired[bool]
    peak: NotRequired[int]
    loss: NotRequired[str]


class _Head(TypedDict):
    format: int
    image_root: str
    meaning: str
    files: dict[str, str]
    label_reader: NotRequired[tuple[str, str, str]]


class _End(TypedDict):
    sha256: str


def parse_row(line: str) -> Row:
    """Parse a row from a line of JSON; a line that is none raises ValueError."""
    document = parse_form(line, _Row)
    image = Fingerprint(*document["image"])
    label, prepared = (
        Fingerprint(*document[key]) if key in document else None for key in ("label", "prepared")
    )
    sample = None
    if "size" in document:
        height, width = document["size"]
        name = None if prepared is None else prepared.path
        pixels, orientation = tuple(document.get("pixels", ())), document.get("orientation", 1)
        sample = Sample(image.path, name, height, width, pixels, orientation)
    excluded, blank = document.get("excluded"), document.get("blank", False)
    split, key = document["split"], document["key"]
    peak, loss = document.get("peak"), document.get("loss")
    return Row(split, key, image, label, prepared, sample, excluded, blank, peak, loss)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the prepared dataset in `folder`."""
    head = {
        "format": MANIFEST_FORMAT,
        "image_root": str(manifest.image_root),
        "meaning": manifest.conversion_digest,
        "files": dict(manifest.files),
        "pairs": len(manifest.rows),
    }
    if manifest.label_reader is not None:
        head["label_reader"] = manifest.label_reader
    body = "".join(f"{line}\n" for line in (json.dumps(head), *map(format_row, manifest.rows)))
    end = json.dumps({"sha256": sha256(body.encode())})
    write_atomic(folder / MANIFEST_NAME, f"{body}{end}\n".encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the prepared dataset in `folder`; missing or damaged, it is an error."""
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
        body, _, end = text.rstrip("\n").rpartition("\n")
        if parse_form(end, _End)["sha256"] != sha256(f"{body}\n".encode()):
            raise DataError(f"{path}: damaged: its digest does not match")
        first, *lines = body.split("\n")
        if parse_form(first, dict[str, Any]).get("format") not in (1, MANIFEST_FORMAT):
            raise DataError(f"{path}: written by another version")
        head = parse_form(first, _Head)
        label_reader = LabelReader(*head["label_reader"]) if "label_reader" in head else None
        rows = tuple(map(parse_row, lines))
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    return Manifest(
        Path(head["image_root"]),
        head["meaning"],
        head["files"],
        rows,
        label_reader,
        head["format"],
    )


def find_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`; None if it is missing or damaged."""
    try:
        return read_manifest(folder)
    except DataError:
        return None


def recorded_package(folder: Path, label_format: str) -> LabelPackage | None:
    """Return the package that read the labels of the prepared dataset in `folder`.

    None if it is not prepared, with another label format, or without a package.
    """
    manifest = find_manifest(folder)
    reader = None if manifest is None else manifest.label_reader
    if reader is None or reader.label_format != label_format:
        return None
    return LabelPackage(reader.package, reader.fingerprint)
