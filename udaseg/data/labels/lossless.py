"""The check that label images of several formats share."""

from pathlib import Path

from udaseg.data.files.headers import is_boxed
from udaseg.data.files.images import checked_bytes
from udaseg.errors import DataError


def refuse_unusable_image(path: Path, data: bytes) -> None:
    """Raise a `DataError` unless `data` is a complete image whose compression keeps ids."""
    checked_bytes(path, data)
    if data.startswith(b"\xff\xd8"):
        raise DataError(f"{path}: JPEG compression changes ids; store labels losslessly (PNG)")
    if is_boxed(data):
        raise DataError(f"{path}: AVIF and HEIC change ids; store labels losslessly (PNG)")
