"""The views of a step: network outputs on the grid of cells, which regularizers compare.

A regularizer asks for views by name. A step makes only those that are needed: first those of the
teacher, then those of the student in the order of `STUDENT_VIEWS`. A pass of the student changes
batch-norm statistics, so the order is part of the result.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NewType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.labels.classes import IGNORE
from udaseg.data.loading.batches import Batch
from udaseg.distributed import to_device
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for
from udaseg.methods.mixing import cells_to_pixels, fill_edge_rows, paste, square_mask
from udaseg.models.segmenter import Segmenter, SegmenterOutput

View = NewType("View", str)

SOURCE = View("source")
"""The student on source images, with their labels."""

MIXED = View("mixed")
"""The student on ClassMix images, with mixed labels and the teacher's confidence in them. Option
`from_target`: true also finds the cells that show the target alone."""

CUTMIX = View("cutmix")
"""The student on source images with a pasted square of the target. Labels come from the source
outside the square and from the teacher inside. Options `square_per`, `square_corner` and
`square_share`: those of `square_mask`."""

AUGMENTED = View("augmented")
"""The student on target images after jitter and blur, with the teacher's labels and confidence.
Rows that are not trained on, `StepContext.ignore_rows`, have no label."""

MASKED = View("masked")
"""The student on target images after jitter and blur of which parts are hidden; see `masking`."""

TARGET = View("target")
"""The teacher on plain target images; no gradient."""

TARGET_BY_STUDENT_HEAD = View("target_by_student_head")
"""`TARGET` with the teacher's features projected by the student's head; for an ablation."""

TEACHER_SOURCE = View("teacher_source")
"""The teacher on plain source images, with their labels; no gradient."""

PSEUDO_LABELLED = View("pseudo_labelled")
"""The student on plain target images, with pseudo-labels written before the stage."""


@dataclass(frozen=True)
class Need:
    """A view that a regularizer reads.

    Attributes:
        embed: Whether it needs embeddings, which need a projection head.
        options: How to make the view; two regularizers cannot ask for different values. With
            `label_share`, a label on a cell is the class of this share of its pixels, or none; see
            `labels_on_cells`; with `images`, `Views.images` has what the student is shown.
        start: First step that needs it. Before, the step may lack the view or its embeddings. Only
            for needs of a `PerViewRegularizer`.
    """

    view: View
    embed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0


@dataclass(frozen=True)
class CellView:
    """The output of a network for a batch, on the grid of cells.

    Attributes:
        features: (B, C, h, w).
        embeddings: (B, D, h, w) unit vectors; None unless needed.
        labels: (B, h, w) int64, a class or `IGNORE`; pseudo-labels if there is no ground truth.
        predictions: (B, h, w) int64, the most probable class; no gradient.
        confidence: (B, h, w) in [0, 1], probability of the prediction; no gradient.
        label_confidence: (B, h, w) in [0, 1], confidence of the teacher in `labels`, 1 where they
            come from the source; None if all labels count.
        square: (B, h, w) bool on the CPU, the cells of the pasted square; None in other views.
        from_target: (B, h, w) bool, the cells that show the target alone; only in `MIXED`, if a
            need asks for it.
    """

    features: Tensor
    embeddings: Tensor | None
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    label_confidence: Tensor | None = None
    square: Tensor | None = None
    from_target: Tensor | None = None


@dataclass(frozen=True)
class CellLabels:
    """The labels of a view of the student, on the grid of cells; fields as in `CellView`."""

    labels: Tensor
    label_confidence: Tensor | None = None
    square: Tensor | None = None
    from_target: Tensor | None = None


@dataclass(frozen=True)
class StudentInput:
    """What a view of the student is made from.

    Attributes:
        images: (B, 3, H, W) in [0, 1], augmented.
        labels: Its labels, if a regularizer needs the view.
    """

    images: Tensor
    labels: CellLabels | None


@dataclass(frozen=True)
class Views:
    """The views of one step, by name: `views[SOURCE]`.

    Attributes:
        progress: As `Batch.progress`, in [0, 1).
        seed: Seed of the regularizers' random choices.
        by_name: The views that exist; grows during the step.
        labels: Labels of the student's views, which are known before its passes.
        totals: `Regularizer.local_counts`, summed over ranks, by regularizer; empty in a single
            process.
        images: (B, 3, H, W) in [0, 1], what the student is shown in views whose need asks for them.
    """

    step: int
    progress: float
    seed: int
    by_name: dict[View, CellView]
    labels: Mapping[View, CellLabels] = field(default_factory=dict)
    totals: dict[object, Tensor] = field(default_factory=dict)
    images: Mapping[View, Tensor] = field(default_factory=dict)

    def __getitem__(self, view: View) -> CellView:
        if view not in self.by_name:
            raise UdasegError(f"the step has no view '{view}', only {', '.join(self.by_name)}")
        return self.by_name[view]

    def drop_graphs(self) -> None:
        """Free the graphs of the views that exist."""
        for view, seen in self.by_name.items():
            embeddings = None if seen.embeddings is None else seen.embeddings.detach()
            self.by_name[view] = replace(
                seen, features=seen.features.detach(), embeddings=embeddings
            )


@dataclass(frozen=True)
class StepContext:
    """The images of a step and the output of the teacher, from which views are computed.

    Attributes:
        augment: The strong augmentation of the student's images.
        source: (B, 3, H, W) source images in [0, 1].
        target: (B, 3, H, W) target images in [0, 1].
        target_output: Output of the teacher for the target images.
        label_output: That of which the pseudo-labels are: another one if the teacher labels the
            images at another scale.
        target_labels: (B, H, W) uint8, the teacher's pseudo-labels.
        target_confidence: (B, H, W), the teacher's probability of its pseudo-labels.
        ignore_rows: (top, bottom) rows of the target whose pseudo-labels are not trained on.
    """

    batch: Batch
    student: Segmenter
    teacher: nn.Module
    augment: Callable[[Tensor, torch.Generator], Tensor]
    source: Tensor
    target: Tensor
    target_output: SegmenterOutput
    label_output: SegmenterOutput
    target_labels: Tensor
    target_confidence: Tensor
    ignore_rows: tuple[int, int] = (0, 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        height, width = self.target_output.features.shape[-2:]
        return height, width

    @cached_property
    def target_view(self) -> CellView:
        """The teacher's view of the target images."""
        return cell_view(self.target_output, None)


