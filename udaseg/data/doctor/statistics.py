"""What a set is like in figures: images, sizes, colours, shares of classes."""

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
    """A split in figures.

    Attributes:
        images: Images that it has.
        labelled: How many of them have a label.
        sizes: How often each (width, height) occurs among those that can be read.
        pixels: (K,) pixels of each class over its labels; None without labels.
        holding: (K,) labels that hold each class; None without labels.
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
        found: dict[str, Any] = {
            "images": self.images,
            "labelled": self.labelled,
            "sizes": {f"{w}x{h}": count for (w, h), count in self.sizes.most_common()},
            "ignored_share": self.ignored,
        }
        if self.pixels is not None and self.holding is not None:
            rows = zip(names, self.pixels.tolist(), self.holding.tolist(), strict=True)
            found["classes"] = {
                name: {"pixels": pixels, "labels": holding} for name, pixels, holding in rows
            }
        return found


@dataclass(frozen=True)
class SetFacts:
    """A data set in figures.

    Attributes:
        role: data, source or target.
        name: How it is called.
        kind: prepared, declared, or a folder.
        folder: Where its images lie.
        classes: Names of its classes; empty without labels.
        splits: Each split.
        mean: Mean of red, green and blue (0..255), each image alike; None when none can be read.
        spread: Their standard deviation over all pixels.
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
        found = [
            np.stack([split.pixels, split.holding])
            for name, split in self.splits.items()
            if name.startswith("train") == trained
            and split.pixels is not None
            and split.holding is not None
        ]
        if not found:
            return None
        both = np.stack(found).sum(0)
        return both[0], both[1]

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


def facts_of(subject: Subject, looked: Sequence[Looked]) -> SetFacts:
    """Return the figures of a set from what was read of each of its images."""
    names = () if subject.classes is None else subject.classes.names
    splits = {
        split: _split_facts([one for one in looked if one.item.split == split], len(names))
        for split in subject.splits
    }
    sizes = np.array([one.size for one in looked if one.size is not None], np.float64)
    means = np.array([one.mean for one in looked if one.mean is not None])
    spreads = np.array([one.spread for one in looked if one.spread is not None])
    facts = (subject.role, subject.name, subject.kind, subject.folder, names, splits)
    if not len(sizes):
        return SetFacts(*facts)
    mean = means.mean(0)
    # of all pixels together: E[x^2] - E[x]^2
    spread = np.sqrt(np.maximum((spreads**2 + means**2).mean(0) - mean**2, 0))
    return SetFacts(
        *facts,
        mean=tuple(mean.round(2).tolist()),
        spread=tuple(spread.round(2).tolist()),
        aspect=round(float(np.median(sizes[:, 1] / sizes[:, 0])), 4),
        height=float(np.median(sizes[:, 0])),
    )


def _split_facts(looked: Sequence[Looked], classes: int) -> SplitFacts:
    sizes = Counter((one.size[1], one.size[0]) for one in looked if one.size is not None)
    labelled = sum(one.item.label is not None for one in looked)
    counted = [one.pixels for one in looked if one.pixels is not None]
    if not counted:
        return SplitFacts(len(looked), labelled, sizes, None, None, None)
    table = np.array(counted, np.int64).reshape(len(counted), classes)
    pixels = table.sum(0)
    ignored = sum(one.ignored for one in looked)
    every = int(pixels.sum()) + ignored
    share = round(ignored / every, 6) if every else 0.0
    return SplitFacts(len(looked), labelled, sizes, pixels, (table > 0).sum(0), share)
