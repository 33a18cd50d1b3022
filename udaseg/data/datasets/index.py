"""The index of a prepared dataset: images, labels, sizes and class counts."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from udaseg.data.files.bands import Bands
from udaseg.data.files.forms import parse_form, refuse_other_form
from udaseg.data.files.held import HeldFiles, read_held
from udaseg.data.files.images import Pixels, read_stored_image
from udaseg.data.files.orientation import to_upright, turned_size
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.labels.read import read_train_ids
from udaseg.errors import DataError
from udaseg.text import shortened

INDEX_FORMAT = 2
"""Format 1 has no orientations: it took every image as it is stored, and its label with it."""

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Sample:
    """One image of a split.

    Attributes:
        image: Path below the dataset's `image_root`, POSIX style.
        label: Path of the train-id PNG below the prepared folder; None without a label.
        height: Height of the upright image in pixels.
        width: Width of the upright image in pixels.
        class_pixels: Number of pixels per class in the label, by train id; empty without a label.
        orientation: EXIF orientation of the image file, 1 to 8. The label is upright.
        part: Which of the data sets it is of, where several are read as one.
    """

    image: str
    label: str | None
    height: int
    width: int
    class_pixels: tuple[int, ...] = ()
    orientation: int = 1
    part: int = 0

    @property
    def stored_size(self) -> tuple[int, int]:
        """The (height, width) of the image as stored."""
        return turned_size((self.height, self.width), self.orientation)


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset that training can read.

    Attributes:
        name: Name given by the user.
        folder: Folder of the index and the train-id labels.
        image_root: The user's image folder; read, never written.
        classes: Class space of the labels; None without labels.
        splits: Samples of each split, in a fixed order.
        blank_images: Images of a single colour; they stay in the splits.
        bits: Bits that the values of its 16-bit images use, 8 to 16; `NO_DEEP_IMAGES` if it has
            none, None if unknown.
        bands: The bands of its TIFFs that are read; None for gray, RGB or RGBA.
        held: Files that must be what they were; see `udaseg.data.open.hold_files`.
    """

    name: str
    folder: Path
    image_root: Path
    classes: ClassSpace | None
    splits: Mapping[str, tuple[Sample, ...]]
    blank_images: frozenset[str] = frozenset()
    bits: int | None = None
    bands: Bands | None = None
    held: HeldFiles = field(default_factory=dict, compare=False, repr=False)

    @property
    def parts(self) -> tuple["PreparedDataset", ...]:
        """The data sets that are read as this one."""
        return (self,)

    def image_path(self, sample: Sample) -> Path:
        """Return the absolute path of the image of `sample`."""
        return self.image_root / sample.image

    def label_path(self, sample: Sample) -> Path:
        """Return the absolute path of the train-id label of `sample`.

        Raises:
            DataError: The sample has no label.
        """
        if sample.label is None:
            raise DataError(f"{self.image_path(sample)}: has no label in '{self.name}'")
        return self.folder / sample.label

    def read_image(self, sample: Sample) -> Pixels:
        """Return the image of `sample` upright, (H, W, 3) uint8 RGB; every command sees it so.

        Raises:
            DataError: It cannot be read, or is not turned as it was when the set was prepared.
        """
        path = self.image_path(sample)
        data = read_held(path, self.held)
        pixels, orientation = read_stored_image(path, bits=self.bits, bands=self.bands, data=data)
        if orientation != sample.orientation:
            raise DataError(
                f"{path}: has EXIF orientation {orientation}, but was prepared with "
                f"{sample.orientation}, so its label may not match; run `udaseg prepare` again"
            )
        return to_upright(pixels, orientation)

    def read_labels(self, sample: Sample) -> Pixels:
        """Return the label of `sample`, (H, W) uint8 train ids of `classes`.

        Raises:
            DataError: The sample has no label, or it cannot be read.
        """
        return read_train_ids(self.label_path(sample), self.held)

    def split(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of split `name`.

        Raises:
            DataError: The split does not exist.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.name}: no split '{name}'; it has {', '.join(sorted(self.splits)) or 'none'}"
            )
        return self.splits[name]