def merge_needs(needs: Iterable[Need]) -> dict[View, Need]:
    """Return one need for each view, with embeddings if any of them needs embeddings."""
    merged: dict[View, Need] = {}
    for need in needs:
        if not isinstance(need, Need) or need.view not in SELF_TRAINING_VIEWS:
            raise UdasegError(
                f"a regularizer needs {need!r}, which is no Need of a view that self-training "
                f"makes: {', '.join(SELF_TRAINING_VIEWS)}"
            )
        earlier = merged.setdefault(need.view, need)
        for name, value in need.options.items():
            if earlier.options.get(name, value) != value:
                raise UdasegError(
                    f"two regularizers need the view '{need.view}' with {name}={value} and "
                    f"{name}={earlier.options[name]}; they cannot be combined"
                )
        options = {**earlier.options, **need.options}
        start = min(earlier.start, need.start)
        merged[need.view] = Need(need.view, earlier.embed or need.embed, options, start)
    return merged


def _cutmix(context: StepContext, need: Need) -> StudentInput:
    source, stride, options = context.source, context.student.output_stride, need.options
    size = (source.shape[-2], source.shape[-1])
    generator = generator_for(context.batch.seed, "cutmix")
    square = square_mask(
        len(source),
        size,
        stride,
        generator,
        per=options.get("square_per", "image"),
        corner=options.get("square_corner", "all"),
        share=options.get("square_share", (0.0, 1.0)),
    )
    pixels = to_device(cells_to_pixels(square, size, stride), source.device)
    # a network whose pooling rounds up has a row and a column of cells more
    more = [have - own for have, own in zip(context.grid, square.shape[1:], strict=True)]
    square = F.pad(square, (0, more[1], 0, more[0]))
    images = context.augment(paste(pixels, context.target, source), generator)
    source_labels = labels_on_cells(context.batch.source_labels, context.target_output)
    on_device = to_device(square, source.device)
    labels = paste(on_device, context.target_view.predictions, source_labels)
    return StudentInput(images, CellLabels(labels, square=square))


