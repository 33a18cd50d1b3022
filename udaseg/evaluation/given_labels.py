"""Pseudo-labels of another tool: a folder of PNGs, read as train ids of the network."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset, Sample
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import IGNORE, ClassSpace
from udaseg.data.labels.tables import Ids, builtin_label_table
from udaseg.data.loading.threads import read_ahead
from udaseg.data.prepare.manifest import find_manifest
from udaseg.errors import DataError
from udaseg.evaluation.prediction_files import (
    find_predictions,
    read_upright_prediction,
    recorded_classes,
    refuse_other_ids,
)

_MAX_LISTED = 10


class GivenLabels(NamedTuple):
    """The label files of some images, and what their ids mean.

    Attributes:
        files: The file of each image that has one.
        train_ids: (256,) uint8, the network's train id of each id, `IGNORE` for ids without one.
        known: The ids that a file may hold.
        ids: The kind of ids.
    """

    files: dict[str, Path]
    train_ids: NDArray[np.uint8]
    known: frozenset[int]
    ids: Ids

    def read(self, sample: Sample) -> Pixels:
        """Return the label of an image, upright, (H, W) train ids; `IGNORE` without a file.

        Raises:
            DataError: The file cannot be read, has another size or an unknown id.
        """
        size, path = (sample.height, sample.width), self.files.get(sample.image)
        if path is None:
            return np.full(size, IGNORE, np.uint8)
        ids = read_upright_prediction(path, sample, size, "the image")
        unknown = sorted(set(np.flatnonzero(np.bincount(ids.ravel()))) - self.known)
        if unknown:
            listed = ", ".join(map(str, unknown[:_MAX_LISTED]))
            raise DataError(
                f"{path}: holds {listed}, which are no {self.ids} ids (255 is for pixels without a "
                "label); label ids of Cityscapes need pseudo_labels.ids: label"
            )
        return np.asarray(self.train_ids[ids], np.uint8)


def find_given_labels(
    folder: Path, ids: Ids, target: PreparedDataset, split: str, classes: ClassSpace
) -> GivenLabels:
    """Return the labels in a folder that belong to images of a split, by their names.

    `train` ids are positions in the classes of a `prediction.json` in or next to the folder, else
    in those of the target, else of the network; `label` ids are those of Cityscapes.

    Args:
        folder: Folder of PNGs, nested in any way.
        ids: Kind of ids in them.
        target: The images.
        split: Its split.
        classes: Classes of the network.

    Raises:
        DataError: There is no such folder, no file belongs to an image, several files belong to
            one, a file is a label of the data set itself, or the folder says that it holds other
            ids.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pseudo-labels (pseudo_labels.folder)")
    files = find_predictions(folder, target.split(split))
    if not files:
        raise DataError(
            f"{folder}: no PNG has the name of an image of {target.name}, split '{split}', so "
            "there is nothing to train on"
        )
    _refuse_own_labels(files, target)
    refuse_other_ids(folder, ids)
    known: frozenset[int] = frozenset()
    groups: Sequence[Sequence[int]]
    if ids == "label":
        table = builtin_label_table("cityscapes19")
        names, groups, known = table.classes, table.ids, frozenset(table.ignore)
    else:
        names = recorded_classes(folder) or target.classes or classes
        groups = [[number] for number in range(len(names))]
    train_ids = np.full(256, IGNORE, np.uint8)
    for train_id, group in zip(names.train_ids_in(classes), groups, strict=True):
        train_ids[list(group)] = train_id
    return GivenLabels(files, train_ids, known.union({IGNORE}, *groups), ids)


def read_given_labels(
    given: GivenLabels,
    samples: Sequence[Sample],
    num_classes: int,
    on_image: Callable[[int], None],
    use: Callable[[Sample, Pixels], None] = lambda _sample, _labels: None,
) -> NDArray[np.int64]:
    """Read and `use` the label of each image; return the pixels of each class, (K + 1,).

    The last number is of pixels without a class.

    Raises:
        DataError: A file cannot be read, has another size or an unknown id.
    """

    def read(sample: Sample) -> NDArray[np.int64]:
        labels = given.read(sample)
        use(sample, labels)
        counts = np.bincount(labels.ravel(), minlength=256)
        return np.append(counts[:num_classes], counts[IGNORE])

    pixels = np.zeros(num_classes + 1, np.int64)
    with contextlib.closing(read_ahead(read, samples)) as counts:
        for number, of_image in enumerate(counts, 1):
            pixels += of_image
            on_image(number)
    return pixels


def _refuse_own_labels(files: dict[str, Path], target: PreparedDataset) -> None:
    """Refuse labels of the data set itself: those of a target never reach training."""
    manifest = find_manifest(target.folder)
    own = {
        (base / file.path).resolve()
        for row in (() if manifest is None else manifest.rows)
        for base, file in ((target.image_root, row.label), (target.folder, row.prepared))
        if file is not None
    }
    for path in files.values():
        if path.resolve() in own:
            raise DataError(
                f"{path}: is a label of {target.name} itself. Labels of the target never reach "
                "training; give a folder of pseudo-labels"
            )
