"""The views of a step: network outputs on the grid of cells, which regularizers compare.

A regularizer asks for views by name. A step makes only those that are needed, in the order of
`MAKERS`: a pass of the student changes batch-norm statistics, so the order is part of the result.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NewType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.data.loading.batches import Batch
from udaseg.distributed import to_device
from udaseg.errors import UdasegError
from udaseg.methods.augmentation import generator_for
from udaseg.methods.mixing import cells_to_pixels, paste, square_mask
from udaseg.models.segmenter import Segmenter, SegmenterOutput

View = NewType("View", str)

SOURCE = View("source")
"""The student on source images, with their labels."""

MIXED = View("mixed")
"""The student on ClassMix images, with mixed labels and the teacher's confidence in them."""

CUTMIX = View("cutmix")
"""The student on source images with a pasted square of the target. Labels come from the source
outside the square and from the teacher inside. Option `square_per`: `image` or `batch`."""

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
        options: How to make the view; two regularizers cannot ask for different values.
    """

    view: View
    embed: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


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
        square: (B, h, w) bool, the cells of the pasted square; None in other views.
    """

    features: Tensor
    embeddings: Tensor | None
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    label_confidence: Tensor | None = None
    square: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """The views of one step, by name: `views[SOURCE]`.

    Attributes:
        progress: As `Batch.progress`, in [0, 1).
        seed: Seed of the regularizers' random choices.
    """

    step: int
    progress: float
    seed: int
    by_name: Mapping[View, CellView]

    def __getitem__(self, view: View) -> CellView:
        if view not in self.by_name:
            raise UdasegError(f"the step has no view '{view}', only {', '.join(self.by_name)}")
        return self.by_name[view]


@dataclass(frozen=True)
class StepContext:
    """The images and network outputs of a step, from which views are computed.

    Attributes:
        augment: The strong augmentation of the student's images.
        source: (B, 3, H, W) source images in [0, 1].
        target: (B, 3, H, W) target images in [0, 1].
        target_output: Output of the teacher.
        target_confidence: (B, H, W), the teacher's probability of its pseudo-labels.
        source_output: Output of the student, as is `mixed_output`.
        mixed_labels: (B, H, W), source labels inside the mask and teacher labels outside.
        mixed_mask: (B, H, W) bool, the pixels pasted from the source.
    """

    batch: Batch
    student: Segmenter
    teacher: nn.Module
    augment: Callable[[Tensor, torch.Generator], Tensor]
    source: Tensor
    target: Tensor
    target_output: SegmenterOutput
    target_confidence: Tensor
    source_output: SegmenterOutput
    mixed_output: SegmenterOutput
    mixed_labels: Tensor
    mixed_mask: Tensor

    @cached_property
    def target_view(self) -> CellView:
        """The teacher's view of the target images."""
        return cell_view(self.target_output, None)


def merge_needs(needs: Iterable[Need]) -> dict[View, Need]:
    """Return one need for each view, with embeddings if any of them needs embeddings."""
    merged: dict[View, Need] = {}
    for need in needs:
        if not isinstance(need, Need) or need.view not in MAKERS:
            raise UdasegError(
                f"a regularizer needs {need!r}, which is no Need of a view that self-training "
                f"makes: {', '.join(MAKERS)}"
            )
        earlier = merged.setdefault(need.view, need)
        for name, value in need.options.items():
            if earlier.options.get(name, value) != value:
                raise UdasegError(
                    f"two regularizers need the view '{need.view}' with {name}={value} and "
                    f"{name}={earlier.options[name]}; they cannot be combined"
                )
        options = {**earlier.options, **need.options}
        merged[need.view] = Need(need.view, earlier.embed or need.embed, options)
    return merged


def make_views(context: StepContext, needs: Mapping[View, Need]) -> Views:
    """Return the views that are needed; make no others."""
    made = {
        view: make(context, needs[view].options) for view, make in MAKERS.items() if view in needs
    }
    return Views(context.batch.step, context.batch.progress, context.batch.seed, made)


def _cutmix(context: StepContext, options: Mapping[str, object]) -> CellView:
    source, stride = context.source, context.student.output_stride
    size = (source.shape[-2], source.shape[-1])
    generator = generator_for(context.batch.seed, "cutmix")
    per: Literal["image", "batch"] = "batch" if options.get("square_per") == "batch" else "image"
    square = to_device(square_mask(len(source), size, stride, generator, per=per), source.device)
    pasted = paste(cells_to_pixels(square, size, stride), context.target, source)
    output: SegmenterOutput = context.student(context.augment(pasted, generator), embed=True)
    source_labels = labels_on_cells(context.batch.source_labels, output)
    labels = paste(square, context.target_view.predictions, source_labels)
    return replace(cell_view(output, labels), square=square)


def _mixed(context: StepContext, _options: Mapping[str, object]) -> CellView:
    output = context.mixed_output
    confidence = context.target_confidence.masked_fill(context.mixed_mask, 1.0)
    on_cells = F.interpolate(confidence[:, None], output.features.shape[-2:])[:, 0]
    return replace(labelled_view(output, context.mixed_labels), label_confidence=on_cells)


@torch.no_grad()
def _target_by_student_head(context: StepContext, _options: Mapping[str, object]) -> CellView:
    assert context.student.projector is not None
    embeddings: Tensor = context.student.projector(context.target_view.features)
    return replace(context.target_view, embeddings=embeddings)


MAKERS: Mapping[View, Callable[[StepContext, Mapping[str, object]], CellView]] = {
    TARGET: lambda context, _options: context.target_view,
    TEACHER_SOURCE: lambda context, _options: labelled_view(
        context.teacher(context.source, embed=True), context.batch.source_labels
    ),
    CUTMIX: _cutmix,
    SOURCE: lambda context, _options: labelled_view(
        context.source_output, context.batch.source_labels
    ),
    MIXED: _mixed,
    TARGET_BY_STUDENT_HEAD: _target_by_student_head,
}
"""How self-training makes each view, from the passes of a step and the options of a `Need`."""


def labels_on_cells(labels: Tensor, segmented: SegmenterOutput) -> Tensor:
    """Return (B, H, W) labels resized to the grid of cells by nearest neighbour, int64."""
    size = segmented.features.shape[-2:]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def labelled_view(segmented: SegmenterOutput, labels: Tensor) -> CellView:
    """Return an output on the grid of cells, with (B, H, W) labels."""
    return cell_view(segmented, labels_on_cells(labels, segmented))


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