def _augmented(context: StepContext, need: Need) -> StudentInput:
    images = context.augment(context.target, generator_for(context.batch.seed, "augmented"))
    taught, rows = context.target_view, context.ignore_rows
    labels, confidence = taught.predictions, taught.confidence
    share = need.options.get("label_share")
    has_own_labels = context.label_output is not context.target_output
    if has_own_labels or share is not None or any(rows):
        trusted = fill_edge_rows(context.target_labels, rows, IGNORE)
        labels = labels_on_cells(trusted, context.target_output, share)
    if has_own_labels:
        confidence = on_cells(context.target_confidence, context.grid)
    return StudentInput(images, CellLabels(labels, confidence))


@torch.no_grad()
def _target_by_student_head(context: StepContext, _need: Need) -> CellView:
    assert context.student.projector is not None
    embeddings: Tensor = context.student.projector(context.target_view.features)
    return replace(context.target_view, embeddings=embeddings)


TEACHER_MAKERS: Mapping[View, Callable[[StepContext, Need], CellView]] = {
    TARGET: lambda context, _need: context.target_view,
    TEACHER_SOURCE: lambda context, need: labelled_view(
        context.teacher(context.source, embed=need.embed),
        context.batch.source_labels,
        need.options.get("label_share"),
    ),
    TARGET_BY_STUDENT_HEAD: _target_by_student_head,
}
"""How self-training makes each view without a graph."""

STUDENT_MAKERS: Mapping[View, Callable[[StepContext, Need], StudentInput]] = {
    CUTMIX: _cutmix,
    AUGMENTED: _augmented,
}
"""What self-training shows the student, besides `SOURCE` and `MIXED`, if it is needed."""

SELF_TRAINING_VIEWS = (*TEACHER_MAKERS, SOURCE, MIXED, *STUDENT_MAKERS)

_FIRST = (SOURCE, AUGMENTED, MIXED)
STUDENT_VIEWS = tuple(dict.fromkeys((*_FIRST, *STUDENT_MAKERS, MASKED, PSEUDO_LABELLED)))
"""The views with a graph, in the order in which a step makes them."""


def labels_on_cells(
    labels: Tensor, segmented: SegmenterOutput, share: float | None = None
) -> Tensor:
    """Return (B, H, W) labels on the grid of cells, int64.

    Without a `share` they are resized by nearest neighbour. With one, a cell has the class, or
    `IGNORE`, of most of its pixels, and `IGNORE` if that is less than this share of them.
    """
    grid = segmented.features.shape[-2:]
    if share is None:
        return on_cells(labels.float(), grid).long()
    classes = torch.arange(segmented.logits.shape[1] + 1, device=labels.device)
    # IGNORE, the largest label, becomes class K
    member = labels.clamp(max=len(classes) - 1)[:, None] == classes[:, None, None]
    most, label = F.adaptive_avg_pool2d(member.float(), (grid[0], grid[1])).max(1)
    return label.masked_fill_((most < share) | (label == len(classes) - 1), IGNORE)


def on_cells(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Return (B, H, W) numbers resized to a grid (h, w) of cells by nearest neighbour."""
    return F.interpolate(values[:, None], tuple(grid), mode="nearest")[:, 0]


def cells_without(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the cells (B, h, w) of a grid in which no pixel of a mask (B, H, W) is true."""
    return F.adaptive_max_pool2d(mask[:, None].float(), tuple(grid))[:, 0] == 0


def labelled_view(
    segmented: SegmenterOutput, labels: Tensor, share: float | None = None
) -> CellView:
    """Return an output on the grid of cells, with (B, H, W) labels; see `labels_on_cells`."""
    return cell_view(segmented, labels_on_cells(labels, segmented, share))


def student_view(segmented: SegmenterOutput, labels: CellLabels) -> CellView:
    """Return an output of the student on the grid of cells."""
    view = cell_view(segmented, labels.labels)
    return replace(
        view,
        label_confidence=labels.label_confidence,
        square=labels.square,
        from_target=labels.from_target,
    )


def flatten_cells(maps: Tensor) -> Tensor:
    """Return (B, D, h, w) maps as (B h w, D), one row for each cell."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def cell_view(segmented: SegmenterOutput, labels: Tensor | None) -> CellView:
    """Return an output on the grid of cells; without labels, its predictions are the labels."""
    with torch.no_grad():
        confidence, predictions = segmented.cell_logits().float().softmax(1).max(1)
    return CellView(
        features=segmented.features,
        embeddings=segmented.embeddings,
        labels=predictions if labels is None else labels,
        predictions=predictions,
        confidence=confidence,
    )
