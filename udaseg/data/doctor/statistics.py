"""Statistics of a data set: images, sizes, colours, shares of classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udaseg.data.doctor.files import Looked
from udaseg.data.doctor.subject import Subject


@dataclass(frozen=True)
class SplitFacts:
    """Statistics of a split.

    Attributes:
        images: Number of images.
        labelled: Number of images with a label.
        sizes: Number of readable images of each (width, height).
        pixels: (K,) pixels of each class in all labels; None without labels.
        holding: (K,) number of labels that contain each class; None without labels.
        ignored: Share of label pixels without a class; None without labels.
    """

    images: int
    labelled: int
    sizes: Counter[tuple[int, int]]
    pixels: NDArray[np.int64] | None
    holding: NDArray[np.int64] | None
    ignored: float | None

    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Return plain JSON values; `names` are the classes."""
        document: dict[str, Any] = {
            "images": self.images,
            "labelled": self.labelled,
            "sizes": {f"{w}x{h}": count for (w, h), count in self.sizes.most_common()},
            "ignored_share": self.ignored,
        }
        if self.pixels is not None and self.holding is not None:
            rows = zip(names, self.pixels.tolist(), self.holding.tolist(), strict=True)
            document["classes"] = {
                name: {"pixels": pixels, "labels": labels} for name, pixels, labels in rows
            }
        return document


@dataclass(frozen=True)
class SetFacts:
    """Statistics of a data set.

    Attributes:
        role: data, source or target.
        name: Name of the data set.
        kind: prepared, declared, or a folder.
        folder: Folder of the images.
        classes: Names of the classes; empty without labels.
        splits: Statistics of each split.
        mean: Mean of red, green and blue (0..255), with equal weight per image; None if no image
            can be read.
        spread: Standard deviation of red, green and blue over all pixels.
        aspect: Median of width / height.
        height: Median height in pixels.
    """

    role: str
    name: str
    kind: str
    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, SplitFacts] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    aspect: float | None = None
    height: float | None = None

    def counts(self, *, trained: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return (K,) pixels and labels of each class over the training or held-out splits."""
        per_split = [
            np.stack([split.pixels, split.holding])
            for name, split in self.splits.items()
            if name.startswith("train") == trained
            and split.pixels is not None
            and split.holding is not None
        ]
        if not per_split:
            return None
        totals = np.stack(per_split).sum(0)
        return totals[0], totals[1]

    def document(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "role": self.role,
            "name": self.name,
            "kind": self.kind,
            "folder": str(self.folder),
            "classes": list(self.classes),
            "splits": {name: split.document(self.classes) for name, split in self.splits.items()},
            "color_mean": None if self.mean is None else list(self.mean),
            "color_std": None if self.spread is None else list(self.spread),
            "aspect": self.aspect,
            "height": self.height,
        }


def facts_of(subject: Subject, inspected: Sequence[Looked]) -> SetFacts:
    """Return the statistics of a data set from the results for each of its images."""
    names = () if subject.classes is None else subject.classes.names
    splits = {
        split: _split_facts([image for image in inspected if image.item.split == split], len(names))
        for split in subject.splits
    }
    sizes = np.array([image.size for image in inspected if image.size is not None], np.float64)
    means = np.array([image.mean for image in inspected if image.mean is not None])
    spreads = np.array([image.spread for image in inspected if image.spread is not None])
    description = (subject.role, subject.name, subject.kind, subject.folder, names, splits)
    if not len(sizes):
        return SetFacts(*description)
    mean = means.mean(0)
    # of all pixels together: E[x^2] - E[x]^2
    spread = np.sqrt(np.maximum((spreads**2 + means**2).mean(0) - mean**2, 0))
    return SetFacts(
        *description,
        mean=tuple(mean.round(2).tolist()),
        spread=tuple(spread.round(2).tolist()),
        aspect=round(float(np.median(sizes[:, 1] / sizes[:, 0])), 4),
        height=float(np.median(sizes[:, 0])),
    )


def _split_facts(inspected: Sequence[Looked], classes: int) -> SplitFacts:
    sizes = Counter((image.size[1], image.size[0]) for image in inspected if image.size is not None)
    labelled = sum(image.item.label is not None for image in inspected)
    label_pixels = [image.pixels for image in inspected if image.pixels is not None]
    if not label_pixels:
        return SplitFacts(len(inspected), labelled, sizes, None, None, None)
    table = np.array(label_pixels, np.int64).reshape(len(label_pixels), classes)
    pixels = table.sum(0)
    ignored = sum(image.ignored for image in inspected)
    total = int(pixels.sum()) + ignored
    share = round(ignored / total, 6) if total else 0.0
    return SplitFacts(len(inspected), labelled, sizes, pixels, (table > 0).sum(0), share)
