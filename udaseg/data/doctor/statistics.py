"""Statistics of a data set: images, sizes, colours, shares of classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udaseg.data.doctor.findings import Findings
from udaseg.data.doctor.images import InspectedImage
from udaseg.data.doctor.subject import Subject


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of a split.

    Attributes:
        images: Number of images.
        labelled: Number of images with a label.
        sizes: Number of readable images of each (width, height).
        pixels: (K,) pixels of each class in all labels; None without labels.
        labels_with_class: (K,) number of labels that contain each class; None without labels.
        ignored: Share of label pixels without a class; None without labels.
    """

    images: int
    labelled: int
    sizes: Counter[tuple[int, int]]
    pixels: NDArray[np.int64] | None = None
    labels_with_class: NDArray[np.int64] | None = None
    ignored: float | None = None

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return plain JSON values; `names` are the classes."""
        document: dict[str, Any] = {
            "images": self.images,
            "labelled": self.labelled,
            "sizes": {f"{w}x{h}": count for (w, h), count in self.sizes.most_common()},
            "ignored_share": self.ignored,
        }
        if self.pixels is not None and self.labels_with_class is not None:
            rows = zip(names, self.pixels.tolist(), self.labels_with_class.tolist(), strict=True)
            document["classes"] = {
                name: {"pixels": pixels, "labels": labels} for name, pixels, labels in rows
            }
        return document


@dataclass(frozen=True)
class SetStatistics:
    """Statistics of a data set.

    Attributes:
        role: data, source or target.
        kind: prepared, declared, or a folder.
        folder: Folder of the images.
        classes: Names of the classes; empty without labels.
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
    splits: dict[str, SplitStatistics] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    aspect: float | None = None
    height: float | None = None

    def counts(self, *, trained: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return (K,) pixels and labels of each class over the training or held-out splits."""
        per_split = [
            (split.pixels, split.labels_with_class)
            for name, split in self.splits.items()
            if name.startswith("train") == trained
            and split.pixels is not None
            and split.labels_with_class is not None
        ]
        return tuple(np.sum(per_split, 0)) if per_split else None

    @property
    def class_pixels(self) -> dict[str, int]:
        """Pixels of each class in a source's training labels, or in all labels of another set."""
        counts = [self.counts(trained=True)]
        if self.role != "source":
            counts.append(self.counts(trained=False))
        pixels = [count[0] for count in counts if count is not None]
        return dict(zip(self.classes, np.sum(pixels, 0).tolist(), strict=True)) if pixels else {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "role": self.role,
            "name": self.name,
            "kind": self.kind,
            "folder": str(self.folder),
            "classes": list(self.classes),
            "splits": {name: split.to_dict(self.classes) for name, split in self.splits.items()},
            "color_mean": None if self.mean is None else list(self.mean),
            "color_std": None if self.spread is None else list(self.spread),
            "aspect": self.aspect,
            "height": self.height,
        }


def compute_statistics(subject: Subject, images: Sequence[InspectedImage]) -> SetStatistics:
    """Return the statistics of a data set from the results for each of its images."""
    names = () if subject.classes is None else subject.classes.names
    splits = {
        split: _split_statistics([image for image in images if image.item.split == split])
        for split in subject.splits
    }
    sizes = np.array([image.size for image in images if image.size is not None], np.float64)
    means = np.array([image.mean for image in images if image.mean is not None])
    spreads = np.array([image.spread for image in images if image.spread is not None])
    description = (subject.role, subject.name, subject.kind, subject.folder, names, splits)
    if not len(sizes):
        return SetStatistics(*description)
    mean = means.mean(0)
    # of all pixels together: E[x^2] - E[x]^2
    spread = np.sqrt(np.maximum((spreads**2 + means**2).mean(0) - mean**2, 0))
    return SetStatistics(
        *description,
        mean=tuple(mean.round(2).tolist()),
        spread=tuple(spread.round(2).tolist()),
        aspect=round(float(np.median(sizes[:, 1] / sizes[:, 0])), 4),
        height=float(np.median(sizes[:, 0])),
    )


def _split_statistics(images: Sequence[InspectedImage]) -> SplitStatistics:
    sizes = Counter((image.size[1], image.size[0]) for image in images if image.size is not None)
    labelled = sum(image.item.label is not None for image in images)
    label_pixels = [image.pixels for image in images if image.pixels is not None]
    if not label_pixels:
        return SplitStatistics(len(images), labelled, sizes)
    table = np.stack(label_pixels)
    pixels = table.sum(0)
    ignored = sum(image.ignored for image in images)
    total = int(pixels.sum()) + ignored
    share = round(ignored / total, 6) if total else 0.0
    return SplitStatistics(len(images), labelled, sizes, pixels, (table > 0).sum(0), share)


MIN_IMAGES = 10
RARE_SHARE = 0.001
_MAX_IGNORED_SHARE = 0.5
_MAX_MEAN_DIFFERENCE = 20.0  # of 255: almost a tenth of the range is clearly visible
_MAX_SPREAD_RATIO = 1.5
_MAX_ASPECT_RATIO = 1.1
_MIN_SCALE_RATIO = 2.0


def add_set_findings(facts: SetStatistics, findings: Findings) -> None:
    """Add findings from the statistics of one set."""
    role = facts.role
    for name, split in facts.splits.items():
        if split.images < MIN_IMAGES:
            findings.add("tiny-split", role, None, f"{name}: {split.images}")
        if split.ignored is not None and split.ignored > _MAX_IGNORED_SHARE:
            findings.add("mostly-ignored", role, None, f"{name}: {100 * split.ignored:.0f} %")
        if len(split.sizes) > 1:
            most_common, _ = split.sizes.most_common(1)[0]
            others = split.sizes.total() - split.sizes[most_common]
            note = f"{name}: {len(split.sizes)} sizes, mostly {most_common[0]}x{most_common[1]}"
            findings.add("mixed-sizes", role, None, note, count=others)
    counts = facts.counts(trained=True)
    if counts is None or role == "target":  # training does not use a target's labels
        return
    pixels, _ = counts
    total = max(1, int(pixels.sum()))
    for name, count in zip(facts.classes, pixels.tolist(), strict=True):
        if not count:
            findings.add("class-never-seen", role, amounts={name: 0})
        elif count / total < RARE_SHARE:
            findings.add("rare-class", role, amounts={name: count})


def add_domain_findings(source: SetStatistics, target: SetStatistics, findings: Findings) -> None:
    """Add findings from comparing the statistics of source and target."""
    trained = [split for name, split in source.splits.items() if name.startswith("train")]
    if trained and not any(split.labelled for split in trained):
        findings.add("source-unlabelled", "source", None, source.name)
    if source.classes and target.classes:
        _add_class_findings(source, target, findings)
    if not (source.mean and source.spread and source.aspect and source.height):
        return
    if not (target.mean and target.spread and target.aspect and target.height):
        return
    mean_differs = np.abs(np.subtract(source.mean, target.mean)).max() > _MAX_MEAN_DIFFERENCE
    if mean_differs or _max_ratio(source.spread, target.spread) > _MAX_SPREAD_RATIO:
        note = (
            f"mean RGB {_format_color(source.mean)} against {_format_color(target.mean)}, "
            f"spread {_format_color(source.spread)} against {_format_color(target.spread)}"
        )
        findings.add("color-shift", "pair", None, note)
    if _max_ratio(source.aspect, target.aspect) > _MAX_ASPECT_RATIO:
        note = f"width / height {source.aspect:.2f} against {target.aspect:.2f}"
        findings.add("aspect-shift", "pair", None, note)
    if _max_ratio(source.height, target.height) >= _MIN_SCALE_RATIO:
        note = f"height {source.height:.0f} against {target.height:.0f} px"
        findings.add("scale-shift", "pair", None, note)


def _add_class_findings(source: SetStatistics, target: SetStatistics, findings: Findings) -> None:
    shared = [name for name in source.classes if name in target.classes]
    if not shared:
        findings.add("no-shared-class", "pair", None, f"{source.name}, {target.name}")
        return
    for one, other, code in (
        (source, target, "class-only-in-source"),
        (target, source, "class-only-in-target"),
    ):
        for name in one.classes:
            if name not in other.classes:
                findings.add(code, "pair", amounts={name: 0})
    source_pixels, target_pixels = source.class_pixels, target.class_pixels
    if source_pixels and target_pixels:
        for name in shared:
            if target_pixels[name] and not source_pixels[name]:
                findings.add("class-not-taught", "pair", amounts={name: target_pixels[name]})
            elif source_pixels[name] and not target_pixels[name]:
                findings.add("class-not-in-target", "pair", amounts={name: 0})


def _max_ratio(one: ArrayLike, other: ArrayLike) -> float:
    """Return the largest ratio between corresponding values, the larger over the smaller."""
    a, b = np.maximum(one, 1e-6), np.maximum(other, 1e-6)
    return float(np.maximum(a / b, b / a).max())


def _format_color(color: Iterable[float]) -> str:
    return " ".join(str(round(part)) for part in color)
