"""`udaseg grid`: images, the masks of several runs and the truth, side by side in one PNG."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels, write_png
from udaseg.data.labels.classes import ClassSpace
from udaseg.data.loading.transforms import resize_image, resize_labels
from udaseg.display.pictures import color_mask, comparison_sheet, legend
from udaseg.display.progress import WorkProgress
from udaseg.errors import UsageError
from udaseg.figures.images import pick_images, target_images
from udaseg.files import one_or_more, refuse_output
from udaseg.inference import trained_model
from udaseg.inference.trained_model import Model
from udaseg.runs.folder import names_of_runs

_ALL = 1_000_000


@dataclass(frozen=True)
class GridOptions:
    """Which images a grid shows, and how.

    Attributes:
        images: Number of images, evenly spaced over the split.
        pick: Instead: a part of the name of each image to show, in this order.
        titles: Titles of the runs; None takes the names of their folders.
        width: Width of each picture in pixels.
        weights: `student` or `teacher`.
        device: Device to compute on.
        root: Folder of the prepared data.
    """

    images: int = 4
    pick: tuple[str, ...] = ()
    titles: tuple[str, ...] | None = None
    width: int = 480
    weights: str = "student"
    device: str = "auto"
    root: str | os.PathLike[str] = "data"


def grid(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    out: str | os.PathLike[str] = "grid.png",
    options: GridOptions | None = None,
) -> Path:
    """Write one PNG with a row for each image: the image, the mask of each run, and the truth.

    A class has the colour of the first run that knows it. Without labels there is no truth.

    Args:
        runs: Run folders or checkpoints, one column each, such as a baseline and an adapted run.
        data: Data set, dataset YAML or folder of images; None takes the validation data of the
            last run, else its target.
        split: Split of the data.
        out: The file.
        options: Which images, and how to show them.

    Returns:
        The file.

    Raises:
        UsageError: There are not as many titles as runs, or `out` is no name of a PNG.
        CheckpointError: A run has no such network.
        DataError: The data cannot be read, or no image has one of the names.

    Example:
        udaseg.grid(["runs/source_only", "runs/rccr"], out="figure.png")
    """
    options, paths, path = options or GridOptions(), one_or_more(runs), Path(out)
    refuse_output(path, ".png", "the picture is a PNG")
    titles = options.titles or names_of_runs([Path(path) for path in paths])
    if len(titles) != len(paths):
        raise UsageError(f"{len(paths)} runs need as many titles, got {len(titles)}")
    models = [
        trained_model.load(path, weights=options.weights, device=options.device) for path in paths
    ]
    limit = _ALL if options.pick else options.images
    images = target_images(models[-1].recipe, data, split, limit, options.root)
    if options.pick:
        images = pick_images(images, options.pick)
    rows = []
    with WorkProgress("grid", len(images.samples)) as progress:
        for sample in images.samples:
            rows.append(_row(models, images.dataset, sample, options.width))
            progress.advance()
    has_truth = len(rows[0]) > 1 + len(models)
    sheet = comparison_sheet(rows, ["image", *titles, *(["truth"] if has_truth else [])])
    colors = _colors([model.classes for model in models])
    names = legend(list(colors), list(colors.values()), sheet.shape[1])
    write_png(path, np.vstack([sheet, names]))
    return path


def _row(
    models: Sequence[Model], dataset: PreparedDataset, sample: Sample, width: int
) -> list[Pixels]:
    """Return an image, its masks and its truth, if there is one, as pictures of one size."""
    image = dataset.read_image(sample)
    size = max(1, round(image.shape[0] * width / image.shape[1])), width
    masks = [(model.predict(image, temperature=1.0).ids, model.classes) for model in models]
    if sample.label is not None and dataset.classes is not None:
        masks.append((dataset.read_labels(sample), dataset.classes))
    colors = _colors([classes for _, classes in masks])
    pictures = [_painted(resize_labels(ids, size), classes, colors) for ids, classes in masks]
    return [resize_image(image, size), *pictures]


def _painted(
    ids: NDArray[np.uint8], classes: ClassSpace, colors: Mapping[str, tuple[int, int, int]]
) -> Pixels:
    return color_mask(ids, [colors[name] for name in classes.names])


def _colors(spaces: Sequence[ClassSpace]) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class: that of the first class list that has it."""
    colors: dict[str, tuple[int, int, int]] = {}
    for space in spaces:
        for name, color in zip(space.names, space.colors, strict=True):
            colors.setdefault(name, color)
    return colors
