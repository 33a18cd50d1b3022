"""The images in a folder that a user names, and the files that are left out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from udaseg.data.files.find import find_files
from udaseg.data.files.headers import HEIC_SUFFIXES
from udaseg.data.files.images import IMAGE_SUFFIXES
from udaseg.errors import DataError
from udaseg.text import count_text, most_common_text


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder; see `find_images_and_others`."""
    return find_images_and_others(folder)[0]


def find_images_and_others(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return all images below a folder, at any depth, of which there must be some, and other files.

    Raises:
        DataError: It is a file or a run, or has no images; the message says what it has instead.
    """
    if folder.is_file():
        raise DataError(f"{folder}: is a file; name a folder of images")
    refuse_run(folder)
    images, others = list[Path](), list[Path]()
    for path in find_files(folder, "**/*"):
        (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    if not images:
        instead = f"; it has {files_text(others)}" if others else ""
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)}){instead}")
    return images, others


def refuse_run(folder: Path) -> None:
    """Refuse the folder of a run, whose pictures nobody means.

    Raises:
        DataError: The folder is one.
    """
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
        raise DataError(f"{folder}: is a run, not a folder of images")


def files_text(files: Sequence[Path]) -> str:
    """Return how many files of which suffixes there are that are no images."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    return f"{count_text(len(files), 'file')} of other types: {suffixes_text(counts)}"


def suffixes_text(counts: Counter[str]) -> str:
    """Return the most common suffixes of files that are not read, and what would read HEIC."""
    heic = " (pip install 'udaseg[heic]' reads HEIC)" if set(counts) & set(HEIC_SUFFIXES) else ""
    return f"{most_common_text(counts)}{heic}"
