"""Read the header of a TIFF: size, bands, bits, pages, and whether its data are complete.

Pillow does not know TIFFs of several floats, and both Pillow and OpenCV read some layouts wrongly.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from udaseg.data.files import jpeg
from udaseg.data.files.bands import Bands
from udaseg.errors import DataError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CMYK_LOSS = "is CMYK, converted to RGB without its profile"
_MAX_PAGES = 10_000
_MAX_TAGS = 0xFFFF
_MAX_VALUES = 10_000_000
_VALUE_BYTES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}  # of types of whole numbers
_SHORT_TYPES = (1, 3, 4)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_BANDS, _STRIP_ROWS, _PLANES, _EXTRA, _FORMAT = 277, 278, 284, 338, 339
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _TILE_WIDTH, _TILE_HEIGHT = 273, 279, 324, 325, 322, 323

_UNSIGNED = (1, 4)
_FORMATS = {2: "int", 3: "float", 5: "complex int", 6: "complex float"}
_GREY, _CMYK, _YCBCR = (0, 1, 3), 5, 6  # 3 is a palette
_ALPHA = (1, 2)
_SEPARATE = 2
_UNCOMPRESSED, _JPEG = 1, 7
_MAX_RATIOS = {_UNCOMPRESSED: 1, 5: 4096, 8: 1032, 32946: 1032, 32773: 128}
"""Decoded bytes of a byte, at most: LZW, Deflate (two numbers) and PackBits are the others."""


@dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF.

    Attributes:
        tags: Whole numbers of each tag.
        pages: Number of pages.
    """

    tags: dict[int, tuple[int, ...]]
    pages: int

    def value(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored, 0 if unknown."""
        return self.value(_HEIGHT, 0), self.value(_WIDTH, 0)

    @property
    def bits(self) -> int:
        """Bits of each value."""
        return self.value(_BITS, 1)

    @property
    def bands(self) -> int:
        """Values of each pixel."""
        return self.value(_BANDS, 1)

    def problem(self, chosen: Bands | None = None) -> str:
        """Return why the pixels, or the chosen bands, are not read as an image, or ""."""
        bits, bands, photometric = self.bits, self.bands, self.value(_PHOTOMETRIC, 1)
        number = self.value(_FORMAT, 1)
        if number not in _UNSIGNED or bits > 16:
            name = f"{_FORMATS.get(number, 'uint')}{bits}"
            return f"{name} TIFF is not read: store 8 or 16 bits"
        if chosen is not None and max(chosen) >= bands:
            return f"has {bands} bands, from 0 to {bands - 1}, but `bands` names {max(chosen)}"
        if chosen is not None:
            return "" if bits in (8, 16) else f"bands of {bits} bits are not read: store 8 or 16"
        allowed = (1, 2) if photometric in _GREY else (4,) if photometric == _CMYK else (3, 4)
        if bands not in allowed:
            return (
                f"TIFF of {bands} bands is not read: name three of them: `bands: [0, 1, 2]` in the "
                "dataset YAML, target.bands=[0,1,2] for a folder, `predict --bands 0,1,2`"
            )
        is_plain = (photometric, bands) in ((1, 1), (2, 3), (2, 4))
        if bits > 8 and (not is_plain or self.value(_PLANES, 1) == _SEPARATE):
            return f"this kind of {bits}-bit TIFF is not read: store gray or interleaved RGB"
        return ""

    def loss(self, chosen: Bands | None = None) -> str:
        """Return what the first page has that an RGB image, or the chosen bands, lack, or ""."""
        if chosen is not None:
            others = ", ".join(str(band) for band in range(self.bands) if band not in chosen)
            return f"has {self.bands} bands; left out: {others}" if others else ""
        if self.value(_PHOTOMETRIC, 1) == _CMYK:
            return CMYK_LOSS
        colors = 1 if self.value(_PHOTOMETRIC, 1) in _GREY else 3
        if self.bands > colors and self.value(_EXTRA, 0) not in _ALPHA:
            return f"has {self.bands} bands, of which the last is not read (`bands` chooses others)"
        return ""

    def is_complete(self, data: bytes) -> bool:
        """Return whether the data of all rows lie inside the file, of which `data` is the content.

        Where they end inside a compressed part, only a decoder finds it, but for those of JPEG.
        """
        height, width = self.size
        planes = self.bands if self.value(_PLANES, 1) == _SEPARATE else 1
        if _TILES in self.tags:
            rows, columns = self.value(_TILE_HEIGHT, 1), self.value(_TILE_WIDTH, 1)
            parts = math.ceil(height / rows) * math.ceil(width / columns) * planes
            starts, sizes = self.tags[_TILES], self.tags.get(_TILE_BYTES, ())
        else:
            rows = min(self.value(_STRIP_ROWS, height), height)
            parts = math.ceil(height / rows) * planes
            starts, sizes = self.tags.get(_STRIPS, ()), self.tags.get(_STRIP_BYTES, ())
        if not sizes and len(starts) == parts:  # old software left the sizes out
            return True
        if len(starts) < parts or len(sizes) < parts or not all(sizes[:parts]):
            return False
        ends = [start + size for start, size in zip(starts, sizes, strict=False)]
        compression = self.value(_COMPRESSION, _UNCOMPRESSED)
        if max(ends) > len(data):
            return False
        if compression == _JPEG and any(jpeg.END not in data[end - 8 : end] for end in ends):
            return False
        ratio = _MAX_RATIOS.get(compression, math.inf)
        if self.value(_PHOTOMETRIC, 1) == _YCBCR:  # may store fewer values of colour
            ratio = math.inf
        needed = height * math.ceil(width * self.bits * self.bands / planes / 8) * planes
        return sum(sizes) * ratio >= needed


def read_tiff(path: Path, file: BinaryIO) -> Tiff:
    """Return the first page of the TIFF in `file`, at any position."""
    reader = _Reader(file)
    try:
        tags, following = reader.page(reader.first_page())
        pages, seen = 1, {0}
        while following not in seen and pages < _MAX_PAGES:
            seen.add(following)
            following = reader.page_after(following)
            pages += 1
    except (_Unreadable, OverflowError, ValueError) as error:
        raise DataError(f"{path}: is not a readable image") from error
    return Tiff(tags, pages)


def refuse_damaged_tiff(path: Path, data: bytes) -> None:
    """Raise a `DataError` for a TIFF with fewer data than its size needs; see `is_complete`."""
    if not read_tiff(path, io.BytesIO(data)).is_complete(data):
        raise DataError(f"{path}: damaged: the data of the TIFF end early")


class Number(NamedTuple):
    """The first whole number of a tag: where it stands in the file, in how many bytes."""

    position: int
    size: int
    value: int
    is_little: bool


def find_number(file: BinaryIO, start: int, tag: int) -> Number | None:
    """Return the number of a tag of the TIFF, or EXIF, at `start` of a file; None without it.

    It must be stored in the list of tags itself. A damaged list counts as none.
    """
    reader = _Reader(file, start)
    try:
        for found, kind, _, field in reader.fields(reader.first_page()):
            if found == tag and kind in _SHORT_TYPES:
                return reader.number_at(field, _VALUE_BYTES[kind])
    except (_Unreadable, OverflowError):
        pass
    return None


class _Unreadable(Exception):
    """The file ends inside a header, or a header makes no sense."""


class _Reader:
    """Reads the pages of a TIFF, in either order of bytes, of 32 or 64 bits."""

    def __init__(self, file: BinaryIO, start_of_tiff: int = 0) -> None:
        self._file, self._start = file, start_of_tiff
        file.seek(start_of_tiff)
        start = file.read(4)
        self._is_little = start.startswith(b"II")
        self._is_big = b"+" in start
        self._offset_bytes = 8 if self._is_big else 4

    def first_page(self) -> int:
        """Return the offset of the first page."""
        return self._number(8 if self._is_big else 4, self._offset_bytes)

    def page(self, offset: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """Return the whole numbers of each tag of a page, and the offset of the next page."""
        tags = {}
        for tag, kind, count, field in self.fields(offset):
            if kind in _VALUE_BYTES and count <= _MAX_VALUES:
                tags[tag] = self._values(field, count, _VALUE_BYTES[kind])
        number, first, step = self._entries(offset)
        return tags, self._number(first + number * step, self._offset_bytes)

    def fields(self, offset: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield each tag of a page, with the type, number and offset of its values."""
        number, first, step = self._entries(offset)
        for entry in range(first, first + min(number, _MAX_TAGS) * step, step):
            tag, kind = self._number(entry, 2), self._number(entry + 2, 2)
            count = self._number(entry + 4, self._offset_bytes)
            yield tag, kind, count, entry + 4 + self._offset_bytes

    def number_at(self, offset: int, size: int) -> Number:
        """Return the number of `size` bytes at an offset."""
        value = self._number(offset, size)
        return Number(self._start + offset, size, value, self._is_little)

    def page_after(self, offset: int) -> int:
        """Return the offset of the page after that at `offset`, or 0; 0 also if it is damaged."""
        try:
            count, first, step = self._entries(offset)
            return self._number(first + count * step, self._offset_bytes)
        except _Unreadable:
            return 0

    def _entries(self, offset: int) -> tuple[int, int, int]:
        """Return how many entries a page has, the offset of the first, and their bytes."""
        size = 8 if self._is_big else 2
        return self._number(offset, size), offset + size, 20 if self._is_big else 12

    def _values(self, field: int, count: int, size: int) -> tuple[int, ...]:
        at = (
            field if count * size <= self._offset_bytes else self._number(field, self._offset_bytes)
        )
        data = self._read(at, count * size)
        return tuple(self._integer(data[i : i + size]) for i in range(0, len(data), size))

    def _number(self, offset: int, size: int) -> int:
        return self._integer(self._read(offset, size))

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(self._start + offset)
        data = self._file.read(size)
        if len(data) < size:
            raise _Unreadable
        return data

    def _integer(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self._is_little else "big")
