"""The images in a folder that a user names, and the files that are left out."""

from collections import Counter
from pathlib import Path

from udaseg.data.files.find import find_files
from udaseg.data.files.headers import HEIC_SUFFIXES
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.errors import DataError
from udaseg.text import count_text, most_common_text


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, at any depth, of which there must be some.

    Raises:
        DataError: It is a file, or has no images; the message says what it has instead.
    """
    if folder.is_file():
        raise DataError(f"{folder}: is a file; name a folder of images")
    files = find_files(folder, "**/*")
    images = [path for path in files if _is_image(path)]
    if not images:
        others = f"; it has {_described(files)}" if files else ""
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)}){others}")
    return images


def skipped_files(folder: Path) -> str:
    """Return how many files of which suffixes `find_images` leaves out; "" if none."""
    others = [path for path in find_files(folder, "**/*") if not _is_image(path)]
    return _described(others) if others else ""


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _described(files: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    heic = " (pip install 'udaseg[heic]' reads HEIC)" if set(counts) & set(HEIC_SUFFIXES) else ""
    return f"{count_text(len(files), 'file')} of other types: {most_common_text(counts)}{heic}"
