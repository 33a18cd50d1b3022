"""Compute the scores of a run or of predictions from a confusion matrix, with notes on them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udaseg.data.datasets.index import PreparedDataset
from udaseg.data.labels.classes import ClassSpace
from udaseg.errors import UsageError
from udaseg.evaluation import protocols
from udaseg.evaluation.confusion import ConfusionMatrix
from udaseg.inference.pipeline import RELEASE_SIZE
from udaseg.recipe.choices import check_scoring
from udaseg.runs.image_counts import ImageCounts
from udaseg.runs.scores import Scores
from udaseg.text import format_size, percent

_TRAINED_IOU = 0.01  # below, a class counts as untrained: no label ever supervised its output


@dataclass(frozen=True)
class ScoringOptions:
    """Which mean to compute by which convention, and where to write the scores.

    Attributes:
        protocol: Show only the mean over 19, 16 or 13 classes.
        convention: 19 counts truth of classes that SYNTHIA lacks, 16 ignores it; None is the
            network's own.
        out: Folder of the score files; None is a folder in the run, or no files without a run.

    Raises:
        UsageError: There is no such protocol or convention.
    """

    protocol: int | None = None
    convention: int | None = None
    out: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_scoring(self.protocol, self.convention)


PUBLISHED_SCORING = ScoringOptions()


def summarise(
    matrix: ConfusionMatrix,
    classes: ClassSpace,
    dataset: PreparedDataset,
    split: str,
    inference: Mapping[str, str],
    scoring: ScoringOptions = PUBLISHED_SCORING,
    *,
    release: bool = False,
) -> Scores:
    """Return the scores of a matrix with its protocol line, means, and notes.

    Args:
        matrix: Over `classes`, with the dataset's other classes as outside classes.
        classes: Classes of the network.
        dataset: Dataset that was scored.
        split: Split of the dataset.
        inference: Inference options for the protocol line.
        scoring: Which means, by which convention.
        release: Scored at the size used by the released code of DACS and RCCR.
    """
    assert dataset.classes is not None
    truth, convention = dataset.classes.names, scoring.convention
    applicable = protocols.applicable_conventions(classes.names, truth)
    applied = convention if convention in applicable else next(iter(applicable), None)
    scored = protocols.score_under_convention(applied, matrix, classes.names, truth)
    notes = _notes(scored, classes.names, truth)
    if convention is not None and convention not in applicable:
        notes.append(f"convention {convention} makes no difference for these classes")
    notes += _other_convention_note(applicable, applied, matrix, classes.names, truth)
    line = {**_data_facts(dataset, split, release=release), **inference}
    if applied is not None:
        line["convention"] = _describe_convention(applied, classes.names)

    def _by_class(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(scored.names, values.tolist(), strict=True))

    return Scores(
        protocol=line,
        iou=_by_class(scored.matrix.iou()),
        accuracy=_by_class(scored.matrix.accuracy()),
        truth_share=_by_class(scored.matrix.truth_share()),
        means=_requested_means(scored.means, scoring.protocol, dataset),
        pixel_accuracy=scored.matrix.pixel_accuracy(),
        confusion=scored.matrix.counts.tolist(),
        notes=notes,
        images=_image_counts(applied, matrix, classes.names, dataset, split),
    )


def _image_counts(
    convention: int | None,
    matrix: ConfusionMatrix,
    names: tuple[str, ...],
    dataset: PreparedDataset,
    split: str,
) -> ImageCounts | None:
    """Return the counts of each image of a split; None if others were counted."""
    assert dataset.classes is not None
    truth, samples = dataset.classes.names, dataset.split(split)
    if len(matrix.counted) != len(samples):
        return None
    rows = []
    for image in matrix.images():
        scored = protocols.score_under_convention(convention, image, names, truth)
        counts = scored.matrix.counts
        rows.append((np.diag(counts).copy(), counts.sum(0), scored.matrix.truth))
    right, predicted, true = map(np.array, zip(*rows, strict=True))
    images = tuple(sample.image for sample in samples)
    return ImageCounts(images, scored.names, right, true + predicted - right, true)


def check_protocol(names: Sequence[str], scoring: ScoringOptions) -> None:
    """Refuse a mean over classes that the network lacks, unless the convention counts them as 0."""
    protocol, convention = scoring.protocol, scoring.convention
    listed = f"it has {', '.join(names)}"
    means = protocols.class_positions_by_protocol(names)
    if convention is not None and 16 not in means:
        raise UsageError(
            f"--convention {convention}: the network lacks some of the 16 classes; {listed}"
        )
    if protocol == 19 and convention == 16:
        raise UsageError("--protocol 19 needs --convention 19; convention 16 has 16 classes")
    if protocol is None or protocol in means or convention == 19:
        return
    hint = "; --convention 19 counts them as 0" if 16 in means else ""
    raise UsageError(
        f"--protocol {protocol}: the network lacks some of these classes; {listed}{hint}"
    )


def _requested_means(
    means: Mapping[str, float], protocol: int | None, dataset: PreparedDataset
) -> Mapping[str, float]:
    """Return the mean over `protocol` classes, which may be missing; all means if it is None."""
    name = f"mIoU-{protocol}"
    if protocol is None:
        return means
    if name not in means:
        raise UsageError(
            f"--protocol {protocol}: network and labels of {dataset.name} together have no such "
            f"mean, only {', '.join(means)}"
        )
    return {name: means[name]}


def _data_facts(dataset: PreparedDataset, split: str, *, release: bool) -> dict[str, str]:
    """Return what was scored, and at which size, for the protocol line."""
    samples = dataset.split(split)
    sizes = {(sample.height, sample.width) for sample in samples}
    resolution = format_size(next(iter(sizes))) if len(sizes) == 1 else f"{len(sizes)} sizes"
    if release:
        resolution = f"{format_size(RELEASE_SIZE)}, truth by nearest neighbour"
    return {
        "data": dataset.name,
        "split": split,
        "images": str(len(samples)),
        "protocol": "release of DACS and RCCR" if release else "full size",
        "scored at": resolution,
    }


def _describe_convention(convention: int, names: tuple[str, ...]) -> str:
    head_classes = sum(name in protocols.SUBSETS[19] for name in names)
    treatment = "counts" if convention == 19 else "is ignored"
    extra = ", ".join(protocols.NOT_IN_16)
    return f"{convention}-way (truth of {extra} {treatment}; {head_classes}-way head)"


def _notes(
    scored: protocols.ProtocolScores, names: Sequence[str], truth: Sequence[str]
) -> list[str]:
    """Return a sentence for each kind of class that a plain IoU does not describe."""
    iou = dict(zip(scored.names, scored.matrix.iou().tolist(), strict=True))
    predicted = dict(zip(scored.names, scored.matrix.counts.sum(0).tolist(), strict=True))
    measured = [value for value in iou.values() if not math.isnan(value)]
    without_truth = [name for name in names if math.isnan(iou[name])]
    guessed = [name for name in without_truth if predicted[name]]
    if set(scored.names) != set(protocols.SUBSETS[19]):
        guessed = []
    official_mean = percent(sum(measured) / max(1, len(measured) + len(guessed)))
    unknown = protocols.classes_only_in_truth(names, truth)
    classes_by_note = {
        "no truth for {}: shown as - and excluded from the mean": [
            name for name in without_truth if name in truth
        ],
        "no truth for {}, classes that only the network has: shown as - and excluded from the "
        "mean": [name for name in names if name not in truth],
        "the network does not know {}: IoU 0, and these pixels count as errors of the predicted "
        "classes": [name for name in unknown if name in scored.names],
        "predicted but without truth: {}; the official script of Cityscapes counts these as 0, "
        f"its mean would be {official_mean}": guessed,
        "the network does not know {}: these pixels are not scored": [
            name for name in unknown if name not in scored.names
        ],
        "never predicted: {}; each counts as 0 in the mean": [
            name for name in names if iou[name] == 0 and not predicted[name]
        ],
    }
    return [note.format(", ".join(found)) for note, found in classes_by_note.items() if found]


def _other_convention_note(
    applicable: tuple[int, ...],
    applied: int | None,
    matrix: ConfusionMatrix,
    names: tuple[str, ...],
    truth: tuple[str, ...],
) -> list[str]:
    """Return the means of the other convention, if papers differ for these classes."""
    if applied is None:
        return []
    other = next(number for number in applicable if number != applied)
    if applicable[0] == 19 and applied == 19:
        # if all 19 are trained, as from GTA5, papers do not ignore three of them
        ious = dict(zip(names, matrix.iou().tolist(), strict=True))
        if any(ious[name] >= _TRAINED_IOU for name in protocols.NOT_IN_16):
            return []
    means = protocols.score_under_convention(other, matrix, names, truth).means
    listed = ", ".join(f"{name} {percent(mean)}" for name, mean in means.items())
    return [f"in the other convention, {_describe_convention(other, names)}: {listed}"]
