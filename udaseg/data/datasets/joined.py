"""Several prepared data sets that are read as one, with the classes of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from udaseg.data.datasets.index import PreparedDataset, Sample, unlabelled_source
from udaseg.data.files.held import HeldFile
from udaseg.data.files.images import Pixels
from udaseg.data.labels.classes import ClassSpace, lookup_table
from udaseg.errors import DataError


@dataclass(frozen=True)
class JoinedDataset(PreparedDataset):
    """Data sets read as one; `Sample.part` says which of them a sample is of.

    Attributes:
        members: The data sets, which share what is held.
        tables: For each of them, the train id here of each of its own.
    """

    members: tuple[PreparedDataset, ...] = ()
    tables: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def parts(self) -> tuple[PreparedDataset, ...]:
        """The data sets that are read as this one."""
        return self.members

    def image_path(self, sample: Sample) -> Path:
        """Return the absolute path of the image of `sample`."""
        return self.members[sample.part].image_path(sample)

    def label_path(self, sample: Sample) -> Path:
        """Return the absolute path of the label of `sample`, whose ids are those of its part."""
        return self.members[sample.part].label_path(sample)

    def read_image(self, sample: Sample) -> Pixels:
        """Return the image of `sample` upright, (H, W, 3) uint8 RGB."""
        return self.members[sample.part].read_image(sample)

    def read_labels(self, sample: Sample) -> Pixels:
        """Return the label of `sample`, (H, W) uint8 train ids of the classes of all parts."""
        return self.with_own_ids(self.members[sample.part].read_labels(sample), sample)

    def with_own_ids(self, labels: Pixels, sample: Sample) -> Pixels:
        """Return labels (H, W) of the part of `sample` as train ids of the classes of all parts."""
        table = np.frombuffer(self.tables[sample.part], np.uint8)
        return np.asarray(cv2.LUT(labels, table), np.uint8)

    def only(self, part: int) -> "JoinedDataset":
        """Return the samples of one part, with the classes of all."""
        splits = {
            name: tuple(sample for sample in samples if sample.part == part)
            for name, samples in self.splits.items()
        }
        return replace(self, name=self.members[part].name, splits=splits)


def join_datasets(datasets: Sequence[PreparedDataset]) -> PreparedDataset:
    """Return labelled data sets as one; a single one is returned as it is.

    The classes are those of the first, then those that others add, matched by name. Splits are
    those that all of them have, with the samples of each in turn.

    Raises:
        DataError: One has no labels, or no class in common with those before it, or is there twice.
    """
    if len(datasets) == 1:
        return datasets[0]
    names = [dataset.name for dataset in datasets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{twice[0]}: is twice among the sources, perhaps by its name and its YAML")
    classes, held = _all_classes(datasets), dict[str, HeldFile]()
    train_ids = [
        () if each.classes is None else each.classes.train_ids_in(classes) for each in datasets
    ]
    first, *others = datasets
    shared = [name for name in first.splits if all(name in other.splits for other in others)]
    return JoinedDataset(
        name="+".join(dataset.name for dataset in datasets),
        folder=first.folder,
        image_root=first.image_root,
        classes=classes,
        splits={
            name: tuple(
                _of_part(sample, part, train_ids[part], len(classes))
                for part, dataset in enumerate(datasets)
                for sample in dataset.splits[name]
            )
            for name in shared
        },
        held=held,
        members=tuple(replace(dataset, held=held) for dataset in datasets),
        tables=tuple(map(lookup_table, train_ids)),
    )


def _all_classes(datasets: Sequence[PreparedDataset]) -> ClassSpace:
    """Return the classes of all data sets; the first that has a class gives its colour."""
    colors: dict[str, tuple[int, int, int]] = {}
    for dataset in datasets:
        if dataset.classes is None:
            raise unlabelled_source(dataset.name)
        names = dataset.classes.names
        if colors and not set(colors) & set(names):
            raise DataError(
                f"{dataset.name}: its classes ({', '.join(names)}) have no name in common with "
                f"those of {datasets[0].name} ({', '.join(colors)}), so they cannot be one source; "
                "use the same names in a dataset YAML"
            )
        colors = {**dict(zip(names, dataset.classes.colors, strict=True)), **colors}
    order = dict.fromkeys(
        name for dataset in datasets if dataset.classes for name in dataset.classes.names
    )
    return ClassSpace(tuple(order), tuple(colors[name] for name in order))


def _of_part(sample: Sample, part: int, train_ids: Sequence[int], count: int) -> Sample:
    """Return a sample of a part, with its pixels counted by the `count` classes of all parts."""
    pixels = [0] * count
    for train_id, number in zip(train_ids, sample.class_pixels, strict=False):
        pixels[train_id] = number
    return replace(sample, part=part, class_pixels=tuple(pixels) if sample.class_pixels else ())
