"""Compute mean IoUs by the published protocols, including truth that the network cannot predict.

SYNTHIA has 16 of the 19 classes of Cityscapes. Two conventions of scoring it are published:

* 16-way: a head with 16 outputs; pixels whose truth is terrain, truck or train are ignored (FADA,
  ProDA, SPCL).
* 19-way: a head with 19 outputs of which 16 are averaged; those pixels count as errors of the
  predicted class (DAFormer and its successors).

mIoU-13 is the mean over 13 of the 16 IoUs in both. Both conventions are computed from one confusion
matrix for any head: in the 19-way convention, a class that the head lacks counts as never
predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from udaseg.data.labels.tables import builtin_label_table
from udaseg.evaluation.confusion import ConfusionMatrix

CITYSCAPES = builtin_label_table("cityscapes19").classes.names
NOT_IN_16 = ("terrain", "truck", "train")
_NOT_IN_13 = {*NOT_IN_16, "wall", "fence", "pole"}

SUBSETS = {
    19: CITYSCAPES,
    16: tuple(name for name in CITYSCAPES if name not in NOT_IN_16),
    13: tuple(name for name in CITYSCAPES if name not in _NOT_IN_13),
}
"""The classes of each published protocol; 16 and 13 are SYNTHIA's."""


@dataclass(frozen=True)
class ProtocolScores:
    """A confusion matrix over `names`, under a convention, and its means, such as `mIoU-19`.

    The names are the network's classes, plus the classes it lacks if their truth counts.
    """

    matrix: ConfusionMatrix
    names: tuple[str, ...]
    means: dict[str, float]


def class_positions_by_protocol(names: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """Return the class positions of each protocol whose classes all occur in `names`."""
    position = {name: index for index, name in enumerate(names)}
    return {
        count: tuple(position[name] for name in subset)
        for count, subset in SUBSETS.items()
        if all(name in position for name in subset)
    }


def classes_only_in_truth(names: Sequence[str], truth: Sequence[str]) -> tuple[str, ...]:
    """Return the true classes that the network lacks, in the truth's order."""
    return tuple(name for name in truth if name not in names)


def applicable_conventions(names: Sequence[str], truth: Sequence[str]) -> tuple[int, ...]:
    """Return the conventions that change the scores of a network with the classes `names`.

    The network's own comes first; empty if none changes them.
    """
    extra_classes = [name for name in NOT_IN_16 if name in names]
    if not set(SUBSETS[16]) <= set(names) or not set(NOT_IN_16) & set(truth):
        return ()
    if not extra_classes:
        return 16, 19
    return (19, 16) if len(extra_classes) == len(NOT_IN_16) else ()


def score_under_convention(
    convention: int | None, matrix: ConfusionMatrix, names: Sequence[str], truth: Sequence[str]
) -> ProtocolScores:
    """Return the scores of a matrix over `names` under a convention, None if neither applies.

    The classes that only the truth has are outside classes of the matrix, in the truth's order.
    """
    names = tuple(names)
    if convention == 19:
        missing = classes_only_in_truth(names, truth)
        chosen = [name for name in NOT_IN_16 if name in missing]
        matrix = matrix.with_outside([missing.index(name) for name in chosen])
        names = (*names, *chosen)
    elif convention == 16:
        ignored = [names.index(name) for name in NOT_IN_16 if name in names]
        matrix = matrix.without_truth(ignored)
    subsets = class_positions_by_protocol(names)
    if convention == 16:
        subsets.pop(19, None)
    means = {f"mIoU-{count}": matrix.mean_iou(chosen) for count, chosen in subsets.items()}
    return ProtocolScores(matrix, names, means or {"mIoU": matrix.mean_iou()})
