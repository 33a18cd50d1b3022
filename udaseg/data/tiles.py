"""`udaseg tile`: a data set cut into tiles, which load faster than large mosaics."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import write_png
from udaseg.data.files.parallel import map_in_threads
from udaseg.data.labels.classes import IGNORE
from udaseg.data.open import open_dataset
from udaseg.data.prepare.init import yaml_text
from udaseg.display.progress import LazyProgress
from udaseg.errors import UsageError
from udaseg.files import disk_space, write_text

_SMALLEST = 16


@dataclass(frozen=True)
class Tiles:
    """What `tile` wrote.

    Attributes:
        path: The dataset YAML of the tiles.
        counts: Number of tiles of each split.
    """

    path: Path
    counts: dict[str, int]


def tile(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int = 512,
    root: str | os.PathLike[str] = "data",
    workers: int = -1,
) -> Tiles:
    """Cut the images and labels of a data set into square tiles, with a dataset YAML of them.

    Tiles are PNGs: images of 8 bits as `udaseg` reads them (upright, with the chosen bands), labels
    as train ids. Neighbours do not overlap, but for the last of a row or column, which ends with
    the image; a side that is shorter than `size` is kept whole.

    Args:
        data: A prepared data set, dataset YAML, or folder of images.
        out: The folder to write, which must be empty or missing.
        size: Side of a tile in pixels.
        root: Folder of the prepared data sets.
        workers: Number of threads; -1 uses one per core.

    Returns:
        The YAML, `OUT/NAME-tiles.yaml`, and the number of tiles.

    Raises:
        UsageError: The folder holds something, or lies in a folder of the images; or the size is
            below 16.
        DataError: There is no such data set, or a file cannot be read.
        EnvironmentFault: The disk is full.

    Example:
        tiles = udaseg.tile("recipes/datasets/potsdam.yaml", "potsdam_tiles")
        udaseg.prepare(str(tiles.path))
    """
    folder = Path(out)
    if size < _SMALLEST:
        raise UsageError(f"size must be at least {_SMALLEST} pixels, got {size}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: holds something; name an empty or a new folder")
    dataset = open_dataset(os.fspath(data), root=Path(root))
    _refuse_folder_of_images(dataset, folder)
    jobs = [(split, each) for split, samples in dataset.splits.items() for each in samples]
    counts = dict.fromkeys(dataset.splits, 0)
    remaining = sum(sample.height * sample.width for _, sample in jobs)

    def cut(job: tuple[str, Sample]) -> int:
        return _cut(dataset, *job, folder, size)

    with (
        LazyProgress(f"tile {dataset.name}", "images") as on_progress,
        disk_space(folder.parent, lambda: 2 * remaining),  # of the 4 bytes of a pixel
    ):
        for (split, sample), written in map_in_threads(cut, jobs, workers, on_progress):
            counts[split] += written
            remaining -= sample.height * sample.width
        path = folder / f"{dataset.name}-tiles.yaml"
        write_text(path, "\n".join([*_yaml_lines(dataset, size), ""]))
    return Tiles(path, counts)


def _refuse_folder_of_images(dataset: PreparedDataset, folder: Path) -> None:
    """Refuse to write among the images, where the tiles could be taken for images themselves."""
    samples = itertools.chain.from_iterable(dataset.splits.values())
    parents = {dataset.image_path(sample).resolve().parent for sample in samples}
    for path in (place := folder.resolve(), *place.parents):
        if path in parents:
            raise UsageError(f"{folder}: lies in {path}, a folder of the images; name another one")


def _cut(dataset: PreparedDataset, split: str, sample: Sample, folder: Path, size: int) -> int:
    """Write the tiles of an image and of its label, if any; return their number."""
    image = dataset.read_image(sample)
    label = None if sample.label is None else dataset.read_labels(sample)
    name = PurePosixPath(sample.image)
    stem = name.with_name(name.name.replace(".", "_"))  # a.png and a.tif are two images
    rows, columns = (_starts(side, size) for side in image.shape[:2])
    for top, left in itertools.product(rows, columns):
        part = (slice(top, top + size), slice(left, left + size))
        place = f"{split}/{stem}_{top}_{left}.png"
        write_png(folder / "images" / place, image[part])
        if label is not None:
            write_png(folder / "labels" / place, label[part])
    return len(rows) * len(columns)


def _starts(side: int, size: int) -> list[int]:
    """Return where tiles begin along a side: at multiples of the size, the last at the end."""
    last = max(0, side - size)
    return [*range(0, last, size), last]


def _yaml_lines(dataset: PreparedDataset, size: int) -> Iterator[str]:
    yield f"# Tiles of {dataset.name}, cut by `udaseg tile`: at most {size}x{size} pixels."
    yield f"name: {yaml_text(f'{dataset.name}-tiles')}"
    labelled = [
        split for split, samples in dataset.splits.items() if any(each.label for each in samples)
    ]
    yield f"images: {_globs('images', dataset.splits)}"
    if dataset.classes is not None:
        yield f"labels: {_globs('labels', labelled)}"
        yield "classes:"
        pairs = zip(dataset.classes.names, dataset.classes.colors, strict=True)
        for number, (name, color) in enumerate(pairs):
            yield f"  - {{name: {yaml_text(name)}, ids: [{number}], color: {list(color)}}}"
        yield f"ignore: [{IGNORE}]"


def _globs(kind: str, splits: Iterable[str]) -> str:
    """Return a pattern of files for each split."""
    globs = (f"{yaml_text(split)}: {yaml_text(f'{kind}/{split}/**/*.png')}" for split in splits)
    return f"{{{', '.join(globs)}}}"
