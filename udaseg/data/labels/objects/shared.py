"""Label files of several images, which are read once for all of them."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from udaseg.data.files.images import read_bytes
from udaseg.data.labels.objects.drawing import LabelledImage
from udaseg.errors import DataError
from udaseg.files import sha256

ObjectReader = Callable[[Path, bytes], list[LabelledImage]]
"""Returns the images in the content of a label file; the path is for messages."""


class SharedLabels(NamedTuple):
    """The content of a label file of several images.

    Attributes:
        images: The images that it lists.
        size: Bytes of the file.
        mtime_ns: Its modification time.
        sha256: Its digest.
    """

    images: tuple[LabelledImage, ...]
    size: int
    mtime_ns: int
    sha256: str


def read_shared(path: Path, reader: ObjectReader) -> SharedLabels:
    """Return the content of a label file; one that has not changed is not read again.

    Raises:
        DataError: The file cannot be read, or is not in the format.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _read(path, reader, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, reader: ObjectReader, size: int, mtime_ns: int) -> SharedLabels:
    data = read_bytes(path)
    return SharedLabels(tuple(reader(path, data)), size, mtime_ns, sha256(data))


def forget_shared() -> None:
    """Free the label files that were read."""
    _read.cache_clear()