def index_document(dataset: PreparedDataset) -> dict[str, Any]:
    """Return the index of `dataset` as JSON values."""
    classes = None
    if dataset.classes is not None:
        pairs = zip(dataset.classes.names, dataset.classes.colors, strict=True)
        classes = [{"name": name, "color": list(color)} for name, color in pairs]
    return {
        "format": INDEX_FORMAT,
        "name": dataset.name,
        "image_root": str(dataset.image_root),
        "classes": classes,
        "splits": {
            split: [
                [
                    sample.image,
                    sample.label,
                    sample.height,
                    sample.width,
                    list(sample.class_pixels),
                    sample.orientation,
                ]
                for sample in samples
            ]
            for split, samples in dataset.splits.items()
        },
        "blank": sorted(dataset.blank_images),
        "bits": dataset.bits,
        "bands": dataset.bands,
    }


_RowOfFormat1 = tuple[str, str | None, int, int, list[int]]
_Row = tuple[str, str | None, int, int, list[int], int]


class _Class(TypedDict):
    name: str
    color: tuple[int, int, int]


class _Index(TypedDict):
    """The form of `index.json`."""

    name: str
    image_root: str
    classes: list[_Class] | None
    splits: dict[str, list[_Row | _RowOfFormat1]]
    blank: NotRequired[list[str]]  # this and the next were added after the format was fixed
    bits: NotRequired[int]
    bands: NotRequired[tuple[int, int, int] | None]


def unlabelled_source(name: str) -> DataError:
    """Return the error for a source without labels."""
    return DataError(
        f"{name}: has no labels, so it cannot be a source; `udaseg init NAME IMAGES LABELS` "
        "describes images with labels"
    )


def read_index(folder: Path) -> PreparedDataset:
    """Return the prepared dataset in `folder`.

    Raises:
        DataError: The index is missing or cannot be read.
    """
    path = folder / INDEX_NAME
    try:
        document = parse_form(path.read_text(encoding="utf-8"), dict[str, Any])
        if (written := document.get("format")) not in (1, INDEX_FORMAT):
            raise DataError(
                f"{path}: index format {shortened(str(written))}, this version reads 1 and "
                f"{INDEX_FORMAT}; run `udaseg prepare` again"
            )
        return _parse_index(document, folder)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; run `udaseg prepare` first") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable index ({error}); run `udaseg prepare` again"
        ) from error


def _parse_index(document: dict[str, Any], folder: Path) -> PreparedDataset:
    """Return the dataset of an index; a value that none has is a ValueError."""
    refuse_other_form(document, _Index)
    classes = None
    if document["classes"] is not None:
        colors = tuple(tuple(entry["color"]) for entry in document["classes"])
        classes = ClassSpace(tuple(entry["name"] for entry in document["classes"]), colors)
    splits = {
        split: tuple(
            Sample(image, label, height, width, tuple(pixels), *orientation)
            for image, label, height, width, pixels, *orientation in rows
        )
        for split, rows in document["splits"].items()
    }
    for sample in itertools.chain(*splits.values()):
        labelled = sample.label is not None and classes is not None
        if len(sample.class_pixels) != (len(classes or ()) if labelled else 0):
            raise ValueError(f"{sample.image} has not one number of pixels for each class")
        if min(sample.height, sample.width, 1 + min(sample.class_pixels, default=0)) < 1:
            raise ValueError(f"{sample.image} has no such size")
        if sample.orientation not in range(1, 9):
            raise ValueError(f"{sample.image} has no such orientation")
    if (bits := document.get("bits")) not in (None, 0, *range(8, 17)):
        raise ValueError(f"no image has {bits} bits")
    bands = document.get("bands")
    return PreparedDataset(
        name=document["name"],
        folder=folder,
        image_root=Path(document["image_root"]),
        classes=classes,
        splits=splits,
        blank_images=frozenset(document.get("blank", [])),
        bits=bits,
        bands=None if bands is None else (bands[0], bands[1], bands[2]),
    )


def evenly_spaced_indices(count: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices below `count`, starting with 0."""
    step = max(1.0, count / limit)
    return [int(number * step) for number in range(min(limit, count))]
